"""-log2 p of true texts over their bytes in UTF-8: compares models with different tokenizers (Gao et al. 2020, The Pile, section 3.1)."""

from __future__ import annotations

import numpy as np

from modelyard.metrics._likelihood import BYTES, NLL, metric

METRIC = metric("bits_per_byte", "lower", lambda sums_RS: sums_RS[:, NLL] / np.log(2) / sums_RS[:, BYTES], (0.0, np.inf))
