"""Mean -log p of the tokens of true texts, each given those before it, in nats: the loss of training (per character for characters)."""

from __future__ import annotations

import numpy as np

from modelyard.metrics._likelihood import NLL, TOKENS, metric

METRIC = metric("nats_per_token", "lower", lambda sums_RS: sums_RS[:, NLL] / sums_RS[:, TOKENS], (0.0, np.inf))
