"""Random search (Bergstra & Bengio 2012): every trial is drawn alone; hard to beat where few settings matter."""

from __future__ import annotations

from typing import Any

PRUNES = False


def sampler(config: Any, seed: int) -> Any:
    """Optuna's."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)
