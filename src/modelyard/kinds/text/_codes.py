"""Texts as flat arrays of code points, cut into words and n-grams without a Python loop over rows.

Every n-gram gets a 64-bit fingerprint, so a vocabulary is a sorted array of integers and not a list of texts: it is looked
up by binary search, merges by union and is stored without anybody's words. Two of a million grams share a fingerprint with
probability 3e-8 (birthday bound 1e12 / 2^65).

    m(c)      = mix(c + 1)                                   a code point, spread over 64 bits
    h(c1..cn) = m(c1)·B^(n-1) + … + m(cn)   mod 2^64         characters of a gram, Horner order
    w(c1..ck) = mix(m(c1) + m(c2)·B + … + k)                 a word
    key       = mix(h + SALT·(2n + family))                  family 0 = words, 1 = characters

`mix` is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators, OOPSLA).
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
SALT = 0xD1B54A32D192ED03
MASK = 2**64 - 1

UNKNOWN, SPACE, LETTER, ALONE, MARK = 0, 1, 2, 3, 4
"""Classes of code points: not looked up yet, blank or control, part of a word, a word by itself, punctuation or symbol."""

IDEOGRAPHS = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)  # fmt: skip
"""Han, Hiragana and Katakana: written without blanks, so each character is a word, and 2-grams of words are
2-grams of characters."""


def normalised(column: pl.Series, lowercase: bool) -> pl.Series:
    """NFKC (full-width and half-width forms, ligatures and circled digits become plain ones), then lower case; null is empty."""
    text = column.fill_null("").str.normalize("NFKC")
    return text.str.to_lowercase() if lowercase else text


@cache
def _classes() -> np.ndarray:
    return np.zeros(0x110000, np.uint8)  # filled as code points are met: all 1.1 million would take 0.3 s at import


def class_of(code: int) -> int:
    """Class of one code point, by its Unicode category."""
    if any(first <= code <= last for first, last in IDEOGRAPHS):
        return ALONE
    category = unicodedata.category(chr(code))
    if category[0] == "Z" or category == "Cc":
        return SPACE
    return LETTER if category[0] in "LMN" else MARK


def classes(codes: np.ndarray) -> np.ndarray:
    """Class of each code point, uint8."""
    table = _classes()
    found: np.ndarray = table[codes]
    if not found.all():
        for code in np.unique(codes[found == UNKNOWN]).tolist():
            table[code] = class_of(code)
        found = table[codes]
    return found


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, elementwise on uint64."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def salt(family: int, n: int) -> np.uint64:
    """What is added before the last mix, so that the word `ab` and the characters `ab` differ."""
    return np.uint64(SALT * (2 * n + family) & MASK)


@dataclass(frozen=True)
class Flat:
    """All characters of a batch in one array: each row is `blank, characters, blank` with runs of blanks made one."""

    codes: np.ndarray
    """Code points, uint32 `(C,)`."""
    kinds: np.ndarray
    """Their classes, uint8 `(C,)`."""
    rows: np.ndarray
    """The row that each belongs to, int32 `(C,)`."""


def flatten(texts: list[str]) -> Flat:
    """The characters of normalised texts."""
    joined = " " + "  ".join(texts) + " "
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 2
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
    kinds = classes(codes)
    blank = kinds == SPACE
    keep = ~blank
    keep[1:] |= ~blank[:-1]
    keep[0] = True
    starts = np.cumsum(lengths) - lengths
    keep[starts] = True
    return Flat(np.where(blank, np.uint32(32), codes)[keep], kinds[keep], rows[keep])


def char_grams(flat: Flat, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys) of all runs of `low`…`high` characters that hold no blank but at their ends (`char_wb` of scikit-learn)."""
    spread = mix(flat.codes.astype(np.uint64) + np.uint64(1))
    blank = flat.kinds == SPACE
    size = len(spread)
    rows: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    hashes = spread
    inner = np.zeros(size, bool)  # whether a blank lies strictly inside the gram that starts here
    for n in range(1, high + 1):
        if n > size:
            break
        if n > 1:
            hashes = hashes[: size - n + 1] * BASE + spread[n - 1 :]
        if n > 2:
            inner = inner[: size - n + 1] | blank[n - 2 : size - 1]
        if n < low:
            continue
        inside = inner[: size - n + 1]
        empty = blank[: size - n + 1] & blank[n - 1 :] if n < 3 else inside
        good = np.flatnonzero(~(inside | empty))
        rows.append(flat.rows[good])
        keys.append(mix(hashes[good] + salt(1, n)))
    return _concat(rows, np.int32), _concat(keys, np.uint64)


def words(flat: Flat, marks: bool) -> tuple[np.ndarray, np.ndarray]:
    """(rows, hashes) of the words in order: runs of letters, marks and digits; single ideographs; with `marks` single symbols."""
    kinds = flat.kinds
    inside = kinds != SPACE if marks else (kinds == LETTER) | (kinds == ALONE)
    position = np.flatnonzero(inside)
    if not len(position):
        return np.zeros(0, np.int32), np.zeros(0, np.uint64)
    kind = kinds[position]
    first = np.ones(len(position), bool)
    first[1:] = (np.diff(position) > 1) | (kind[1:] != LETTER) | (kind[:-1] != LETTER)
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(position)))
    within = np.arange(len(position)) - np.repeat(starts, lengths)
    spread = mix(flat.codes[position].astype(np.uint64) + np.uint64(1))
    sums = np.add.reduceat(spread * _powers(int(lengths.max()))[within], starts)
    return flat.rows[position[starts]], mix(sums + lengths.astype(np.uint64))


def word_grams(flat: Flat, low: int, high: int, marks: bool) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys) of runs of `low`…`high` words of one row."""
    row, hashes = words(flat, marks)
    rows: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    run = hashes
    for n in range(1, high + 1):
        if n > len(hashes):
            break
        if n > 1:
            run = run[:-1] * BASE + hashes[n - 1 :]
        if n < low:
            continue
        good = row[: len(run)] == row[n - 1 :]
        rows.append(row[: len(run)][good])
        keys.append(mix(run[good] + salt(0, n)))
    return _concat(rows, np.int32), _concat(keys, np.uint64)


def _powers(count: int) -> np.ndarray:
    size = 64
    while size < count:
        size *= 2
    return _power_table(size)


@cache
def _power_table(size: int) -> np.ndarray:
    steps = np.full(size, BASE, np.uint64)
    steps[0] = 1
    return np.multiply.accumulate(steps)


def _concat(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
