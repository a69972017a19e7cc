"""Fills the targets of unlabelled rows from similar labelled ones: label spreading over a graph of nearest rows.

Zhou, Bousquet, Lal, Weston & Schölkopf 2004, "Learning with local and global consistency": F = (1 - α) (I - α S)⁻¹ Y with
S = D^-1/2 W D^-1/2, here by its iteration F ← α S F + (1 - α) Y. W joins each row with its nearest ones by exp(-d² / 2σ²), σ the
median distance of neighbours. Distances are over scaled numbers and categories. Labels of the training rows stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import polars as pl

from modelyard.data.balance import space
from modelyard.data.nearest import nearest
from modelyard.errors import Unsupported
from modelyard.settings import Between
from modelyard.verbs.prepare._work import Work

TRAIN_ONLY = True
STEPS = 1000
"""Iterations at most; the error shrinks by α each time, so that 0.9 needs 130 for 1e-6."""
ENOUGH = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of label spreading."""

    neighbours: Annotated[int, Between(1, 1000)] = 10
    """Nearest rows that each row is joined with."""
    alpha: Annotated[float, Between(0.01, 0.999)] = 0.9
    """Share of a row's belief that comes from its neighbours."""
    confidence: Annotated[float, Between(0, 1)] = 0.8
    """Rows of at least this confidence move to train; the others stay unlabelled."""


def run(work: Work, config: Config, seed: int) -> dict[str, Any]:
    """Confident rows of `unlabelled` as rows of `train`, weighted by their confidence."""
    target, loose, train = work.labels_of("label spreading"), work.unlabelled("label spreading"), work.tables["train"]
    inputs = list(work.roles["inputs"])
    numbers = [c for c in inputs if work.kinds[c] == "number"]
    categories = [c for c in inputs if work.kinds[c] == "category"]
    if not numbers and not categories:
        raise Unsupported("label spreading compares numbers and categories, and there are none; try self-training", "use")
    rows = pl.concat([train.select(numbers + categories), loose.select(numbers + categories)])
    labels = sorted(train[target].unique())
    y_N = np.array([labels.index(v) for v in train[target]], np.int64)
    beliefs = spread(space(rows, numbers, categories), y_N, len(labels), min(config.neighbours, rows.height - 1), config.alpha)[len(y_N) :]
    total = beliefs.sum(1)
    sure = np.divide(beliefs.max(1), total, out=np.zeros(len(total)), where=total > 0)
    picked = pl.Series(sure >= config.confidence) & pl.Series(total > 0)
    named = pl.Series(target, [labels[i] for i in beliefs.argmax(1)], dtype=pl.String)
    work.label(target, picked, named, pl.Series(sure))
    counts = dict(named.filter(picked).value_counts(sort=True).iter_rows())
    return {"labelled": int(picked.sum()), "left": int((~picked).sum()), "labels": counts}


def spread(points_ND: np.ndarray, y_L: np.ndarray, classes: int, k: int, alpha: float) -> np.ndarray:
    """(N, classes) beliefs; the first L points have the labels `y_L`. A point that no path joins with a labelled one has zeros."""
    from scipy.sparse import coo_matrix, diags

    n = len(points_ND)
    near_NK, distance_NK = nearest(points_ND, k)
    sigma = float(np.median(distance_NK)) or 1.0
    weight = np.exp(-(distance_NK**2) / (2 * sigma**2)).reshape(-1)
    graph = coo_matrix((weight, (np.repeat(np.arange(n), k), near_NK.reshape(-1))), shape=(n, n)).tocsr()
    graph = graph.maximum(graph.T)  # a neighbour of either is joined with both
    scale = diags(1 / np.sqrt(np.maximum(np.asarray(graph.sum(1)).reshape(-1), 1e-300)))
    smooth = scale @ graph @ scale
    start = np.zeros((n, classes))
    start[np.arange(len(y_L)), y_L] = 1.0
    belief = start.copy()
    for _ in range(STEPS):
        after = alpha * (smooth @ belief) + (1 - alpha) * start
        moved = float(np.abs(after - belief).max())
        belief = after
        if moved < ENOUGH * (1 - alpha):
            break
    return belief
