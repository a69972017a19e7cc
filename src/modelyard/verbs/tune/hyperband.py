"""Hyperband (Li et al. 2018) over TPE: successive halving in brackets that begin to cut at different rungs.

Some trials are cut early and others late, which guards against settings that start slowly and end well.
"""

from __future__ import annotations

from typing import Any

from modelyard.verbs.tune.tpe import sampler

__all__ = ["PRUNES", "pruner", "sampler"]

PRUNES = True


def pruner(config: Any) -> Any:
    """Optuna's; rung k is told as step eta^k."""
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(min_resource=1, max_resource=config.eta ** (config.rungs - 1), reduction_factor=config.eta)
