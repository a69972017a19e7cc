"""Every combination of the values: lists as they are, ranges by their step or in `tune.points` values.

Optuna's grid multiplies every key with every other; here a key without meaning beside the chosen model does not, so that no two trials
are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.verbs.tune._space import Space
from modelyard.verbs.tune.random import sampler

__all__ = ["PRUNES", "points", "sampler"]

PRUNES = False


def points(space: Space, config: Any) -> list[dict[str, Any]]:
    """The trials in order; where there are to be fewer than the grid has points, a random part of it."""
    every = space.grid(config.points)
    if config.trials is None or config.trials >= len(every):
        return every
    order = np.random.default_rng(config.seed).permutation(len(every))
    return [every[i] for i in order]
