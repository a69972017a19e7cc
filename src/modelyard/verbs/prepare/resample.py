"""Balances the labels of the training rows: copies rare rows, drops frequent ones, or makes new rows between neighbours (SMOTE).

The method is `modelyard.data.balance` (Chawla et al. 2002). The rows are split first, and only `train` changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import polars as pl

from modelyard.data.balance import plan
from modelyard.settings import Between
from modelyard.verbs.prepare._work import ROW, Work

TRAIN_ONLY = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of resampling."""

    method: Literal["over", "under", "smote"] = "smote"
    """over copies rows of rare labels; under drops rows of frequent ones; smote makes rows between neighbours of one label."""
    ratio: Annotated[float, Between(0.001, 1)] = 1.0
    """Smallest share that a label has of the most frequent one afterwards."""
    neighbours: Annotated[int, Between(1, 100)] = 5
    """Of smote: nearest rows that a row is joined with."""


def run(work: Work, config: Config, seed: int) -> dict[str, Any]:
    """Balanced training rows; columns that are no input are those of the base row, ids of made rows are missing."""
    target, train = work.labels_of("resampling"), work.tables["train"]
    kinds = {**{c: work.kinds[c] for c in work.roles["inputs"]}, target: "category"}
    origin, made, notes = plan(train, target, kinds, config.method, ratio=config.ratio, neighbours=config.neighbours, seed=seed)
    work.notes += notes
    kept = min(len(origin), train.height)
    after = train[origin]
    if made.height:
        after = after.with_columns(pl.concat([after[c][:kept], made[c]]).alias(c) for c in made.columns)
    new = pl.Series([False] * kept + [True] * (after.height - kept), dtype=pl.Boolean)
    given = work.roles.get("id")
    ids = [given] if isinstance(given, str) else list(given or [])
    work.tables["train"] = after.with_columns(pl.when(~new).then(pl.col(c)).alias(c) for c in [ROW, *ids])
    work.resampled = work.resampled or config.method != "under"
    count = lambda frame: dict(frame[target].value_counts(sort=True).iter_rows())  # noqa: E731
    return {"made": after.height - kept, "dropped": train.height - kept, "before": count(train), "after": count(after)}
