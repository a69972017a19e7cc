"""Calinski-Harabasz index (1974): spread between cluster centres over spread inside, each per degree of freedom.
Noise is left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._clusters import centres_KD, grouped
from modelyard.metrics._contract import Metric, Undefined


def _compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    features_BD, index_B, weight_B = grouped(truth, prediction, weights)
    means_KD, weight_K = centres_KD(features_BD, index_B, weight_B)
    middle_D = np.average(features_BD, axis=0, weights=weight_B)
    between = float(weight_K @ ((means_KD - middle_D) ** 2).sum(axis=1))
    within = float(weight_B @ ((features_BD - means_KD[index_B]) ** 2).sum(axis=1))
    if within == 0:
        raise Undefined("all rows of each cluster are equal")
    k, n = len(weight_K), float(weight_B.sum())
    return between * (n - k) / (within * (k - 1))


METRIC = Metric("calinski_harabasz", "higher", "features", ("cluster",), _compute, bounds=(0.0, np.inf))
