"""Files and objects to tables: CSV, TSV, JSON lines (compressed too), Parquet, workbooks, Polars, pandas, Arrow and NumPy objects.

Texts are UTF-8 with or without a byte-order mark or UTF-16, else GB18030 with a note. Every physical row is kept or set aside with
its line, column and reason; none is merged with its neighbour or lost to a stray quote.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.data import conll, packed
from modelyard.data.conll import ConllConfig
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError, Problem

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
"""Taken as missing in columns whose other values are numbers; in columns of texts only the empty field is missing, because
`NA` may be Namibia and `None` an answer. `data.missing` names more for all columns."""

TEXTS = ("csv", "tsv", "txt", "data", "jsonl", "ndjson", "json")

SPAN = 200
"""Physical lines that one quoted field may span before its quote counts as stray."""

SEPARATORS = (",", "\t", ";", "|")
INTEGER = r"^[+-]?(0|[1-9][0-9]{0,17})$"
DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
ZERO_LED = r"^[+-]?0[0-9]"
"""`\\d` would also match the digits of other scripts (５, ٣), which no cast reads."""


@dataclass(frozen=True)
class Reading:
    """How to read; None means found out."""

    encoding: str | None = None
    separator: str | None = None
    header: bool = True
    missing: tuple[str, ...] = ()
    limit: int | None = None
    sheet: str | int | None = None
    """Sheet of a workbook."""
    max_bytes: int | None = None
    texts: bool = False
    """Whether a .txt file is a text and no table."""
    conll: ConllConfig | None = None
    """Columns of a CoNLL file; set, every file of an unknown type is read as one."""


def read(source: Any, reading: Reading | None = None, name: str = "train") -> Table:
    """One table from a file or an object. Raises `DataError` saying what came and what is read."""
    reading = reading or Reading()
    if isinstance(source, str | Path):
        table = _file(Path(source), reading, name)
    else:
        table = Table(name, _object(source))
    _check_names(table.data.columns, str(source) if isinstance(source, str | Path) else name)
    if reading.limit is not None and table.rows > reading.limit:
        table.notes.append(f"{name}: the first {reading.limit} of {table.rows} rows were taken (data.limit)")
        table = Table(name, table.data.head(reading.limit), table.set_aside, table.notes)
    return table


def _file(path: Path, reading: Reading, name: str) -> Table:
    if not path.is_file():
        raise DataError(f"{path} does not exist; name a file, a folder or a table")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; it needs a header and at least one row")
    kind = _suffix(path)
    if kind in ("parquet", "pq"):
        try:
            _parquet_fits(path, reading.max_bytes)
            return Table(name, pl.read_parquet(path))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is no readable Parquet file: {str(error)[:200]}") from None
    if kind in ("xlsx", "xlsm"):
        from modelyard.data.xlsx import read_workbook

        return read_workbook(
            path, name, sheet=reading.sheet, header=reading.header, max_bytes=reading.max_bytes, missing=reading.missing
        )
    if kind in conll.SUFFIXES or (reading.conll is not None and kind not in TEXTS):
        text, notes = decode(bytes_of(path, reading.max_bytes), reading.encoding, path)
        table = conll.table(_newlines(text), path, name, reading.conll or ConllConfig())
        table.notes = notes + table.notes
        return table
    if kind == "xls":
        raise DataError(f"{path} is a workbook of the old format; save it as .xlsx or CSV")
    if kind not in TEXTS:
        known = ".csv, .tsv, .jsonl, .json (.gz, .bz2, .xz, .zip too), .parquet or .xlsx"
        tagged = "tagged sentences are .conll, .bio or .iob (set data.conll for other names)"
        raise DataError(f"{path} is of no known type; tables are {known}, and sqlite:///FILE; {tagged}")
    return of_bytes(bytes_of(path, reading.max_bytes), kind, path, name, reading)


def _parquet_fits(path: Path, max_bytes: int | None) -> None:
    """Refuses a file whose footer speaks of far more than it can hold: a constant column of 10 billion rows takes a few kilobytes."""
    rows = pl.scan_parquet(path)
    size = 8 * int(rows.select(pl.len()).collect().item()) * len(rows.collect_schema())
    packed_ = path.stat().st_size
    if size > (max_bytes or packed.SIZE_LIMIT) and (max_bytes is not None or size > packed.RATIO * packed_):
        said = f"{path} unpacks to about {size} bytes from {packed_} and was refused"
        raise DataError(f"{said}; if it is no bomb, set data.max_bytes")


def of_bytes(raw: bytes, kind: str, path: Path, name: str, reading: Reading) -> Table:
    """The table of a text file's content; `kind` is its suffix."""
    text, notes = decode(raw, reading.encoding, path)
    if kind in ("jsonl", "ndjson", "json"):
        table = _json(text, path, name) if kind == "json" else _json_lines(text, path, name)
    else:
        table = _delimited(text, path, name, reading, "\t" if kind == "tsv" else None)
    table.notes = notes + table.notes
    return table


