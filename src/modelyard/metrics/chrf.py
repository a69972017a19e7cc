"""chrF2 of written texts against the true ones, 0 … 100, by sacreBLEU (Popović 2015): the F-score of character 1- to 6-grams.

Recall counts twice as much as precision. Blanks do not count; the signature stands beside the value.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, weights_or_ones
from modelyard.metrics._texts import signature, statistics

BETA = 2.0


def compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    """`truth` and `prediction` are texts (B,)."""
    return sums(truth, prediction, weights=weights).value("no text has a character")


def sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums:
    """Character n-gram counts of each example."""
    rows_BS = statistics("chrf", truth, prediction) * weights_or_ones(weights, len(truth))[:, None]
    return Sums(rows_BS, _chrf)


def _chrf(sums_RS: np.ndarray) -> np.ndarray:
    """Of (written, true, matching) for each order: mean precision and recall over the orders that both sides have."""
    counts_RN3 = sums_RS.reshape(len(sums_RS), -1, 3)
    own_RN, true_RN, hits_RN = counts_RN3[..., 0], counts_RN3[..., 1], counts_RN3[..., 2]
    both_RN = (own_RN > 0) & (true_RN > 0)
    orders_R = both_RN.sum(axis=1)
    precision_R = np.where(both_RN, hits_RN / own_RN, 0).sum(axis=1) / orders_R
    recall_R = np.where(both_RN, hits_RN / true_RN, 0).sum(axis=1) / orders_R
    below_R = BETA**2 * precision_R + recall_R
    found_R = np.where(below_R > 0, 100 * (1 + BETA**2) * precision_R * recall_R / below_R, 0.0)
    return np.where(orders_R > 0, found_R, np.where(true_RN.any(axis=1), 0.0, np.nan))


METRIC = Metric(
    "chrf", "higher", "labels", ("text",), compute, sums=sums, bounds=(0.0, 100.0), about=partial(signature, "chrf")
)
