"""ExecuTorch programs (`.pte`, XNNPACK for the operators that it has), run by `runtime/backends/executorch.py`. For torch networks only."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import MissingExtra, Unsupported
from modelyard.runtime.model import Model
from modelyard.verbs.export import onnx

LEFT_OUT = onnx.LEFT_OUT
BATCH = 16
"""Examples that a program takes at once: its memory is planned for them when it is written."""
SPARE = 4
"""A text may be so many times as long as the longest of the stored examples."""


def section(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the programs into `target`; returns the manifest's section of the model. Raises `Unsupported` with ExecuTorch's reason."""
    modules = onnx.modules_of(model, "an ExecuTorch program", trust_code=trust_code)
    recorded = onnx.record(model)
    said = {}
    for name, module in modules.items():
        ragged = onnx.lengths(model, module)
        inputs = {k: v[:BATCH] for k, v in recorded[name].items()}
        longest = {k: SPARE * v.shape[1] for k, v in inputs.items() if k in ragged}
        file = "model.pte" if name == "main" else f"{name}.pte"
        names = _lowered(module, inputs, ragged, max([BATCH, *longest.values()]), target / file, f"the graph {name} of {model.name}")
        said[name] = {"file": file, "inputs": names[0], "outputs": names[1], "batch": BATCH, "lengths": longest}
    kept = {k: v for k, v in model.manifest["model"].items() if k not in ("state", "adapter")}
    return {**kept, "backend": "executorch", "executorch": said}


def _lowered(module: Any, inputs: dict[str, np.ndarray], ragged: set[str], most: int, file: Path, what: str) -> tuple[list[str], list[str]]:
    import torch

    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "executorch", "executorch") from None
    found = onnx.trace(module, inputs, ragged, most)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.export.export(found.module, found.tensors, dynamic_shapes=found.shapes)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:  # torch and ExecuTorch raise many classes, all meaning: this network cannot be expressed
        raise Unsupported(f"ExecuTorch cannot take {what}: {str(error).strip().splitlines()[0][:300]}", "never") from error
    file.write_bytes(lowered.buffer)
    return found.inputs, found.outputs
