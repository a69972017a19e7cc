"""Sheets of .xlsx workbooks to tables: one header row, one row per line, values as the cells hold them.

openpyxl reads cell by cell in its streaming mode; formulas give the value that was last worked out. A cell that holds an
error (`#REF!`) costs its own row, which is set aside; `#N/A` is a missing value.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.data import packed
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError, MissingExtra, Problem

LIMIT = 2**30
"""Bytes of XML that a workbook may unpack to unless `data.max_bytes` says otherwise; a million rows of ten columns are about 400 MB."""
ERRORS = ("#REF!", "#DIV/0!", "#VALUE!", "#NAME?", "#NUM!", "#NULL!", "#SPILL!", "#CALC!", "#GETTING_DATA")
ABSENT = ("#N/A", "#N/A N/A")


def read_workbook(path: Path, name: str, *, sheet: str | int | None = None, header: bool = True, max_bytes: int | None = None,
                  missing: Sequence[str] = ()) -> Table:  # fmt: skip
    """The table of one sheet: the first, or `sheet` by name or by number from 1. Raises `DataError` saying what there is."""
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise MissingExtra("openpyxl", "tables") from None
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .xlsx workbook (an older .xls, a protected or a damaged file?); save it again as .xlsx or CSV")
    with packed.archive(path) as opened:
        cap = packed.Cap(path, max_bytes, LIMIT)
        for info in opened.infolist():
            cap.count(info.file_size)  # zipfile never gives more of an entry than its header says
        if any(b"<!DOCTYPE" in opened.open(i).read(1024) for i in opened.infolist() if i.filename.endswith((".xml", ".rels"))):
            raise DataError(f"{path} was refused: it defines XML entities, which no spreadsheet program does")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations that openpyxl does not know
            book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
            try:
                return _sheet(book, path, name, sheet, header, missing)
            finally:
                book.close()
    except DataError:
        raise
    except Exception as error:  # openpyxl has no error class of its own: KeyError, ValueError, ParseError …
        raise DataError(f"{path} is no readable workbook: {type(error).__name__}: {str(error)[:200]}") from None


def _sheet(book: Any, path: Path, name: str, wanted: str | int | None, header: bool, missing: Sequence[str]) -> Table:
    names = [s.title for s in book.worksheets]
    if not names:
        raise DataError(f"{path} holds no sheet of cells")
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(names):
            raise DataError(f"{path} has {len(names)} sheet(s); data.sheet came as {wanted}")
        chosen = names[wanted - 1]
    else:
        chosen = wanted or names[0]
    if chosen not in names:
        raise DataError(f"{path} has no sheet {chosen!r}; it has {', '.join(names)}")
    notes = [f"{path.name}: the sheet {chosen} was read, of {', '.join(names)} (data.sheet)"] if wanted is None and len(names) > 1 else []
    sheet = book[chosen]
    merged = _merged(sheet, path)
    sheet.reset_dimensions()  # what the file says of its size is often wrong
    with contextlib.closing(sheet.iter_rows(values_only=True)) as cells:  # closed, since an error may leave it half read
        lines = ((number, row) for number, row in enumerate(cells, 1) if any(not _empty(v) for v in row))
        return _table(lines, merged, f"{path}:{chosen}", name, header, missing, notes)


def _table(
    lines: Iterator[tuple[int, tuple[Any, ...]]], merged: list[tuple[str, int, int]], where: str, name: str, header: bool,
    missing: Sequence[str], notes: list[str],
) -> Table:  # fmt: skip
    first = next(lines, None)
    if first is None:
        raise DataError(f"{where} is empty")
    head = _header(first, merged, where) if header else [f"column_{i + 1}" for i in range(len(first[1]))]
    rows: list[list[Any]] = []
    aside: list[SetAside] = []
    for number, cells in [] if header else [first]:
        _take(number, cells, head, where, rows, aside)
    for number, cells in lines:
        _take(number, cells, head, where, rows, aside)
    kept = [i for i, n in enumerate(head) if n or any(not _empty(r[i]) for r in rows)]
    if nameless := [i for i in kept if not head[i]]:
        problems = [Problem("has values and no name", f"column {_letters(i)}") for i in nameless]
        raise DataError(f"{where}: {len(problems)} column(s) have no name in line {first[0]}", problems)
    columns = {head[i]: column([r[i] for r in rows], missing) for i in kept}
    if len(columns) < len(kept):
        return _doubled([head[i] for i in kept], where)
    return Table(name, pl.DataFrame(columns), aside, notes)


def _doubled(names: list[str], where: str) -> Table:
    problems = [Problem("appears more than once", n) for n in dict.fromkeys(n for n in names if names.count(n) > 1)]
    raise DataError(f"{where}: {len(problems)} column name(s) cannot be used; every column needs its own name", problems)


def _header(first: tuple[int, tuple[Any, ...]], merged: list[tuple[str, int, int]], where: str) -> list[str]:
    line, cells = first
    crossed = [text for text, top, bottom in merged if top <= line <= bottom]
    if crossed:
        hint = "Give every column a name of its own in one row, above the values, and nothing above it."
        message = f"{where}: line {line} is the header, and cells in it are merged"
        raise DataError(message, [Problem("is merged", text, hint) for text in crossed[:10]])
    names = ["" if _empty(v) else str(v).strip() for v in cells]
    while names and not names[-1]:
        names.pop()
    return names


def _take(number: int, cells: tuple[Any, ...], head: list[str], where: str, rows: list[list[Any]], aside: list[SetAside]) -> None:
    beyond = next((i for i, v in enumerate(cells[len(head) :], len(head)) if not _empty(v)), None)
    if beyond is not None:
        reason = f"has a value in column {_letters(beyond)}, beyond the last named column"
        aside.append(SetAside(where, number, None, reason, str(cells[beyond])[:80]))
        return
    values = [None if _empty(v) or v in ABSENT else v for v in (*cells[: len(head)], *[None] * (len(head) - len(cells)))]
    wrong = next((i for i, v in enumerate(values) if isinstance(v, str) and v in ERRORS), None)
    if wrong is not None:
        aside.append(SetAside(where, number, head[wrong] or _letters(wrong), "holds an error of the spreadsheet", str(values[wrong])))
        return
    rows.append(values)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _letters(index: int) -> str:
    """0 → A, 26 → AA."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(65 + rest) + text
    return text


