"""Hamming loss: share of (row, label) pairs that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric
from modelyard.metrics._proportion import mean, sums


def _wrong(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> np.ndarray:
    return np.asarray((truth.astype(bool) != prediction.astype(bool)).mean(axis=1))


METRIC = Metric("hamming", "lower", "labels", ("label-set",), mean(_wrong), sums(_wrong), bounds=(0.0, 1.0))
