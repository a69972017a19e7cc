"""Recall of the rarest class: a metric as one file."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Undefined


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    ids, counts = np.unique(truth, return_counts=True)
    if len(ids) < 2:
        raise Undefined("there is one class only")
    rare = truth == ids[counts.argmin()]
    return float((prediction[rare] == truth[rare]).mean())


METRIC = Metric("minority-recall", "higher", "labels", ("category",), compute, bounds=(0, 1))
