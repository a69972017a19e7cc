"""Counts that accuracy, precision, recall and F1 share: the confusion matrix and what is read off it.

Averages: two classes give the *binary* metric of the positive class; more classes, or several labels per row, the
*macro* mean over the classes that occur in the truth or in the prediction, where a class that is never predicted has
precision 0 (as in scikit-learn's `average="macro"`). `weighted_` weighs classes by their rows in the truth,
`micro_` pools all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

from modelyard.metrics._contract import Labels, Metric, Sums, Undefined, check_rows, classes, weights_or_ones
from modelyard.metrics._interval import wilson

Score = Literal["precision", "recall", "f1"]
Average = Literal["auto", "macro", "weighted", "micro"]


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, labels: Labels = None
) -> np.ndarray:
    """Matrix `(K, K)`, rows = truth, columns = prediction; counts int64, or sums of weights float64."""
    k = classes(truth, prediction, labels)
    cell_B = np.asarray(truth, np.int64) * k + np.asarray(prediction, np.int64)
    matrix = np.bincount(cell_B, weights=weights, minlength=k * k)
    return matrix.reshape(k, k)


def counts_3K(
    truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, labels: Labels = None
) -> np.ndarray:
    """Rows `true positives`, `in the truth`, `in the prediction` of each class, `(3, K)` float64; ids or multi-hot."""
    check_rows(truth, prediction, weights)
    if truth.ndim == 2:
        weight_B = weights_or_ones(weights, len(truth))
        truth_BK, found_BK = truth.astype(bool), prediction.astype(bool)
        return np.stack([weight_B @ (truth_BK & found_BK), weight_B @ truth_BK, weight_B @ found_BK])
    matrix = confusion_matrix(truth, prediction, weights=weights, labels=labels).astype(np.float64)
    return np.stack([np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)])


def average(counts_R3K: np.ndarray, score: Score, how: Average, positive: int | None) -> np.ndarray:
    """The averaged score `(R,)` of counts `(R, 3, K)`; NaN where undefined. `positive` None: no single positive
    class."""
    if positive is not None:
        counts_R3K, how = counts_R3K[:, :, [positive]], "micro"
    elif how == "micro":
        counts_R3K = counts_R3K.sum(axis=2, keepdims=True)
    hits, truth, found = counts_R3K[:, 0], counts_R3K[:, 1], counts_R3K[:, 2]
    below = {"precision": found, "recall": truth, "f1": (truth + found) / 2}[score]
    with np.errstate(divide="ignore", invalid="ignore"):
        score_RK = np.where(below > 0, hits / below, np.nan)
        if how == "micro":
            return np.asarray(score_RK[:, 0])
        score_RK = np.where(np.isnan(score_RK), 0.0, score_RK)
        share_RK = truth if how == "weighted" else ((truth + found) > 0).astype(np.float64)
        return np.asarray((score_RK * share_RK).sum(axis=1) / share_RK.sum(axis=1))


def _positive(
    truth: np.ndarray, prediction: np.ndarray, labels: Labels, how: Average, positive: int | None
) -> int | None:
    """Id of the class that a binary metric is about; None for an average over classes."""
    if truth.ndim == 2 or how != "auto":
        return None
    if positive is not None:
        return positive
    k = classes(truth, prediction, labels)
    return k - 1 if k == 2 else None


_REASON = {
    "precision": "the positive class is never predicted",
    "recall": "the positive class does not occur in the truth",
    "f1": "the positive class occurs neither in the truth nor in the prediction",
}


def _compute(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    score: Score,
    how: Average,
    weights: np.ndarray | None = None,
    labels: Labels = None,
    positive: int | None = None,
    **_: Any,
) -> float:
    counts = counts_3K(truth, prediction, weights=weights, labels=labels)
    value = float(average(counts[None], score, how, _positive(truth, prediction, labels, how, positive))[0])
    if np.isnan(value):
        raise Undefined(_REASON[score] if truth.ndim == 1 else "no label occurs")
    return value


def _cells(truth: np.ndarray, prediction: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """(statistics `(N, 3K)` of each occupied cell of the confusion matrix, examples in it)."""
    matrix = confusion_matrix(truth, prediction, labels=labels)
    k = len(matrix)
    row, column = np.nonzero(matrix)
    stats = np.zeros((len(row), 3, k), np.float32)
    cell = np.arange(len(row))
    stats[cell, 0, row] = row == column
    stats[cell, 1, row] = 1
    stats[cell, 2, column] = 1
    return stats.reshape(len(row), 3 * k), matrix[row, column]


def _sums(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    score: Score,
    how: Average,
    weights: np.ndarray | None = None,
    labels: Labels = None,
    positive: int | None = None,
    **_: Any,
) -> Sums | None:
    """Examples in one cell are alike, so a resample draws cells: its cost does not depend on the number of rows."""
    if weights is not None:
        return None
    chosen = _positive(truth, prediction, labels, how, positive)
    counts: np.ndarray | None
    if truth.ndim == 2:
        truth_BK, found_BK = truth.astype(bool), prediction.astype(bool)
        rows, counts = np.concatenate([truth_BK & found_BK, truth_BK, found_BK], axis=1).astype(np.float32), None
    else:
        rows, counts = _cells(truth, prediction, labels)
    k = rows.shape[1] // 3
    return Sums(rows, lambda sums: average(sums.reshape(len(sums), 3, k), score, how, chosen), counts)


def _closed(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    score: Score,
    how: Average,
    level: float,
    weights: np.ndarray | None = None,
    labels: Labels = None,
    positive: int | None = None,
    **_: Any,
) -> tuple[float, float] | None:
    """Binary precision and recall are proportions of the rows predicted positive, or truly positive: Wilson."""
    chosen = _positive(truth, prediction, labels, how, positive)
    if weights is not None or chosen is None or score == "f1":
        return None
    hits, inside, found = counts_3K(truth, prediction, labels=labels)[:, chosen]
    return wilson(hits, found if score == "precision" else inside, level)


def class_metric(name: str, score: Score, how: Average = "auto") -> Metric:
    """A `Metric` over the confusion matrix."""
    bound: Callable[[Any], Any] = lambda f: partial(f, score=score, how=how)  # noqa: E731
    return Metric(
        name, "higher", "labels", ("category", "label-set"), bound(_compute), bound(_sums), bound(_closed), (0.0, 1.0)
    )


def recall_sums(
    truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, labels: Labels = None, **_: Any
) -> Sums | None:
    """`Sums` of the mean recall over the classes in the truth (balanced accuracy)."""
    if weights is not None:
        return None
    rows, counts = _cells(truth, prediction, labels)
    k = rows.shape[1] // 3

    def formula(sums_RS: np.ndarray) -> np.ndarray:
        hits, inside, _found = np.moveaxis(sums_RS.reshape(len(sums_RS), 3, k), 1, 0)
        return np.asarray(np.nanmean(np.where(inside > 0, hits / np.where(inside > 0, inside, 1), np.nan), axis=1))

    return Sums(rows, formula, counts)
