"""Guesses what a column holds, and says why. A guess is a default that the project file overrides, never a verdict."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

IMAGE_SUFFIX = r"(?i)\.(png|jpe?g|bmp|gif|webp|tiff?)$"
ID_NAME = re.compile(r"(?i)(^|[_\s-])(id|uuid|guid|key|no|number)$|^id|ID$")
SAMPLE = 20_000
"""Values that are looked at; types are clear long before."""

FEW = 20
"""A whole-number target with at most this many values is taken as labels (ten digits, five stars)."""


@dataclass(frozen=True)
class Guess:
    """A kind, what the column may be for, and the reason in words."""

    kind: str
    role_hint: Literal["", "id", "constant"]
    why: str


def infer(frame: pl.DataFrame) -> dict[str, Guess]:
    """A guess for every column."""
    return {name: guess(frame[name]) for name in frame.columns}


def guess(column: pl.Series) -> Guess:
    """The kind of one column as an input."""
    some = column.head(SAMPLE).drop_nulls()
    dtype = column.dtype
    if some.is_empty():
        return Guess("category", "constant", "it has no values")
    if isinstance(dtype, pl.Array) or dtype == pl.Binary:
        return Guess("image", "", "it holds pixels or encoded images")
    if isinstance(dtype, pl.List):
        return _lists(some)
    if dtype.is_temporal():
        return Guess("timestamp", "", "it holds dates")
    distinct = column.drop_nulls().n_unique()
    hint: Literal["", "id", "constant"] = "constant" if distinct == 1 and column.null_count() == 0 else ""
    if dtype == pl.Boolean:
        return Guess("category", hint, "it holds true and false")
    whole = column.null_count() == 0 and distinct == len(column) and len(column) > 20
    if dtype.is_numeric():
        counting = whole and dtype.is_integer() and bool(ID_NAME.search(column.name) or _counts_up(column))
        return Guess("number", "id" if counting else hint, "every value is different and counts up" if counting else "it holds numbers")
    return _texts(column, some, distinct, hint, whole)


def _lists(some: pl.Series) -> Guess:
    """Words (or their tags) are lists that say something twice; sets of labels never do."""
    from modelyard.kinds.words import KIND

    if some.dtype == pl.List(pl.String) and KIND.fits(some) == 1.0:
        return Guess("words", "", "it holds lists that say something twice")
    return Guess("label-set", "", "it holds lists")


def _counts_up(column: pl.Series) -> bool:
    difference = column.head(SAMPLE).diff().drop_nulls()
    return bool((difference == 1).all())


def _texts(column: pl.Series, some: pl.Series, distinct: int, hint: Literal["", "id", "constant"], whole: bool) -> Guess:
    text = some.cast(pl.String)
    if text.str.contains(IMAGE_SUFFIX).all():
        return Guess("image", "", "it holds names of image files")
    from modelyard.kinds.timestamp import KIND

    if KIND.fits(text.head(200)) > 0.95 and KIND.fits(text) > 0.95:
        return Guess("timestamp", "", "it holds dates")
    numbers = text.str.strip_chars().cast(pl.Float64, strict=False)
    if numbers.null_count() < 0.1 * len(text) and not text.str.contains(r"^[+-]?0\d").any() and distinct > FEW:
        return Guess("number", "", f"{1 - numbers.null_count() / len(text):.0%} of it reads as numbers")
    split = text.str.contains(r"[|;]")
    often = int(split.sum()) > 0.2 * len(text)
    if often and text.str.split("|").explode(empty_as_null=False).n_unique() < len(text) / 3:
        return Guess("label-set", "", "many values are joined by | or ;")
    words = float(text.str.count_matches(r"\S+").mean() or 0)  # type: ignore[arg-type]
    # a Chinese or Japanese sentence has no blanks: four characters carry about what a word does
    han = float(text.str.count_matches(r"[\u3040-\u30ff\u3400-\u9fff]").mean() or 0)  # type: ignore[arg-type]
    share = distinct / max(1, len(column))
    if (words >= 3 or han >= 6) and share > 0.2 and distinct > 20:
        return Guess("text", "", f"{words:.0f} words a value and {share:.0%} of the values are different")
    if whole and words < 2:
        return Guess("category", "id", "every value is different")
    return Guess("category", hint, f"{distinct} different values")


def target_kind(column: pl.Series) -> Guess:
    """The kind of a column to predict: labels, a number, sets of labels, or tags."""
    found = guess(column)
    if found.kind == "words":
        from modelyard.kinds.tags import KIND

        tags = KIND.fits(column) > 0
        return Guess("tags", "", "it holds lists of tags such as O and B-…") if tags else Guess("label-set", "", "it holds lists")
    distinct = column.drop_nulls().n_unique()
    if found.kind == "number" and column.dtype.is_integer() and distinct <= FEW and distinct * 10 <= len(column):
        return Guess("category", "", f"it holds {distinct} different whole numbers")
    if found.kind in ("text", "timestamp") or found.role_hint == "id":
        return Guess("category" if found.kind != "number" else "number", "", found.why)
    return Guess(found.kind, "", found.why)
