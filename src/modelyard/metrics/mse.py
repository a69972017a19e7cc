"""Mean squared error, in the square of the target's unit."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric
from modelyard.metrics._proportion import mean, sums


def _error(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> np.ndarray:
    return np.asarray((truth - prediction) ** 2)


METRIC = Metric("mse", "lower", "values", ("number",), mean(_error), sums(_error), bounds=(0.0, np.inf))
