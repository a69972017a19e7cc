"""Tagged sentences in the format of the CoNLL shared tasks: a word and its columns a line, an empty line between sentences.

Every line is a word, an end of a sentence, a comment or a `-DOCSTART-`, or its whole sentence is set aside with the line and the reason: a
sentence without one of its words would be a different sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError, Problem

SUFFIXES = ("conll", "conllu", "conllx", "bio", "iob", "iob2", "bioes", "ner")

DOCUMENT = "-DOCSTART-"

RANGE = re.compile(r"\d+[-.]\d+$")
"""Ids of CoNLL-U lines that are no word of their own: a contraction such as `1-2`, an empty node such as `8.1`."""


@dataclass(frozen=True, kw_only=True)
class ConllConfig:
    """`data.conll`: the columns of a CoNLL file."""

    columns: dict[str, int] = field(default_factory=lambda: {"tokens": 1, "tags": -1})
    """name → place, from 1 on; -1 is the last column. Each becomes a column of lists."""
    separator: str | None = None
    """What stands between columns; without it a tab where there is any, else blanks."""
    comment: str = "#"
    """A line that begins so and has not as many columns as the others is a comment."""

    def __post_init__(self) -> None:
        if not self.columns or 0 in self.columns.values():
            raise ValueError(f"columns: got {self.columns!r}, expected names with places from 1 on, or -1 for the last")


@dataclass
class _Sentence:
    lines: list[tuple[int, list[str]]] = field(default_factory=list)


def table(lines: Sequence[str], path: Path, name: str, config: ConllConfig) -> Table:
    """A row for each sentence; a column of lists for each of `config.columns`. Notes say what the lines were.

    Raises `DataError` where no line has the columns asked for.
    """
    separator = config.separator or ("\t" if any("\t" in line for line in lines) else None)
    split = [(number, _fields(line, separator)) for number, line in enumerate(lines, 1)]
    widths = Counter(len(fields) for _, fields in split if fields)
    if not widths:
        raise DataError(f"{path} holds no words")
    width = widths.most_common(1)[0][0]
    places = {c: p - 1 if p > 0 else width + p for c, p in config.columns.items()}
    if wrong := {c: p for c, p in config.columns.items() if not 0 <= places[c] < width}:
        problems = [Problem(f"is column {p}; most lines of {path} have {width}", f"data.conll.columns.{c}") for c, p in wrong.items()]
        raise DataError(f"{path} has no such column", problems)
    if width < 2 and len(places) > 1:
        raise DataError(f"{path} has one column; a word and its tag stand on a line, with a tab or a blank between them")
    counts = dict.fromkeys(("words", "comments", "documents", "between sentences"), 0)
    rows: list[_Sentence] = []
    aside: list[SetAside] = []
    now, bad = _Sentence(), None
    for number, fields in [*split, (len(lines) + 1, [])]:
        if not fields:
            counts["between sentences"] += number <= len(lines)
            if bad is not None:
                aside.append(bad)
            elif now.lines:
                rows.append(now)
            now, bad = _Sentence(), None
        elif lines[number - 1].startswith(config.comment) and len(fields) != width:
            counts["comments"] += 1
        elif fields[0] == DOCUMENT:
            counts["documents"] += 1
        elif width >= 10 and RANGE.match(fields[0]):
            counts["comments"] += 1
        else:
            counts["words"] += 1
            reason = _fault(fields, width, places)
            if reason and bad is None:
                bad = SetAside(str(path), number, None, reason, lines[number - 1][:80])
            now.lines.append((number, fields))
    frame = pl.DataFrame(
        {c: pl.Series(c, [[f[p] for _, f in s.lines] for s in rows], dtype=pl.List(pl.String)) for c, p in places.items()}
    )
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    return Table(name, frame, aside, [f"{path.name}: {len(lines)} lines are {told}; {len(rows)} sentences"])


def _fields(line: str, separator: str | None) -> list[str]:
    """Columns of a line; none where it is empty."""
    if not line.strip():
        return []
    return [f.strip() for f in line.split(separator)] if separator else line.split()


def _fault(fields: Sequence[str], width: int, places: dict[str, int]) -> str:
    """Why a line makes its sentence useless."""
    if len(fields) != width:
        return f"has {len(fields)} columns where most lines have {width}; its sentence is left out"
    empty = [c for c, p in places.items() if not fields[p]]
    return f"has nothing in {', '.join(empty)}; its sentence is left out" if empty else ""
