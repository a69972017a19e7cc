"""Davies-Bouldin index (1979): mean over clusters of the worst (spread + spread) / distance of centres. Noise is
left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._clusters import centres_KD, group_sums, grouped
from modelyard.metrics._contract import Metric, Undefined


def _compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    features_BD, index_B, weight_B = grouped(truth, prediction, weights)
    means_KD, weight_K = centres_KD(features_BD, index_B, weight_B)
    distance_B = np.sqrt(((features_BD - means_KD[index_B]) ** 2).sum(axis=1))
    spread_K = group_sums(weight_B * distance_B, index_B, len(weight_K)) / weight_K
    apart_KK = np.stack([np.sqrt(((means_KD - mean_D) ** 2).sum(axis=1)) for mean_D in means_KD])
    np.fill_diagonal(apart_KK, np.inf)
    if (apart_KK == 0).any():
        raise Undefined("two clusters have the same centre")
    return float(((spread_K[:, None] + spread_K[None]) / apart_KK).max(axis=1).mean())


METRIC = Metric("davies_bouldin", "lower", "features", ("cluster",), _compute, bounds=(0.0, np.inf))
