"""The past values of a series, of one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, RowError


@dataclass(frozen=True, kw_only=True)
class Config:
    pass


@dataclass
class State:
    length: int = 0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0


class Levels(Encoding):
    """Values less the last one, over the training spread; the last value goes to the context, where decoding finds it."""

    name = "levels"
    Config = Config
    State = State

    def start(self, config: Config) -> State:
        return State()

    def update(self, state: State, column: pl.Series) -> State:
        x = np.array(column.drop_nulls().to_list(), np.float64)
        return self.merge(state, State(x.shape[1], x.size, float(x.sum()), float((x**2).sum()))) if len(x) else state

    def merge(self, a: State, b: State) -> State:
        return State(max(a.length, b.length), a.count + b.count, a.total + b.total, a.squares + b.squares)

    def spread(self, state: State) -> float:
        mean = state.total / max(1, state.count)
        return float(np.sqrt(max(1e-12, state.squares / max(1, state.count) - mean**2)))

    def parts(self, state: State) -> dict[str, Part]:
        return {"values": Part((state.length,), "float32")}

    def encode(self, column: pl.Series, state: State, context: Context) -> dict[str, Array]:
        x = np.array(column.to_list(), np.float64)
        context["last"], context["spread"] = x[:, -1], np.full(len(x), self.spread(state))
        return {"values": ((x - x[:, -1:]) / self.spread(state)).astype(np.float32)}


class History(Kind):
    name = "modelyard-probes/history"
    encodings = {"levels": Levels()}  # noqa: RUF012
    needs_value = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        values = column.to_list()
        good = [isinstance(v, list) and all(isinstance(x, int | float) for x in v) for v in values]
        errors = [
            RowError(i, column.name, "is no list of numbers", repr(v)[:80])
            for i, (v, g) in enumerate(zip(values, good, strict=True))
            if not g and v is not None
        ]
        return pl.Series(column.name, [v if g else None for v, g in zip(values, good, strict=True)], dtype=pl.List(pl.Float64)), errors

    def fits(self, column: pl.Series) -> float:
        return 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        return np.array([np.abs(np.subtract(x, y)).max() for x, y in zip(a.to_list(), b.to_list(), strict=True)])

    def summary(self, column: pl.Series) -> dict[str, Any]:
        return {"count": len(column), "missing": column.null_count()}


KIND = History()
