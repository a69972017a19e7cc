"""Writes a text in another language: one text in, one text out, by an encoder-decoder net with beam search."""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.runtime.programs import beam
from modelyard.tasks._contract import Loss, Task, Toy

WORDS = {
    "the": "le", "big": "grand", "small": "petit", "red": "rouge", "dog": "chien", "cat": "chat", "bird": "oiseau", "sees": "voit",
    "eats": "mange", "fish": "poisson", "bread": "pain", "now": "maintenant",
}  # fmt: skip


def toy(n: int, seed: int) -> Toy:
    """Sentences of four to seven words, translated word by word with adjectives behind their nouns."""
    random = np.random.default_rng(seed)
    pick = lambda *some: str(random.choice(some))  # noqa: E731
    rows = []
    for _ in range(n):
        adjective, subject, verb, thing = pick("big", "small", "red"), pick("dog", "cat", "bird"), pick("sees", "eats"), pick("fish", "bread")
        words = [["the", adjective, subject, verb, "the", thing], ["the", subject, adjective, verb, "the", thing]]
        if random.random() < 0.4:
            words = [[*side, "now"] for side in words]
        rows.append([" ".join(words[0]), " ".join(WORDS[w] for w in words[1])])
    frame = pl.DataFrame({"en": [r[0] for r in rows], "fr": [r[1] for r in rows]})
    return Toy({"train": frame}, "fr", {"en": "text", "fr": "text"})


TASK = Task(
    name="translation",
    kinds=("text",),
    losses={"text": Loss("token_nll", "ids")},
    toy=toy,
    guessed=False,
    default="seq2seq",
    metrics=("bleu", "chrf", "exact_match"),
    program="beam",
    params=beam.PARAMS,
)
