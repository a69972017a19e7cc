"""Tree-structured Parzen estimator (Bergstra et al. 2011): after ten trials it looks where good ones lie closer than bad ones."""

from __future__ import annotations

from typing import Any

PRUNES = False


def sampler(config: Any, seed: int) -> Any:
    """Optuna's; running trials of a parallel search count as bad, so that their places are not asked twice (constant liar)."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, constant_liar=config.parallel > 1)
