"""What a registry knows of its versions, in SQL that two databases understand: SQLite in a file, PostgreSQL by URL.

Whoever writes is alone: SQLite's `begin immediate`, in PostgreSQL one advisory lock for the transaction (an explicit lock, since two transactions of
`read committed` would both read the same highest number). Readers wait for nobody and see one state. A process that dies loses its transaction.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from modelyard.errors import ArtefactError, MachineError, MissingExtra, UsageError
from modelyard.settings import without_password
from modelyard.store import atomic

NAMES = ("versions", "aliases", "history", "counters")
"""Tables that a backup holds."""
LOCK = 0x6D6F64656C796172
"""Number of the advisory lock: `modelyar` in ASCII."""
WAIT = 30
"""Seconds to wait for others who write."""
SCHEMA = "modelyard"
"""The tables' own schema, beside whatever else the database holds."""

TABLES = """
create table if not exists versions (
  name text not null, number integer not null, version text not null, added text not null, facts text not null,
  primary key (name, number), unique (name, version));
create table if not exists counters (name text primary key, last integer not null);
create table if not exists aliases (name text not null, alias text not null, number integer not null, primary key (name, alias));
create table if not exists history (
  id integer primary key, name text not null, alias text not null, number integer, previous integer, time text not null, why text not null);
create table if not exists contents (name text not null, number integer not null, files text not null, primary key (name, number));
"""
"""`contents` is for folders that lie in storage: which object is which file."""


class Database(Protocol):
    """An open transaction."""

    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        """A cursor; places for values are `?`."""


class Records(Protocol):
    """Where the records lie."""

    where: str
    """As it is shown: without a password."""

    def there(self) -> bool:
        """Whether there is a registry."""

    def open(self, make: bool = False, write: bool = False) -> Any:
        """A context with a `Database`; committed at its end, undone where it fails. `make` makes the tables, `write` keeps other writers out."""


class Sqlite:
    """A file."""

    def __init__(self, file: Path, hint: str) -> None:
        self.file, self.where, self.hint = file, str(file.parent), hint

    def there(self) -> bool:
        """As the protocol says."""
        return self.file.is_file()

    @contextmanager
    def open(self, make: bool = False, write: bool = False) -> Iterator[Database]:
        """As the protocol says."""
        if not self.there() and not make:
            raise ArtefactError(f"there is no registry at {self.where}; {self.hint}")
        atomic.make_folder(self.file.parent)
        connection = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None)
        try:
            connection.execute("pragma journal_mode=wal")
            connection.execute("pragma synchronous=full")
            connection.executescript(TABLES)
            connection.execute("begin immediate" if make or write else "begin")
            yield connection
            connection.execute("commit")
        except sqlite3.DatabaseError as error:
            raise ArtefactError(f"{self.file} cannot be used: {error}") from None
        finally:
            connection.close()


class Postgres:
    """A database by URL; passwords may also come from PGPASSWORD or `~/.pgpass`, as libpq reads them."""

    def __init__(self, url: str, hint: str) -> None:
        self.url, self.where, self.hint = url, without_password(url), hint

    def there(self) -> bool:
        """As the protocol says."""
        with self._connected(write=False) as connection:
            return _made(connection)

    @contextmanager
    def open(self, make: bool = False, write: bool = False) -> Iterator[Database]:
        """As the protocol says."""
        with self._connected(make or write) as connection:
            if make or write:
                connection.execute("select pg_advisory_xact_lock(%s)", (LOCK,))
            if not _made(connection):
                if not make:
                    raise ArtefactError(f"there is no registry at {self.where}; {self.hint}")
                connection.execute(f"create schema if not exists {SCHEMA}; set local search_path to {SCHEMA}; {TABLES}")
            connection.execute(f"set local search_path to {SCHEMA}")
            yield _Translated(connection)

    @contextmanager
    def _connected(self, write: bool) -> Iterator[Any]:
        try:
            import psycopg  # type: ignore[import-not-found, unused-ignore]
            from psycopg.conninfo import conninfo_to_dict
        except ImportError:  # also where its C library is absent
            raise MissingExtra("psycopg", "postgres") from None
        try:
            port = str(conninfo_to_dict(self.url).get("port") or "0")
        except psycopg.Error:  # its message quotes what it could not read, and that may be a password
            port = ""
        if not re.fullmatch(r"[\d,]+", port):
            raise UsageError(
                "the URL of the registry cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
                "with % @ : / ? # of a password as %25 %40 %3A %2F %3F %23"
            )
        try:
            with psycopg.connect(self.url, connect_timeout=15, application_name="modelyard") as connection:
                if not write:
                    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
                connection.execute(f"set local lock_timeout to '{WAIT}s'")
                yield connection
        except psycopg.OperationalError as error:
            raise MachineError(f"{self.where} cannot be used: {self._safe(error)}") from None
        except psycopg.Error as error:
            raise ArtefactError(f"{self.where} cannot be used: {self._safe(error)}") from None

    def _safe(self, error: Exception) -> str:
        """One line of the error, the password hidden wherever it stands."""
        text = without_password(" ".join(str(error).split()))[:300]
        secret = re.search(r"://[^:/@]*:([^@/]*)@", self.url)
        for word in (secret[1], unquote(secret[1])) if secret and secret[1] else ():
            text = text.replace(word, "***")
        return text


class _Translated:
    """A connection of psycopg that takes `?`."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        return self.connection.execute(query.replace("?", "%s"), values)


def _made(connection: Any) -> bool:
    return bool(connection.execute("select to_regclass(%s) is not null", (f"{SCHEMA}.versions",)).fetchone()[0])
