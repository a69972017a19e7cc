"""Root mean squared error, in the target's unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics import mse
from modelyard.metrics._contract import Metric, Sums


def _compute(truth: np.ndarray, prediction: np.ndarray, **given: Any) -> float:
    return float(np.sqrt(mse.METRIC.compute(truth, prediction, **given)))


def _sums(truth: np.ndarray, prediction: np.ndarray, **given: Any) -> Sums | None:
    squares = mse.METRIC.sums(truth, prediction, **given) if mse.METRIC.sums else None
    if squares is None:
        return None
    return Sums(squares.rows_NS, lambda sums_RS: np.sqrt(np.clip(sums_RS[:, 0], 0, None) / sums_RS[:, 1]))


METRIC = Metric("rmse", "lower", "values", ("number",), _compute, _sums, bounds=(0.0, np.inf))
