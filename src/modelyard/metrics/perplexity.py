"""exp of the mean -log p of the tokens of true texts, each given those before it: 1 is certainty, the vocabulary's size a blind guess."""

from __future__ import annotations

import numpy as np

from modelyard.metrics._likelihood import NLL, TOKENS, metric

METRIC = metric("perplexity", "lower", lambda sums_RS: np.exp(sums_RS[:, NLL] / sums_RS[:, TOKENS]), (1.0, np.inf))
