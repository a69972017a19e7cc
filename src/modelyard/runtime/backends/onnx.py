"""Graphs run by ONNX Runtime: what an export holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline

AGAIN = ":again"
"""Behind an output's name where an input has the same (a state that goes in and comes out): ONNX allows a name once."""


def load(
    folder: Path, manifest: Mapping[str, Any], pipeline: Pipeline, arrays: dict[str, np.ndarray], options: Mapping[str, Any]
) -> dict[str, Graph]:
    """One session per graph named in the manifest, from files whose hashes were checked before."""
    files = manifest["model"].get("onnx", {})
    if not files:
        raise ArtefactError(f"{folder} holds no ONNX graphs; make them with: modelyard export {folder}")
    return {name: session(folder / file, options.get("threads")) for name, file in files.items()}


SMALL = 2**20
"""Bytes of a graph over rows of a table up to which one thread is the faster: handing one row of 60 trees to a second thread costs 8 of 21 µs."""


def session(source: Path | bytes, threads: int | None = None) -> Graph:
    """A graph over an ONNX file or its bytes; inputs that the graph does not take are dropped."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    weight = source.stat().st_size if isinstance(source, Path) else len(source)
    settings.intra_op_num_threads = threads or (1 if weight <= SMALL else min(os.cpu_count() or 1, 8))
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves other threads on small hosts
    settings.log_severity_level = 3
    model = str(source) if isinstance(source, Path) else source
    try:
        engine = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        if threads is None and settings.intra_op_num_threads == 1 and not all(_short(i.shape) for i in engine.get_inputs()):
            settings.intra_op_num_threads = min(os.cpu_count() or 1, 8)
            engine = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own classes, all meaning: not a usable model
        raise ArtefactError(f"ONNX Runtime cannot load the graph: {str(error)[:300]}") from None
    wanted = [i.name for i in engine.get_inputs()]
    produced = [o.name for o in engine.get_outputs()]
    names = [name.removesuffix(AGAIN) for name in produced]

    def graph(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = {name: inputs[name] for name in wanted}
        return dict(zip(names, engine.run(produced, feed), strict=True))

    return graph


def _short(shape: list[Any]) -> bool:
    """Whether an input is a row of fixed width: its graph's work is known by its weights."""
    return len(shape) <= 2 and all(isinstance(n, int) for n in shape[1:])
