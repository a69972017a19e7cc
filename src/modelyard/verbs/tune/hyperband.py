"""Hyperband (Li et al. 2018): successive halving in brackets, of which each begins to cut one rung later.

Some trials are cut early and others late or never, which guards against settings that start slowly and end well. Bracket s of S gets
ceil(S · eta^(S-1-s) / (S-s)) of every round of trials (algorithm 1 of the paper), and trials compete within their bracket.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modelyard.verbs.tune import halving
from modelyard.verbs.tune.random import sampler

__all__ = ["PRUNES", "first_rung", "promoted", "sampler"]

PRUNES = True


def first_rung(number: int, config: Any) -> int:
    """The rung that a trial runs to at once: its bracket, drawn with the shares above from (seed, round), so that every round has them all."""
    count = config.rungs
    shares = [math.ceil(count * config.eta ** (count - 1 - s) / (count - s)) for s in range(count)]
    order = np.repeat(np.arange(count), shares)
    at, place = divmod(number, len(order))
    return int(np.random.default_rng([config.seed, at]).permutation(order)[place])


def promoted(scores: halving.Scores, waiting: set[int], config: Any) -> int | None:
    """As in halving, within each bracket."""
    for bracket in range(config.rungs):
        own = {n: s for n, s in scores.items() if first_rung(n, config) == bracket}
        found = halving.promoted(own, waiting, config)
        if found is not None:
            return found
    return None
