"""A text cut in words (or characters): a list of texts, one for each unit that a tagger speaks of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Kind, RowError
from modelyard.kinds.words._spelled import Spelled, SpelledConfig, SpelledState

__all__ = ["KIND", "Spelled", "SpelledConfig", "SpelledState", "Words", "cut", "joined"]

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Characters that are words by themselves where a text comes uncut."""

UNIT = re.compile(f"[{HAN}]|[^\\s{HAN}]+")


class Words(Kind):
    """`List(String)` with at least one word, none of them empty. A plain text is cut at blanks, Han characters one by one."""

    name = "words"
    encodings = {"spelled": Spelled()}  # noqa: RUF012
    needs_value = True
    sequence = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Lists of texts as they are; plain texts cut; numbers as their text. Empty lists and lists with holes are row errors."""
        clean: list[list[str] | None] = []
        errors: list[RowError] = []
        for row, value in enumerate(column.to_list()):
            words, reason = _as_words(value)
            clean.append(words)
            if reason:
                errors.append(RowError(row, column.name, reason, repr(value)[:80]))
        return pl.Series(column.name, clean, dtype=pl.List(pl.String)), errors

    def fits(self, column: pl.Series) -> float:
        """Certain for lists of texts in which something is said twice (a set of labels never does), likely for other lists, and for texts
        of three words on average."""
        present = column.drop_nulls().head(2_000)
        if present.is_empty():
            return 0.0
        if column.dtype == pl.List(pl.String):
            return 1.0 if repeats(present) else 0.5
        if column.dtype != pl.String:
            return 0.0
        units = present.str.count_matches(UNIT.pattern)
        return 0.5 if float(units.mean() or 0) >= 3 else 0.0  # type: ignore[arg-type]

    def from_json(self, values: Sequence[Any]) -> pl.Series:
        """Texts with lone surrogates stay Python objects until `check` replaces them."""
        try:
            return super().from_json(values)
        except UnicodeEncodeError:
            return pl.Series("", list(values), dtype=pl.Object)

    def draw(self, value: Any) -> str:
        """The words as a text."""
        return f"<span>{escape('—' if value is None else joined(value))}</span>"

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """0 where the lists are equal, 1 where not."""
        return np.array([x != y for x, y in zip(a.to_list(), b.to_list(), strict=True)], np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Words a row and the number of different ones."""
        present = column.drop_nulls()
        lengths = present.list.len()
        marks: Mapping[str, float] = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
        spread = {name: float(lengths.quantile(q, "nearest") or 0) for name, q in marks.items()} if len(present) else {}
        distinct = present.explode(empty_as_null=False).n_unique() if len(present) else 0
        return {"count": len(column), "missing": column.null_count(), "words": spread, "distinct": distinct}


def _as_words(value: Any) -> tuple[list[str] | None, str]:
    """(words or None, reason why they cannot be used)."""
    if value is None:
        return None, ""
    if isinstance(value, str):
        words = cut(value)
        return (words, "") if words else (None, 'holds no word; send a text or a list such as ["Anna", "sings"]')
    if not isinstance(value, Sequence | np.ndarray | pl.Series) or isinstance(value, bytes):
        return None, 'is no list of words; send a text or a list such as ["Anna", "sings"]'
    found = [_whole(w) if isinstance(w, str) else str(w) if isinstance(w, int | float) and not isinstance(w, bool) else "" for w in value]
    if not found:
        return None, 'holds no word; send a text or a list such as ["Anna", "sings"]'
    if bad := [i for i, w in enumerate(found) if not w]:
        return None, f"holds something at place {bad[0] + 1} that is no word; every word is a text that is not empty"
    return found, ""


def _whole(word: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    return word if word.isascii() else word.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def cut(text: str) -> list[str]:
    """Words of a plain text: cut at blanks, each Han character a word."""
    return [_whole(w) for w in UNIT.findall(text)]


def joined(words: Sequence[str]) -> str:
    """The words as a text: blanks between them, none beside Han characters."""
    out = ""
    for word in words:
        beside = out and (re.match(f"[{HAN}]", word) or re.search(f"[{HAN}][0-9]?$", out))
        out += word if not out or beside else f" {word}"
    return out


def repeats(column: pl.Series) -> bool:
    """Whether a tenth of the lists says something twice."""
    return float((column.list.len() > column.list.n_unique()).mean() or 0) >= 0.1  # type: ignore[arg-type]


KIND = Words()
