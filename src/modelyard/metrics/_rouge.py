"""ROUGE of each example: n-gram and longest-common-subsequence F-scores (Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries).

Words as in `_texts.words`, without stemming; the measure is F1, as summarisation papers report it.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, check_rows
from modelyard.metrics._texts import mean_sums, words


def metric(name: str, order: int | None) -> Metric:
    """ROUGE-N for `order` N, ROUGE-L for None."""

    def sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums:
        check_rows(truth, prediction, weights)
        return mean_sums(np.array([rouge(a, b, order) for a, b in zip(truth, prediction, strict=True)]), weights)

    def compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
        return sums(truth, prediction, weights=weights).value("there are no rows")

    return Metric(name, "higher", "labels", ("text",), compute, sums=sums, bounds=(0.0, 1.0))


def rouge(truth: str | None, written: str | None, order: int | None) -> float:
    """F1 of n-grams, each matched as often as both have it, or of the longest common subsequence of words."""
    a, b = words(truth), words(written)
    if order is None:
        return _f1(_common(a, b), len(a), len(b))
    left, right = (Counter(zip(*(side[i:] for i in range(order)), strict=False)) for side in (a, b))
    return _f1(sum((left & right).values()), left.total(), right.total())


def _f1(hits: int, true: int, written: int) -> float:
    """2PR / (P + R) = 2·hits / (true + written)."""
    return 2 * hits / (true + written) if hits else 0.0


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for other, (diagonal, above) in zip(b, pairwise(before), strict=True):
            row.append(diagonal + 1 if word == other else max(above, row[-1]))
    return row[-1]
