"""Versions of models in one place: a folder of model folders and an SQLite file that names them.

    registry/registry.sqlite                 versions, aliases and their history
    registry/models/NAME/VERSION/            model folders, never changed

A version is copied aside, hashed, renamed and then written to SQLite in one transaction: a process that dies between leaves a folder that nobody
names, which the next `register` of the same model takes up and `gc` removes. Aliases (`champion`, `challenger`, …) move in one transaction with a line of
history, which `rollback` walks back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, UsageError
from modelyard.store import atomic, sealed, signature
from modelyard.store import folder as store
from modelyard.store.run import now

PLACE = "MODELYARD_REGISTRY"
"""Environment variable with the folder of the registry; without it `registry` in the working folder."""
REFERENCE = re.compile(r"models:/?([^@:/]+)(?:[@]([^@:/]+)|[:/](\d+|[0-9a-f]{12}))?")
NAME = re.compile(r"[\w][\w.-]{0,99}")
CHAMPION = "champion"
KEEP = 5
"""Newest versions of a name that garbage collection keeps anyway."""
ORPHAN = 3600.0
"""Seconds after which a folder that no version names was left by a process that died."""
LEFT_OUT = {store.MANIFEST, signature.FILE}

TABLES = """
create table if not exists versions (
  name text not null, number integer not null, version text not null, added text not null, facts text not null,
  primary key (name, number), unique (name, version));
create table if not exists counters (name text primary key, last integer not null);
create table if not exists aliases (name text not null, alias text not null, number integer not null, primary key (name, alias));
create table if not exists history (
  id integer primary key autoincrement, name text not null, alias text not null, number integer, previous integer, time text not null, why text not null);
"""


@dataclass
class Version:
    """One version of a name."""

    name: str
    number: int
    """1, 2, … in the order of registration."""
    version: str
    """Twelve digits of the manifest's hash."""
    added: str
    aliases: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """`metrics` of the test rows, `run`, `data` (fingerprint and rows), `parents`, `gate`, `size` in bytes, `backend`."""


