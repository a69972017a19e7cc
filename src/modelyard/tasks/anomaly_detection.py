"""Finds rows that are unlike the others: fraud nobody has labelled, broken sensors, typing errors.

Any table → `normal` or `anomaly` with a score. Nothing is learnt from labels; a target column, where there is one, is for judging alone.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.tasks._contract import Task, Toy

ALIASES: dict[str, tuple[str, ...] | None] = {"outlier-detection": None}


def toy(n: int, seed: int) -> Toy:
    """Payments of two kinds of customer, 4 % of them far from both."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 2, n)
    odd = random.random(n) < 0.04
    amount = random.lognormal(np.array([2.0, 4.0])[kind], 0.4) * np.where(odd, 12.0, 1.0)
    hour = np.where(odd, random.uniform(0, 24, n), random.normal(14, 3, n)) % 24
    country = np.where(odd & (random.random(n) < 0.5), "elsewhere", random.choice(["here", "there"], n, p=[0.8, 0.2]))
    return Toy({"train": pl.DataFrame({"amount": amount, "hour": hour, "country": country})}, None)


TASK = Task(
    name="anomaly-detection", kinds=("category",), losses={}, toy=toy, supervised=False, guessed=False, output="anomaly", encoding="alarm",
    default="detectors", metrics=("roc_auc", "average_precision", "precision", "recall", "f1"),
)  # fmt: skip
