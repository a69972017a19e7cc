"""Mean reciprocal rank: the mean of 1 / place of each text's companion among all, sorted by cosine (Voorhees 1999, TREC-8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums
from modelyard.metrics._retrieval import ranks


def sums(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> Sums:
    """[1 / place, 1] of each text."""
    found = 1.0 / ranks(truth, prediction)
    return Sums(np.stack([found, np.ones(len(found))], 1), lambda total_RS: total_RS[:, 0] / total_RS[:, 1])


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    """In (0, 1]."""
    return sums(truth, prediction).value("there are no rows")


METRIC = Metric("mrr", "higher", "values", ("vector",), compute, sums, None, (0.0, 1.0), limit=20_000)
