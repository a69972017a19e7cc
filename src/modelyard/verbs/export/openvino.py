"""OpenVINO's IR (`.xml` and `.bin`), made from the ONNX graphs; float32, and run by `runtime/backends/openvino.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from modelyard.errors import MissingExtra, Unsupported
from modelyard.runtime.model import Model
from modelyard.verbs.export import onnx

LEFT_OUT = onnx.LEFT_OUT


def section(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the graphs into `target`; returns the manifest's section of the model. Raises `Unsupported` where OpenVINO lacks an operator."""
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingExtra("openvino", "openvino") from None
    files: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, file in onnx.write(model, Path(place), trust_code=trust_code).items():
            try:
                found = openvino.convert_model(Path(place) / file)
            except Exception as error:  # several classes of OpenVINO's own
                reason = str(error).strip().rpartition("\n")[2].removeprefix("-- ")
                raise Unsupported(f"OpenVINO cannot convert the graph {name} of {model.name}: {reason[:300]}", "never") from None
            files[name] = {"file": f"{Path(file).stem}.xml", **_names(found, Path(place) / file)}
            openvino.save_model(found, target / f"{Path(file).stem}.xml", compress_to_fp16=False)
    kept = {k: v for k, v in model.manifest["model"].items() if k not in ("state", "adapter", "onnx")}
    return {**kept, "backend": "openvino", "openvino": files}


def _names(found: Any, file: Path) -> dict[str, list[str]]:
    """Names in the order of the converted graph: OpenVINO keeps those of tensors that it merged beside the ONNX file's own."""
    import onnxruntime as ort

    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    known = {"inputs": (found.inputs, session.get_inputs()), "outputs": (found.outputs, session.get_outputs())}
    return {side: [next(k.name for k in given if k.name in t.get_names()) for t in tensors] for side, (tensors, given) in known.items()}
