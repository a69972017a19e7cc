"""An example is a stretch of a group's past and the steps that follow it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True, kw_only=True)
class Config:
    group: str
    time: str
    value: str
    length: int = 8
    horizon: int = 3


def columns(config: Config) -> dict[str, str]:
    """Raw columns that predicting needs, with their kinds."""
    return {config.group: "category", config.time: "number", config.value: "number"}


def examples(table: pl.DataFrame, config: Config, *, training: bool) -> tuple[pl.DataFrame, np.ndarray]:
    """Training: every window with its horizon. Predicting: the last window of each group, in the order groups appear."""
    rows: list[dict[str, object]] = []
    source: list[int] = []
    numbered = table.with_row_index("row")
    for (group,), part in numbered.group_by([config.group], maintain_order=True):
        part = part.sort(config.time)
        values, times, places = part[config.value].to_list(), part[config.time].to_list(), part["row"].to_list()
        if training:
            for end in range(config.length, len(values) - config.horizon + 1):
                row = {config.group: group, config.time: times[end], "history": values[end - config.length : end]}
                rows.append({**row, config.value: values[end : end + config.horizon]})
                source.append(places[end - 1])
        else:
            rows.append({config.group: group, "history": values[-config.length :]})
            source.append(places[-1])
    return pl.DataFrame(rows, infer_schema_length=None), np.array(source, np.int64)
