"""Predicts one label out of a list, or a set of labels: binary, multi-class and multi-label.

Any inputs → `category` (softmax over K classes, cross-entropy) or `label-set` (K sigmoids, binary cross-entropy).
References: Bishop 2006, ch. 4; Tsoumakas & Katakis 2007 for label sets.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.tasks._contract import Loss, Task, Toy

ALIASES = {
    "tabular-classification": ("number", "category", "timestamp"),
    "text-classification": ("text",),
    "image-classification": ("image",),
    "multi-label-classification": None,
}
"""Hugging Face names: the kinds of input each allows."""


def toy(n: int, seed: int) -> Toy:
    """Three kinds of fruit from weight, diameter, colour and a picking date, with 5 % of the weights missing."""
    random = np.random.default_rng(seed)
    fruit = random.integers(0, 3, n)
    weight = random.normal(np.array([150.0, 180.0, 8.0])[fruit], np.array([20.0, 30.0, 2.0])[fruit])
    diameter = random.normal(np.array([7.0, 8.0, 2.0])[fruit], 0.6)
    shades = np.array([["red", "green", "yellow"], ["yellow", "green", "green"], ["red", "dark", "red"]])
    colour = shades[fruit, random.integers(0, 3, n)]
    days = random.integers(0, 365, n)
    picked = (np.datetime64("2025-01-01") + days.astype("timedelta64[D]")).astype(str)
    missing = random.random(n) < 0.05
    frame = pl.DataFrame(
        {
            "weight": [None if m else float(w) for w, m in zip(weight, missing, strict=True)],
            "diameter": diameter,
            "colour": colour,
            "picked": picked,
            "fruit": np.array(["apple", "pear", "cherry"])[fruit],
        }
    )
    return Toy({"train": frame}, "fruit")


TASK = Task(
    name="classification",
    kinds=("category", "label-set"),
    losses={"category": Loss("cross_entropy", "index"), "label-set": Loss("binary_cross_entropy", "multi_hot")},
    toy=toy,
)
