"""Rank correlation of the cosine of two texts with how alike people found them (Spearman 1904); equal ranks share their mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Undefined
from modelyard.metrics._retrieval import companions, unit


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    """`truth` is an object array (B,) of (vector of the other text, score)."""
    scores = [score for _, score in truth]
    if any(s is None for s in scores):
        raise Undefined("the rows have no scores")
    cosine_B = (unit(np.asarray(prediction, np.float64)) * unit(companions(truth))).sum(1)
    a, b = ranked(np.asarray(scores, np.float64)), ranked(cosine_B)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    if spread <= 0:
        raise Undefined("all scores, or all cosines, are the same")
    return float((a * b).sum() / spread)


def ranked(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values with their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])


METRIC = Metric("spearman", "higher", "values", ("vector",), compute, None, None, (-1.0, 1.0))
