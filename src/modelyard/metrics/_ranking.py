"""ROC-AUC and average precision with their influence functions, O(n log n) and exact under ties and weights.

AUC by mid-ranks (Sun & Xu 2014, IEEE SPL 21:1389); average precision is the step sum Σ (R_t − R_{t−1}) P_t, without
interpolation (Davis & Goadrich 2006, ICML). The influence of an example is the derivative of the metric by its weight,
times n: its variance gives DeLong's interval for the AUC and the like for average precision (infinitesimal jackknife).
More than two classes: the mean over "one against the rest"; influences are averaged likewise, so covariances count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modelyard.metrics._contract import Labels, Metric, weights_or_ones
from modelyard.metrics._interval import logit_interval
from modelyard.metrics._scores import pairs

Influence = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, np.ndarray]]
"""`f(is_B, score_B, weight_B) -> (value, derivative_B)`."""


def _groups(score_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order by falling score, end of each run of equal scores as inclusive positions)."""
    order = np.argsort(-score_B, kind="stable")
    sorted_B = score_B[order]
    return order, np.append(np.flatnonzero(np.diff(sorted_B)), len(sorted_B) - 1)


def auc(is_B: np.ndarray, score_B: np.ndarray, weight_B: np.ndarray) -> tuple[float, np.ndarray]:
    """Area under the ROC curve and its derivative by each weight."""
    order, ends = _groups(score_B)
    up = np.where(is_B, weight_B, 0.0)[order]
    down = np.where(is_B, 0.0, weight_B)[order]
    positive, negative = up.sum(), down.sum()

    def mid(sorted_B: np.ndarray) -> np.ndarray:
        """Weight above each example plus half of that tied with it."""
        total = np.cumsum(sorted_B)[ends]
        group = np.diff(total, prepend=0.0)
        return np.repeat(total - group / 2, np.diff(ends, prepend=-1))

    below_B = 1 - mid(down) / negative  # share of negatives that a positive here beats
    above_B = mid(up) / positive  # share of positives that beat a negative here
    value = float(up @ below_B / positive)
    derivative = np.empty(len(order))
    derivative[order] = np.where(is_B[order], (below_B - value) / positive, (above_B - value) / negative)
    return value, derivative


def average_precision(is_B: np.ndarray, score_B: np.ndarray, weight_B: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision and its derivative by each weight."""
    order, ends = _groups(score_B)
    hits = np.cumsum(np.where(is_B, weight_B, 0.0)[order])[ends]
    taken = np.cumsum(weight_B[order])[ends]
    gained = np.diff(hits, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(taken > 0, hits / taken, 0.0)
        later = np.where(taken > 0, gained / taken, 0.0)  # d(sum)/d(hits) of this group
    value = float(gained @ precision / hits[-1])
    from_here = np.cumsum(later[::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        thinned = np.cumsum(np.where(taken > 0, later * precision, 0.0)[::-1])[::-1]
    sizes = np.diff(ends, prepend=-1)
    yes, no = np.repeat(precision + from_here - thinned - value, sizes), np.repeat(-thinned, sizes)
    derivative = np.empty(len(order))
    derivative[order] = np.where(is_B[order], yes, no) / hits[-1]
    return value, derivative


def curve(is_B: np.ndarray, score_B: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Points of the ROC and PR curves, by falling threshold: `threshold`, `hits`, `false_alarms` (sums of weights)."""
    weight_B = weights_or_ones(weights, len(is_B))
    order, ends = _groups(score_B)
    hits = np.cumsum(np.where(is_B, weight_B, 0.0)[order])[ends]
    alarms = np.cumsum(np.where(is_B, 0.0, weight_B)[order])[ends]
    return {"threshold": score_B[order][ends], "hits": hits, "false_alarms": alarms}


def ranking_metric(name: str, f: Influence) -> Metric:
    """A `Metric` that is the mean of `f` over the yes-or-no questions of the truth."""

    def compute(
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        labels: Labels = None,
        positive: int | None = None,
        **_: Any,
    ) -> float:
        weight_B = weights_or_ones(weights, len(truth))
        return float(np.mean([f(*pair, weight_B)[0] for pair in pairs(truth, prediction, weights, labels, positive)]))

    def closed(
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        level: float,
        weights: np.ndarray | None = None,
        labels: Labels = None,
        positive: int | None = None,
        **_: Any,
    ) -> tuple[float, float]:
        weight_B = weights_or_ones(weights, len(truth))
        questions = pairs(truth, prediction, weights, labels, positive)
        total, influence_B, rarest = 0.0, np.zeros(len(truth)), np.inf
        for is_B, score_B in questions:
            value, derivative_B = f(is_B, score_B, weight_B)
            total, influence_B = total + value, influence_B + derivative_B
            rarest = min(rarest, int(is_B.sum()), int((~is_B).sum()))
        influence_B *= weight_B * len(truth) / len(questions)
        return logit_interval(total / len(questions), influence_B, level, float(rarest))

    return Metric(name, "higher", "scores", ("category", "label-set"), compute, None, closed, (0.0, 1.0))
