"""Share of rows whose whole set of labels is right (exact match)."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric
from modelyard.metrics._proportion import closed, mean, sums


def _hits(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> np.ndarray:
    return np.asarray((truth.astype(bool) == prediction.astype(bool)).all(axis=1))


METRIC = Metric(
    "subset_accuracy", "higher", "labels", ("label-set",), mean(_hits), sums(_hits), closed(_hits), (0.0, 1.0)
)