def _suffix(path: Path) -> str:
    parts = path.name.lower().split(".")
    return parts[-2] if parts[-1] in ("gz", "bz2", "xz") and len(parts) > 2 else parts[-1]


def bytes_of(path: Path, max_bytes: int | None = None) -> bytes:
    """Content of a file, unpacked up to `max_bytes` (`packed.SIZE_LIMIT`)."""
    limit = max_bytes or packed.SIZE_LIMIT
    if path.stat().st_size > limit:
        raise DataError(f"{path} holds more than {limit} bytes; raise data.max_bytes, or convert it to Parquet, which is read by column")
    if path.suffix.lower() not in packed.STREAMS:
        return path.read_bytes()
    return packed.unpacked(path, max_bytes)


def decode(raw: bytes, encoding: str | None, path: Path) -> tuple[str, list[str]]:
    """(text, notes). UTF-8, UTF-16 (with or without a mark), else GB18030 with a note; binary content is refused."""
    found = encoding or _sixteen(raw, path)
    if found:
        try:
            return raw.decode(found).removeprefix("\ufeff"), []
        except LookupError:
            raise DataError(f"the encoding {encoding!r} is not known; try utf-8 or gb18030") from None
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            hint = "name the right data.encoding" if encoding else "it is cut short or damaged"
            raise DataError(f"{path}:{line}: byte {raw[error.start]:#04x} is not {found}; {hint}") from None
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError as utf8:
        try:
            text = raw.decode("gb18030")
        except UnicodeDecodeError:
            line = raw[: utf8.start].count(b"\n") + 1
            message = (
                f"{path}:{line}: byte {raw[utf8.start]:#04x} is neither UTF-8 nor GB18030; save the file as UTF-8 or name data.encoding"
            )
            raise DataError(message) from None
        return text, [f"{path.name} was read as GB18030, since it is not UTF-8"]


def _sixteen(raw: bytes, path: Path) -> str | None:
    """`utf-16` by its mark, `utf-16-le` or `-be` by where its NUL bytes stand; None for a text of bytes. Binary content is refused.

    In UTF-16 separators, digits and newlines have one NUL byte each, all on the same side; a text of bytes has next to none.
    """
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    head = np.frombuffer(raw[: 2**20], np.uint8)
    places = np.flatnonzero(head == 0)
    if len(places) <= 0.01 * len(head):
        return None
    odd = float((places % 2).mean())
    if len(places) > 0.02 * len(head) and (odd > 0.99 or odd < 0.01):
        return "utf-16-le" if odd > 0.5 else "utf-16-be"
    raise DataError(f"{path} is binary ({len(places)} NUL bytes in its first MiB); save it as UTF-8, or name data.encoding")


def _delimited(text: str, path: Path, name: str, reading: Reading, separator: str | None) -> Table:
    lines = _newlines(text)
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise DataError(f"{path} holds no rows")
    sep = reading.separator or separator or sniff(lines[first : first + 50])
    try:
        head = next(csv.reader([lines[first]], delimiter=sep))
    except csv.Error as error:
        raise DataError(f"{path}:{first + 1}: the header cannot be read: {error}") from None
    if reading.header:
        names = [h.strip() for h in head]
        body = first + 1
        _check_names(names, f"{path}:{first + 1}")
    else:
        names = [f"column_{i + 1}" for i in range(len(head))]
        body = first
    columns, aside = _records(lines, body, len(names), names, sep, str(path))
    frame = pl.DataFrame({n: typed(pl.Series(n, c, dtype=pl.String), reading.missing) for n, c in zip(names, columns, strict=True)})
    return Table(name, frame, aside)


