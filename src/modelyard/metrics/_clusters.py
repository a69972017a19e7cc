"""What the internal cluster metrics share: rows in groups, without noise (cluster −1)."""

from __future__ import annotations

import numpy as np

from modelyard.metrics._contract import Undefined, check_rows, weights_or_ones


def grouped(
    features_BD: np.ndarray, cluster_B: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features, cluster ids 0 … K−1, weights) of the rows that belong to a cluster; `Undefined` with fewer than
    two."""
    check_rows(features_BD, cluster_B, weights)
    weight_B = weights_or_ones(weights, len(cluster_B))
    kept = (cluster_B >= 0) & (weight_B > 0)
    found, index = np.unique(cluster_B[kept], return_inverse=True)
    if len(found) < 2:
        raise Undefined(f"it needs two clusters or more, and there {'is one' if len(found) else 'is none'}")
    if len(found) == int(kept.sum()):
        raise Undefined("every row is a cluster of its own")
    return np.asarray(features_BD[kept], np.float64), index, weight_B[kept]


def group_sums(values: np.ndarray, index_B: np.ndarray, k: int) -> np.ndarray:
    """Sums of rows per cluster, `(K, …)`."""
    if values.ndim == 1:
        return np.bincount(index_B, weights=values, minlength=k)
    return np.stack([np.bincount(index_B, weights=column, minlength=k) for column in values.T], axis=1)


def centres_KD(features_BD: np.ndarray, index_B: np.ndarray, weight_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weighted means `(K, D)`, weights `(K,)`) of the clusters."""
    k = int(index_B.max()) + 1
    weight_K = group_sums(weight_B, index_B, k)
    return group_sums(features_BD * weight_B[:, None], index_B, k) / weight_K[:, None], weight_K
