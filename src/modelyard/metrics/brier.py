"""Brier score (Brier 1950): mean squared error of probabilities.

Two classes: (p − y)² of the positive class, 0 … 1. More: the sum over classes, 0 … 2. Several labels per row: the
mean over labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric
from modelyard.metrics._proportion import mean, sums
from modelyard.metrics._scores import probabilities_BK


def _squares(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> np.ndarray:
    if truth.ndim == 2:
        return np.asarray(((np.asarray(prediction, np.float64) - truth) ** 2).mean(axis=1))
    scores_BK = probabilities_BK(prediction)
    if scores_BK.shape[1] == 2:
        return np.asarray((scores_BK[:, 1] - truth) ** 2)
    true_B = np.take_along_axis(scores_BK, truth[:, None].astype(np.int64), 1)[:, 0]
    return np.asarray((scores_BK**2).sum(axis=1) - 2 * true_B + 1)


METRIC = Metric(
    "brier", "lower", "scores", ("category", "label-set"), mean(_squares), sums(_squares), bounds=(0.0, 2.0)
)
