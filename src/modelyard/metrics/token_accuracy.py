"""Share of the tokens of true texts that were the likeliest one, each given those before it; every token counts once."""

from __future__ import annotations

from modelyard.metrics._likelihood import HITS, TOKENS, metric

METRIC = metric("token_accuracy", "higher", lambda sums_RS: sums_RS[:, HITS] / sums_RS[:, TOKENS], (0.0, 1.0))
