"""Copies of a registry in another folder or in S3-compatible storage, and back.

A backup is `objects/<sha256>` for every file of every version, and one index for each backup (`backups/NUMBER-TIME.json`: versions, aliases,
history and, for each version, its files), written last: what an interrupted backup has copied is not copied again, and no index names what is
not there. `restore` takes the newest index, checks every hash and needs an empty registry; it may be one of another sort (a folder's backup in a database).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from modelyard.errors import ArtefactError, UsageError
from modelyard.store import atomic
from modelyard.store import folder as store
from modelyard.store.place import place_of
from modelyard.store.records import NAMES
from modelyard.store.registry import Registry, Version
from modelyard.store.run import now


def backup(registry: Registry, target: str) -> tuple[int, int]:
    """(files copied, bytes). Raises `ArtefactError` where a version is damaged: a backup never holds what cannot be restored.

    Uploads that earlier backups began and never ended are ended a day later (`Place.tidy`).
    """
    place = place_of(target)
    tables = registry.tables()
    there, count, size = place.have("objects/"), 0, 0
    files: dict[str, dict[str, str]] = {}
    for name, number, version, added, _ in tables["versions"]:
        folder = registry.folder(Version(name, number, version, added))
        store.read(folder)
        mine = files[f"{name}/{version}"] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest = atomic.sha256(path)
            mine[path.relative_to(folder).as_posix()] = digest
            if there.get(f"objects/{digest}") != path.stat().st_size:
                place.put(f"objects/{digest}", path)
                there[f"objects/{digest}"] = path.stat().st_size
                count, size = count + 1, size + path.stat().st_size
    with tempfile.TemporaryDirectory() as aside:
        index = Path(aside) / "index.json"
        index.write_text(json.dumps({"format": 1, "made": now(), **tables, "files": files}, ensure_ascii=False), encoding="utf-8")
        newest = max((int(n.split("/")[1].split("-")[0]) for n in place.have("backups/")), default=0) + 1
        place.put(f"backups/{newest:08d}-{now().replace(':', '')}.json", index)
    place.tidy()
    return count, size


def restore(source: str, registry: Registry) -> int:
    """Versions written to an empty registry from the newest backup, every file checked."""
    if not registry.embedded:
        with tempfile.TemporaryDirectory() as aside:
            embedded = Registry(Path(aside) / "registry")
            count = restore(source, embedded)
            registry.fill(embedded.tables(), {(v.name, v.version): embedded.folder(v) for v in embedded.versions()})
        return count
    if registry.place.exists() and any(registry.place.iterdir()):
        raise UsageError(f"{registry.place} is not empty; restore into an empty folder with path=FOLDER")
    place = place_of(source)
    indexes = sorted(place.have("backups/"))
    if not indexes:
        raise ArtefactError(f"{source} holds no backup")
    with atomic.whole(registry.place) as aside:
        index = aside / "index.json"
        place.get(indexes[-1], index)
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            if found["format"] != 1:
                raise ValueError(f"format {found['format']}")
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{source}/{indexes[-1]} is damaged: {error!r}") from None
        index.unlink()
        for version, files in found["files"].items():
            for name, digest in files.items():
                path = aside / "models" / version / name
                if not path.resolve().is_relative_to(aside.resolve()):
                    raise ArtefactError(f"{source}: {version}/{name} lies outside the registry")
                atomic.make_folder(path.parent)
                place.get(f"objects/{digest}", path)
                if atomic.sha256(path) != digest:
                    raise ArtefactError(f"{source}: objects/{digest} is damaged")
                atomic.sync(path)
            store.read(aside / "models" / version)
        Registry(aside).fill({table: found[table] for table in NAMES}, {})
    return len(found["files"])
