"""The 32 rows that travel with a model and are replayed wherever it goes: classes, missing, unseen, extremes, closest calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from modelyard.runtime.answers import Answers
from modelyard.runtime.pipeline import Pipeline

COUNT = 32
POOL = 2000
"""Rows of the split that are predicted to find the closest calls."""


def choose(pipeline: Pipeline, frame: pl.DataFrame, predict: Callable[[Any], Answers], seed: int) -> list[dict[str, Any]]:
    """Up to `COUNT` rows as JSON values: at least one per predicted label (12 at most), the closest calls, rows with
    missing values, the extremes of each number, then random ones; last an unseen category and a row of missing values."""
    random = np.random.default_rng(seed)
    pool = frame[np.sort(random.permutation(frame.height)[:POOL])]
    answers = predict(pool.select([c.name for c in pipeline.inputs]))
    picked: dict[int, None] = {}
    for column in pipeline.outputs:
        _one_of_each(answers[column.name], picked)
        if f"{column.name}.scores" in answers.columns.columns:
            scores = answers[f"{column.name}.scores"].struct.unnest().to_numpy()
            if scores.shape[1] > 1:
                top = np.sort(scores, axis=1)[:, -2:]
                _add(np.argsort(top[:, 1] - top[:, 0], kind="stable")[:6], picked)
    for column in pipeline.inputs:
        values = pool[column.name]
        _add(np.flatnonzero(values.is_null().to_numpy())[:1], picked, limit=22)
        if values.dtype.is_numeric() and values.null_count() < len(values):
            order = values.arg_sort(nulls_last=True).to_numpy()[: len(values) - values.null_count()]
            _add(order[[0, -1]], picked, limit=26)
    _add(random.permutation(pool.height), picked, limit=COUNT - 2)
    rows = to_rows(pipeline, pool[sorted(picked)])
    return rows + _synthetic(pipeline, rows)


def to_rows(pipeline: Pipeline, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Checked inputs as JSON objects."""
    columns = {c.name: c.rules.to_json(frame[c.name]) for c in pipeline.inputs}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _one_of_each(answer: pl.Series, picked: dict[int, None]) -> None:
    seen: set[str] = set()
    for i, value in enumerate(answer.to_list() if answer.dtype in (pl.String, pl.Int64) else []):
        if str(value) not in seen and len(seen) < 12:
            seen.add(str(value))
            picked[i] = None


def _add(index: Sequence[int] | np.ndarray, picked: dict[int, None], limit: int = COUNT - 2) -> None:
    for i in index:
        if len(picked) >= limit:
            return
        picked[int(i)] = None


def _synthetic(pipeline: Pipeline, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    labels = [c.name for c in pipeline.inputs if c.kind == "category"]
    if labels and rows:
        unseen = copy.deepcopy(rows[0])
        unseen[labels[0]] = "—not seen in training—"
        made.append(unseen)
    if rows and not any(c.rules.needs_value for c in pipeline.inputs):
        made.append({c.name: None for c in pipeline.inputs})
    return made
