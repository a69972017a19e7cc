"""Continues a prompt, a character at a time."""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.runtime.answers import Param
from modelyard.tasks._contract import Loss, Task, Toy


def toy(n: int, seed: int) -> Toy:
    """Counting on in the alphabet: "abc" goes on with "def"."""
    random = np.random.default_rng(seed)
    letters = "abcdefghij"
    starts = random.integers(0, 5, n)
    prompts = [letters[s : s + 2] for s in starts]
    return Toy(
        {"train": pl.DataFrame({"prompt": prompts, "continuation": [letters[s + 2 : s + 5] for s in starts]})},
        "continuation",
        {"prompt": "text", "continuation": "modelyard-probes/characters"},
    )


TASK = Task(
    name="modelyard-probes/character-generation",
    kinds=("modelyard-probes/characters",),
    losses={"modelyard-probes/characters": Loss("modelyard-probes/token-cross-entropy", "ids")},
    toy=toy,
    default="modelyard-probes/gru-generator",
    metrics=("modelyard-probes/exact-match",),
    program="modelyard-probes/generate",
    params=(
        Param("temperature", "float", 0.0, 0.0, 5.0, doc="0 takes the most likely character"),
        Param("max_length", "int", 8, 1, 100, doc="characters at most"),
    ),
)
