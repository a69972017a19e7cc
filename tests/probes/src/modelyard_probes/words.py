"""A list of words: a ragged input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, Ragged, RowError


@dataclass(frozen=True, kw_only=True)
class Config:
    min_count: int = 1


@dataclass
class State:
    min_count: int = 1
    counts: dict[str, int] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


class WordIds(Encoding):
    """Id 0 is padding, 1 an unseen word."""

    name = "word_ids"
    Config = Config
    State = State

    def start(self, config: Config) -> State:
        return State(config.min_count)

    def update(self, state: State, column: pl.Series) -> State:
        table = column.explode(empty_as_null=False).drop_nulls().value_counts()
        counts = dict(zip(table[table.columns[0]].to_list(), table["count"].to_list(), strict=True))
        return self.merge(state, State(state.min_count, counts))

    def merge(self, a: State, b: State) -> State:
        return State(a.min_count, {w: a.counts.get(w, 0) + b.counts.get(w, 0) for w in {**a.counts, **b.counts}})

    def finish(self, state: State) -> State:
        state.words = sorted(w for w, n in state.counts.items() if n >= state.min_count)
        state.counts = {}
        return state

    def parts(self, state: State) -> dict[str, Part]:
        return {"ids": Part((None,), "int32", len(state.words) + 2)}

    def encode(self, column: pl.Series, state: State, context: Context) -> dict[str, Array]:
        lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = column.explode(empty_as_null=False) if lengths.any() else pl.Series([], dtype=pl.String)
        new = np.arange(2, len(state.words) + 2, dtype=np.int32)
        ids = flat.replace_strict(state.words, new, default=1, return_dtype=pl.Int32).to_numpy()
        context["length"] = lengths
        return {"ids": Ragged(ids.astype(np.int32), offsets)}


class Words(Kind):
    """`List(String)`, at least one word."""

    name = "modelyard-probes/words"
    encodings = {"word_ids": WordIds()}  # noqa: RUF012
    needs_value = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        values, errors = [], []
        for i, value in enumerate(column.to_list()):
            words = value.split() if isinstance(value, str) else value
            good = isinstance(words, list) and bool(words) and all(isinstance(w, str) for w in words)
            if not good and value is not None:
                errors.append(RowError(i, column.name, 'is no list of words; send ["a", "b"]', repr(value)[:80]))
            values.append(words if good else None)
        return pl.Series(column.name, values, dtype=pl.List(pl.String)), errors

    def fits(self, column: pl.Series) -> float:
        return 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        return np.array([x != y for x, y in zip(a.to_list(), b.to_list(), strict=True)], np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        return {"count": len(column), "missing": column.null_count()}


KIND = Words()
