"""Fills the targets of unlabelled rows by a model that was trained on the labelled ones, in rounds.

Scudder 1965; Yarowsky 1995. A row that the model is sure of joins the training rows with its answer, weighted by its confidence, and the
next round's model learns from it too. The model is the project's; validation and test rows never take part in labelling.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl

from modelyard.settings import Between
from modelyard.verbs.prepare._work import ROW, Work

TRAIN_ONLY = True
TRAINS = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of self-training."""

    confidence: Annotated[float, Between(0, 1)] = 0.95
    """Score of the answer from which a row is taken."""
    rounds: Annotated[int, Between(1, 100)] = 3
    """Models trained at most; it stops earlier where no further row is taken."""


def run(work: Work, config: Config, seed: int) -> dict[str, Any]:
    """Confident rows of `unlabelled` as rows of `train`."""
    target = work.labels_of("self-training")
    work.unlabelled("self-training")
    taken = []
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        for number in range(config.rounds):
            loose = work.tables["unlabelled"]
            if not loose.height:
                break
            model = work.fitted({k: t for k, t in work.tables.items() if k != "unlabelled"}, True, seed + number, Path(folder))
            answers = model.predict(loose.drop(ROW).select(list(work.roles["inputs"]))).columns
            scores = answers[f"{target}.scores"].struct.unnest()
            sure = scores.select(pl.max_horizontal(pl.all())).to_series().cast(pl.Float64).fill_null(0.0)
            picked = (sure >= config.confidence) & answers[target].is_not_null()
            taken.append(int(picked.sum()))
            work.say(f"self-training: round {number + 1} labelled {taken[-1]} of {loose.height} rows")
            if not taken[-1]:
                break
            work.label(target, picked, answers[target], sure)
    return {"labelled": sum(taken), "by_round": taken, "left": work.tables["unlabelled"].height}
