"""Checkpoints of a training run: complete or absent, whatever kills the process.

`checkpoints/step-000000120/` holds `state.safetensors`, `meta.json` and `index.json` with the sha256 of both. It is written
aside and renamed; the newest one whose hashes hold is the one that counts. The two newest are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError
from modelyard.store import atomic
from modelyard.store.state import arrays_bytes, read_arrays

KEEP = 2
NAME = re.compile(r"step-(\d{9})")


def save(folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `step`; when this returns it survives a power cut."""
    atomic.make_folder(folder)
    target = folder / f"step-{step:09d}"
    aside = folder / f".step-{step:09d}.partial"
    atomic.remove(aside)
    atomic.make_folder(aside)
    contents = {
        "state.safetensors": arrays_bytes(arrays),
        "meta.json": json.dumps({"step": step, **meta}, ensure_ascii=False).encode("utf-8"),
    }
    for name, content in contents.items():
        atomic.write_file(aside / name, content)
    index = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    atomic.write_file(aside / "index.json", json.dumps(index).encode("utf-8"))
    atomic.sync(aside)
    if target.exists():  # the same step saved again after a resume
        atomic.remove(target)
    atomic.rename(aside, target)
    for old in _all(folder)[:-KEEP]:
        atomic.remove(old)
    return target


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]] | None:
    """(arrays, meta, notes) of the newest whole checkpoint; None where there is none. Damaged ones are named in the notes."""
    notes = []
    for path in reversed(_all(folder)):
        try:
            arrays, meta = _read(path)
        except (ArtefactError, OSError, ValueError, KeyError) as error:
            notes.append(f"{path.name} is damaged and was passed over: {error}")
            continue
        return arrays, meta, notes
    return None


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    index = json.loads((path / "index.json").read_text(encoding="utf-8"))
    for name in ("state.safetensors", "meta.json"):
        if atomic.sha256(path / name) != index[name]:
            raise ArtefactError(f"{name} is not what was saved")
    return read_arrays(path / "state.safetensors"), json.loads((path / "meta.json").read_text(encoding="utf-8"))


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if NAME.fullmatch(p.name)) if folder.is_dir() else []
