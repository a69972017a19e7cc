"""Share of rows whose predicted class is the true one.

The interval is Wilson's. One label per row only; several labels per row have `subset-accuracy` and `hamming`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric
from modelyard.metrics._proportion import closed, mean, sums


def _hits(truth: np.ndarray, prediction: np.ndarray, **_: Any) -> np.ndarray:
    return np.asarray(truth == prediction)


METRIC = Metric("accuracy", "higher", "labels", ("category",), mean(_hits), sums(_hits), closed(_hits), (0.0, 1.0))
