"""A Triton (and KServe) model repository: the ONNX graphs with their `config.pbtxt`, and `signature.json`, which says how rows become their tensors.

Triton runs graphs, and graphs see numbers only. What turns rows into numbers and outputs into answers is in the folder `pipeline`, the exported
model itself: `modelyard.load_model(…/pipeline).encode_rows(rows)` gives the tensors under the names that the graph has, and
`decode_rows` reads what comes back. A model with several graphs (a text that is written token by token) has one entry for each.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError, Unsupported
from modelyard.runtime.answers import Graph
from modelyard.runtime.backends.onnx import AGAIN, session
from modelyard.runtime.model import Model

TAKES = ("trust_code",)
TYPES = {
    "tensor(float)": "TYPE_FP32", "tensor(double)": "TYPE_FP64", "tensor(float16)": "TYPE_FP16", "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32", "tensor(uint8)": "TYPE_UINT8", "tensor(int8)": "TYPE_INT8", "tensor(bool)": "TYPE_BOOL",
}  # fmt: skip
DTYPES = {
    "TYPE_FP32": np.float32, "TYPE_FP64": np.float64, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32,
    "TYPE_UINT8": np.uint8, "TYPE_INT8": np.int8, "TYPE_BOOL": np.bool_,
}  # fmt: skip
BATCH = 512
"""Rows that Triton may put together; the runtime's own block is as large."""
FIELD = re.compile(r'\{ name: "([^"]+)" data_type: (\w+) dims: \[ ([-\d, ]+) \] \}')


def make(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the repository, reads it back and replays the examples through it."""
    from modelyard.runtime.composite import Composite
    from modelyard.verbs.export import docker, light, prove, replayed

    if isinstance(model, Composite):
        raise Unsupported(f"{model.name} is made of models, each with tensors of its own; export its parts, or use docker", "use")
    light(model, target / "pipeline", trust_code)
    kept = Model.load(target / "pipeline", replay=False)
    files = kept.manifest["model"].get("onnx", {})
    if not files:
        raise Unsupported(f"Triton runs ONNX graphs, and {model.name} has none: it computes in NumPy; use docker", "use")
    names = {graph: docker.label(model.name) + ("" if graph == "main" else f"-{graph}") for graph in files}
    for graph, name in names.items():
        place = target / "models" / name / "1"
        place.mkdir(parents=True)
        shutil.copyfile(target / "pipeline" / files[graph], place / "model.onnx")
        (place.parent / "config.pbtxt").write_text(config(name, place / "model.onnx"), encoding="utf-8")
    told = {"signature": model.signature.to_json(), "program": kept.manifest["model"]["program"], "graphs": names, "version": model.version}
    (target / "signature.json").write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")
    return prove(replayed(kept, {graph: through(target / "models" / name) for graph, name in names.items()}, "triton"))


def config(name: str, file: Path) -> str:
    """Triton's description of an ONNX graph; the batch is its own axis, so dims leave the first away."""
    import onnxruntime as ort

    opened = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {BATCH}"]
    for side, tensors in (("input", opened.get_inputs()), ("output", opened.get_outputs())):
        entries = []
        for tensor in tensors:
            if tensor.type not in TYPES or not tensor.shape or isinstance(tensor.shape[0], int):
                raise Unsupported(f"Triton has no batches of the {side} {tensor.name} ({tensor.type}, {tensor.shape})", "never")
            # one value a row has no axis left, and Triton wants one: it is taken away again before the graph (reshape)
            dims = [d if isinstance(d, int) else -1 for d in tensor.shape[1:]]
            reshape = "" if dims else " reshape: { shape: [ ] }"
            entries.append(f'{{ name: "{tensor.name}" data_type: {TYPES[tensor.type]} dims: [ {", ".join(map(str, dims or [1]))} ]{reshape} }}')
        lines.append(f"{side} [\n  " + ",\n  ".join(entries) + "\n]")
    return "\n".join([*lines, "dynamic_batching { }", ""])


def through(place: Path) -> Graph:
    """The graph of one entry, fed as Triton would feed it: names, types and dims are those of `config.pbtxt`, in batches of its size.

    Raises `ArtefactError` where what goes in or comes out is not as it says.
    """
    text = (place / "config.pbtxt").read_text(encoding="utf-8").replace(" reshape: { shape: [ ] }", "")
    wanted, produced = (FIELD.findall(text[text.index(f"{side} [") :].partition("\n]")[0]) for side in ("input", "output"))
    run = session(place / "1" / "model.onnx")

    def check(name: str, kind: str, dims: str, array: np.ndarray) -> np.ndarray:
        sizes = [int(d) for d in dims.split(",")]
        shape = array.shape[1:] or (1,)
        if array.dtype != DTYPES[kind] or len(shape) != len(sizes) or any(d not in (-1, n) for d, n in zip(sizes, shape, strict=True)):
            raise ArtefactError(f"{name} is {array.dtype} {array.shape}, and config.pbtxt says {kind} [{dims}]")
        return array

    def graph(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        whole = {name: check(name, kind, dims, inputs[name]) for name, kind, dims in wanted}
        rows = len(next(iter(whole.values())))
        pieces = [run({k: v[i : i + BATCH] for k, v in whole.items()}) for i in range(0, rows, BATCH)]
        found = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        return {n.removesuffix(AGAIN): check(n, kind, dims, found[n.removesuffix(AGAIN)]) for n, kind, dims in produced}

    return graph
