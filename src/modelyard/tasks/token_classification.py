"""Gives every word of a sentence a tag: named entities, parts of speech, slots.

`words` → `tags` of the same length, by a net with a linear chain over the tags (Lample et al. 2016, Neural Architectures for Named Entity
Recognition, arXiv:1603.01360).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.tasks._contract import Loss, Task, Toy

ALIASES = {"named-entity-recognition": ("words",), "ner": ("words",), "part-of-speech-tagging": ("words",)}
"""Other names; the kinds of input each allows."""

FIRST, LAST = ("Anna", "Bob", "Carl", "Dora", "Emil"), ("Berg", "Stein", "Feld", "Wald")
PLACES = (("Paris",), ("New", "York"), ("Rome",), ("Hong", "Kong"))
PATTERNS = (("P", "lives", "in", "L"), ("P", "met", "P", "today"), ("we", "left", "L", "for", "L", "."), ("does", "P", "like", "the", "sea", "?"))


def toy(n: int, seed: int) -> Toy:
    """Sentences with people (first and sometimes last name) and places of one or two words, in BIO."""
    random = np.random.default_rng(seed)
    rows: list[tuple[list[str], list[str]]] = []
    for _ in range(n):
        words: list[str] = []
        tags: list[str] = []
        for unit in PATTERNS[random.integers(len(PATTERNS))]:
            name: tuple[str, ...] = (unit,)
            kind = ""
            if unit == "P":
                name, kind = (FIRST[random.integers(5)], *((LAST[random.integers(4)],) if random.random() < 0.5 else ())), "person"
            elif unit == "L":
                name, kind = PLACES[random.integers(4)], "place"
            words += name
            tags += [f"{'BI'[i > 0]}-{kind}" if kind else "O" for i in range(len(name))]
        rows.append((words, tags))
    frame = pl.DataFrame({"tokens": [r[0] for r in rows], "tags": [r[1] for r in rows]})
    return Toy({"train": frame}, "tags", {"tokens": "words", "tags": "tags"})


TASK = Task(
    name="token-classification",
    kinds=("tags",),
    losses={"tags": Loss("crf", "ids", {"crf": "crf", "cross-entropy": "token_cross_entropy"})},
    toy=toy,
    default="bilstm",
    reads=("words",),
    aligned=True,
)