class Registry:
    """An embedded registry. All methods are safe beside other processes."""

    def __init__(self, place: Path | str | None = None) -> None:
        self.place = Path(place or os.environ.get(PLACE) or "registry")

    @contextmanager
    def _open(self, make: bool = False) -> Iterator[sqlite3.Connection]:
        file = self.place / "registry.sqlite"
        if not file.is_file() and not make:
            raise ArtefactError(f"there is no registry at {self.place}; register a model, or set {PLACE} to its folder")
        atomic.make_folder(self.place)
        connection = sqlite3.connect(file, timeout=30, isolation_level=None)
        try:
            connection.execute("pragma journal_mode=wal")
            connection.execute("pragma synchronous=full")
            connection.executescript(TABLES)
            connection.execute("begin immediate")
            yield connection
            connection.execute("commit")
        except sqlite3.DatabaseError as error:
            raise ArtefactError(f"{file} cannot be used: {error}") from None
        finally:
            connection.close()

    # -- versions -------------------------------------------------------------------------------------------------------

    def register(self, model: Path, name: str | None = None, key: Path | None = None, encrypt: bool = False) -> Version:
        """Copies a model folder (every file checked against its manifest) and gives it the next number; the same model again is found again.

        `key` signs the copy; `encrypt` seals it (store/sealed.py).
        """
        manifest = store.read(model)
        name = str(manifest["name"]) if name is None else name
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a model; use letters, digits, - _ . and no more than 100 of them: name=NAME")
        version = store.version(model)
        target = self.place / "models" / name / version
        if target.exists():
            there = store.read(target)
            if encrypt and not sealed.is_sealed(there):
                raise ArtefactError(f"{name} has {version} already, and not encrypted; take it away first: modelyard models gc keep=0 apply=true")
        elif encrypt and not sealed.is_sealed(manifest):
            atomic.make_folder(target.parent)
            sealed.seal(model, target)
        else:
            _copy(model, target, manifest)
        if key is not None:
            signature.sign(target, key)
        with self._open(make=True) as db:
            number = db.execute("select number from versions where name=? and version=?", (name, version)).fetchone()
            if number is None:
                number = (db.execute("select coalesce(max(last), 0) + 1 from counters where name=?", (name,)).fetchone()[0],)
                db.execute("insert or replace into counters values (?, ?)", (name, number[0]))  # a number that garbage had is not given again
                facts = json.dumps(_facts(model, manifest), ensure_ascii=False)
                db.execute("insert into versions values (?, ?, ?, ?, ?)", (name, number[0], version, now(), facts))
        return self.get(name, number[0])

    def versions(self, name: str | None = None) -> list[Version]:
        """All of a name, or of all names, oldest first."""
        with self._open() as db:
            rows = db.execute("select * from versions where ? is null or name=? order by name, number", (name, name)).fetchall()
            aliases = db.execute("select name, alias, number from aliases order by alias").fetchall()
        return [Version(n, i, v, t, [a for m, a, j in aliases if (m, j) == (n, i)], json.loads(facts)) for n, i, v, t, facts in rows]

    def get(self, name: str, which: str | int | None = None) -> Version:
        """By number, by version's digits or by alias; without any the champion, or the newest where there is none. Raises `ArtefactError`."""
        found = self.versions(name)
        if not found:
            known = sorted({v.name for v in self.versions()})
            raise ArtefactError(f"no model {name!r} in {self.place}; there are: {', '.join(known) or 'none'}")
        text = str(which) if which is not None else None
        for v in found:
            if text in (str(v.number), v.version, *v.aliases) or (text is None and CHAMPION in v.aliases):
                return v
        if text is None:
            return found[-1]
        there = ", ".join([str(v.number) + "".join(f" @{a}" for a in v.aliases) for v in found])
        raise ArtefactError(f"{name} has no version or alias {text!r}; there are: {there}")

    def folder(self, version: Version) -> Path:
        """Its model folder."""
        return self.place / "models" / version.name / version.version

    # -- aliases --------------------------------------------------------------------------------------------------------

    def point(self, version: Version, alias: str, why: str) -> int | None:
        """Gives the alias to a version; the number that had it before."""
        if not re.fullmatch(r"[A-Za-z][\w-]{0,49}", alias):
            raise UsageError(f"{alias!r} is no alias; use a word such as champion or challenger")
        with self._open() as db:
            before = db.execute("select number from aliases where name=? and alias=?", (version.name, alias)).fetchone()
            db.execute("insert or replace into aliases values (?, ?, ?)", (version.name, alias, version.number))
            _tell(db, version.name, alias, version.number, before[0] if before else None, why)
        return before[0] if before else None

    def unpoint(self, name: str, alias: str, why: str) -> None:
        """Takes an alias away."""
        with self._open() as db:
            before = db.execute("select number from aliases where name=? and alias=?", (name, alias)).fetchone()
            if before is None:
                raise ArtefactError(f"{name} has no alias {alias!r}")
            db.execute("delete from aliases where name=? and alias=?", (name, alias))
            _tell(db, name, alias, None, before[0], why)

    def rollback(self, name: str, alias: str = CHAMPION) -> Version:
        """Gives the alias back to the version that had it before the present one. Again and again goes further back."""
        with self._open() as db:
            present = db.execute("select number from aliases where name=? and alias=?", (name, alias)).fetchone()
            trail: list[int | None] = []
            for number, why in db.execute("select number, why from history where name=? and alias=? order by id", (name, alias)):
                if why == "rollback":
                    trail.pop()
                else:
                    trail.append(number)
            there = {n for (n,) in db.execute("select number from versions where name=?", (name,))}
            if present is None or len(trail) < 2 or trail[-2] is None or trail[-2] not in there:
                raise ArtefactError(f"{name}@{alias} has no earlier version to go back to")
            db.execute("update aliases set number=? where name=? and alias=?", (trail[-2], name, alias))
            _tell(db, name, alias, trail[-2], present[0], "rollback")
        return self.get(name, alias)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Every move of an alias, oldest first."""
        with self._open() as db:
            rows = db.execute("select alias, number, previous, time, why from history where name=? order by id", (name,)).fetchall()
        return [dict(zip(("alias", "number", "previous", "time", "why"), row, strict=True)) for row in rows]

    # -- housekeeping ---------------------------------------------------------------------------------------------------

    def verify(self, name: str | None = None, trusted: Path | None = None) -> list[str]:
        """What is wrong with the folders: damaged or missing files, signatures that are missing."""
        problems = []
        for v in self.versions(name):
            try:
                store.read(self.folder(v))
                if trusted is not None and not signature.signed_by(self.folder(v), trusted):
                    problems.append(f"{v.name} {v.number}: not signed by a key of {trusted}")
            except ArtefactError as error:
                problems += [f"{v.name} {v.number}: {error.message}", *(f"{v.name} {v.number}: {p}" for p in error.details)]
        return problems

    def gc(self, keep: int = KEEP, apply: bool = False) -> tuple[list[str], int]:
        """(what goes, bytes): versions without an alias that are not among the newest `keep` of their name and no parent of what stays,
        and folders that no version names. Only with `apply` it goes."""
        every = self.versions()
        numbers = {name: sorted(v.number for v in every if v.name == name)[-keep:] if keep else [] for name in {v.name for v in every}}
        kept = {v.version for v in every if v.aliases or v.number in numbers[v.name]}
        waiting = set(kept)
        while waiting:  # parents of what stays, and theirs
            parents = {p for v in every if v.version in waiting for p in v.facts.get("parents", [])}
            waiting = {v.version for v in every if v.version in parents} - kept
            kept |= waiting
        named = {self.folder(v) for v in every}
        old = [v for v in every if v.version not in kept]
        orphans = [p for p in self.place.glob("models/*/*") if p not in named and time.time() - p.stat().st_mtime > ORPHAN]
        size = sum(_size(p) for p in [*(self.folder(v) for v in old), *orphans] if p.exists())
        if apply:
            for v in old:
                with self._open() as db:
                    if db.execute("select 1 from aliases where name=? and number=?", (v.name, v.number)).fetchone() is not None:
                        continue  # it was given an alias meanwhile
                    db.execute("delete from versions where name=? and number=?", (v.name, v.number))
                shutil.rmtree(self.folder(v), ignore_errors=True)
            for path in orphans:
                shutil.rmtree(path, ignore_errors=True)
        return [f"{v.name} {v.number} ({v.version})" for v in old] + [f"left over: {p.relative_to(self.place)}" for p in orphans], size

    def snapshot(self, target: Path) -> None:
        """A consistent copy of the SQLite file while others write."""
        with self._open() as db:
            db.execute("commit")
            copy = sqlite3.connect(target)
            with copy:
                db.backup(copy)
            copy.close()
            db.execute("begin immediate")


def resolve(reference: str) -> Path | None:
    """The model folder of `models:/NAME@alias` or `models:/NAME/3`; None for what is no such reference. Raises `ArtefactError`."""
    if not reference.startswith("models:"):
        return None
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(f"{reference!r} is no reference to a model; write models:/NAME@ALIAS or models:/NAME/NUMBER")
    found = Registry()
    version = found.get(match[1], match[2] or match[3])
    folder = found.folder(version)
    if store.version(folder) != version.version:
        raise ArtefactError(f"{folder} is {store.version(folder)}, and {reference} is {version.version}: it was exchanged; restore it from a backup")
    return folder


def _copy(model: Path, target: Path, manifest: dict[str, Any]) -> None:
    atomic.make_folder(target.parent)
    with atomic.whole(target) as aside:
        for name in [*manifest["files"], *LEFT_OUT]:
            if (model / name).is_file():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model / name, aside / name)
                atomic.sync(aside / name)
        store.read(aside)  # what was copied, not what was read before


def _facts(model: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Of the manifest and of the run that the folder lies in."""
    run = next((p for p in model.resolve().parents if (p / "run.json").is_file()), None)
    told = json.loads((run / "run.json").read_text(encoding="utf-8")) if run else {}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8")) if run and (run / "metrics.json").is_file() else {}
    return {
        "metrics": metrics.get("test") or metrics.get("valid") or {}, "run": run.name if run else None, "gate": told.get("gate") or [],
        "data": manifest.get("data") or {}, "parents": list(_parents(manifest)), "backend": manifest["model"]["backend"],
        "size": sum(e["size"] for e in manifest["files"].values()), "seed": manifest.get("seed"),
    }  # fmt: skip


def _parents(manifest: dict[str, Any]) -> Iterator[str]:
    for parent in manifest.get("parents") or []:
        version = parent.get("version") if isinstance(parent, dict) else parent
        if isinstance(version, str):
            yield version


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _tell(db: sqlite3.Connection, name: str, alias: str, number: int | None, previous: int | None, why: str) -> None:
    db.execute("insert into history (name, alias, number, previous, time, why) values (?, ?, ?, ?, ?, ?)", (name, alias, number, previous, now(), why))