def _newlines(text: str) -> list[str]:
    """Lines cut at newlines only: `str.splitlines` would also cut at form feeds and U+2028 inside fields."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def sniff(lines: Sequence[str]) -> str:
    """The separator whose count per line is most even and not zero; a comma where none is."""
    best, score = ",", 0.0
    # a line beyond the csv module's field limit, or with a NUL, is set aside later and tells nothing here
    sample = [line for line in lines if line.strip() and "\x00" not in line and len(line) < csv.field_size_limit()]
    for separator in SEPARATORS:
        counts = [sum(1 for _ in next(csv.reader([line], delimiter=separator), [])) - 1 for line in sample]
        if counts and counts[0] > 0:
            even = sum(c == counts[0] for c in counts) / len(counts)
            if even + min(counts[0], 50) / 1000 > score:
                best, score = separator, even + min(counts[0], 50) / 1000
    return best


def _records(lines: list[str], start: int, width: int, names: list[str], sep: str, file: str) -> tuple[list[list[str]], list[SetAside]]:
    """Columns of the body, and what was set aside. A fast path for lines without quotes; `csv` for the others."""
    rows: list[list[str]] = []
    aside: list[SetAside] = []
    i = start
    while i < len(lines):
        line = lines[i]
        if '"' not in line:
            fields: list[str] | None = line.split(sep)
            if len(fields) != width:  # type: ignore[arg-type]
                if not line.strip():
                    i += 1  # an empty line is no row
                    continue
                aside.append(_ragged(file, i + 1, fields or [], width, names, line))
            elif "\x00" in line:
                aside.append(SetAside(file, i + 1, None, "holds a NUL byte", repr(line)[:80]))
            else:
                rows.append(fields)  # type: ignore[arg-type]
            i += 1
            continue
        fields, used, reason = _quoted(lines, i, width, sep)
        if fields is None:
            aside.append(SetAside(file, i + 1, None, reason, line[:80]))
        elif len(fields) != width:
            aside.append(_ragged(file, i + 1, fields, width, names, line))
        else:
            rows.append(fields)
        i += used
    return [list(c) for c in zip(*rows, strict=True)] if rows else [[] for _ in range(width)], aside


def _ragged(file: str, line: int, fields: list[str], width: int, names: list[str], text: str) -> SetAside:
    column = names[len(fields)] if len(fields) < width else None
    return SetAside(file, line, column, f"has {len(fields)} fields where the header has {width}", text[:80])


def _quoted(lines: list[str], i: int, width: int, sep: str) -> tuple[list[str] | None, int, str]:
    """(fields or None, physical lines used, reason). A quote that is never closed costs its own line only."""
    for used in range(1, SPAN + 1):
        if i + used > len(lines):
            break
        try:
            fields = next(
                csv.reader(
                    ["\n".join(lines[i : i + used])] if used == 1 else [x + "\n" for x in lines[i : i + used - 1]] + [lines[i + used - 1]],
                    delimiter=sep,
                    strict=True,
                )
            )
        except csv.Error as error:
            if "unexpected end of data" in str(error) or "newline inside string" in str(error):
                continue
            if "field larger" in str(error):
                return None, used, "holds a field of more than 131,072 characters"
            return None, 1, f"has a stray quote ({error})"
        if used > 1 and width > 1 and all(x.count(sep) == width - 1 for x in lines[i + 1 : i + used]):
            return None, 1, "has a quote that is not closed on its line, and the next lines are whole rows"
        return fields, used, ""
    return None, 1, "has a quote that is never closed"


def typed(column: pl.Series, missing: Sequence[str] = ()) -> pl.Series:
    """A column of texts as integers or decimals where that changes no value, else as it is.

    Leading zeros (007), integers beyond 18 digits and numbers that overflow stay texts.
    """
    text = column.set(column == "", None)
    if missing:
        text = text.set(text.is_in(list(missing)).fill_null(False), None)
    stripped = text.str.strip_chars()
    numeric = stripped.set(stripped.is_in(list(MISSING)).fill_null(False), None)
    if numeric.null_count() == len(numeric):
        return text
    if not numeric.str.contains(DECIMAL).fill_null(True).all() or numeric.str.contains(ZERO_LED + r"([0-9]|$)").fill_null(False).any():
        return text
    if numeric.str.contains(ZERO_LED).fill_null(False).any():
        return text
    if numeric.str.contains(INTEGER).fill_null(True).all():
        return numeric.cast(pl.Int64)
    if numeric.str.contains(r"^[+-]?[0-9]{16,}$").fill_null(False).any():
        return text
    values = numeric.cast(pl.Float64)
    return values if values.is_finite().fill_null(True).all() else text


def _json_lines(text: str, path: Path, name: str) -> Table:
    rows, aside = [], []
    for number, line in enumerate(_newlines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            aside.append(SetAside(str(path), number, None, f"is not JSON: {str(error)[:80]}", line[:80]))
            continue
        if _half(line, row):
            aside.append(SetAside(str(path), number, None, HALF, line[:80]))
        elif isinstance(row, dict):
            rows.append(row)
        else:
            aside.append(SetAside(str(path), number, None, "is not a JSON object", line[:80]))
    if not rows:
        first = f": line {aside[0].line} {aside[0].reason}" if aside else ""
        raise DataError(f"{path} holds no JSON objects, one a line{first}")
    return Table(name, from_records(rows), aside)


HALF = "holds half of a character (a lone surrogate)"


def _half(text: str, value: Any) -> bool:
    """Whether JSON holds a text such as `"\\ud800"`, which is no Unicode; `text` tells quickly that it does not."""
    if not re.search(r"\\u[dD][89a-fA-F]", text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _json(text: str, path: Path, name: str) -> Table:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _json_lines(text, path, name)  # many .json files hold JSON lines
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        if len({len(v) for v in value.values()}) != 1:
            raise DataError(f"{path}: the columns have different lengths")
        return Table(name, pl.DataFrame({k: column_of(k, v) for k, v in value.items()}))
    rows = [value] if isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} holds {type(value).__name__}; expected a list of objects or an object of columns")
    halves = {i for i, r in enumerate(rows, 1) if _half(text, r)} if _half(text, value) else set()
    good = [(i, r) for i, r in enumerate(rows, 1) if isinstance(r, dict) and i not in halves]
    aside = [
        SetAside(str(path), i, None, HALF if i in halves else "is not a JSON object", ascii(r)[:80])
        for i, r in enumerate(rows, 1)
        if i in halves or not isinstance(r, dict)
    ]
    if not good:
        raise DataError(f"{path}: none of its {len(rows)} elements is an object")
    return Table(name, from_records([r for _, r in good]), aside)


def from_records(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Columns over the union of all keys; a key that a row lacks is missing."""
    names = list(dict.fromkeys(k for row in rows for k in row))
    return pl.DataFrame({str(n): column_of(str(n), [row.get(n) for row in rows]) for n in names})


