"""BOHB (Falkner et al. 2018): Hyperband's brackets, with trials drawn by TPE from the scores at the highest rung that ten came to.

A third of the trials stays by chance, as in the paper. What is good after a few epochs need not be good at the end: with few trials
`hyperband` finds more, with hundreds this does.
"""

from __future__ import annotations

from typing import Any

from modelyard.verbs.tune import random, tpe
from modelyard.verbs.tune.hyperband import first_rung, promoted

__all__ = ["PRUNES", "first_rung", "promoted", "sampler"]

PRUNES = True


def sampler(config: Any, seed: int) -> Any:
    """By chance for a third of the seeds, else TPE."""
    return (random if seed % 3 == 0 else tpe).sampler(config, seed)
