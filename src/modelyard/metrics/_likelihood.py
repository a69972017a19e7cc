"""Metrics of how likely a language model finds true texts: functions of sums over texts, so that intervals resample whole texts.

`prediction` is (B, 4): Σ -log p of a text's tokens in nats, the number of its tokens, how many of them were the likeliest, its bytes in UTF-8;
or (B, 6) with pairs won and pairs there are, where rows have a worse answer beside the true one (`win_rate`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, weights_or_ones

NLL, TOKENS, HITS, BYTES, WINS, PAIRS = range(6)


def metric(name: str, better: Any, formula: Callable[[np.ndarray], np.ndarray], bounds: tuple[float, float]) -> Metric:
    """The metric whose value is `formula` of the sums (R, 4)."""

    def sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums:
        return Sums(np.asarray(prediction, np.float64) * weights_or_ones(weights, len(prediction))[:, None], formula)

    def compute(truth: np.ndarray, prediction: np.ndarray, **options: Any) -> float:
        return sums(truth, prediction, **options).value("there is no token to predict")

    return Metric(name, better, "values", ("text",), compute, sums, None, bounds)
