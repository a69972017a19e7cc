"""A model folder with other graphs than its parent's: examples answered anew, the parent named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.runtime.answers import Graph
from modelyard.runtime.backends.onnx import session
from modelyard.runtime.model import Model
from modelyard.store import folder as store


def graphs_of(model: Model) -> dict[str, Path]:
    """ONNX files by graph."""
    return {name: model.folder / file for name, file in model.manifest["model"]["onnx"].items()}


def child(parent: Model, target: Path, relation: str, rewrite: Callable[[str, Path, Path], None]) -> Path:
    """`rewrite(graph, source, target)` writes each graph of the child."""
    from modelyard.verbs.train.save import answered, write_examples

    kept = {k: v for k, v in parent.manifest.items() if k not in ("format", "files")}
    manifest = {**kept, "parents": [*kept.get("parents", []), {"version": parent.version, "relation": relation}]}
    stored = json.loads((parent.folder / "examples.json").read_text(encoding="utf-8"))

    def fill(aside: Path) -> None:
        files = set(parent.manifest["model"]["onnx"].values())
        for name in parent.manifest["files"]:
            if name not in files and name != "examples.json":
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(parent.folder / name, aside / name)
        for graph, source in graphs_of(parent).items():
            rewrite(graph, source, aside / source.name)
        graphs = {name: session(aside / source.name) for name, source in graphs_of(parent).items()}
        fitted = replace(parent, folder=target, manifest=manifest, graphs=graphs, version="unsaved", parity=None)
        write_examples(aside, answered(fitted, stored["rows"], stored["params"]))

    return store.write(target, manifest, fill)


def feeds(model: Model, rows: Any, block: int = 32) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each graph is fed while `rows` are predicted, in blocks: what calibration looks at."""
    seen: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in model.graphs}

    def spy(name: str) -> Graph:
        graph = model.graphs[name]

        def call(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen[name].append({k: np.array(v) for k, v in inputs.items()})
            return graph(inputs)

        return call

    watched = replace(model, graphs={name: spy(name) for name in model.graphs})
    for start in range(0, rows.height, block):
        watched.predict_examples(rows[start : start + block])
    return seen
