"""One tag per word of an input: an output aligned to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged
from modelyard_probes.words import Words


@dataclass(frozen=True, kw_only=True)
class Config:
    pass


@dataclass
class State:
    labels: list[str] = field(default_factory=list)


class TagIds(Encoding):
    name = "tag_ids"
    Config = Config
    State = State

    def start(self, config: Config) -> State:
        return State()

    def update(self, state: State, column: pl.Series) -> State:
        return self.merge(state, State(column.explode(empty_as_null=False).drop_nulls().unique().to_list()))

    def merge(self, a: State, b: State) -> State:
        return State(sorted({*a.labels, *b.labels}))

    def parts(self, state: State) -> dict[str, Part]:
        return {"ids": Part((None,), "int64", len(state.labels))}

    def encode(self, column: pl.Series, state: State, context: Context) -> dict[str, Array]:
        ids = {label: i for i, label in enumerate(state.labels)}
        return {"ids": Ragged.from_lists([[ids.get(t, -1) for t in row or []] for row in column.to_list()], np.int64)}

    def head(self, state: State) -> tuple[str, int]:
        return "logits", len(state.labels)

    def decode(self, arrays: Mapping[str, np.ndarray], state: State, context: Context) -> dict[str, pl.Series]:
        best_BL = arrays["logits"].argmax(axis=2)
        rows = [[state.labels[k] for k in row[:n]] for row, n in zip(best_BL, context["length"], strict=True)]
        return {"": pl.Series(rows, dtype=pl.List(pl.String))}


class Tags(Words):
    name = "modelyard-probes/tags"
    encodings = {"tag_ids": TagIds()}  # noqa: RUF012
    target_encoding = "tag_ids"

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> Any:
        return np.array([tuple(row or ()) for row in column.to_list()] + [None], dtype=object)[:-1]


KIND = Tags()
