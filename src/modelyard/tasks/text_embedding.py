"""Turns texts into vectors that are near where the texts mean the same: search, duplicates, similarity.

Pairs of texts (`anchor`, `positive`, perhaps `negative` or `score`) → `vector`. Learnt by contrast with the other texts of the batch
(InfoNCE); without positives a text is its own, seen twice through dropout (SimCSE, Gao et al. 2021, arXiv 2104.08821). Judged by finding each
text's companion among all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from modelyard.runtime.answers import Answers
from modelyard.tasks._contract import Loss, Task, Toy

ALIASES = {"sentence-similarity": ("text",), "feature-extraction": ("text",)}


def toy(n: int, seed: int) -> Toy:
    """Questions in two wordings: who asks about what."""
    random = np.random.default_rng(seed)
    things = ["bread", "soup", "rice", "cars", "trucks", "trains", "books", "letters", "news", "shoes", "coats", "hats"]
    places = ["harbour", "station", "market", "castle", "garden", "bridge", "museum", "school"]
    picked = [(things[random.integers(12)], places[random.integers(8)]) for _ in range(n)]
    anchors = [f"where can I buy {thing} near the {place}" for thing, place in picked]
    positives = [f"which shop by the {place} sells {thing}" for thing, place in picked]
    return Toy({"train": pl.DataFrame({"anchor": anchors, "positive": positives})}, None, {"anchor": "text"})


def frame_config(data: Any) -> dict[str, Any]:
    """The names that the data section gives to the columns of a pair."""
    return {**data.frame, "output": TASK.output}


def examine(model: Any, rows: pl.DataFrame, output: str) -> tuple[Answers, pl.Series]:
    """(vectors of the anchors, `{near, score}` with the vectors of their positives)."""
    column = model.pipeline.inputs[0].name
    answers = model.predict_examples(rows)
    truths = rows[output].struct.unnest()
    near = model.predict_examples(rows.with_columns(truths["positive"].alias(column))).columns
    vectors = near[output] if truths["positive"].null_count() < rows.height else pl.Series([None] * rows.height, dtype=pl.List(pl.Float32))
    same = (truths["positive"] == rows[column]).fill_null(True)
    if same.all():  # texts that are their own companions find themselves: that measures nothing
        vectors = pl.Series([None] * rows.height, dtype=pl.List(pl.Float32))
    return answers, pl.DataFrame({"near": vectors, "score": truths["score"]}).to_struct(output)


TASK = Task(
    name="text-embedding",
    kinds=("vector",),
    losses={"vector": Loss("info_nce", "weight")},
    toy=toy,
    supervised=False,
    guessed=False,
    output="vector",
    frame="pairs",
    frame_config=frame_config,
    default="bert",
    metrics=("recall_at_1", "recall_at_10", "mrr", "spearman"),
    aligned=True,
    examine=examine,
)
