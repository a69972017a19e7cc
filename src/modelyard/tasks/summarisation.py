"""Writes the short form of a text, by an encoder-decoder net with beam search."""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.runtime.programs import beam
from modelyard.tasks._contract import Loss, Task, Toy


def toy(n: int, seed: int) -> Toy:
    """Reports whose summary is who did what: the other words say nothing."""
    random = np.random.default_rng(seed)
    names, acts, things = ("anna", "bob", "carl", "dora"), ("sold", "bought", "lost"), ("house", "car", "boat")
    filler = ("well", "today", "as", "said", "before", "quite", "really")
    texts, short = [], []
    for _ in range(n):
        told = [str(random.choice(w)) for w in (names, acts, things)]
        words = list(told)
        for _ in range(int(random.integers(2, 6))):
            words.insert(int(random.integers(0, len(words) + 1)), str(random.choice(filler)))
        texts.append(" ".join(words))
        short.append(" ".join(told))
    return Toy({"train": pl.DataFrame({"report": texts, "summary": short})}, "summary", {"report": "text", "summary": "text"})


TASK = Task(
    name="summarisation",
    kinds=("text",),
    losses={"text": Loss("token_nll", "ids")},
    toy=toy,
    guessed=False,
    default="seq2seq",
    metrics=("rouge_l", "rouge_1", "rouge_2", "exact_match"),
    program="beam",
    params=beam.PARAMS,
)
