"""Silhouette (Rousseeuw 1987): mean over rows of (b − a) / max(a, b) with Euclidean distances; 1 is well apart, 0
on the border.

a is a row's mean distance to its own cluster, b to the nearest other one; a row alone in its cluster counts 0 and
noise is
left out. Quadratic in the rows: `evaluate_output` samples 5,000 beyond that. The interval takes the clusters as given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._clusters import group_sums, grouped
from modelyard.metrics._contract import Metric, Sums


def silhouettes(features_BD: np.ndarray, index_B: np.ndarray, weight_B: np.ndarray) -> np.ndarray:
    """Silhouette of each row `(B,)`, in blocks of about 8 million distances."""
    k = int(index_B.max()) + 1
    size_K = group_sums(weight_B, index_B, k)
    members_BK = np.zeros((len(index_B), k))
    members_BK[np.arange(len(index_B)), index_B] = weight_B
    features_BD = features_BD - features_BD.mean(axis=0)
    squares_B = (features_BD**2).sum(axis=1)
    out_B = np.zeros(len(index_B))
    step = max(1, 8_000_000 // len(index_B))
    for start in range(0, len(index_B), step):
        part = slice(start, start + step)
        squared = squares_B[part, None] + squares_B - 2 * features_BD[part] @ features_BD.T
        rows = np.arange(len(squared))
        squared[rows, start + rows] = 0  # a row's distance to itself is 0, not rounding noise
        sums_BK = np.sqrt(np.clip(squared, 0, None)) @ members_BK
        own_B, weight = index_B[part], weight_B[part]
        others_B = size_K[own_B] - weight
        with np.errstate(divide="ignore", invalid="ignore"):
            inside_B = sums_BK[rows, own_B] / others_B
            means_BK = sums_BK / size_K
        means_BK[rows, own_B] = np.inf
        near_B = means_BK.min(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            score_B = (near_B - inside_B) / np.maximum(near_B, inside_B)
        out_B[part] = np.where((others_B > 0) & np.isfinite(score_B), score_B, 0.0)
    return out_B


def _sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums:
    features_BD, index_B, weight_B = grouped(truth, prediction, weights)
    stats = np.stack([silhouettes(features_BD, index_B, weight_B) * weight_B, weight_B], axis=1)
    return Sums(stats, lambda sums_RS: sums_RS[:, 0] / sums_RS[:, 1])


def _compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    return _sums(truth, prediction, weights=weights).value("all weights are zero")


METRIC = Metric("silhouette", "higher", "features", ("cluster",), _compute, _sums, bounds=(-1.0, 1.0), limit=5000)
