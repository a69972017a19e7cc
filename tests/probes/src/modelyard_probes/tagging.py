"""Tags every word of a sentence."""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.tasks._contract import Loss, Task, Toy

WORDS = {"A": ["anna", "bob", "carl"], "V": ["sees", "likes", "calls"], "N": ["home", "music", "trees", "rain"]}


def toy(n: int, seed: int) -> Toy:
    """Sentences of three to nine words whose tag is a property of the word."""
    random = np.random.default_rng(seed)
    tag_of = {w: t for t, words in WORDS.items() for w in words}
    names = sorted(tag_of)
    sentences = [[names[i] for i in random.integers(0, len(names), random.integers(3, 10))] for _ in range(n)]
    frame = pl.DataFrame({"sentence": sentences, "tags": [[tag_of[w] for w in s] for s in sentences]})
    kinds = {"sentence": "modelyard-probes/words", "tags": "modelyard-probes/tags"}
    return Toy({"train": frame}, "tags", kinds)


TASK = Task(
    name="modelyard-probes/tagging",
    kinds=("modelyard-probes/tags",),
    losses={"modelyard-probes/tags": Loss("modelyard-probes/token-cross-entropy", "ids")},
    toy=toy,
    default="modelyard-probes/window-tagger",
    metrics=("modelyard-probes/tag-accuracy",),
    aligned=True,
)
