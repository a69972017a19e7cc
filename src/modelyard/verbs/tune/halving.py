"""Successive halving (Jamieson & Talwalkar 2016) as ASHA makes it (Li et al. 2020): the trials of random search begin short, the best third goes on.

Trials are scored at `tune.rungs` rungs (with eta 3 and 3 rungs: after 1/9, 1/3 and all of their epochs or rounds) by the saved model on the
validation rows, and wait there. One that is among the best 1/eta of those that came to its rung goes on, a net from its checkpoint; what
still waits when all trials were asked and nothing may go on is pruned. Optuna's own pruner cannot wait: it decides when a trial passes, so
that the first ones go to their end because there is nobody to lose against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.verbs.tune.random import sampler

__all__ = ["PRUNES", "first_rung", "promoted", "sampler"]

PRUNES = True

Scores = Mapping[int, Mapping[int, float]]
"""Trial → rung → score, lower is better."""


def first_rung(number: int, config: Any) -> int:
    """The rung that a trial runs to at once."""
    return 0


def promoted(scores: Scores, waiting: set[int], config: Any) -> int | None:
    """A waiting trial that goes on: the highest rung first, there the best."""
    for rung in reversed(range(config.rungs - 1)):
        order = sorted((values[rung], number) for number, values in scores.items() if rung in values)
        for _, number in order[: len(order) // config.eta]:
            if number in waiting and max(scores[number]) == rung:
                return number
    return None
