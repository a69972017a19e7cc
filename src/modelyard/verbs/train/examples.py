"""The 32 rows that travel with a model and are replayed wherever it goes: classes, missing, unseen, extremes, closest calls.

The data alone would leave much of the encodings unproven: no picture of another shape, no text in capitals or too long. Rows made for
that come last.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from modelyard.runtime.answers import Answers
from modelyard.runtime.pipeline import Column, Pipeline

COUNT = 32
POOL = 2000
"""Rows of the split that are predicted to find the closest calls."""


def choose(pipeline: Pipeline, frame: pl.DataFrame, predict: Callable[[Any], Answers], seed: int) -> list[dict[str, Any]]:
    """Up to `COUNT` rows as JSON values: at least one per predicted label (12 at most), the closest calls, rows with
    missing values, the extremes of each number and date, then random ones; last the made rows."""
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
                _add(np.argsort(top[:, 1] - top[:, 0], kind="stable")[:6], picked, limit=20)
    for column in pipeline.inputs:
        values = pool[column.name]
        _add(np.flatnonzero(values.is_null().to_numpy())[:1], picked, limit=22)
        if (values.dtype.is_numeric() or values.dtype.is_temporal()) and values.null_count() < len(values):
            order = values.arg_sort(nulls_last=True).to_numpy()[: len(values) - values.null_count()]
            _add(order[[0, -1]], picked, limit=26)
    made = _made(pipeline, to_rows(pipeline, pool[:1])[0])
    _add(random.permutation(pool.height), picked, limit=COUNT - len(made))
    return to_rows(pipeline, pool[sorted(picked)]) + made


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


def _add(index: Sequence[int] | np.ndarray, picked: dict[int, None], limit: int) -> None:
    for i in index:
        if len(picked) >= limit:
            return
        picked[int(i)] = None


def _made(pipeline: Pipeline, row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row with all that data seldom holds, by kind; a second one of long texts and tall pictures; one of missing values."""
    strange = [{c.name: _strange(c, row[c.name], again) for c in pipeline.inputs} for again in (False, True)]
    found = [r for i, r in enumerate(strange) if r != row and r not in strange[:i]]
    return found if any(c.rules.needs_value for c in pipeline.inputs) else [*found, {c.name: None for c in pipeline.inputs}]


def _strange(column: Column, value: Any, again: bool) -> Any:
    if column.kind == "category" and not again:
        return "—not seen in training—"
    if column.kind == "number" and not again and {"0", "1"} <= (found := column.summary.get("quantiles") or {}).keys():
        return 1.1 * found["1"] - 0.1 * found["0"]  # beyond the training rows, by a tenth of their range
    if column.kind == "text" and isinstance(value, str):
        longest = getattr(column.state, "max_length", 0)
        wide = f"{value.swapcase()} ＦＵＬＬ－ｗｉｄｔｈ №１, ﬁne! Ünïté 中文？ 🚂 {value}"
        return wide if not again else (wide * (8 * longest // len(wide) + 1))[: 8 * longest] if longest else value
    if column.kind == "words" and isinstance(value, list):
        strange = [*value, "ＷＩＤＥ", "№１", "Ünïté", "中", "🚂", "x" * 50, *(w.swapcase() for w in value)]
        return [w for _ in range(8) for w in strange][:200] if again else strange
    if column.kind == "image":
        return _picture(61, 37) if again else _picture(37, 61)
    return value


def _picture(height: int, width: int) -> str:
    """A colour picture of edges and slopes as base64 of a PNG: its channels, size and shape all matter."""
    from PIL import Image

    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x // 5 + y // 3) % 2 * 255], 2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
