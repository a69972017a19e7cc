"""Tables of databases by URL: SQLite from the standard library, PostgreSQL through psycopg. Reading only.

`sqlite:///file.db` is relative to the project file, `sqlite:////data/file.db` absolute; `postgresql://user:password@host/database`. SQLite is
opened read-only and an authoriser refuses whatever is no SELECT; PostgreSQL runs in a read-only transaction with a server-side cursor.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.data.read import column_of
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError, MissingExtra
from modelyard.settings import HIDDEN, without_password

FETCH = 20_000
"""Rows fetched at once."""
SCHEMES = ("sqlite", "postgresql", "postgres")
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def is_url(given: Any) -> bool:
    """Whether a text names a database (or some other place on a network) and no file."""
    return isinstance(given, str) and bool(re.match(r"[A-Za-z][\w+.-]*://", given))


def sqlite_file(url: str, base: Path) -> Path | None:
    """The file of a SQLite URL; None for another database."""
    if not url.startswith("sqlite:///"):
        return None
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    return path if path.is_absolute() else base / path


def read_sql(url: str, base: Path, name: str, *, query: str | None = None, table: str | int | None = None) -> Table:
    """All rows of `query`, or of `table` (not needed where the database has one only).

    Raises `DataError` for anything but one SELECT, and naming the tables there are; a password is never shown.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise DataError(f"{without_password(url)}: data is read from files and from databases (sqlite:///FILE, postgresql://…), not from {scheme}://")
    if query is not None and not re.match(r"\s*(select|with|values)\b", query, re.IGNORECASE):
        raise DataError(f"data.query is only ever a SELECT; it came as {query.strip()[:60]!r}")
    if query is not None and table is not None:
        raise DataError("data.query and data.sheet were both given; write the table into the query")
    if f":{HIDDEN}@" in url:
        raise DataError(f"{url}: a run does not keep passwords; write the URL with ${{env:NAME}} for it, or give data= again")
    if scheme == "sqlite":
        return _sqlite(url, base, name, query, table)
    return _postgres(url, name, query, table)


class _Undecodable(bytes):
    """A text that is not UTF-8."""


def _decoded(raw: bytes) -> Any:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return _Undecodable(raw)


def _sqlite(url: str, base: Path, name: str, query: str | None, table: str | int | None) -> Table:
    path = sqlite_file(url, base)
    if path is None:
        raise DataError(f"{url}: write sqlite:///FILE, with three slashes (four for an absolute path)")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            connection.text_factory = _decoded
            found = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'")
            tables = sorted(str(row[0]) for row in found)
            query = query or f'SELECT * FROM "{_one(tables, table, str(path)).replace(chr(34), chr(34) * 2)}"'
            connection.set_authorizer(_only_reading)
            cursor = connection.execute(query)
            names = [d[0] for d in cursor.description]
            return _table(names, iter(lambda: cursor.fetchmany(FETCH), []), str(path), name)
        finally:
            connection.close()
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        text = str(error)
        reason = "only a single SELECT is allowed" if "not authorized" in text or "one statement" in text else text
        raise DataError(f"{path}: {reason}" + (f" (query: {query.strip()[:120]})" if query else "")) from None


def _only_reading(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    harmless = action in ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and second in ("load_extension", "readfile", "writefile", "edit"))
    return sqlite3.SQLITE_OK if harmless else sqlite3.SQLITE_DENY


def _one(tables: Sequence[str], wanted: str | int | None, where: str) -> str:
    if wanted is not None and str(wanted) in tables:
        return str(wanted)
    there = ", ".join(tables[:20]) or "none"
    if wanted is not None:
        raise DataError(f"{where} has no table {wanted!r}; it has: {there}")
    if len(tables) != 1:
        raise DataError(f"{where} has {len(tables)} tables ({there}); name one with data.sheet, or write data.query")
    return tables[0]


def _postgres(url: str, name: str, query: str | None, table: str | int | None) -> Table:
    try:
        import psycopg  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # also where its C library is absent
        raise MissingExtra("psycopg", "postgres") from None
    try:
        with psycopg.connect(url, connect_timeout=15) as connection:
            connection.read_only = True
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT table_name FROM information_schema.tables WHERE table_schema = ANY (current_schemas(false)) ORDER BY table_name"
                )
                tables = [str(row[0]) for row in cursor.fetchall()]
            query = query or f'SELECT * FROM "{_one(tables, table, without_password(url)).replace(chr(34), chr(34) * 2)}"'
            with connection.cursor(name="modelyard") as cursor:  # named: the server keeps the rows and gives them in pieces
                cursor.execute(query)
                pieces = iter(lambda: cursor.fetchmany(FETCH), [])
                first: list[Any] = next(pieces, [])
                names = [d.name for d in cursor.description or []]
                return _table(names, _chained(first, pieces), without_password(url), name)
    except psycopg.Error as error:
        raise DataError(f"{without_password(url)}: {' '.join(without_password(str(error)).split())[:300]}") from None


def _chained(first: list[Any], rest: Iterator[list[Any]]) -> Iterator[list[Any]]:
    yield first
    yield from rest


def _table(names: list[str], pieces: Iterable[Sequence[Sequence[Any]]], where: str, name: str) -> Table:
    """Columns of all pieces; each piece becomes typed columns at once, so that Python objects of one piece are in memory."""
    if len(set(names)) < len(names):
        double = ", ".join(sorted({n for n in names if names.count(n) > 1}))
        raise DataError(f"{where}: the query gives {double} more than once; rename with AS")
    parts: dict[str, list[pl.Series]] = {n: [] for n in names}
    aside: list[SetAside] = []
    number = 0
    for rows in pieces:
        good = []
        for row in rows:
            number += 1
            bad = next((i for i, v in enumerate(row) if isinstance(v, _Undecodable)), None)
            if bad is None:
                good.append(row)
            else:
                aside.append(SetAside(where, number, names[bad], "holds a text that is not UTF-8", repr(bytes(row[bad]))[:80]))
        for i, n in enumerate(names):
            parts[n].append(_values(n, [_plain(row[i]) for row in good]))
    return Table(name, pl.DataFrame([_joined(n, found) for n, found in parts.items()]), aside)


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return bytes(value) if isinstance(value, memoryview | bytearray) else value


def _values(name: str, values: list[Any]) -> pl.Series:
    types = {type(v) for v in values if v is not None}
    if types & {bytes, dt.datetime, dt.date, dt.time, dt.timedelta, bool} and len(types) > 1:
        return pl.Series(name, [v if v is None else _words(v) for v in values], dtype=pl.String)
    return column_of(name, values)


def _words(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _joined(name: str, parts: list[pl.Series]) -> pl.Series:
    """One column; SQLite has types per value, so that a column can begin with numbers and end with texts."""
    types = {p.dtype for p in parts if p.dtype != pl.Null}
    if not parts:
        return pl.Series(name, [], dtype=pl.Null)
    if len(types) <= 1:
        return pl.concat([p.cast(next(iter(types), pl.Null)) for p in parts]).alias(name)
    if all(t.is_numeric() for t in types):
        return pl.concat([p.cast(pl.Float64) for p in parts]).alias(name)
    texts = [pl.Series(name, [v if v is None else _words(v) for v in p.to_list()], dtype=pl.String) for p in parts]
    return pl.concat(texts)
