"""Words as ids with their characters, marks of their form and neighbours, and yes-or-no features of their spelling.

What training did not hold is read by its spelling: of the entities in WNUT17's test set nine in ten were never seen. The marks are the
templates of feature-based taggers (Ratnaparkhi 1996, A Maximum Entropy Model for Part-Of-Speech Tagging, table 1; Collins 2002), learnt as
embeddings.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged

UNSEEN, RESERVED = 1, 2
"""Id 0 is padding, 1 what training did not hold (or held too seldom); the rest follow by falling frequency."""

EDGE = "\n"
"""Stands for the word before the first and behind the last: no word holds a newline and nothing else."""

MARKS = 6
"""Shape, first three characters, last two, last three, pair with the word before, pair with the word behind."""

FEATURES = 12


@dataclass(frozen=True, kw_only=True)
class SpelledConfig:
    """What gets an id."""

    min_count: int = 2
    """Words and marks seen less often share the id of the unseen."""
    max_words: int = 50_000
    """Most frequent words with an id of their own."""
    max_marks: int = 100_000
    """Most frequent marks with an id of their own."""
    max_characters: int = 8_000
    """Most frequent characters with an id of their own."""
    characters: int = 16
    """Characters kept of a word: of a longer one its first and its last half of so many."""


@dataclass
class SpelledState:
    """Counts while fitting; names in id order afterwards."""

    min_count: int = 2
    max_words: int = 50_000
    max_marks: int = 100_000
    max_characters: int = 8_000
    characters: int = 16
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    letters: str = ""

    @cached_property
    def ids(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Ids of words, marks and characters."""
        first, second, third = ({w: i for i, w in enumerate(names, RESERVED)} for names in (self.words, self.marks, self.letters))
        return first, second, third


class Spelled(Encoding):
    """`words`, `characters`, `marks` and `features` of every word; `length` words a row."""

    name = "spelled"
    Config = SpelledConfig
    State = SpelledState

    def start(self, config: SpelledConfig) -> SpelledState:
        """Nothing counted."""
        return SpelledState(config.min_count, config.max_words, config.max_marks, config.max_characters, config.characters)

    def update(self, state: SpelledState, column: pl.Series) -> SpelledState:
        """Adds the counts of a checked column."""
        words: Counter[str] = Counter()
        marks: Counter[str] = Counter()
        letters: Counter[str] = Counter()
        for row in column.drop_nulls().to_list():
            words.update(plain(w) for w in row)
            letters.update("".join(row))
            marks.update(m for each in marks_of(row) for m in each)
        rest = (state.max_words, state.max_marks, state.max_characters, state.characters)
        return self.merge(state, SpelledState(state.min_count, *rest, {"words": words, "marks": marks, "letters": letters}))

    def merge(self, a: SpelledState, b: SpelledState) -> SpelledState:
        """Counts of both."""
        counts = {g: dict(Counter(a.counts.get(g, {})) + Counter(b.counts.get(g, {}))) for g in ("words", "marks", "letters")}
        return SpelledState(a.min_count, a.max_words, a.max_marks, a.max_characters, a.characters, counts)

    def finish(self, state: SpelledState) -> SpelledState:
        """Orders by frequency; ties by name."""
        pick = lambda group, least, most: [  # noqa: E731
            w for w, n in sorted(state.counts.get(group, {}).items(), key=lambda x: (-x[1], x[0])) if n >= least
        ][:most]
        state.words, state.marks = pick("words", state.min_count, state.max_words), pick("marks", state.min_count, state.max_marks)
        state.letters = "".join(pick("letters", 1, state.max_characters))
        state.counts = {}
        return state

    def parts(self, state: SpelledState) -> dict[str, Part]:
        """Four arrays, a row for every word."""
        return {
            "words": Part((None,), "int32", len(state.words) + RESERVED),
            "characters": Part((None, state.characters), "int32", len(state.letters) + RESERVED),
            "marks": Part((None, MARKS), "int32", len(state.marks) + RESERVED),
            "features": Part((None, FEATURES), "float32"),
        }

    def encode(self, column: pl.Series, state: SpelledState, context: Context) -> dict[str, Array]:
        """Ragged arrays; `context` gets `length` (B,) and the words themselves, which aligned outputs speak of."""
        rows: list[list[str]] = [row or [] for row in column.to_list()]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(r) for r in rows], out=offsets[1:])
        context["length"], context["words"] = np.diff(offsets), rows
        words, marks, letters = state.ids
        own: dict[str, int] = {}
        flat = [own.setdefault(w, len(own)) for row in rows for w in row]
        at = np.asarray(flat, np.int64)
        ids = np.asarray([words.get(plain(w), UNSEEN) for w in own], np.int32)
        codes = np.zeros((len(own), state.characters), np.int32)
        for i, word in enumerate(own):
            kept = _ends(word, state.characters)
            codes[i, : len(kept)] = [letters.get(c, UNSEEN) for c in kept]
        features = np.asarray([features_of(w) for w in own], np.float32).reshape(len(own), FEATURES)
        found = [marks.get(m, UNSEEN) for row in rows for each in marks_of(row) for m in each]
        first = np.zeros(len(flat), np.float32)
        first[offsets[:-1][np.diff(offsets) > 0]] = 1.0
        values = features[at]
        values[:, -1] = first
        return {
            "words": Ragged(ids[at], offsets),
            "characters": Ragged(codes[at], offsets),
            "marks": Ragged(np.asarray(found, np.int32).reshape(-1, MARKS), offsets),
            "features": Ragged(values, offsets),
        }


