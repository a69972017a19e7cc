"""Where the folders of a registry's versions lie: beside its records, or in storage with a cache here.

    models/NAME/VERSION/                 a folder on this disk
    objects/<sha256>                     a file of any version in storage; the records say which objects are a version's files
    CACHE/<version>-<hash of its files>/ what was fetched from storage, every file checked

Objects carry the hash of what they hold, so that two processes that store the same model store the same objects, and files that versions share are there once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelyard.errors import ArtefactError, MachineError
from modelyard.store import atomic, sealed, signature
from modelyard.store import folder as store
from modelyard.store.place import ABANDONED, Place

CACHE = "MODELYARD_CACHE"
"""Environment variable with the folder for models fetched from a registry's storage; without it `~/.cache/modelyard`. It may be deleted at any time."""
ORPHAN = 3600.0
"""Seconds after which what no version names was left by a process that died."""
LEFT_OUT = (store.MANIFEST, signature.FILE)
"""Files that a manifest does not list."""

Files = dict[str, list[Any]]
"""Name within the folder → [sha256, bytes]."""


@dataclass
class Taken:
    """A version's folder that was stored, before the records name it."""

    name: str
    version: str
    files: Files = field(default_factory=dict)
    before: Files | None = None
    """What the records said when its signature was added."""


class Shelf(Protocol):
    """Where folders lie."""

    def take(self, model: Path, name: str, version: str, before: Files | None, key: Path | None, encrypt: bool) -> Taken:
        """Stores a checked folder, signed by `key` and sealed with `encrypt`."""

    def holds(self, taken: Taken) -> bool:
        """Whether all of it is there still."""

    def folder(self, name: str, version: str, files: Files | None) -> Path:
        """The folder to load from."""

    @contextmanager
    def fresh(self, name: str, version: str, files: Files | None) -> Iterator[Path]:
        """The folder as it lies in storage now, for a check."""

    def left(self, named: dict[tuple[str, str], Files | None], gone: dict[tuple[str, str], Files | None]) -> tuple[list[str], list[str], int]:
        """(what only `gone` needs or nobody does, how it is told beside the versions, bytes)."""

    def remove(self, left: list[str], named: dict[tuple[str, str], Files | None]) -> None:
        """Takes away what was left and what `named` does not need."""


