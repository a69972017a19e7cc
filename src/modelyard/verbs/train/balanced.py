"""`train.balance`: the training rows balanced by label once the split is made; no other row is touched, in folds as in a whole run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl

from modelyard.data.balance import balance, plan
from modelyard.errors import Unsupported
from modelyard.tasks._binding import Bound
from modelyard.verbs.train.config import TrainConfig


def balanced(bound: Bound, config: TrainConfig, say: Callable[[str], None]) -> Bound:
    """`bound` with balanced training rows, where that was asked for."""
    if config.balance is None:
        return bound
    target, kinds = _target(bound)
    splits, notes = balance(bound.splits, target, kinds, config.balance, ratio=config.balance_ratio, seed=config.seed)
    for note in notes:
        say(note)
    return dataclasses.replace(bound, splits=splits)


def fold(bound: Bound, config: TrainConfig, learnt: np.ndarray) -> tuple[np.ndarray, pl.DataFrame]:
    """(row number of each training row of a fold after balancing, the rows that were made, raw). The made rows are the last ones; their
    numbers are those of the rows that they were made from, which lie in the fold's training rows like the neighbours they lean on."""
    frame = bound.splits["train"]
    if config.balance is None:
        return learnt, frame.head(0)
    target, kinds = _target(bound)
    rows = frame[learnt]
    origin, made, _ = plan(rows, target, kinds, config.balance, ratio=config.balance_ratio, neighbours=5, seed=config.seed)
    whole = rows[origin[len(origin) - made.height :]].with_columns(made[c].cast(rows[c].dtype) for c in made.columns)
    return learnt[origin], whole


def _target(bound: Bound) -> tuple[str, dict[str, str]]:
    """(the one output of labels, kinds of all columns)."""
    if bound.stream is not None or bound.environment is not None:
        raise Unsupported("train.balance needs the rows in memory; take out data.stream, or use train.class_weights", "use")
    labels = [c for c in bound.pipeline.outputs if c.kind == "category" and bound.tasks[c.name].supervised]
    if len(labels) != 1:
        kinds = ", ".join(f"{c.name} ({c.kind})" for c in bound.pipeline.outputs)
        raise Unsupported(f"train.balance needs one output of labels; the outputs are {kinds}. Use train.class_weights or data.weight", "use")
    return labels[0].name, {c.name: c.kind for c in (*bound.pipeline.inputs, *bound.pipeline.outputs)}
