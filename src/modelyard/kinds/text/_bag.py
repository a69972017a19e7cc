"""Word and character n-grams with TF-IDF weights, as sparse rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged
from modelyard.kinds.text import _codes

CHUNK = 2_000_000
"""Characters that are cut into grams at once: about 200 MB at the widest."""

WORDS, CHARS = 0, 1


@dataclass(frozen=True, kw_only=True)
class BagConfig:
    """Which n-grams there are and how they are weighted."""

    words: tuple[int, int] | None = (1, 2)
    """Shortest and longest run of words; each Chinese or Japanese character is a word. None for no word grams."""
    chars: tuple[int, int] | None = (2, 5)
    """Shortest and longest run of characters inside blank-separated words, their blanks included. None for no character grams."""
    marks: bool = True
    """Whether punctuation, symbols and emoji are words too ("!" and "£" tell spam from ham)."""
    min_count: int = 1
    """Grams in fewer training texts than this are left out."""
    max_features: int | None = 300_000
    """Keep the grams that are in the most texts."""
    lowercase: bool = True
    sublinear: bool = True
    """Weigh a gram that occurs t times by 1 + ln t instead of t."""
    idf: bool = True
    """Multiply by ln((1 + N) / (1 + df)) + 1 (smoothed inverse document frequency)."""
    buckets: int | None = None
    """Share this many ids by hash instead of keeping a vocabulary: bounded memory, collisions; then `min_count` and
    `max_features` do nothing."""
    limit: int = 8_000_000
    """While fitting, distinct grams kept; beyond it those met once so far are forgotten (the only error of streaming)."""


@dataclass
class BagState:
    """Sorted fingerprints of the kept grams (uint64; the position is the id) and the number of texts that hold each."""

    words: tuple[int, int] | None = None
    chars: tuple[int, int] | None = None
    marks: bool = True
    min_count: int = 1
    max_features: int | None = None
    lowercase: bool = True
    sublinear: bool = True
    use_idf: bool = True
    buckets: int | None = None
    limit: int = 8_000_000
    texts: int = 0
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    families: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    """0 word gram, 1 character gram."""
    idf: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float64))


class Bag(Encoding):
    """Parts `grams` (ids, sorted and unique in each example) and `weights`: TF-IDF, words and characters each scaled to the
    same norm, then the whole to norm 1, so that many character grams do not drown few words.

    Source: Salton & Buckley 1988, Term-weighting approaches in automatic text retrieval; Joachims 1998, ECML.
    """

    name = "bag"
    Config = BagConfig
    State = BagState

    def start(self, config: BagConfig) -> BagState:
        """No grams yet."""
        state = BagState(
            config.words, config.chars, config.marks, config.min_count, config.max_features, config.lowercase,
            config.sublinear, config.idf, config.buckets, config.limit,
        )  # fmt: skip
        if config.buckets:
            state.counts = np.zeros(config.buckets, np.int64)
        return state

    def update(self, state: BagState, column: pl.Series) -> BagState:
        """Adds the number of texts that hold each gram; missing values do not count as texts."""
        for texts in _chunks(column.drop_nulls(), state.lowercase):
            seen = _empty(state)
            seen.texts = len(texts)
            rows, keys, families = _grams(texts, state)
            if state.buckets:
                pairs = np.unique(rows.astype(np.int64) * state.buckets + _bucket(keys, state.buckets))
                seen.counts = np.bincount(pairs % state.buckets, minlength=state.buckets)
            elif len(keys):
                seen.keys, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
                pairs = np.unique(rows.astype(np.int64) * len(seen.keys) + inverse)
                seen.counts = np.bincount(pairs % len(seen.keys), minlength=len(seen.keys))
                seen.families = families[first]
            state = self.merge(state, seen)
        return state

    def merge(self, a: BagState, b: BagState) -> BagState:
        """Counts of both; grams met once are forgotten above the limit."""
        out = _empty(a)
        out.texts = a.texts + b.texts
        if a.buckets:
            out.counts = a.counts + b.counts
            return out
        if not len(a.keys) or not len(b.keys):
            full = a if len(a.keys) else b
            out.keys, out.counts, out.families = full.keys, full.counts, full.families
        else:
            both = np.concatenate([a.keys, b.keys])
            out.keys, first, inverse = np.unique(both, return_index=True, return_inverse=True)
            counts = np.concatenate([a.counts, b.counts])
            out.counts = np.bincount(inverse, weights=counts, minlength=len(out.keys)).astype(np.int64)
            out.families = np.concatenate([a.families, b.families])[first]
        if len(out.keys) > out.limit:
            _cut(out, out.counts > 1)
        return out

    def finish(self, state: BagState) -> BagState:
        """Drops rare grams, keeps the most common `max_features` (ties by fingerprint) and fixes the IDF."""
        if not state.buckets:
            _cut(state, state.counts >= state.min_count)
            if state.max_features is not None and len(state.keys) > state.max_features:
                best = np.lexsort((state.keys, -state.counts))[: state.max_features]
                _cut(state, np.sort(best))
        state.idf = np.log((1.0 + state.texts) / (1.0 + state.counts)) + 1.0 if state.use_idf else np.ones(len(state.counts))
        return state

    def parts(self, state: BagState) -> dict[str, Part]:
        """`grams` and `weights`, of equal length."""
        return {"grams": Part((None,), "int32", max(1, len(state.counts))), "weights": Part((None,), "float32")}

    def encode(self, column: pl.Series, state: BagState, context: Context) -> dict[str, Array]:
        """Ragged int32 `grams` and float32 `weights`; a text without known grams (empty, missing, all new) has length 0."""
        found = [_weigh(texts, state) for texts in _chunks(column, state.lowercase)]
        offsets = np.zeros(len(column) + 1, np.int64)
        if found:
            np.cumsum(np.concatenate([f[0] for f in found]), out=offsets[1:])
        grams = np.concatenate([f[1] for f in found]) if found else np.zeros(0, np.int32)
        weights = np.concatenate([f[2] for f in found]) if found else np.zeros(0, np.float32)
        return {"grams": Ragged(grams, offsets), "weights": Ragged(weights, offsets)}


def _empty(state: BagState) -> BagState:
    return BagState(
        state.words, state.chars, state.marks, state.min_count, state.max_features, state.lowercase, state.sublinear,
        state.use_idf, state.buckets, state.limit, 0,
        counts=np.zeros(state.buckets or 0, np.int64),
    )  # fmt: skip


def _cut(state: BagState, keep: np.ndarray) -> None:
    state.keys, state.counts, state.families = state.keys[keep], state.counts[keep], state.families[keep]


def _bucket(keys: np.ndarray, buckets: int) -> np.ndarray:
    return (keys % np.uint64(buckets)).astype(np.int64)


def _chunks(column: pl.Series, lowercase: bool) -> Iterator[list[str]]:
    """Normalised texts in runs of about `CHUNK` characters."""
    texts = _codes.normalised(column, lowercase).to_list()
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size > CHUNK:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]


def _grams(texts: list[str], state: BagState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, keys, families) of all grams of normalised texts."""
    flat = _codes.flatten(texts)
    found = []
    if state.words:
        found.append(_codes.word_grams(flat, *state.words, state.marks))
    if state.chars:
        found.append(_codes.char_grams(flat, *state.chars))
    if not found:
        return np.zeros(0, np.int32), np.zeros(0, np.uint64), np.zeros(0, np.uint8)
    ids = [WORDS] * bool(state.words) + [CHARS] * bool(state.chars)
    families = np.repeat(np.asarray(ids, np.uint8), [len(k) for _, k in found])
    return np.concatenate([r for r, _ in found]), np.concatenate([k for _, k in found]), families


