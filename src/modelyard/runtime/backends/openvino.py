"""Graphs run by OpenVINO, from its IR files: an export for Intel's processors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError, MissingExtra
from modelyard.runtime.answers import Graph
from modelyard.runtime.backends.onnx import AGAIN
from modelyard.runtime.pipeline import Pipeline


def load(
    folder: Path, manifest: Mapping[str, Any], pipeline: Pipeline, arrays: dict[str, np.ndarray], options: Mapping[str, Any]
) -> dict[str, Graph]:
    """One compiled model per graph named in the manifest, from files whose hashes were checked before."""
    files = manifest["model"].get("openvino", {})
    if not files:
        raise ArtefactError(f"{folder} holds no OpenVINO graphs; export.format: openvino makes them")
    return {name: compiled(folder / f["file"], f["inputs"], f["outputs"]) for name, f in files.items()}


def compiled(file: Path, inputs: list[str], outputs: list[str]) -> Graph:
    """A graph over an IR file with the names of its tensors in order.

    It is computed in float32, also where the processor has bfloat16, so that answers stay what they were.
    """
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingExtra("openvino", "openvino") from None

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    try:
        model = openvino.Core().compile_model(file, "CPU", settings)
    except RuntimeError as error:
        raise ArtefactError(f"OpenVINO cannot load {file.name}: {str(error)[:300]}") from None
    names = [name.removesuffix(AGAIN) for name in outputs]

    def graph(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # a request of its own for each call: threads of a server call the graph at the same time
        found = model.create_infer_request().infer({i: given[name] for i, name in enumerate(inputs)})
        return {name: found[i].copy() for i, name in enumerate(names)}

    return graph
