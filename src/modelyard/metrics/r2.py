"""R², the share of the target's variance that is explained: 1 − Σ w (y − ŷ)² / Σ w (y − ȳ)²; below 0 is worse than
the mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, Undefined, check_rows, weights_or_ones


def _sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums:
    weight_B = weights_or_ones(weights, len(truth))
    # Centred first: E[y²] − E[y]² loses all digits where the mean is large beside the spread.
    centred_B = truth - np.average(truth, weights=weight_B)
    residual_B = truth - prediction
    stats = np.stack([weight_B, weight_B * centred_B, weight_B * centred_B**2, weight_B * residual_B**2], axis=1)

    def formula(sums_RS: np.ndarray) -> np.ndarray:
        weight, first, second, residual = sums_RS.T
        variance = second - first**2 / weight
        return np.asarray(np.where(variance > 0, 1 - residual / variance, np.nan))

    return Sums(stats, formula)


def _compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    check_rows(truth, prediction, weights)
    if len(truth) < 2 or truth.min() == truth.max():
        raise Undefined("the target has the same value in every row")
    return _sums(truth, prediction, weights=weights).value("the target has no variance")


METRIC = Metric("r2", "higher", "values", ("number",), _compute, _sums, bounds=(-np.inf, 1.0))
