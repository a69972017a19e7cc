"""One row is one example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


def examples(table: pl.DataFrame, config: Config, *, training: bool) -> tuple[pl.DataFrame, np.ndarray]:
    """(examples, source): the rows themselves, and for each example the row it comes from."""
    return table, np.arange(table.height)
