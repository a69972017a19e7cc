"""Share of texts whose companion is among the 1 nearest of all companions, by cosine."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums
from modelyard.metrics._retrieval import ranks


def sums(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> Sums:
    """[found, 1] of each text; the companions that are searched stay the same when rows are drawn."""
    hits = (ranks(truth, prediction) <= 1).astype(np.float64)
    return Sums(np.stack([hits, np.ones(len(hits))], 1), lambda total_RS: total_RS[:, 0] / total_RS[:, 1])


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    """Found over all."""
    return sums(truth, prediction).value("there are no rows")


METRIC = Metric("recall_at_1", "higher", "values", ("vector",), compute, sums, None, (0.0, 1.0), limit=20_000)
