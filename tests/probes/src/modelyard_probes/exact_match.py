"""Share of answers that equal the truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    return float(np.mean([a == b for a, b in zip(truth, prediction, strict=True)]))


METRIC = Metric("exact-match", "higher", "labels", ("modelyard-probes/characters",), compute, bounds=(0, 1))
