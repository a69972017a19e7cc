"""Mean recall over the classes that occur in the truth: accuracy that a majority class cannot buy."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._confusion import counts_3K, recall_sums
from modelyard.metrics._contract import Labels, Metric, Undefined


def _compute(
    truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, labels: Labels = None, **_: Any
) -> float:
    hits, inside, _found = counts_3K(truth, prediction, weights=weights, labels=labels)
    if (inside > 0).sum() < 2:
        raise Undefined("the truth holds one class only")
    return float((hits[inside > 0] / inside[inside > 0]).mean())


METRIC = Metric("balanced_accuracy", "higher", "labels", ("category",), _compute, recall_sums, bounds=(0.0, 1.0))
