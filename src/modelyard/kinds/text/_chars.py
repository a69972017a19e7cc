"""Characters as ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged
from modelyard.kinds.text._codes import normalised

UNSEEN, RESERVED = 1, 2
"""Id 0 is padding, 1 a character not met in training; the rest follow by falling frequency."""


@dataclass(frozen=True, kw_only=True)
class CharsConfig:
    """Which characters get ids."""

    max_length: int = 1024
    """Characters kept of a text; the rest is cut."""
    max_values: int = 20_000
    """Most frequent characters with an id of their own."""
    lowercase: bool = False


@dataclass
class CharsState:
    """Counts while fitting; `codes` in id order afterwards."""

    max_length: int = 1024
    max_values: int = 20_000
    lowercase: bool = False
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))


class Chars(Encoding):
    """One id per Unicode code point after NFKC."""

    name = "chars"
    Config = CharsConfig
    State = CharsState

    def start(self, config: CharsConfig) -> CharsState:
        """No characters yet."""
        return CharsState(config.max_length, config.max_values, config.lowercase)

    def update(self, state: CharsState, column: pl.Series) -> CharsState:
        """Adds the counts of a `String` column (of what is left after cutting)."""
        codes, _ = _codes_of(column, state)
        seen, counts = np.unique(codes, return_counts=True)
        return self.merge(state, CharsState(state.max_length, state.max_values, state.lowercase, seen, counts))

    def merge(self, a: CharsState, b: CharsState) -> CharsState:
        """Counts of both."""
        seen, inverse = np.unique(np.concatenate([a.seen, b.seen]), return_inverse=True)
        weights = np.concatenate([a.counts, b.counts])
        counts = np.bincount(inverse, weights=weights, minlength=len(seen)).astype(np.int64)
        return CharsState(a.max_length, a.max_values, a.lowercase, seen.astype(np.uint32), counts)

    def finish(self, state: CharsState) -> CharsState:
        """Orders by frequency; ties by code point."""
        state.codes = state.seen[np.lexsort((state.seen, -state.counts))[: state.max_values]]
        state.seen, state.counts = np.zeros(0, np.uint32), np.zeros(0, np.int64)
        return state

    def parts(self, state: CharsState) -> dict[str, Part]:
        """`tokens`: the nets read sub-words and characters alike."""
        return {"tokens": Part((None,), "int32", len(state.codes) + RESERVED)}

    def encode(self, column: pl.Series, state: CharsState, context: Context) -> dict[str, Array]:
        """Ragged int32 `tokens`; missing and empty texts have length 0."""
        codes, offsets = _codes_of(column, state)
        order = np.argsort(state.codes)
        known = state.codes[order]
        if not len(known):
            return {"tokens": Ragged(np.full(len(codes), UNSEEN, np.int32), offsets)}
        at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        ids = np.where(known[at] == codes, order[at] + RESERVED, UNSEEN).astype(np.int32)
        return {"tokens": Ragged(ids, offsets)}


def _codes_of(column: pl.Series, state: CharsState) -> tuple[np.ndarray, np.ndarray]:
    """(code points of all texts, offsets (B + 1,)) after normalising and cutting."""
    text = normalised(column, state.lowercase).str.slice(0, state.max_length)
    offsets = np.zeros(len(text) + 1, np.int64)
    np.cumsum(text.str.len_chars().to_numpy(), out=offsets[1:])
    return np.frombuffer("".join(text.to_list()).encode("utf-32-le"), np.uint32), offsets
