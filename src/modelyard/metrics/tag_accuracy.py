"""Share of the words whose tag is right; the interval resamples sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, Undefined, check_rows, weights_or_ones


def counts_B2(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(words tagged rightly, words) of each sentence."""
    pairs = zip(truth, answers, strict=True)
    return np.array([(sum(a == b for a, b in zip(x, y, strict=True)), len(x)) for x, y in pairs], np.float64).reshape(-1, 2)


def _formula(sums_R2: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums_R2[:, 1] > 0, sums_R2[:, 0] / sums_R2[:, 1], np.nan)


def _compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    check_rows(truth, prediction, weights)
    value = float(_formula((weights_or_ones(weights, len(truth)) @ counts_B2(truth, prediction))[None])[0])
    if np.isnan(value):
        raise Undefined("there are no words")
    return value


def _sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums | None:
    return None if weights is not None else Sums(counts_B2(truth, prediction), _formula)


METRIC = Metric("tag_accuracy", "higher", "labels", ("tags",), _compute, _sums, None, (0.0, 1.0))
