"""Copies of a registry in another folder or in S3-compatible storage, and back.

A backup is `objects/<sha256>` for every file of every version, and one index for each backup (`backups/NUMBER-TIME.json`: versions, aliases,
history and, for each version, its files), written last: what an interrupted backup has copied is not copied again, and no index names what is
not there. `restore` takes the newest index, checks every hash and needs an empty registry.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from modelyard.errors import ArtefactError, MachineError, MissingExtra, UsageError
from modelyard.store import atomic
from modelyard.store import folder as store
from modelyard.store.registry import Registry
from modelyard.store.run import now

TABLES = ("versions", "aliases", "history", "counters")
ENDPOINT = "AWS_ENDPOINT_URL"


class Place(Protocol):
    """Where objects lie."""

    def have(self, prefix: str) -> dict[str, int]:
        """Names that begin so, with their sizes."""

    def put(self, name: str, path: Path) -> None:
        """Stores a file; it is there whole or not at all."""

    def get(self, name: str, path: Path) -> None:
        """Fetches one."""


class Folder:
    """A folder, best on another disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def have(self, prefix: str) -> dict[str, int]:
        """As the protocol says."""
        found = (self.root / prefix).rglob("*") if (self.root / prefix).is_dir() else iter(())
        return {p.relative_to(self.root).as_posix(): p.stat().st_size for p in found if p.is_file() and not p.name.startswith(".")}

    def put(self, name: str, path: Path) -> None:
        """As the protocol says."""
        target = self.root / name
        atomic.make_folder(target.parent)
        atomic.replace_file(target, path.read_bytes())

    def get(self, name: str, path: Path) -> None:
        """As the protocol says."""
        path.write_bytes((self.root / name).read_bytes())


class Bucket:
    """An S3-compatible bucket through boto3, which reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise MissingExtra("s3:// needs boto3", "s3") from None
        self.bucket, self.prefix, self.errors = bucket, prefix.strip("/") + "/" if prefix.strip("/") else "", (BotoCoreError, ClientError)
        self.client = boto3.client("s3", endpoint_url=os.environ.get(ENDPOINT))

    def _do(self, what: str, work: Any) -> Any:
        try:
            return work()
        except self.errors as error:
            raise MachineError(f"s3://{self.bucket}/{self.prefix}: {what} failed: {str(error)[:200]}") from None

    def have(self, prefix: str) -> dict[str, int]:
        """As the protocol says."""

        def work() -> dict[str, int]:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            return {o["Key"].removeprefix(self.prefix): o["Size"] for page in pages for o in page.get("Contents", [])}

        return self._do("listing", work)  # type: ignore[no-any-return]

    def put(self, name: str, path: Path) -> None:
        """As the protocol says."""
        self._do(f"storing {name}", lambda: self.client.upload_file(str(path), self.bucket, self.prefix + name))

    def get(self, name: str, path: Path) -> None:
        """As the protocol says."""
        self._do(f"fetching {name}", lambda: self.client.download_file(self.bucket, self.prefix + name, str(path)))


def place_of(text: str) -> Place:
    """The place of `s3://BUCKET/PREFIX` or a folder."""
    parts = urlsplit(text)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UsageError(f"{text} names no bucket; write s3://BUCKET/PREFIX")
        return Bucket(parts.netloc, parts.path)
    if "://" in text:
        raise UsageError(f"{text}: backups go to a folder or to s3://BUCKET/PREFIX")
    return Folder(Path(text))


def backup(registry: Registry, target: str) -> tuple[int, int]:
    """(files copied, bytes). Raises `ArtefactError` where a version is damaged: a backup never holds what cannot be restored."""
    place = place_of(target)
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside) / "registry.sqlite"
        registry.snapshot(copy)
        tables = {t: [list(r) for r in _rows(copy, t)] for t in TABLES}
        there, count, size = place.have("objects/"), 0, 0
        files: dict[str, dict[str, str]] = {}
        for name, _, version, *_ in tables["versions"]:
            folder = registry.place / "models" / name / version
            store.read(folder)
            mine = files[f"{name}/{version}"] = {}
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                digest = atomic.sha256(path)
                mine[path.relative_to(folder).as_posix()] = digest
                if there.get(f"objects/{digest}") != path.stat().st_size:
                    place.put(f"objects/{digest}", path)
                    there[f"objects/{digest}"] = path.stat().st_size
                    count, size = count + 1, size + path.stat().st_size
        index = Path(aside) / "index.json"
        index.write_text(json.dumps({"format": 1, "made": now(), **tables, "files": files}, ensure_ascii=False), encoding="utf-8")
        number = max((int(n.split("/")[1].split("-")[0]) for n in place.have("backups/")), default=0) + 1
        place.put(f"backups/{number:08d}-{now().replace(':', '')}.json", index)
    return count, size


def restore(source: str, registry: Registry) -> int:
    """Versions written to an empty registry from the newest backup, every file checked."""
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
        _write(aside, found)
    return len(found["files"])


def _write(place: Path, found: dict[str, Any]) -> None:
    with Registry(place)._open(make=True) as db:
        for table in TABLES:
            for row in found[table]:
                db.execute(f"insert into {table} values ({', '.join('?' * len(row))})", row)


def _rows(file: Path, table: str) -> Iterator[tuple[Any, ...]]:
    connection = sqlite3.connect(file)
    try:
        yield from connection.execute(f"select * from {table} order by 1, 2").fetchall()
    finally:
        connection.close()
