"""Mean absolute error over the horizon."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    return float(np.abs(truth - prediction).mean())


METRIC = Metric("horizon-error", "lower", "labels", ("modelyard-probes/horizon",), compute, bounds=(0, np.inf))
