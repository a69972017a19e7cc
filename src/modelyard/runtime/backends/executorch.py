"""Graphs run by ExecuTorch, from `.pte` programs: an export for phones and small boards, tried on this machine's processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError, MissingExtra, Unsupported
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline


def load(
    folder: Path, manifest: Mapping[str, Any], pipeline: Pipeline, arrays: dict[str, np.ndarray], options: Mapping[str, Any]
) -> dict[str, Graph]:
    """One program per graph named in the manifest, from files whose hashes were checked before."""
    files = manifest["model"].get("executorch", {})
    if not files:
        raise ArtefactError(f"{folder} holds no ExecuTorch programs; export.format: executorch makes them")
    return {name: program(folder / f["file"], f["inputs"], f["outputs"], f["batch"], f["lengths"]) for name, f in files.items()}


def program(file: Path, inputs: list[str], outputs: list[str], batch: int, lengths: Mapping[str, int]) -> Graph:
    """A graph over a `.pte` file. Its memory is planned for `batch` examples, so more go through it in pieces; `lengths` are the most positions of
    texts, beyond which it refuses."""
    try:
        import torch
        from executorch.runtime import Runtime
    except ModuleNotFoundError:
        raise MissingExtra("executorch", "executorch") from None

    method: Any = Runtime.get().load_program(file).load_method("forward")
    if method is None:
        raise ArtefactError(f"ExecuTorch cannot load {file.name}")

    def piece(given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        # what it answers lies in its own memory, which the next call overwrites
        try:
            return [t.numpy().copy() for t in method.execute([torch.from_numpy(np.ascontiguousarray(given[name])) for name in inputs])]
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {given[name].shape}" for name in inputs)
            raise Unsupported(f"ExecuTorch cannot run {file.name} on {shapes}: {str(error)[:200]}", "never") from None

    def graph(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, most in lengths.items():
            if given[name].shape[1] > most:
                raise Unsupported(f"{name} has {given[name].shape[1]} positions, and this ExecuTorch program takes {most}", "never")
        rows = len(given[inputs[0]])
        found = [piece({name: given[name][i : i + batch] for name in inputs}) for i in range(0, rows, batch)]
        return {name: np.concatenate([f[i] for f in found]) for i, name in enumerate(outputs)}

    return graph
