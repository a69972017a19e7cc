"""A text that is written one character at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, Ragged, RowError

END = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    pass


@dataclass
class State:
    alphabet: str = ""


class CharacterIds(Encoding):
    """Id 0 ends a text."""

    name = "character_ids"
    Config = Config
    State = State

    def start(self, config: Config) -> State:
        return State()

    def update(self, state: State, column: pl.Series) -> State:
        return self.merge(state, State("".join(sorted(set("".join(column.drop_nulls().to_list()))))))

    def merge(self, a: State, b: State) -> State:
        return State("".join(sorted({*a.alphabet, *b.alphabet})))

    def parts(self, state: State) -> dict[str, Part]:
        return {"ids": Part((None,), "int64", len(state.alphabet) + 1)}

    def encode(self, column: pl.Series, state: State, context: Context) -> dict[str, Array]:
        place = {c: i + 1 for i, c in enumerate(state.alphabet)}
        return {"ids": Ragged.from_lists([[*(place[c] for c in text or "" if c in place), END] for text in column.to_list()], np.int64)}

    def head(self, state: State) -> tuple[str, int]:
        return "logits", len(state.alphabet) + 1

    def decode(self, arrays: Mapping[str, np.ndarray], state: State, context: Context) -> dict[str, pl.Series]:
        texts = []
        for row in arrays["ids"]:
            stop = np.flatnonzero(row == END)
            texts.append("".join(state.alphabet[i - 1] for i in row[: stop[0] if len(stop) else None]))
        return {"": pl.Series(texts, dtype=pl.String)}


class Characters(Kind):
    name = "modelyard-probes/characters"
    encodings = {"character_ids": CharacterIds()}  # noqa: RUF012
    target_encoding = "character_ids"

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        return column.cast(pl.String), []

    def fits(self, column: pl.Series) -> float:
        return 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        return a.ne_missing(b).to_numpy().astype(np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        return {"count": len(column), "missing": column.null_count()}

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> Any:
        return np.array([*column.to_list(), None], dtype=object)[:-1]


KIND = Characters()
