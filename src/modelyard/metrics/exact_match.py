"""Share of written texts that equal the true one but for blanks at their ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, check_rows, weights_or_ones
from modelyard.metrics._interval import wilson


def compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    """`truth` and `prediction` are texts (B,)."""
    check_rows(truth, prediction, weights)
    hits_B = _hits(truth, prediction)
    weight_B = weights_or_ones(weights, len(truth))
    return float(weight_B @ hits_B / weight_B.sum())


def closed(
    truth: np.ndarray, prediction: np.ndarray, *, level: float, weights: np.ndarray | None = None, **_: Any
) -> tuple[float, float] | None:
    """Wilson's interval; none with weights."""
    return None if weights is not None else wilson(float(_hits(truth, prediction).sum()), len(truth), level)


def _hits(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    return np.array([(a or "").strip() == (b or "").strip() for a, b in zip(truth, prediction, strict=True)], np.float64)


METRIC = Metric("exact_match", "higher", "labels", ("text",), compute, closed=closed, bounds=(0.0, 1.0))
