"""Finds groups that nobody named: customer segments, kinds of machine states.

Any table → `cluster`. There is no target column; the model fits itself and the answer is a group number with scores.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.tasks._contract import Task, Toy

ALIASES: dict[str, tuple[str, ...] | None] = {}


def toy(n: int, seed: int) -> Toy:
    """Shoppers in three groups by spending and visits."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 3, n)
    spending = random.normal(np.array([20.0, 200.0, 210.0])[group], 12.0)
    visits = random.normal(np.array([2.0, 3.0, 20.0])[group], 1.0)
    return Toy({"train": pl.DataFrame({"spending": spending, "visits": visits})}, None)


TASK = Task(
    name="clustering", kinds=("cluster",), losses={}, toy=toy, supervised=False, output="cluster", default="k-means"
)
