"""Log loss (cross-entropy) in nats: the mean of −log p(truth); for several labels per row the mean over rows and
labels.

Probabilities are clipped at the machine epsilon of their own dtype (float32 1.2e-7), as in scikit-learn, and not
normalised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric
from modelyard.metrics._proportion import mean, sums
from modelyard.metrics._scores import probabilities_BK


def _loss(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> np.ndarray:
    dtype = prediction.dtype if np.issubdtype(prediction.dtype, np.floating) else np.dtype(np.float64)
    smallest = float(np.finfo(dtype).eps)
    if truth.ndim == 2:
        scores_BK = np.clip(np.asarray(prediction, np.float64), smallest, 1 - smallest)
        return np.asarray(-np.log(np.where(truth.astype(bool), scores_BK, 1 - scores_BK)).mean(axis=1))
    scores_B = np.take_along_axis(probabilities_BK(prediction), truth[:, None].astype(np.int64), 1)[:, 0]
    return np.asarray(-np.log(np.clip(scores_B, smallest, 1 - smallest)))


METRIC = Metric(
    "log_loss", "lower", "scores", ("category", "label-set"), mean(_loss), sums(_loss), bounds=(0.0, np.inf)
)
