"""Why a row is odd, in words: the columns in which it is farthest from the training rows, each looked at alone."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from modelyard.runtime.pipeline import Column
from modelyard.tasks._binding import Bound

NAMED = 3
"""Columns that are named."""
LEAST = 3.0
"""Surprise below which a column says nothing: a value that 5 % of the rows have, or one 3 quartile widths out."""


def reasons(bound: Bound, rows: pl.DataFrame) -> list[str]:
    """One text for each row; empty where no single column stands out."""
    train = bound.splits["train"]
    found: list[list[tuple[float, str]]] = [[] for _ in range(rows.height)]
    for column in bound.pipeline.inputs:
        if column.kind == "number":
            _numbers(column, train[column.name], rows[column.name], found)
        elif column.kind == "category":
            _labels(column, train[column.name], rows[column.name], found)
    return ["; ".join(text for _, text in sorted(one, key=lambda t: -t[0])[:NAMED]) for one in found]


def _numbers(column: Column, train: pl.Series, values: pl.Series, found: list[list[tuple[float, str]]]) -> None:
    x = train.drop_nulls().to_numpy()
    if not len(x):
        return
    first, middle, third = np.percentile(x, [25, 50, 75])
    unit = (third - first) / 1.349 or float(x.std()) or 1.0
    for row, value in enumerate(values.to_list()):
        if value is not None and (far := abs(value - middle) / unit) >= LEAST:
            found[row].append((far, f"{column.name} {value:.4g} (median {middle:.4g})"))


def _labels(column: Column, train: pl.Series, values: pl.Series, found: list[list[tuple[float, str]]]) -> None:
    counts = dict(train.drop_nulls().value_counts().iter_rows())
    for row, value in enumerate(values.to_list()):
        if value is None:
            continue
        share = counts.get(value, 0) / max(1, len(train))
        surprise = -math.log(max(share, 0.5 / max(1, len(train))))
        if surprise >= LEAST:
            said = f"{share:.1%} of the training rows" if share else "in no training row"
            found[row].append((surprise, f"{column.name} = {value} ({said})"))
