"""Share of words with the right tag."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    pairs = [(a, b) for t, p in zip(truth, prediction, strict=True) for a, b in zip(t, p, strict=True)]
    return float(np.mean([a == b for a, b in pairs]))


METRIC = Metric("tag-accuracy", "higher", "labels", ("modelyard-probes/tags",), compute, bounds=(0, 1))
