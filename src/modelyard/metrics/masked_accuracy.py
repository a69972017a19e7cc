"""Share of hidden tokens whose likeliest guess is the one that stood there; every token counts once, whatever its text."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums


def sums(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> Sums:
    """[hits, tokens] of each text; `truth` and `prediction` are object arrays (B,) of tuples of tokens."""
    pairs = zip(truth, prediction, strict=True)
    rows = np.array([(sum(a == b for a, b in zip(t, p, strict=True)), len(t)) for t, p in pairs], np.float64).reshape(-1, 2)
    return Sums(rows, lambda total_RS: total_RS[:, 0] / total_RS[:, 1])


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    """Hits over tokens."""
    return sums(truth, prediction).value("no token was hidden")


METRIC = Metric("masked_accuracy", "higher", "labels", ("fill",), compute, sums, None, (0.0, 1.0))
