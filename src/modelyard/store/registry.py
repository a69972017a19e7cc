"""Versions of models in one place: a folder of model folders and an SQLite file that names them; or PostgreSQL and a bucket, for many machines.

    registry/registry.sqlite                 versions, aliases and their history
    registry/models/NAME/VERSION/            model folders, never changed

With a URL (`postgresql://…`) the rows lie in that database, the folders as objects where MODELYARD_STORE says (store/objects.py), and this machine
keeps copies of those that it was asked for.

A version is copied aside, hashed, renamed and then written to SQLite in one transaction: a process that dies between leaves a folder that nobody
names, which the next `register` of the same model takes up and `gc` removes. Aliases (`champion`, `challenger`, …) move in one transaction with a line of
history, which `rollback` walks back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, Problem, UsageError
from modelyard.settings import without_password
from modelyard.store import atomic, objects, records, sealed, signature
from modelyard.store import folder as store
from modelyard.store.place import place_of
from modelyard.store.run import now

PLACE = "MODELYARD_REGISTRY"
"""Environment variable with the folder of the registry, or the URL of a database; without it `registry` in the working folder."""
STORE = "MODELYARD_STORE"
"""Environment variable with the place of the folders of a registry in a database: s3://BUCKET/PREFIX, or a folder that all machines see."""
CACHE = "MODELYARD_CACHE"
"""Environment variable with the folder of copies; without it one of the user's cache."""
REFERENCE = re.compile(r"models:/?([^@:/]+)(?:[@]([^@:/]+)|[:/](\d+|[0-9a-f]{12}))?")
NAME = re.compile(r"[\w][\w.-]{0,99}")
CHAMPION = "champion"
KEEP = 5
"""Newest versions of a name that garbage collection keeps anyway."""
ORPHAN = 3600.0
"""Seconds after which a folder that no version names was left by a process that died."""
LEFT_OUT = {store.MANIFEST, signature.FILE}


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
    """A registry. All methods are safe beside other processes, and in a database beside other machines."""

    def __init__(self, place: Path | str | None = None) -> None:
        text = str(place or os.environ.get(PLACE) or "registry")
        self.told, self.stored = without_password(text), None
        """For people: without the password. And where folders are kept, if not here."""
        if not text.startswith(("postgresql://", "postgres://")):
            self.place = Path(text)
            self.records: records.Sqlite | records.Postgres = records.Sqlite(self.place / "registry.sqlite")
            return
        kept = os.environ.get(STORE)
        if kept is None:
            detail = Problem("is not set", STORE, "Write s3://BUCKET/PREFIX, or a folder that all machines see.")
            raise UsageError(f"{self.told} holds the rows of a registry; {STORE} must say where its model folders lie", [detail])
        self.records, self.stored = records.Postgres(text), place_of(kept)
        cache = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelyard"
        self.place = Path(cache) / "registry" / sha256(f"{self.told} {kept}".encode()).hexdigest()[:12]

    @contextmanager
    def _open(self, make: bool = False) -> Iterator[records.Rows]:
        if not make and not self.records.there():
            raise ArtefactError(f"there is no registry at {self.told}; register a model, or set {PLACE} to its folder")
        with self.records.transaction() as db:
            yield db

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
        if self.stored is not None and not target.exists() and f"folders/{name}/{version}.json" in self.stored.have(f"folders/{name}/{version}"):
            objects.fetch(self.stored, name, version, target)  # another machine sealed or signed it: there is one such folder
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
            if self.stored is not None:  # within the transaction: garbage is collected in another
                objects.keep(self.stored, name, version, target)
            number = db.execute("select number from versions where name=? and version=?", (name, version)).fetchone()
            if number is None:
                number = (db.execute("select coalesce(max(last), 0) + 1 from counters where name=?", (name,)).fetchone()[0],)
                # a number that garbage had is not given again
                db.execute("insert into counters values (?, ?) on conflict (name) do update set last = excluded.last", (name, number[0]))
                facts = json.dumps(_facts(model, manifest), ensure_ascii=False)
                db.execute("insert into versions values (?, ?, ?, ?, ?)", (name, number[0], version, now(), facts))
        return self.get(name, number[0])

    def versions(self, name: str | None = None) -> list[Version]:
        """All of a name, or of all names, oldest first."""
        with self._open() as db:
            rows = db.execute("select * from versions where name = coalesce(?, name) order by name, number", (name,)).fetchall()
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
        """Its model folder; fetched where it is not here, or was signed or given another key elsewhere."""
        target = self.place / "models" / version.name / version.version
        if self.stored is not None and not objects.same(self.stored, version.name, version.version, target, LEFT_OUT):
            shutil.rmtree(target, ignore_errors=True)
            try:
                objects.fetch(self.stored, version.name, version.version, target)
            except OSError:
                if not target.exists():  # else another process was faster
                    raise
        return target

    def changed(self, version: Version) -> None:
        """Keeps what was added to its folder here: a signature, another key."""
        if self.stored is not None:
            with self._open():
                objects.keep(self.stored, version.name, version.version, self.place / "models" / version.name / version.version)

    # -- aliases --------------------------------------------------------------------------------------------------------

    def point(self, version: Version, alias: str, why: str) -> int | None:
        """Gives the alias to a version; the number that had it before."""
        if not re.fullmatch(r"[A-Za-z][\w-]{0,49}", alias):
            raise UsageError(f"{alias!r} is no alias; use a word such as champion or challenger")
        with self._open() as db:
            before = db.execute("select number from aliases where name=? and alias=?", (version.name, alias)).fetchone()
            given = (version.name, alias, version.number)
            db.execute("insert into aliases values (?, ?, ?) on conflict (name, alias) do update set number = excluded.number", given)
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
        with self._open() as db:
            rows = db.execute("select alias, number, previous, time, why from history where name=? order by id", (name,)).fetchall()
        return [dict(zip(("alias", "number", "previous", "time", "why"), row, strict=True)) for row in rows]

    # -- housekeeping ---------------------------------------------------------------------------------------------------

    def verify(self, name: str | None = None, trusted: Path | None = None) -> list[str]:
        """What is wrong with the folders: damaged or missing files, signatures that are missing."""
        problems = []
        for v in self.versions(name):
            try:
                if self.stored is not None:
                    with tempfile.TemporaryDirectory() as aside:
                        objects.fetch(self.stored, v.name, v.version, Path(aside) / v.version)
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
        here = lambda v: self.place / "models" / v.name / v.version  # noqa: E731
        named = {here(v) for v in every}
        old = [v for v in every if v.version not in kept]
        orphans = [p for p in self.place.glob("models/*/*") if p not in named and time.time() - p.stat().st_mtime > ORPHAN]
        size = sum(map(_size, [p for p in [*map(here, old), *orphans] if p.exists()]))
        if apply:
            for v in old:
                with self._open() as db:
                    if db.execute("select 1 from aliases where name=? and number=?", (v.name, v.number)).fetchone() is not None:
                        continue  # it was given an alias meanwhile
                    db.execute("delete from versions where name=? and number=?", (v.name, v.number))
                shutil.rmtree(here(v), ignore_errors=True)
            for path in orphans:
                shutil.rmtree(path, ignore_errors=True)
        if self.stored is not None:
            with self._open() as db:  # alone: nobody keeps a folder meanwhile
                rows = db.execute("select name, version from versions").fetchall()
                going = set() if apply else {(v.name, v.version) for v in old}
                size = objects.sweep(self.stored, {f"{n}/{v}" for n, v in rows if (n, v) not in going}, apply)
        return [f"{v.name} {v.number} ({v.version})" for v in old] + [f"left over: {p.relative_to(self.place)}" for p in orphans], size

    def tables(self) -> dict[str, list[list[Any]]]:
        """All rows, as they are at one moment."""
        with self._open() as db:
            return {t: [list(r) for r in db.execute(f"select * from {t} order by 1, 2").fetchall()] for t in records.NAMES}

    def fill(self, tables: Mapping[str, list[list[Any]]]) -> None:
        """Writes all rows of an empty registry."""
        with self._open(make=True) as db:
            for table in records.NAMES:
                for row in tables[table]:
                    db.execute(f"insert into {table} values ({', '.join('?' * len(row))})", row)
            self.records.counted(db)

    def empty(self) -> bool:
        """Whether nothing is registered, nor lies where it would."""
        if self.stored is not None:
            return not self.versions()
        return not (self.place.exists() and any(self.place.iterdir()))


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
        **({"mlflow": told["mlflow"]} if told.get("mlflow") else {}),
    }  # fmt: skip


def _parents(manifest: dict[str, Any]) -> Iterator[str]:
    for parent in manifest.get("parents") or []:
        version = parent.get("version") if isinstance(parent, dict) else parent
        if isinstance(version, str):
            yield version


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _tell(db: records.Rows, name: str, alias: str, number: int | None, previous: int | None, why: str) -> None:
    db.execute("insert into history (name, alias, number, previous, time, why) values (?, ?, ?, ?, ?, ?)", (name, alias, number, previous, now(), why))
