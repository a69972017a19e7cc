"""Share of pairs whose better answer the model finds likelier than the other one, by the mean log p of a token; equal ones count half.

Per token as in SimPO (Meng et al. 2024, arXiv 2405.14734): by the sums the shorter answer would win. Only rows with both answers
(`rejected` beside the completion) count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, Undefined, weights_or_ones
from modelyard.metrics._likelihood import PAIRS, WINS


def sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums | None:
    """Of won pairs and of all pairs."""
    if np.ndim(prediction) != 2 or prediction.shape[1] <= PAIRS:
        return None
    counted = np.asarray(prediction, np.float64)[:, [WINS, PAIRS]] * weights_or_ones(weights, len(prediction))[:, None]
    return Sums(counted, lambda sums_RS: sums_RS[:, 0] / sums_RS[:, 1])


def compute(truth: np.ndarray, prediction: np.ndarray, **options: Any) -> float:
    """`prediction` (B, 6) as in `_likelihood`. Raises `Undefined` where there are no pairs."""
    found = sums(truth, prediction, **options)
    if found is None:
        raise Undefined("there are no pairs of a better and a worse answer")
    return found.value("there are no pairs of a better and a worse answer")


METRIC = Metric("win_rate", "higher", "values", ("text",), compute, sums, None, (0.0, 1.0))