def plain(word: str) -> str:
    """A word as its id sees it: NFKC, lower case, every digit a 0."""
    word = word if word.isascii() else unicodedata.normalize("NFKC", word)
    return "".join("0" if c.isdigit() else c for c in word.lower())


def shape(word: str) -> str:
    """Classes of its characters, runs shortened to two: `McDonald's` is `XxXxx'x`, `1998` is `dd`."""
    out: list[str] = []
    for c in word:
        kind = "d" if c.isdigit() else "X" if c.isupper() else "x" if c.islower() else "o" if c.isalpha() else c
        if len(out) < 2 or out[-1] != kind or out[-2] != kind:
            out.append(kind)
    return "".join(out[:12])


def marks_of(row: Sequence[str]) -> Iterator[Iterable[str]]:
    """The `MARKS` marks of every word of a row; their first letter says of what kind each is."""
    low = [plain(w) for w in row]
    around = [EDGE, *low, EDGE]
    for i, (word, own) in enumerate(zip(row, low, strict=True)):
        yield (
            f"s{shape(word)}", f"p{own[:3]}", f"v{own[-2:]}", f"w{own[-3:]}", f"b{around[i]} {own}", f"n{own} {around[i + 2]}",
        )  # fmt: skip


def features_of(word: str) -> list[float]:
    """`FEATURES` numbers of a word's spelling; the last one (first of its row) is filled in where the row is known."""
    letters = [c for c in word if c.isalpha()]
    found = [
        word[:1].isupper(),
        bool(letters) and all(c.isupper() for c in letters) and len(letters) > 1,
        any(c.isupper() for c in word[1:]) and not word.isupper(),
        word.islower(),
        any(c.isdigit() for c in word),
        word.isdigit(),
        not letters and not any(c.isdigit() for c in word),
        word[:1] == "@" and len(word) > 1,
        word[:1] == "#" and len(word) > 1,
        word.startswith(("http:", "https:", "www.")) or ".com" in word,
        not word.isascii(),
        False,
    ]
    return [float(x) for x in found]


def _ends(word: str, most: int) -> str:
    return word if len(word) <= most else word[: most - most // 2] + word[len(word) - most // 2 :]
