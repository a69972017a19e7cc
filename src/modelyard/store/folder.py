"""A model folder: written aside, hashed, then renamed; read only after every core file matched its hash.

`manifest.json` lists sha256 and size of every core file. `version` is the first twelve digits of the manifest's own
sha256, so a changed byte anywhere is another version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, Problem
from modelyard.store import atomic
from modelyard.store.atomic import sha256

FORMAT = 1
"""Raised when a reader of the old format could give a wrong answer."""

MANIFEST = "manifest.json"

MANIFEST_LIMIT = 512 * 2**20


def write(folder: Path, manifest: dict[str, Any], fill: Callable[[Path], None]) -> Path:
    """Make `folder` with what `fill` writes and a manifest that hashes it; it appears whole or not at all.

    An existing folder is never overwritten.
    """
    if folder.exists():
        raise ArtefactError(f"{folder} exists already and nothing is ever overwritten; choose another name")
    with atomic.whole(folder) as aside:
        fill(aside)
        files = {}
        for path in sorted(p for p in aside.rglob("*") if p.is_file()):
            atomic.sync(path)
            files[path.relative_to(aside).as_posix()] = {"sha256": sha256(path), "size": path.stat().st_size}
        body = {"format": FORMAT, **manifest, "files": files}
        target = aside / MANIFEST
        target.write_text(json.dumps(body, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        atomic.sync(target)
    return folder


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a model folder whose files all match it.

    Raises `ArtefactError` naming every file that is missing, altered or not listed, and folders of a newer format.
    """
    manifest = read_manifest(folder)
    problems = []
    inside = folder.resolve()
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink() or not path.resolve().is_relative_to(inside):
            problems.append(Problem("lies outside the folder or is a link", name))
        elif not path.is_file():
            problems.append(Problem("is missing", name))
        elif path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            problems.append(Problem("is not the file that was saved (its hash differs)", name))
    if problems:
        raise ArtefactError(f"{folder} is damaged or was altered; use a copy that is whole", problems)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, its form checked but not the files it names."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(f"{folder} is not a model folder: it has no {MANIFEST}")
    if path.stat().st_size > MANIFEST_LIMIT:
        raise ArtefactError(f"{path} is larger than {MANIFEST_LIMIT} bytes")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
        files = manifest["files"]
        well_formed = all(isinstance(e["size"], int) and isinstance(e["sha256"], str) for e in files.values())
        if "sealed" in manifest:  # its version becomes part of paths
            well_formed &= re.fullmatch("[0-9a-f]{12}", manifest["sealed"]["version"]) is not None and isinstance(manifest["name"], str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error!r}") from None
    if not well_formed:
        raise ArtefactError(f"{path} is damaged: its entries are not those of a model")
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise ArtefactError(f"{path} has the format {version!r}; this version reads up to {FORMAT}: upgrade Modelyard")
    return manifest  # type: ignore[no-any-return]


def version(folder: Path) -> str:
    """Twelve hex digits that name this very model; an encrypted folder has those of the model in it."""
    sealed = read_manifest(folder).get("sealed")
    return str(sealed["version"]) if sealed else plain_version(folder)


def plain_version(folder: Path) -> str:
    """The first twelve digits of the manifest's hash."""
    return sha256(folder / MANIFEST)[:12]
