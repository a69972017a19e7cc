"""The file-system calls of every save, in one place: written aside, fsynced, renamed, parent fsynced.

`watch` is called before each of them, so that a test can stop the process at every single one (tests/crash).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

watch: Callable[[str, Path], None] = lambda call, path: None  # noqa: E731
"""Called with the name of the call and its path, just before it happens."""

PIECE = 2**20


def make_folder(path: Path) -> None:
    """mkdir with parents; the folders above a new one are fsynced, so that the name survives a power cut."""
    if path.is_dir():
        return
    missing = [p for p in (path, *path.parents) if not p.exists()]
    watch("mkdir", path)
    path.mkdir(parents=True, exist_ok=True)
    for new in reversed(missing):
        sync(new.parent)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends and vanishes where it fails: it appears whole or not at all."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        sync(aside)
        rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write and fsync one new file."""
    watch("open", path)
    with path.open("wb") as file:
        for start in range(0, max(1, len(content)), 64 * PIECE):
            watch("write", path)
            file.write(content[start : start + 64 * PIECE])
        file.flush()
        watch("fsync", path)
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """fsync a file or a folder (so that a rename in it survives a power cut)."""
    watch("fsync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within one file system and fsync the parent; readers see the old or the new, never half."""
    watch("rename", target)
    os.rename(source, target)
    sync(target.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    write_file(aside, content)
    watch("replace", path)
    os.replace(aside, path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Delete a folder of files: it first takes a hidden name, so that nobody meets a half-deleted one. Failure is not fatal."""
    if not path.exists():
        return
    hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.removed")
    try:
        if hidden != path:
            if hidden.exists():
                remove(hidden)
            watch("rename", hidden)
            os.rename(path, hidden)
        for file in sorted(hidden.iterdir()):
            watch("unlink", file)
            file.unlink()
        watch("rmdir", hidden)
        hidden.rmdir()
    except OSError:
        shutil.rmtree(hidden, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