def _merged(sheet: Any, path: Path) -> list[tuple[str, int, int]]:
    """(range, first line, last line) of merged cells; the streaming mode leaves them out, so the end of the XML is read here."""
    with zipfile.ZipFile(path) as opened, opened.open(sheet._worksheet_path.lstrip("/")) as file:
        found: list[tuple[str, int, int]] = []
        tail = b""
        while piece := file.read(2**20):
            text = tail + piece
            for match in re.finditer(rb'<(?:\w+:)?mergeCell\s[^>]*ref="([A-Z]+(\d+):[A-Z]+(\d+))"', text):
                found.append((match[1].decode("ascii"), int(match[2]), int(match[3])))
            tail = text[-200:]
    return list(dict.fromkeys(found))


def column(values: list[Any], missing: Sequence[str] = ()) -> pl.Series:
    """A column of cell values: whole numbers, decimals, truth values or times where all are; else texts as they would be in a CSV file."""
    from modelyard.data.read import typed

    known = [v for v in values if v is not None and not (isinstance(v, str) and v in missing)]
    types = {type(v) for v in known}
    if known and types <= {bool}:
        return pl.Series([v if isinstance(v, bool) else None for v in values], dtype=pl.Boolean)
    if known and types <= {int, float} and all(-(2**63) <= v < 2**63 for v in known if isinstance(v, int)):
        if types == {int} or all(float(v).is_integer() and abs(v) < 2**53 for v in known):
            return pl.Series([None if isinstance(v, str) or v is None else int(v) for v in values], dtype=pl.Int64)
        return pl.Series([None if isinstance(v, str) or v is None else float(v) for v in values], dtype=pl.Float64)
    if known and types <= {dt.datetime, dt.date}:
        moments = [dt.datetime.combine(v, dt.time()) if type(v) is dt.date else v for v in values]
        return pl.Series([None if isinstance(v, str) else v for v in moments], dtype=pl.Datetime("us"))
    return typed(pl.Series([_text(v) for v in values], dtype=pl.String), missing)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return repr(value) if isinstance(value, int | float) else str(value)
