"""Checkpoints of a training run: complete or absent, whatever kills the process.

`checkpoints/step-000000120/` holds `state.safetensors`, `meta.json` and `index.json` with the sha256 of both. It is written
aside and renamed; the newest one whose hashes hold is the one that counts, there is no pointer to it. The two newest are
kept, and what the name of a later step holds when an earlier one is saved is left from an abandoned (damaged) course.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError, MachineError, Problem
from modelyard.store import atomic
from modelyard.store.state import arrays_bytes, read_arrays

KEEP = 2
NAME = re.compile(r"step-(\d{9})")


def save(folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `step`; when this returns it survives a power cut."""
    try:
        return _write(folder, step, arrays, meta)
    except OSError as error:
        message = f"the checkpoint of step {step} could not be saved in {folder}: {error.strerror or error}"
        kept = [p.name for p in _all(folder)]
        hint = "Free some space or make it writable, then continue with --resume."
        raise MachineError(message, [Problem(f"kept as they were: {', '.join(kept) or 'none yet'}", hint=hint)]) from error


def _write(folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    atomic.make_folder(folder)
    target = folder / f"step-{step:09d}"
    aside = folder / f".step-{step:09d}.partial"
    for stale in sorted(folder.glob(".step-*")):  # of saves and removals that were cut short
        atomic.remove(stale)
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
    if target.exists():  # damaged, or it would have been resumed from
        atomic.remove(target)
    atomic.rename(aside, target)
    found = _all(folder)
    place = found.index(target)
    for old in (*found[: max(0, place + 1 - KEEP)], *found[place + 1 :]):
        atomic.remove(old)
    return target


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]] | None:
    """(arrays, meta, notes) of the newest whole checkpoint; None where there is none. Damaged ones are named in the notes."""
    notes = []
    for path in reversed(_all(folder)):
        try:
            arrays, meta = _read(path)
        except (ArtefactError, OSError, ValueError, KeyError, TypeError) as error:
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
