"""Metrics that are a (weighted) mean of one value per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modelyard.metrics._contract import Labels, Sums, check_rows, weights_or_ones
from modelyard.metrics._interval import wilson

PerRow = Callable[..., np.ndarray]
"""`f(truth, prediction, labels=…, **options) -> value_B`."""


def mean(f: PerRow) -> Callable[..., float]:
    """`compute` of a mean over rows."""

    def compute(
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        labels: Labels = None,
        **options: Any,
    ) -> float:
        check_rows(truth, prediction, weights)
        value_B = f(truth, prediction, labels=labels, **options).astype(np.float64)
        return float(np.average(value_B, weights=weights))

    return compute


def sums(f: PerRow) -> Callable[..., Sums]:
    """`sums` of a mean over rows: value times weight, and weight."""

    def make(
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        labels: Labels = None,
        **options: Any,
    ) -> Sums:
        weight_B = weights_or_ones(weights, len(truth))
        value_B = f(truth, prediction, labels=labels, **options) * weight_B
        return Sums(np.stack([value_B, weight_B], axis=1), lambda sums_RS: sums_RS[:, 0] / sums_RS[:, 1])

    return make


def closed(f: PerRow) -> Callable[..., tuple[float, float] | None]:
    """`closed` of a share of rows: Wilson's interval, where rows have no weights."""

    def make(
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        level: float,
        weights: np.ndarray | None = None,
        labels: Labels = None,
        **options: Any,
    ) -> tuple[float, float] | None:
        if weights is not None:
            return None
        hits_B = f(truth, prediction, labels=labels, **options)
        return wilson(float(hits_B.sum()), len(hits_B), level)

    return make
