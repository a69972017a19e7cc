"""Versions of models in one place: folders that are never changed, and records that name them.

    registry/registry.sqlite                 versions, aliases and their history     or postgresql://HOST/DATABASE
    registry/models/NAME/VERSION/            model folders                           or s3://BUCKET/PREFIX

A folder is stored first (copied aside, hashed, renamed; or sent to storage) and written to the records in one transaction after that: a process that dies
between leaves files that nobody names, which the next `register` of the same model takes up and `gc` removes. Aliases (`champion`, `challenger`, …) move
in one transaction with a line of history, which `rollback` walks back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, GateFailed, ModelyardError, UsageError
from modelyard.store import folder as store
from modelyard.store import signature
from modelyard.store.place import place_of
from modelyard.store.records import NAMES, Database, Postgres, Records, Sqlite
from modelyard.store.run import now
from modelyard.store.shelf import Files, Local, Shelf, Stored, Taken, parse

PLACE = "MODELYARD_REGISTRY"
"""Environment variable with the registry's folder, or the URL of its records (postgresql://…); without it `registry` in the working folder."""
STORE = "MODELYARD_STORE"
"""Environment variable with the storage of the folders: s3://BUCKET/PREFIX, or a folder that all machines see."""
REFERENCE = re.compile(r"models:/?([^@:/]+)(?:[@]([^@:/]+)|[:/](\d+|[0-9a-f]{12}))?")
NAME = re.compile(r"[\w][\w.-]{0,99}")
CHAMPION = "champion"
KEEP = 5
"""Newest versions of a name that garbage collection keeps anyway."""
TRIES = 5
"""Times that a folder is stored anew because garbage collection took it before the records named it."""
ANY = -1
"""In the place of the number that an alias must have had."""


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
    """A registry: embedded (a folder), or by URL. All methods are safe beside other processes.

    `place` is a folder or `postgresql://USER@HOST/DATABASE`; `store` is `s3://BUCKET/PREFIX` or a folder that all machines see, and may be left out
    where `place` is a folder.
    """

    def __init__(self, place: Path | str | None = None, store: str | None = None) -> None:
        if place is None:
            place, store = os.environ.get(PLACE) or "registry", store or os.environ.get(STORE)
        hint = f"register a model, or set {PLACE} to its folder or URL"
        scheme = re.match(r"([A-Za-z][\w+.-]*)://", str(place))
        if scheme and scheme[1].lower() not in ("postgresql", "postgres"):
            raise UsageError(f"a registry is a folder or postgresql://HOST/DATABASE; got {scheme[0]}…")
        if scheme and not (store := store or os.environ.get(STORE)):
            raise UsageError(f"a registry by URL keeps its folders in storage; set {STORE} to s3://BUCKET/PREFIX (or give store=)")
        self.records: Records = Postgres(str(place), hint) if scheme else Sqlite(Path(place) / "registry.sqlite", hint)
        self.shelf: Shelf = Stored(place_of(store)) if store else Local(Path(place))
        self.place = Path() if scheme else Path(place)
        """The folder of an embedded registry."""

    @property
    def told(self) -> str:
        """For people: without the password."""
        return self.records.where

    @property
    def embedded(self) -> bool:
        """Whether all of it is one folder."""
        return isinstance(self.records, Sqlite) and isinstance(self.shelf, Local)

    # -- versions -------------------------------------------------------------------------------------------------------

    def register(self, model: Path, name: str | None = None, key: Path | None = None, encrypt: bool = False) -> Version:
        """Stores a model folder (every file checked against its manifest) and gives it the next number; the same model again is found again.

        `key` signs what is stored; `encrypt` seals it (store/sealed.py).
        """
        manifest = store.read(model)
        name = str(manifest["name"]) if name is None else name
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a model; use letters, digits, - _ . and no more than 100 of them: name=NAME")
        version = store.version(model)
        for _ in range(TRIES):
            taken = self.shelf.take(model, name, version, self._files(name, version), key, encrypt)
            with self.records.open(make=True) as db:
                if not self.shelf.holds(taken) or _files(db, name, version) != taken.before:
                    continue  # garbage collection took it, or another process signed it meanwhile
                number = _number(db, name, version)
                if number is None:
                    number = int(db.execute("select coalesce(max(last), 0) + 1 from counters where name=?", (name,)).fetchone()[0])
                    db.execute("delete from counters where name=?", (name,))
                    db.execute("insert into counters values (?, ?)", (name, number))  # a number that garbage had is not given again
                    facts = json.dumps(_facts(model, manifest), ensure_ascii=False)
                    db.execute("insert into versions values (?, ?, ?, ?, ?)", (name, number, version, now(), facts))
                _keep_files(db, number, taken)
            return self.get(name, number)
        raise ArtefactError(f"{name} {version} changed again and again while it was registered; register it again")

    def _files(self, name: str, version: str) -> Files | None:
        """What the records say of the files of a version; None where it is new or lies in a folder."""
        if not self.records.there():
            return None
        with self.records.open() as db:
            return _files(db, name, version)

    def versions(self, name: str | None = None) -> list[Version]:
        """All of a name, or of all names, oldest first."""
        with self.records.open() as db:
            rows = db.execute("select * from versions where cast(? as text) is null or name=? order by name, number", (name, name)).fetchall()
            aliases = db.execute("select name, alias, number from aliases order by alias").fetchall()
        return [Version(n, i, v, t, [a for m, a, j in aliases if (m, j) == (n, i)], json.loads(facts)) for n, i, v, t, facts in rows]

    def get(self, name: str, which: str | int | None = None) -> Version:
        """By number, by version's digits or by alias; without any the champion, or the newest where there is none. Raises `ArtefactError`."""
        found = self.versions(name)
        if not found:
            known = sorted({v.name for v in self.versions()})
            raise ArtefactError(f"no model {name!r} in {self.told}; there are: {', '.join(known) or 'none'}")
        text = str(which) if which is not None else None
        for v in found:
            if text in (str(v.number), v.version, *v.aliases) or (text is None and CHAMPION in v.aliases):
                return v
        if text is None:
            return found[-1]
        there = ", ".join([str(v.number) + "".join(f" @{a}" for a in v.aliases) for v in found])
        raise ArtefactError(f"{name} has no version or alias {text!r}; there are: {there}")

    def folder(self, version: Version) -> Path:
        """Its model folder; one that lies in storage is fetched into the cache (`MODELYARD_CACHE`), where every file is checked."""
        if isinstance(self.shelf, Local):
            return self.shelf.folder(version.name, version.version, None)
        return self.shelf.folder(version.name, version.version, self._files(version.name, version.version))

    @contextmanager
    def changing(self, version: Version) -> Iterator[Path]:
        """Its folder, to be signed or to be given another key; what was changed is stored when the block ends."""
        if isinstance(self.shelf, Local):
            yield self.folder(version)
            return
        before = self._files(version.name, version.version)
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside) / "model"
            shutil.copytree(self.shelf.folder(version.name, version.version, before), folder)
            yield folder
            taken = self.shelf.take(folder, version.name, version.version, None, None, False)
        with self.records.open(write=True) as db:
            if _files(db, version.name, version.version) != before or not self.shelf.holds(taken):
                raise ArtefactError(f"{version.name} {version.number} was changed by another process meanwhile; do it again")
            _keep_files(db, version.number, taken)

    # -- aliases --------------------------------------------------------------------------------------------------------

    def point(self, version: Version, alias: str, why: str, before: int | None = ANY) -> int | None:
        """Gives the alias to a version; the number that had it before.

        Where `before` is given (None for nobody) and another version has the alias by now, nothing moves and `GateFailed` is raised: of two
        processes that compared with the same champion one wins.
        """
        if not re.fullmatch(r"[A-Za-z][\w-]{0,49}", alias):
            raise UsageError(f"{alias!r} is no alias; use a word such as champion or challenger")
        name, number = version.name, version.number
        with self.records.open(write=True) as db:
            if db.execute("select 1 from versions where name=? and number=?", (name, number)).fetchone() is None:
                raise ArtefactError(f"{name} {number} is not in {self.told} any more")
            row = db.execute("select number from aliases where name=? and alias=?", (name, alias)).fetchone()
            present = row[0] if row else None
            if before != ANY and present != before:
                raise GateFailed(f"{name}@{alias} became {present} while {number} was compared with {before}; nothing was moved: compare again")
            db.execute("delete from aliases where name=? and alias=?", (name, alias))
            db.execute("insert into aliases values (?, ?, ?)", (name, alias, number))
            _tell(db, name, alias, number, present, why)
        return present

    def unpoint(self, name: str, alias: str, why: str) -> None:
        """Takes an alias away."""
        with self.records.open(write=True) as db:
            before = db.execute("select number from aliases where name=? and alias=?", (name, alias)).fetchone()
            if before is None:
                raise ArtefactError(f"{name} has no alias {alias!r}")
            db.execute("delete from aliases where name=? and alias=?", (name, alias))
            _tell(db, name, alias, None, before[0], why)

    def rollback(self, name: str, alias: str = CHAMPION) -> Version:
        """Gives the alias back to the version that had it before the present one. Again and again goes further back."""
        with self.records.open(write=True) as db:
            present = db.execute("select number from aliases where name=? and alias=?", (name, alias)).fetchone()
            trail: list[int | None] = []
            for number, why in db.execute("select number, why from history where name=? and alias=? order by id", (name, alias)).fetchall():
                if why == "rollback":
                    trail.pop()
                else:
                    trail.append(number)
            there = {n for (n,) in db.execute("select number from versions where name=?", (name,)).fetchall()}
            if present is None or len(trail) < 2 or trail[-2] is None or trail[-2] not in there:
                raise ArtefactError(f"{name}@{alias} has no earlier version to go back to")
            db.execute("update aliases set number=? where name=? and alias=?", (trail[-2], name, alias))
            _tell(db, name, alias, trail[-2], present[0], "rollback")
        return self.get(name, alias)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Every move of an alias, oldest first."""
        with self.records.open() as db:
            rows = db.execute("select alias, number, previous, time, why from history where name=? order by id", (name,)).fetchall()
        return [dict(zip(("alias", "number", "previous", "time", "why"), row, strict=True)) for row in rows]

    # -- housekeeping ---------------------------------------------------------------------------------------------------

    def verify(self, name: str | None = None, trusted: Path | None = None) -> list[str]:
        """What is wrong with the folders: damaged or missing files, signatures that are missing. What lies in storage is fetched again for it."""
        problems = []
        for v in self.versions(name):
            files = None if isinstance(self.shelf, Local) else self._files(v.name, v.version)
            try:
                with self.shelf.fresh(v.name, v.version, files) as folder:
                    store.read(folder)
                    if store.version(folder) != v.version:
                        problems.append(f"{v.name} {v.number}: is {store.version(folder)} and not {v.version}")
                    if trusted is not None and not signature.signed_by(folder, trusted):
                        problems.append(f"{v.name} {v.number}: not signed by a key of {trusted}")
            except ModelyardError as error:
                problems += [f"{v.name} {v.number}: {error.message}", *(f"{v.name} {v.number}: {p}" for p in error.details)]
        return problems

    def gc(self, keep: int = KEEP, apply: bool = False) -> tuple[list[str], int]:
        """(what goes, bytes): versions without an alias that are not among the newest `keep` of their name and no parent of what stays,
        and files that no version names. Only with `apply` it goes."""
        every = self.versions()
        kept = _needed(every, keep)
        with self.records.open() as db:
            named = _named(db)
        old = [v for v in every if v.version not in kept]
        gone = {(v.name, v.version): named.pop((v.name, v.version), None) for v in old}
        left, told, size = self.shelf.left(named, gone)
        if apply:
            for v in old:
                with self.records.open(write=True) as db:
                    if db.execute("select 1 from aliases where name=? and number=?", (v.name, v.number)).fetchone() is not None:
                        continue  # it was given an alias meanwhile
                    db.execute("delete from versions where name=? and number=?", (v.name, v.number))
                    db.execute("delete from contents where name=? and number=?", (v.name, v.number))
            with self.records.open(write=True) as db:  # nobody can name them while they go
                self.shelf.remove(left, _named(db))
        return [f"{v.name} {v.number} ({v.version})" for v in old] + told, size

    # -- as a whole -----------------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, list[list[Any]]]:
        """Every row of the tables that a backup holds, of one moment."""
        with self.records.open() as db:
            return {table: [list(row) for row in db.execute(f"select * from {table} order by 1, 2").fetchall()] for table in NAMES}

    def fill(self, rows: dict[str, list[list[Any]]], folders: dict[tuple[str, str], Path]) -> None:
        """Everything at once, numbers and history included, into an empty registry: `rows` of another one and its folders."""
        taken = [self.shelf.take(folder, name, version, None, None, False) for (name, version), folder in folders.items()]
        with self.records.open(make=True) as db:
            if db.execute("select 1 from versions").fetchone() or db.execute("select 1 from counters").fetchone():
                raise UsageError(f"{self.told} is not empty; restore into an empty registry with path=")
            for table in NAMES:
                for row in rows[table]:
                    db.execute(f"insert into {table} values ({', '.join('?' * len(row))})", row)
            for one in taken:
                if not self.shelf.holds(one):
                    raise ArtefactError(f"files of {one.name} {one.version} went while they were stored; do it again")
                number = _number(db, one.name, one.version)
                if number is not None:
                    _keep_files(db, number, one)


def named(reference: str) -> tuple[str, str | None] | None:
    """(name, number, digits or alias) of `models:/NAME@ALIAS`; None for what is no such reference. Raises `UsageError`."""
    if not reference.startswith("models:"):
        return None
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(f"{reference!r} is no reference to a model; write models:/NAME@ALIAS or models:/NAME/NUMBER")
    return match[1], match[2] or match[3]


def resolve(reference: str) -> Path | None:
    """The model folder of `models:/NAME@alias` or `models:/NAME/3`; None for what is no such reference. Raises `ArtefactError`."""
    wanted = named(reference)
    if wanted is None:
        return None
    found = Registry()
    version = found.get(*wanted)
    folder = found.folder(version)
    if store.version(folder) != version.version:
        raise ArtefactError(f"{folder} is {store.version(folder)}, and {reference} is {version.version}: it was exchanged; restore it from a backup")
    return folder


def _number(db: Database, name: str, version: str) -> int | None:
    row = db.execute("select number from versions where name=? and version=?", (name, version)).fetchone()
    return None if row is None else int(row[0])


def _files(db: Database, name: str, version: str) -> Files | None:
    query = "select c.files from contents c join versions v on c.name = v.name and c.number = v.number where v.name=? and v.version=?"
    row = db.execute(query, (name, version)).fetchone()
    return parse(row[0]) if row else None


def _keep_files(db: Database, number: int, taken: Taken) -> None:
    db.execute("delete from contents where name=? and number=?", (taken.name, number))
    if taken.files:
        db.execute("insert into contents values (?, ?, ?)", (taken.name, number, json.dumps(taken.files, ensure_ascii=False)))


def _named(db: Database) -> dict[tuple[str, str], Files | None]:
    """Every version that the records name, with its files in storage."""
    query = "select v.name, v.version, c.files from versions v left join contents c on c.name = v.name and c.number = v.number"
    return {(name, version): parse(files) for name, version, files in db.execute(query).fetchall()}


def _needed(every: list[Version], keep: int) -> set[str]:
    """Versions that stay: with an alias, the newest of each name, and the parents of what stays, and theirs."""
    numbers = {name: sorted(v.number for v in every if v.name == name)[-keep:] if keep else [] for name in {v.name for v in every}}
    kept = {v.version for v in every if v.aliases or v.number in numbers[v.name]}
    waiting = set(kept)
    while waiting:
        parents = {p for v in every if v.version in waiting for p in v.facts.get("parents", [])}
        waiting = {v.version for v in every if v.version in parents} - kept
        kept |= waiting
    return kept


def _facts(model: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Of the manifest and of the run that the folder lies in."""
    run = next((p for p in model.resolve().parents if (p / "run.json").is_file()), None)
    told = json.loads((run / "run.json").read_text(encoding="utf-8")) if run else {}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8")) if run and (run / "metrics.json").is_file() else {}
    return {
        "metrics": metrics.get("test") or metrics.get("valid") or {}, "run": run.name if run else None, "gate": told.get("gate") or [],
        "data": manifest.get("data") or {}, "parents": list(_parents(manifest)), "backend": manifest["model"]["backend"],
        "size": sum(e["size"] for e in manifest["files"].values()), "seed": manifest.get("seed"),
        **({"mlflow": told["mlflow"]} if told.get("mlflow") else {}),
    }  # fmt: skip


def _parents(manifest: dict[str, Any]) -> Iterator[str]:
    for parent in manifest.get("parents") or []:
        version = parent.get("version") if isinstance(parent, dict) else parent
        if isinstance(version, str):
            yield version


def _tell(db: Database, name: str, alias: str, number: int | None, previous: int | None, why: str) -> None:
    last = db.execute("select coalesce(max(id), 0) from history").fetchone()[0]
    db.execute(
        "insert into history (id, name, alias, number, previous, time, why) values (?, ?, ?, ?, ?, ?, ?)", (last + 1, name, alias, number, previous, now(), why)
    )