class Local:
    """Folders on this disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def take(self, model: Path, name: str, version: str, before: Files | None, key: Path | None, encrypt: bool) -> Taken:
        """As the protocol says: copied aside, hashed, renamed."""
        target = self.folder(name, version, None)
        if not target.exists():
            try:
                self._make(model, target, encrypt)
            except (OSError, ArtefactError):
                if not target.exists():  # else another process was faster
                    raise
        if encrypt and not sealed.is_sealed(store.read(target)):
            raise not_encrypted(name, version)
        store.read(target)
        if key is not None:
            signature.sign(target, key)
        return Taken(name, version)

    def _make(self, model: Path, target: Path, encrypt: bool) -> None:
        if encrypt and not sealed.is_sealed(store.read_manifest(model)):
            atomic.make_folder(target.parent)
            sealed.seal(model, target)
        else:
            copy(model, target)

    def holds(self, taken: Taken) -> bool:
        """As the protocol says."""
        return (self.folder(taken.name, taken.version, None) / store.MANIFEST).is_file()

    def folder(self, name: str, version: str, files: Files | None) -> Path:
        """As the protocol says."""
        return self.root / "models" / name / version

    @contextmanager
    def fresh(self, name: str, version: str, files: Files | None) -> Iterator[Path]:
        """As the protocol says."""
        yield self.folder(name, version, files)

    def left(self, named: dict[tuple[str, str], Files | None], gone: dict[tuple[str, str], Files | None]) -> tuple[list[str], list[str], int]:
        """As the protocol says."""
        known = {self.folder(*v, None) for v in [*named, *gone]}
        orphans = [p for p in self.root.glob("models/*/*") if p not in known and time.time() - p.stat().st_mtime > ORPHAN]
        every = [*(self.folder(*v, None) for v in gone), *orphans]
        size = sum(p.stat().st_size for folder in every for p in folder.rglob("*") if p.is_file())
        return [str(p) for p in every], [f"left over: {p.relative_to(self.root)}" for p in orphans], size

    def remove(self, left: list[str], named: dict[tuple[str, str], Files | None]) -> None:
        """As the protocol says."""
        for path in set(map(Path, left)) - {self.folder(*v, None) for v in named}:
            shutil.rmtree(path, ignore_errors=True)


class Stored:
    """Folders in storage."""

    making = threading.Lock()
    """A process fetches one folder at a time: two threads would write the same one aside."""

    def __init__(self, place: Place) -> None:
        self.place, self.cache = place, cache()

    def take(self, model: Path, name: str, version: str, before: Files | None, key: Path | None, encrypt: bool) -> Taken:
        """As the protocol says: what is there already is not sent again."""
        with tempfile.TemporaryDirectory() as aside:
            if before is not None:
                model = self.folder(name, version, before)
                if encrypt and not sealed.is_sealed(store.read_manifest(model)):
                    raise not_encrypted(name, version)
            elif encrypt and not sealed.is_sealed(store.read_manifest(model)):
                model, plain = Path(aside) / "sealed", model
                sealed.seal(plain, model)
            if key is not None:
                copy(model, Path(aside) / "signed")
                model = Path(aside) / "signed"
                signature.sign(model, key)
            return Taken(name, version, self._send(model), before)

    def _send(self, model: Path) -> Files:
        files: Files = {name: [entry["sha256"], entry["size"]] for name, entry in store.read(model)["files"].items()}
        files |= {n: [atomic.sha256(model / n), (model / n).stat().st_size] for n in LEFT_OUT if (model / n).is_file()}
        for name, (digest, size) in files.items():
            if self.place.size(f"objects/{digest}") != size:
                self.place.put(f"objects/{digest}", model / name)
        return files

    def holds(self, taken: Taken) -> bool:
        """As the protocol says."""
        return all(self.place.size(f"objects/{digest}") == size for digest, size in taken.files.values())

    def folder(self, name: str, version: str, files: Files | None) -> Path:
        """As the protocol says: from the cache, whose every file is hashed; what is missing or damaged there is fetched again."""
        files = self._known(name, version, files)
        told = hashlib.sha256(json.dumps(sorted(files.items())).encode("utf-8")).hexdigest()
        target = self.cache / f"{version}-{told[:20]}"
        with self.making:
            if not _whole(target, files):
                self._put_in(files, target)
        return target

    def _put_in(self, files: Files, target: Path) -> None:
        """Fetches into a folder of this process alone, which then takes the name. The cache may be shared by containers, whose process numbers are alike."""
        self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self.cache.glob(".*"):  # of processes that died while they fetched
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=".", dir=self.cache))
        try:
            self._fetch(files, aside)
            atomic.remove(target)  # it is there where it was damaged
            atomic.rename(aside, target)
        except OSError as error:
            if not _whole(target, files):  # else another process was faster, with the same files
                raise MachineError(f"{self.cache}: keeping {target.name} failed: {error}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def fresh(self, name: str, version: str, files: Files | None) -> Iterator[Path]:
        """As the protocol says: fetched again, whatever the cache holds."""
        with tempfile.TemporaryDirectory() as aside:
            self._fetch(self._known(name, version, files), Path(aside))
            yield Path(aside)

    def _known(self, name: str, version: str, files: Files | None) -> Files:
        if not files or store.MANIFEST not in files:
            raise ArtefactError(f"the registry does not say what the files of {name} {version} are; register it again")
        return files

    def _fetch(self, files: Files, target: Path) -> None:
        for name, (digest, _) in files.items():
            path = target / name
            if not path.resolve().is_relative_to(target.resolve()):
                raise ArtefactError(f"{self.place}: {name} lies outside the folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.place.get(f"objects/{digest}", path)
            if atomic.sha256(path) != digest:
                raise ArtefactError(f"{self.place}: objects/{digest} ({name}) is damaged; restore it from a backup")
            atomic.sync(path)

    def left(self, named: dict[tuple[str, str], Files | None], gone: dict[tuple[str, str], Files | None]) -> tuple[list[str], list[str], int]:
        """As the protocol says."""
        needed, of_gone = _objects(named), _objects(gone)
        every, old = self.place.have("objects/"), self.place.have("objects/", ORPHAN)
        orphans = [name for name in old if name not in needed | of_gone]
        going = [*orphans, *(name for name in of_gone - needed if name in every)]
        told = [f"left over: {len(orphans)} object(s) in {self.place}"] if orphans else []
        return going, told, sum(every[name] for name in going if name in every)

    def remove(self, left: list[str], named: dict[tuple[str, str], Files | None]) -> None:
        """As the protocol says; uploads that were never ended go too."""
        self.place.remove(sorted(set(left) - _objects(named)))
        self.place.tidy()


def cache() -> Path:
    """The folder for models fetched from storage."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelyard"
    return Path(os.environ.get(CACHE) or home) / "models"


def copy(model: Path, target: Path) -> None:
    """Copies a model folder; it is there whole or not at all, and what was copied is checked."""
    atomic.make_folder(target.parent)
    with atomic.whole(target) as aside:
        for name in [*store.read(model)["files"], *LEFT_OUT]:
            if (model / name).is_file():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model / name, aside / name)
                atomic.sync(aside / name)
        store.read(aside)  # what was copied, not what was read before


def not_encrypted(name: str, version: str) -> ArtefactError:
    """The error for a version that is there in the clear."""
    return ArtefactError(f"{name} has {version} already, and not encrypted; take it away first: modelyard models gc keep=0 apply=true")


def _whole(folder: Path, files: Files) -> bool:
    """Whether a cached folder is what the records say, signature included."""
    try:
        return all((folder / n).stat().st_size == size and atomic.sha256(folder / n) == digest for n, (digest, size) in files.items())
    except OSError:
        return False


def _objects(versions: dict[tuple[str, str], Files | None]) -> set[str]:
    return {f"objects/{digest}" for files in versions.values() for digest, _ in (files or {}).values()}


def parse(text: str | None) -> Files | None:
    """What the records say of a folder's files."""
    return json.loads(text) if text else None
