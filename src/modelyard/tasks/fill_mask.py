"""Guesses hidden tokens of texts from what stands around them: masked-language-model pretraining, from nothing or on from a base.

Text → `fill`. Nothing is labelled: in training 15 % of the tokens are chosen anew in every epoch, and of those 80 % are hidden, 10 % replaced
and 10 % left (Devlin et al. 2018, arXiv 1810.04805). What is learnt is the base of other models: `model: {name: bert, base: RUN}`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from modelyard.runtime.answers import Answers, Param
from modelyard.tasks._contract import Loss, Task, Toy

SHARE = 0.15


def toy(n: int, seed: int) -> Toy:
    """Sentences of a small grammar: who does what with what, where the verb tells the thing."""
    random = np.random.default_rng(seed)
    things = {"eats": ["bread", "soup", "rice"], "reads": ["books", "letters", "news"], "drives": ["cars", "trucks", "trains"]}
    who, verbs = ["anna", "bob", "carl", "dora"], list(things)
    rows = []
    for _ in range(n):
        verb = verbs[random.integers(len(verbs))]
        rows.append(f"{who[random.integers(4)]} {verb} {things[verb][random.integers(3)]} every day")
    return Toy({"train": pl.DataFrame({"text": rows})}, None, {"text": "text"})


def examine(model: Any, rows: pl.DataFrame, output: str) -> tuple[Answers, pl.Series]:
    """(answers about a share of the tokens, hidden by the call, what stood there): how a model without a column of truths is judged."""
    answers = model.predict_examples(rows, {"mask": SHARE, "top": 1}, 0)
    name = f"{output}.truth"
    empty = pl.Series(output, [None] * rows.height, dtype=pl.List(pl.String))
    return answers, answers.columns[name].alias(output) if name in answers.columns.columns else empty


TASK = Task(
    name="fill-mask",
    kinds=("fill",),
    losses={"fill": Loss("cross_entropy", "ids")},
    toy=toy,
    supervised=False,
    guessed=False,
    output="fill",
    program="fill",
    params=(
        Param("top", "int", 5, 1, 100, doc="tokens told for each hidden place"),
        Param("mask", "float", 0.0, 0.0, 0.9, doc="share of the tokens that the call hides itself; 0 asks about those that the text hides"),
    ),
    default="bert",
    metrics=("masked_accuracy", "pseudo_perplexity"),
    aligned=True,
    rewrites="masking",
    examine=examine,
    shown={"mask": SHARE},
)