def _weigh(texts: list[str], state: BagState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lengths, grams, weights) of normalised texts."""
    rows, keys, families = _grams(texts, state)
    size = len(state.counts)
    if not size or not len(keys):
        return np.zeros(len(texts), np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    if state.buckets:
        ids = _bucket(keys, state.buckets)
    else:
        ids = np.searchsorted(state.keys, keys)
        ids[ids == size] = 0
        known = state.keys[ids] == keys
        ids, rows, families = ids[known], rows[known], families[known]
    # One sort does the counting and the ordering: (row, gram, family) in one integer; a bucket can hold both families.
    packed = np.sort((rows.astype(np.int64) * size + ids) * 2 + families)
    first = np.ones(len(packed), bool)
    first[1:] = packed[1:] != packed[:-1]
    starts = np.flatnonzero(first)
    times = np.diff(np.append(starts, len(packed)))
    packed = packed[starts]
    family, rest = packed & 1, packed >> 1
    row, gram = rest // size, rest % size
    weight = (1.0 + np.log(times) if state.sublinear else times.astype(np.float64)) * state.idf[gram]
    return _scaled(row, gram, family, weight, len(texts))


def _scaled(
    row: np.ndarray, gram: np.ndarray, family: np.ndarray, weight: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each family of a row to norm 1, equal grams of both families added, then the row to norm 1."""
    block = row * 2 + family
    norms = np.sqrt(np.bincount(block, weights=weight * weight, minlength=2 * count))
    weight = weight / norms[block]
    twice = np.flatnonzero((row[1:] == row[:-1]) & (gram[1:] == gram[:-1])) if len(row) else np.zeros(0, np.int64)
    if len(twice):
        weight[twice] += weight[twice + 1]
        row, gram, weight = (np.delete(x, twice + 1) for x in (row, gram, weight))
    norms = np.sqrt(np.bincount(row, weights=weight * weight, minlength=count))
    lengths = np.bincount(row, minlength=count)
    return lengths, gram.astype(np.int32), (weight / norms[row]).astype(np.float32)
