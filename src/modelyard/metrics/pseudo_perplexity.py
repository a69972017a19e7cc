"""exp of the mean negative log-probability of hidden tokens, given all others (Salazar et al. 2020, arXiv 1910.14659, eq. 3).

The paper hides each token in turn; here those that the call hid, a sample of the places.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums


def sums(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> Sums:
    """`prediction` (B, 2): the sum of log-probabilities of each text and their number."""
    return Sums(np.asarray(prediction, np.float64), lambda total_RS: np.exp(-total_RS[:, 0] / total_RS[:, 1]))


def compute(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> float:
    """In tokens: 1 is certainty, the size of the vocabulary a blind guess."""
    return sums(truth, prediction).value("no token was hidden")


METRIC = Metric("pseudo_perplexity", "lower", "values", ("fill",), compute, sums, None, (1.0, np.inf))
