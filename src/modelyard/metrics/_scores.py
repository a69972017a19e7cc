"""Probabilities as the score metrics share them: shapes, ids and multi-hot truths."""

from __future__ import annotations

import numpy as np

from modelyard.metrics._contract import Labels, Undefined, check_rows, classes


def probabilities_BK(prediction: np.ndarray) -> np.ndarray:
    """Probabilities `(B, K)` float64; `(B,)` is taken as that of the positive (last) of two classes."""
    scores = np.asarray(prediction, np.float64)
    return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores


def pairs(
    truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray | None, labels: Labels, positive: int | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(is_B, score_B) of every yes-or-no question: one for two classes, one against the rest for more, one per label.

    Questions that the truth answers only one way are left out; `Undefined` where none is left.
    """
    check_rows(truth, prediction, weights)
    scores = probabilities_BK(prediction) if truth.ndim == 1 else np.asarray(prediction, np.float64)
    k = classes(truth, scores, labels)
    if truth.ndim == 2:
        questions = [(truth[:, c].astype(bool), scores[:, c]) for c in range(k)]
    else:
        chosen = [positive] if positive is not None else [k - 1] if k == 2 else list(range(k))
        questions = [(truth == c, scores[:, c]) for c in chosen]
    seen = np.ones(len(truth), bool) if weights is None else np.asarray(weights) > 0
    kept = [(is_B, score_B) for is_B, score_B in questions if is_B[seen].any() and not is_B[seen].all()]
    if not kept:
        raise Undefined("the truth holds one class only")
    return kept
