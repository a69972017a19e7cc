"""Expected calibration error of the predicted class: Σ over 15 equal bins of confidence of share · |accuracy −
confidence|.

Guo et al. 2017 (ICML, arXiv 1706.04599). It is biased upwards on few rows (|noise| has a positive mean), so its
interval is a safe one: it holds the true error in at least 95 % of samples and reaches 0 where noise could explain all.
Several labels per row: each (row, label) pair counts, with the label's own probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, check_rows, weights_or_ones
from modelyard.metrics._scores import probabilities_BK

BINS = 15


def _bins(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray | None, bins: int) -> np.ndarray:
    """Statistics `(B, bins + 1)`: (right − confidence) · weight in its bin, and the weight in the last column."""
    check_rows(truth, prediction, weights)
    weight_B = weights_or_ones(weights, len(truth))
    rows = np.arange(len(truth))
    stats = np.zeros((len(truth), bins + 1))
    if truth.ndim == 2:
        scores_BK = np.asarray(prediction, np.float64)
        share_B = weight_B / scores_BK.shape[1]
        for scores_B, is_B in zip(scores_BK.T, truth.T, strict=True):
            stats[rows, _index(scores_B, bins)] += (is_B - scores_B) * share_B
    else:
        scores_BK = probabilities_BK(prediction)
        top_B = scores_BK.argmax(axis=1)
        confidence_B = scores_BK[rows, top_B]
        stats[rows, _index(confidence_B, bins)] = ((top_B == truth) - confidence_B) * weight_B
    stats[:, bins] = weight_B
    return stats


def _index(score_B: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each score: (0, 1/bins], … with 0 in the first."""
    return np.asarray(np.clip(np.ceil(score_B * bins).astype(np.int64) - 1, 0, bins - 1))


def _sums(
    truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, bins: int = BINS, **_: Any
) -> Sums:
    stats = _bins(truth, prediction, weights, bins)
    return Sums(stats, lambda sums_RS: np.abs(sums_RS[:, :-1]).sum(axis=1) / sums_RS[:, -1], distance=True)


def _compute(
    truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, bins: int = BINS, **_: Any
) -> float:
    return _sums(truth, prediction, weights=weights, bins=bins).value("all weights are zero")


METRIC = Metric("calibration_error", "lower", "scores", ("category", "label-set"), _compute, _sums, bounds=(0.0, 1.0))
