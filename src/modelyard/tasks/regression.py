"""Predicts a number: a price, a duration, a dose.

Any inputs → `number`; nets minimise the squared error of the standardised target.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.tasks._contract import Loss, Task, Toy

ALIASES = {"tabular-regression": ("number", "category", "timestamp")}
"""Hugging Face names: the kinds of input each allows."""


def toy(n: int, seed: int) -> Toy:
    """House prices from area, age and district, with noise of about a tenth of the spread."""
    random = np.random.default_rng(seed)
    area, age = random.uniform(30, 200, n), random.uniform(0, 80, n)
    district = random.integers(0, 4, n)
    price = 3000 * area - 900 * age + np.array([0.0, 5e4, 1e5, 2e5])[district] + random.normal(0, 1.5e4, n)
    names = np.array(["north", "south", "east", "west"])[district]
    frame = pl.DataFrame({"area": area, "age": age, "district": names, "price": price})
    return Toy({"train": frame}, "price")


TASK = Task(name="regression", kinds=("number",), losses={"number": Loss("mse", "value")}, toy=toy)
