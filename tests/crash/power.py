"""A model of power cuts: what was not fsynced may be gone, in any combination.

Every call of `store/atomic.py` is logged with the state it leaves. A cut after call k keeps a file's content only if the file
was fsynced, and a change of a folder (new name, rename, deletion) only if that folder was fsynced afterwards; each change that
was not is kept or lost by a coin. File systems in use today promise at least this (POSIX fsync; Pillai et al. 2014, "All File Systems
Are Not Created Equal"); the model lets content be empty or cut where its fsync is missing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.store import atomic, checkpoint

Log = list[tuple[str, Path]]


def cuts(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """`count` saves, cut at random calls: after each, everything that a finished save promised must load."""
    draw = random.Random(seed)
    wrong, shown = [], []
    for i in range(count):
        place = folder / f"power{i}"
        promised = _cut(place, draw)
        found = checkpoint.load(place)
        step = -1 if found is None else int(found[1]["step"])
        good = found is None or bool((found[0]["w"] == step).all())
        shown.append(step)
        if step < promised or not good:
            wrong.append(f"{i}: promised {promised}, found {step}")
    return {"cuts": count, "different": len(wrong), "where": wrong, "lost": sum(s < 0 for s in shown)}


def _cut(place: Path, draw: random.Random) -> int:
    """Saves steps 1, 2, … on a simulated disk and cuts the power; writes what is left to `place`; returns the last promised step."""
    disk = Disk(place)
    real = (atomic.watch, checkpoint.atomic)
    promised, left = -1, draw.randrange(1, 110)
    try:
        checkpoint.atomic = disk  # type: ignore[attr-defined]
        disk.budget = left
        for step in range(1, 100):
            checkpoint.save(place, step, {"w": np.full(50, step)}, {})
            promised = step
    except _PowerCut:
        pass
    finally:
        atomic.watch, checkpoint.atomic = real  # type: ignore[attr-defined]
    disk.settle(draw)
    return promised


class _PowerCut(BaseException):
    pass


class Disk:
    """Stands in for `store.atomic`: the same calls on a real folder, with a log of what is not yet safe."""

    def __init__(self, root: Path) -> None:
        self.root, self.budget = root, 0
        self.unsafe: list[tuple[Path, Callable[[], None]]] = []
        """(folder whose fsync makes the change safe, how to undo it), in order."""
        self.dirty: set[Path] = set()

    def _call(self) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise _PowerCut

    def make_folder(self, path: Path) -> None:
        if path.is_dir():
            return
        self._call()
        path.mkdir(parents=True)
        if path != self.root:  # as atomic.make_folder: the parent is synced with it
            self.unsafe.append((path.parent, lambda: None))
        self.sync(path.parent)

    def write_file(self, path: Path, content: bytes) -> None:
        self._call()
        path.write_bytes(content)
        self.dirty.add(path)
        self.unsafe.append((path.parent, lambda: path.unlink(missing_ok=True)))
        self._call()
        self.dirty.discard(path)  # fsync of the file

    def sync(self, path: Path) -> None:
        self._call()
        self.unsafe = [(where, undo) for where, undo in self.unsafe if where != path]

    def rename(self, source: Path, target: Path) -> None:
        self._call()
        source.rename(target)
        self.unsafe.append((target.parent, lambda: target.rename(source) if target.exists() and not source.exists() else None))
        self.sync(target.parent)

    def remove(self, path: Path) -> None:
        if not path.exists():
            return
        for file in sorted(path.iterdir()):
            self._call()
            content = file.read_bytes()
            file.unlink()
            self.unsafe.append((path, lambda file=file, content=content: _put(file, content)))  # type: ignore[misc]
        self._call()
        path.rmdir()

    def sha256(self, path: Path) -> str:
        return atomic.sha256(path)

    def settle(self, draw: random.Random) -> None:
        """The disk as it is found after the cut: each change that was not made safe is lost by a coin, latest first."""
        for file in self.dirty:
            if file.exists():
                content = file.read_bytes()
                file.write_bytes(content[: draw.randrange(len(content) + 1)])
        for _, undo in reversed(self.unsafe):
            if draw.random() < 0.5:
                undo()


def _put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
