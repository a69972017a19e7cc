"""Sets copies of rows aside: exact ones, and with `near` texts that are almost the same.

Near copies are found by MinHash with banding (Broder 1997; Leskovec, Rajaraman & Ullman, "Mining of massive datasets", ch. 3) over the character
5-grams of the texts; each pair found is then judged by its true Jaccard similarity. The first row stays. A training row that is a
copy of a row that judges (valid, test) leaves train; rows that judge leave only as copies of each other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import polars as pl

from modelyard.data.table import SetAside
from modelyard.data.typing import guess
from modelyard.errors import DataError, Problem
from modelyard.settings import Between
from modelyard.verbs.prepare._work import ROW, Work

TRAIN_ONLY = False
GRAM = 5
BANDS, LINES = 32, 4
"""32 bands of 4 hashes: a pair of similarity 0.8 is met with probability 1 - (1 - 0.8⁴)³² > 0.9999, one of 0.3 with 0.23."""
ORDER = ("test", "valid", "train", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of deduplication."""

    columns: list[str] | None = None
    """Columns that make two rows the same; without it all but data.id."""
    near: Annotated[float, Between(0.5, 1)] | None = None
    """Jaccard similarity of 5-grams from which two texts are the same, e.g. 0.9; other columns then do not count."""


def run(work: Work, config: Config, seed: int) -> dict[str, Any]:
    """Tables without copies."""
    names = [n for n in ORDER if n in work.tables]
    columns = _columns(work, config)
    exact = _first(pl.concat([_keys(work.tables[n], columns) for n in names], how="diagonal_relaxed"))
    similar: dict[int, tuple[int, float]] = {}
    if config.near is not None:
        wanted = config.columns or [c for c in columns if _is_text(work, c)]
        if not wanted:
            message = "deduplicate.near compares texts, and no column holds any; name them with deduplicate.columns"
            raise DataError(message, [Problem("needs columns of texts", "prepare.deduplicate.near")])
        texts = pl.concat([work.tables[n].select(pl.concat_str(pl.col(wanted).cast(pl.String).fill_null(""), separator=" ")) for n in names])
        loose = np.flatnonzero(exact == np.arange(len(exact)))
        similar = near_copies([texts.to_series()[int(i)] for i in loose], config.near, seed)
        similar = {int(loose[i]): (int(loose[j]), s) for i, (j, s) in similar.items()}
    owner = [(n, r) for n in names for r in work.tables[n][ROW].to_list()]
    gone: dict[str, list[int]] = {n: [] for n in names}
    starts = dict(zip(names, np.cumsum([0, *(work.tables[n].height for n in names)]), strict=False))
    counts = {"exact": 0, "near": 0}
    for i in range(len(exact)):
        first, likeness = (int(exact[i]), 1.0) if exact[i] != i else similar.get(i, (i, 1.0))
        if first == i:
            continue
        counts["exact" if exact[i] != i else "near"] += 1
        (name, row), (other, original) = owner[i], owner[first]
        gone[name].append(i - int(starts[name]))
        where = f"row {original}" + (f" of {other}" if other != name else "")
        reason = f"is a copy of {where}" if exact[i] != i else f"has nearly the text of {where} (similarity {likeness:.2f})"
        work.set_aside.append(SetAside(name, row, None, reason))
    for name, rows in gone.items():
        work.tables[name] = work.tables[name].filter(~pl.Series(np.isin(np.arange(work.tables[name].height), rows)))
    return {**counts, "by_table": {n: len(r) for n, r in gone.items() if r}}


def _columns(work: Work, config: Config) -> list[str]:
    """Columns that are compared. The tables need not have the same ones (`unlabelled` has no target)."""
    every = list(dict.fromkeys(c for t in work.tables.values() for c in t.columns if c != ROW))
    absent = [c for c in config.columns or [] if c not in every]
    if absent:
        raise DataError(
            f"deduplicate.columns names {', '.join(absent)}, which the data lacks; it has: {', '.join(every)}",
            [Problem("is not a column of the data", c) for c in absent],
        )
    ids = work.data.id
    left_out = {*([ids] if isinstance(ids, str) else ids or []), *([work.data.weight] if work.data.weight else [])}
    return config.columns or [c for c in every if c not in left_out]


def _is_text(work: Work, column: str) -> bool:
    values = work.tables["train"][column] if column in work.tables["train"].columns else None
    return values is not None and values.dtype == pl.String and (work.kinds.get(column) or guess(values).kind) == "text"


def _keys(table: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Columns that can be compared: pixels as bytes, lists as texts. A whole number equals the same decimal."""
    found = []
    for name in columns:
        if name not in table.columns:
            continue
        column = table[name]
        if isinstance(column.dtype, pl.Array):
            column = pl.Series(name, [row.tobytes() for row in np.ascontiguousarray(column.to_numpy())], dtype=pl.Binary)
        elif isinstance(column.dtype, pl.List):
            column = column.cast(pl.List(pl.String)).list.join("\x1f")
        elif column.dtype.is_integer() and column.dtype != pl.Int64:
            column = column.cast(pl.Int64)
        found.append(column)
    return pl.DataFrame(found)


def _first(keys: pl.DataFrame) -> np.ndarray:
    """(N,) the first row that is equal to each row."""
    return keys.with_row_index("(place)").select(pl.col("(place)").first().over(keys.columns)).to_series().to_numpy().astype(np.int64)


def near_copies(texts: list[str], threshold: float, seed: int = 0) -> dict[int, tuple[int, float]]:
    """Text → (earlier text that stays, similarity), for texts of at least `threshold` Jaccard similarity to one that stays."""
    random = np.random.Generator(np.random.Philox(key=seed))
    factors = random.integers(1, 2**63, BANDS * LINES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    grams: dict[int, np.ndarray] = {}
    found: dict[int, tuple[int, float]] = {}
    for i, text in enumerate(texts):
        mine = _grams(text)
        if not len(mine):
            continue
        signature = np.array([(mine * f >> np.uint64(32)).min() for f in factors], np.uint32).reshape(BANDS, LINES)
        bands = [(b, line.tobytes()) for b, line in enumerate(signature)]
        best = (-1, 0.0)
        for j in sorted({j for band in bands for j in buckets.get(band, ())}):
            shared = len(np.intersect1d(mine, grams[j], assume_unique=True))
            likeness = shared / (len(mine) + len(grams[j]) - shared)
            if likeness >= threshold and likeness > best[1]:
                best = (j, likeness)
        if best[0] >= 0:
            found[i] = best
            continue
        grams[i] = mine
        for band in bands:
            buckets[band].append(i)
    return found


def _grams(text: str) -> np.ndarray:
    """Hashes of the different runs of five characters; case and blanks do not count. A shorter text is one run."""
    codes = np.frombuffer(re.sub(r"\s+", " ", text.casefold()).strip().encode("utf-32-le"), np.uint32).astype(np.uint64)
    if not len(codes):
        return np.zeros(0, np.uint64)
    width = min(GRAM, len(codes))
    hashes = np.zeros(len(codes) - width + 1, np.uint64)
    for i in range(width):
        hashes = hashes * np.uint64(0x100000001B3) + codes[i : len(codes) - width + 1 + i]
    hashes ^= hashes >> np.uint64(30)  # splitmix64: neighbouring values must not stay neighbours
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    return np.unique(hashes ^ (hashes >> np.uint64(31)))
