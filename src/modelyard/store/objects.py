"""Model folders as objects: `objects/<sha256>` for every file and `folders/NAME/VERSION.json`, written last, for a folder.

What is stored once is not stored again, whoever brings it, and no index names what is not there. A folder comes back whole, each file checked, or not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, MachineError
from modelyard.store import atomic
from modelyard.store import folder as store
from modelyard.store.place import Place


def keep(place: Place, name: str, version: str, folder: Path, there: dict[str, int] | None = None) -> tuple[int, int]:
    """Stores a folder: (objects that were new, their bytes). `there` are the objects that are known to be there, and learns of new ones."""
    files, count, size = put(place, folder, place.have("objects/") if there is None else there)
    _write(place, f"folders/{name}/{version}.json", {"format": 1, "files": files})
    return count, size


def put(place: Place, folder: Path, there: dict[str, int]) -> tuple[dict[str, str], int, int]:
    """Stores the files of a folder that are not there: (file → sha256, how many were new, their bytes)."""
    store.read(folder)  # what is damaged is not kept
    files, count, size = {}, 0, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest = atomic.sha256(path)
        files[path.relative_to(folder).as_posix()] = digest
        if there.get(f"objects/{digest}") != path.stat().st_size:
            place.put(f"objects/{digest}", path)
            there[f"objects/{digest}"] = path.stat().st_size
            count, size = count + 1, size + path.stat().st_size
    return files, count, size


def fetch(place: Place, name: str, version: str, target: Path) -> None:
    """Brings a folder that was kept. Raises `ArtefactError` where anything of it is damaged; then nothing is left."""
    atomic.make_folder(target.parent)
    with atomic.whole(target) as aside:
        found = read(place, f"folders/{name}/{version}.json")
        take(place, found["files"], aside, f"{name}/{version}")
        store.read(aside)


def same(place: Place, name: str, version: str, folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder is here with those of its files as they were kept; where nobody can say, what is here will do."""
    if not folder.is_dir():
        return False
    try:
        files = read(place, f"folders/{name}/{version}.json")["files"]
    except MachineError:
        return True
    return all(files.get(n) == (atomic.sha256(folder / n) if (folder / n).is_file() else None) for n in names)


def take(place: Place, files: dict[str, str], aside: Path, what: str) -> None:
    """Fills a folder with its files, each checked. Raises `ArtefactError`."""
    for file, digest in files.items():
        path = aside / file
        if not path.resolve().is_relative_to(aside.resolve()):
            raise ArtefactError(f"{what}: {file} lies outside the folder")
        atomic.make_folder(path.parent)
        place.get(f"objects/{digest}", path)
        if atomic.sha256(path) != digest:
            raise ArtefactError(f"{what}: objects/{digest} ({file}) is damaged")
        atomic.sync(path)


def sweep(place: Place, named: set[str], apply: bool) -> int:
    """Bytes of objects that no folder of `named` (`NAME/VERSION`) holds; with `apply` they and all other indexes go. Nobody else may be keeping."""
    indexes = place.have("folders/")
    kept: set[str] = set()
    for index in indexes:
        if index.removeprefix("folders/").removesuffix(".json") in named:
            kept |= {f"objects/{d}" for d in read(place, index)["files"].values()}
    loose = {name: size for name, size in place.have("objects/").items() if name not in kept}
    if apply:
        for index in indexes:  # before the objects: an index never names what is gone
            if index.removeprefix("folders/").removesuffix(".json") not in named:
                place.drop(index)
        for name in loose:
            place.drop(name)
    return sum(loose.values())


def read(place: Place, name: str) -> dict[str, Any]:
    """An index. Raises `ArtefactError` where it is none of ours."""
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "index.json"
        place.get(name, file)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["format"] != 1 or not isinstance(found["files"], dict):
                raise ValueError(f"format {found['format']}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{name} is damaged: {error!r}") from None
    return dict(found)


def _write(place: Place, name: str, content: object) -> None:
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "index.json"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        place.put(name, file)
