"""What sets each group of rows apart: the columns in which its rows differ most from all other rows.

Every difference is measured on one scale, so that columns of all kinds can be ranked: the probability that a row of the group has more of
it than a row of the others, ties counted half, less one half (Mann & Whitney 1947; Vargha & Delaney 2000): -0.5 … 0.5. For a value of a
category this is half the difference of its shares. Shown are differences of at least 0.1 that exceed three standard errors of the rank sum (or 0.45).
Groups were made to differ, so this describes them and tests nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

LEAST = 0.1
"""Smallest difference told: a row of the group has more in 60 % of pairs."""
ERRORS = 3.0
APART = 0.45
"""A difference this large is told of a group however small it is: 95 % of pairs go the same way. Groups of two rows would have none else."""
TOLD = 6
"""Columns told of a group."""
VALUES = 50
"""Most frequent values of a category that are looked at."""
SEGMENTS = 50
"""Groups profiled at most, the largest."""


def profiles(frame: pl.DataFrame, kinds: Mapping[str, str], groups_B: np.ndarray) -> list[dict[str, Any]]:
    """`[{segment, rows, share, differences: [{column, kind, effect, here, everybody, …}]}]`, by number of the group, noise (-1) last.

    `frame` has raw columns (numbers, categories, timestamps; others are passed over) and `groups_B` the group of every row. Of a number
    `here` and `everybody` are means (medians where `median` is true: the mean of a few extreme rows points the other way), `times` is
    their ratio where no value is negative; of a category (with its `value`) and of missing values they are shares; of a timestamp medians.
    """
    found, index_B, size_K = np.unique(groups_B, return_inverse=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda k: (found[k] < 0, found[k]))
    if len(order) > SEGMENTS:
        largest = set(np.argsort(-size_K, kind="stable")[:SEGMENTS].tolist())
        order = [k for k in order if k in largest]
    told: list[list[dict[str, Any]]] = [[] for _ in found]
    if len(found) > 1:
        for name, kind in kinds.items():
            for k, difference in enumerate(_column(frame[name], kind, index_B, size_K)):
                told[k] += [] if difference is None else [{"column": name, **difference}]
    rows = int(size_K.sum())
    return [
        {
            "segment": int(found[k]), "rows": int(size_K[k]), "share": float(size_K[k] / rows),
            "differences": sorted(told[k], key=lambda d: -abs(d["effect"]))[:TOLD],
        }
        for k in order
    ]  # fmt: skip


def _column(values: pl.Series, kind: str, index_B: np.ndarray, size_K: np.ndarray) -> list[dict[str, Any] | None]:
    """The most telling difference of each group in one column."""
    candidates: list[list[dict[str, Any]]] = [[] for _ in size_K]
    absent_B = values.is_null().to_numpy()
    if kind == "number":
        absent_B = absent_B | ~np.isfinite(values.fill_null(0.0).to_numpy())
    if absent_B.any() and not absent_B.all() and kind in ("number", "category", "timestamp"):
        _shares(absent_B, index_B, size_K, {"kind": "missing"}, candidates)
    here = np.flatnonzero(~absent_B)
    if kind in ("number", "timestamp") and len(here):
        x = values.gather(here.astype(np.uint32))
        _ranked(x.to_physical().to_numpy().astype(np.float64), x, kind, index_B[here], len(size_K), candidates)
    if kind == "category":
        for value in values.drop_nulls().value_counts(sort=True).head(VALUES)[values.name].sort().to_list():
            _shares((values == value).fill_null(False).to_numpy(), index_B, size_K, {"kind": "category", "value": value}, candidates)
    # what a group has tells more than what it lacks: of equal effects the higher one
    best = [max(c, key=lambda d: (round(abs(d["effect"]), 6), d["effect"]), default=None) for c in candidates]
    return best


def _clear(effect: float, inside: int, outside: int) -> bool:
    """Whether a difference is large and certain enough to be told."""
    if not inside or not outside:
        return False
    error = float(np.sqrt((inside + outside + 1) / (12.0 * inside * outside)))
    return abs(effect) >= LEAST and abs(effect) > min(ERRORS * error, APART)


def _shares(is_B: np.ndarray, index_B: np.ndarray, size_K: np.ndarray, what: Mapping[str, Any], out: list[list[dict[str, Any]]]) -> None:
    hits_K = np.bincount(index_B[is_B], minlength=len(size_K))
    rows, hits = int(size_K.sum()), int(hits_K.sum())
    for k, size in enumerate(size_K.tolist()):
        others = rows - size
        effect = (hits_K[k] / size - (hits - hits_K[k]) / others) / 2 if others else 0.0
        if _clear(float(effect), size, others):
            out[k].append({**what, "effect": float(effect), "here": float(hits_K[k] / size), "everybody": hits / rows})


def _ranked(x_B: np.ndarray, raw: pl.Series, kind: str, index_B: np.ndarray, groups: int, out: list[list[dict[str, Any]]]) -> None:
    _, place_B, counts = np.unique(x_B, return_inverse=True, return_counts=True)
    rank_B = (np.cumsum(counts) - (counts - 1) / 2.0)[place_B]
    size_K = np.bincount(index_B, minlength=groups)
    sums_K = np.bincount(index_B, weights=rank_B, minlength=groups)
    rows = len(x_B)
    for k, size in enumerate(size_K.tolist()):
        if not size or size == rows:
            continue
        effect = float((sums_K[k] / size - (size + 1) / 2.0) / (rows - size) - 0.5)
        if not _clear(effect, size, rows - size):
            continue
        entry: dict[str, Any] = {"kind": kind, "effect": effect}
        mine_B = index_B == k
        if kind == "timestamp":
            entry |= {"here": str(raw.filter(pl.Series(mine_B)).median())[:19], "everybody": str(raw.median())[:19]}
        else:
            entry |= _middles(x_B, mine_B, effect)
        out[k].append(entry)


def _middles(x_B: np.ndarray, mine_B: np.ndarray, effect: float) -> dict[str, Any]:
    here, everybody = float(x_B[mine_B].mean()), float(x_B.mean())
    if (here - everybody) * effect <= 0:
        return {"here": float(np.median(x_B[mine_B])), "everybody": float(np.median(x_B)), "median": True}
    ratio = {"times": here / everybody} if x_B.min() >= 0 and everybody > 0 else {}
    return {"here": here, "everybody": everybody, **ratio}
