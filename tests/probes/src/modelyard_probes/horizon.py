"""The next values of a series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding
from modelyard_probes.history import History, Levels, State


class Steps(Levels):
    """Targets are differences from the last value of the history; the answer is put back on its level."""

    name = "steps"

    def encode(self, column: pl.Series, state: State, context: Context) -> dict[str, Array]:
        x = np.array(column.to_list(), np.float64)
        return {"values": ((x - context["last"][:, None]) / context["spread"][:, None]).astype(np.float32)}

    def head(self, state: State) -> tuple[str, int]:
        return "value", state.length

    def decode(self, arrays: Mapping[str, np.ndarray], state: State, context: Context) -> dict[str, pl.Series]:
        values = arrays["value"].astype(np.float64) * context["spread"][:, None] + context["last"][:, None]
        return {"": pl.Series(values.tolist(), dtype=pl.List(pl.Float64))}


class Horizon(History):
    name = "modelyard-probes/horizon"
    encodings = {"steps": Steps()}  # noqa: RUF012
    target_encoding = "steps"

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> Any:
        return np.array(column.to_list(), np.float64)

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = np.maximum(1.0, np.abs(np.array(a[""].to_list())).max(1))
        difference = self.distance(a[""], b[""]) / size
        return difference, difference <= tolerance, np.zeros(len(difference), bool)


KIND = Horizon()
