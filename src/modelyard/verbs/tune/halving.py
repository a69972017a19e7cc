"""Successive halving (Jamieson & Talwalkar 2016; asynchronous: Li et al. 2020) over TPE: all begin short, the best third goes on.

Trials are scored at `tune.rungs` rungs (with eta 3 and 3 rungs: 1/9, 1/3 and all of the epochs or rounds) by the saved model on the
validation rows. One that is not in the best 1/eta of those that came to its rung ends there. A net goes on from its checkpoint.
"""

from __future__ import annotations

from typing import Any

from modelyard.verbs.tune.tpe import sampler

__all__ = ["PRUNES", "pruner", "sampler"]

PRUNES = True


def pruner(config: Any) -> Any:
    """Optuna's; rung k is told as step eta^k."""
    from optuna.pruners import SuccessiveHalvingPruner

    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=config.eta)