def column_of(name: str, values: Sequence[Any]) -> pl.Series:
    """A column of JSON values; mixed types become texts so that nothing is turned into a silent null."""
    try:
        return pl.Series(name, list(values))
    except UnicodeEncodeError:
        raise DataError(f"{name!a}: a value {HALF}; write whole Unicode") from None
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        pass
    if all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values):
        try:
            return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
        except OverflowError:
            pass
    texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pl.Series(name, texts, dtype=pl.String)


def _object(source: Any) -> pl.DataFrame:
    if isinstance(source, Table):
        return source.data
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if hasattr(source, "features"):
        from modelyard.data import huggingface

        if huggingface.is_dataset(source):
            return huggingface.to_frame(source)
    if isinstance(source, Mapping):
        lengths = {k: len(v) for k, v in source.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns have different lengths: {lengths}")
        return pl.DataFrame({k: v if isinstance(v, pl.Series | np.ndarray) else column_of(str(k), v) for k, v in source.items()})
    if isinstance(source, np.ndarray) and source.ndim == 2:
        return pl.DataFrame({f"column_{i + 1}": source[:, i] for i in range(source.shape[1])})
    if hasattr(source, "__arrow_c_stream__") or type(source).__module__.split(".")[0] in ("pandas", "pyarrow"):
        return pl.DataFrame(source)
    if isinstance(source, Sequence) and source and all(isinstance(r, Mapping) for r in source):
        return from_records(source)
    message = (
        f"data came as {type(source).__name__}; give a path, a dict of columns, a list of dicts, or a Polars, pandas, Arrow, NumPy or datasets table"
    )
    raise DataError(message)


def _check_names(names: Sequence[str], where: str) -> None:
    problems = [Problem("has no name", f"column {i}") for i, n in enumerate(names, 1) if not n]
    problems += [Problem("appears more than once", n) for n in dict.fromkeys(n for n in names if n and list(names).count(n) > 1)]
    if problems:
        raise DataError(f"{where}: {len(problems)} column name(s) cannot be used; every column needs its own name", problems)


def physical_rows(text: str) -> Iterator[str]:
    """Non-empty physical lines (a second counter for tests)."""
    return (line for line in _newlines(text) if line.strip())
