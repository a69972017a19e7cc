"""Adjusted Rand index (Hubert & Arabie 1985): agreement of two groupings over pairs of rows, 0 by chance, 1 the same.

Used where the true groups are known; noise (−1) counts as a group of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, check_rows


def _table(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    check_rows(truth, prediction, weights)
    row_B: np.ndarray
    column_B: np.ndarray
    rows, row_B = np.unique(truth, return_inverse=True)
    columns, column_B = np.unique(prediction, return_inverse=True)
    cells = np.bincount(row_B * len(columns) + column_B, weights=weights, minlength=len(rows) * len(columns))
    table: np.ndarray = cells.reshape(len(rows), len(columns)).astype(np.float64)
    return np.asarray(table)


def _pairs(count: np.ndarray) -> np.ndarray:
    return np.asarray(count * (count - 1) / 2)


def _index(tables_RIJ: np.ndarray) -> np.ndarray:
    """ARI `(R,)` of contingency tables; 1 where both are one group or both are all single rows."""
    both = _pairs(tables_RIJ).sum(axis=(1, 2))
    rows, columns = _pairs(tables_RIJ.sum(axis=2)).sum(axis=1), _pairs(tables_RIJ.sum(axis=1)).sum(axis=1)
    every = _pairs(tables_RIJ.sum(axis=(1, 2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.where(every > 0, rows * columns / every, 0.0)
        most = (rows + columns) / 2
        return np.asarray(np.where(most == chance, 1.0, (both - chance) / (most - chance)))


def _compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    return float(_index(_table(truth, prediction, weights)[None])[0])


def _sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums | None:
    table = _table(truth, prediction, None)
    if weights is not None or table.size > 2500:
        return None
    counts = table.ravel().astype(np.int64)
    return Sums(np.eye(table.size), lambda sums_RS: _index(sums_RS.reshape(-1, *table.shape)), counts)


METRIC = Metric("adjusted_rand", "higher", "labels", ("cluster",), _compute, _sums, bounds=(-1.0, 1.0))
