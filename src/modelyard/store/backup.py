"""Copies of a registry in another folder or in S3-compatible storage, and back.

A backup is `objects/<sha256>` for every file of every version, and one index for each backup (`backups/NUMBER-TIME.json`: versions, aliases,
history and, for each version, its files), written last: what an interrupted backup has copied is not copied again, and no index names what is
not there. `restore` takes the newest index, checks every hash and needs an empty registry.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from modelyard.errors import ArtefactError, UsageError
from modelyard.store import atomic, objects, records
from modelyard.store import folder as store
from modelyard.store.place import place_of
from modelyard.store.registry import Registry, Version
from modelyard.store.run import now


def backup(registry: Registry, target: str) -> tuple[int, int]:
    """(files copied, bytes). Raises `ArtefactError` where a version is damaged: a backup never holds what cannot be restored."""
    place = place_of(target)
    tables = registry.tables()
    there, count, size = place.have("objects/"), 0, 0
    files: dict[str, dict[str, str]] = {}
    for name, number, version, *_ in tables["versions"]:
        files[f"{name}/{version}"], new, more = objects.put(place, registry.folder(Version(name, number, version, "")), there)
        count, size = count + new, size + more
    with tempfile.TemporaryDirectory() as aside:
        index = Path(aside) / "index.json"
        index.write_text(json.dumps({"format": 1, "made": now(), **tables, "files": files}, ensure_ascii=False), encoding="utf-8")
        number = max((int(n.split("/")[1].split("-")[0]) for n in place.have("backups/")), default=0) + 1
        place.put(f"backups/{number:08d}-{now().replace(':', '')}.json", index)
    return count, size


def restore(source: str, registry: Registry) -> int:
    """Versions written to an empty registry from the newest backup, every file checked."""
    if not registry.empty():
        raise UsageError(f"{registry.told} is not empty; restore into an empty folder with path=FOLDER")
    place = place_of(source)
    indexes = sorted(place.have("backups/"))
    if not indexes:
        raise ArtefactError(f"{source} holds no backup")
    found = objects.read(place, indexes[-1])
    if not all(isinstance(found.get(t), list) for t in records.NAMES):
        raise ArtefactError(f"{source}/{indexes[-1]} is damaged: it lacks rows")
    shutil.rmtree(registry.place, ignore_errors=True)  # copies of a registry elsewhere
    with atomic.whole(registry.place) as aside:
        for version, files in found["files"].items():
            if not (aside / "models" / version).resolve().is_relative_to((aside / "models").resolve()):
                raise ArtefactError(f"{source}: {version} lies outside the registry")
            objects.take(place, files, aside / "models" / version, f"{source}: {version}")
            store.read(aside / "models" / version)
        if registry.stored is None:
            Registry(aside).fill(found)
        else:
            for version in found["files"]:
                name, _, digits = version.partition("/")
                objects.keep(registry.stored, name, digits, aside / "models" / version)
            registry.fill(found)
    return len(found["files"])
