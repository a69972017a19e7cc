"""Forecasts the next steps of every group of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from modelyard.tasks._contract import Loss, Task, Toy


def toy(n: int, seed: int) -> Toy:
    """Four shops with a rhythm of four days and a level of their own."""
    random = np.random.default_rng(seed)
    days = max(24, n // 4)
    day = np.tile(np.arange(days), 4)
    shop = np.repeat(["a", "b", "c", "d"], days)
    level = np.repeat([10.0, 20.0, 30.0, 40.0], days)
    sales = level + 5 * np.sin(day * np.pi / 2) + random.normal(0, 0.2, len(day))
    frame = pl.DataFrame({"shop": shop, "day": day, "sales": sales})
    kinds = {"history": "modelyard-probes/history", "sales": "modelyard-probes/horizon"}
    options = {"group": "shop", "time": "day", "frame": {"length": 8, "horizon": 3}, "split": {"time": "day"}}
    return Toy({"train": frame}, "sales", kinds, options)


def frame_config(data: Any) -> dict[str, Any]:
    value = data.target if isinstance(data.target, str) else next(iter(data.outputs))
    return {"group": data.group, "time": data.time, "value": value, **data.frame}


TASK = Task(
    name="modelyard-probes/forecasting",
    kinds=("modelyard-probes/horizon",),
    losses={"modelyard-probes/horizon": Loss("modelyard-probes/horizon-loss", "values")},
    toy=toy,
    frame="modelyard-probes/window",
    frame_config=frame_config,
    default="modelyard-probes/linear-forecaster",
    metrics=("modelyard-probes/horizon-error",),
    aligned=True,
)
