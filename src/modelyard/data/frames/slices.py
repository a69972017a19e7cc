"""Documents longer than a model reads: each is cut into overlapping slices, and the answers to them are merged into one.

`data.frame: {name: slices, length: 200, overlap: 50, merge: mean}` for any task with one answer a row. An example stays a document: splits,
judging and answers go by documents, so no document lies in two splits. Slices are made of the raw text, at the borders of words, so any
encoding and any model reads them; a training document counts once, however many slices it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl

from modelyard.errors import DataError, Problem, Unsupported
from modelyard.kinds.category import softmax
from modelyard.settings import Between

WORD = re.compile(r"[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]|"
                  r"[^\s\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")  # fmt: skip
"""A run without blanks, or one character of a script that is written without them."""
SMALLEST = 1e-7
"""Probabilities are kept from zero and one before their logarithm is taken: float32 has 1e-7 around one."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How documents are cut and answers merged."""

    column: str = ""
    """The text that is cut; without it the only text input."""
    length: Annotated[int, Between(1, 2**20)] = 200
    """Words of a slice; a Chinese or Japanese character counts as one."""
    overlap: Annotated[int, Between(0, 2**20)] = 50
    """Words that a slice shares with the one before it."""
    merge: Literal["mean", "max", "vote"] = "mean"
    """mean averages scores (and numbers) over the slices, max takes the highest score of each label, vote counts the labels."""

    def __post_init__(self) -> None:
        if self.overlap >= self.length:
            raise ValueError(f"an overlap of {self.overlap} words leaves nothing new in a slice of {self.length}")


def examples(table: pl.DataFrame, config: Config, *, training: bool) -> tuple[pl.DataFrame, np.ndarray]:
    """A document is a row."""
    return table, np.arange(table.height, dtype=np.int64)


def settle(config: Mapping[str, Any], kinds: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    """The settings with the column that is cut; `kinds` are those of the inputs, `outputs` those of the answers.

    Raises `DataError` where none or several could be meant, `Unsupported` for answers that cannot be merged.
    """
    texts = [name for name, kind in kinds.items() if kind == "text"]
    chosen = config.get("column") or (texts[0] if len(texts) == 1 else "")
    if chosen not in texts:
        came = ", ".join(texts) or "none"
        raise DataError("slices are cut from one text input", [Problem(f"got {chosen!r}; the text inputs are: {came}", "data.frame.column")])
    wrong = {name: kind for name, kind in outputs.items() if kind not in ("category", "label-set", "number")}
    if wrong or (config.get("merge") == "vote" and "number" in outputs.values()):
        named = ", ".join(f"{n} ({k})" for n, k in (wrong or outputs).items())
        raise Unsupported(f"the answers of slices cannot be merged by {config.get('merge', 'mean')} for {named}", "never")
    return {**config, "column": chosen}


def cut(frame: pl.DataFrame, config: Config) -> tuple[pl.DataFrame, np.ndarray]:
    """(a row for each slice, the other columns repeated; the document of each, ascending). A document without words is one slice."""
    texts: list[str | None] = []
    owner: list[int] = []
    for i, text in enumerate(frame[config.column].to_list()):
        found = slices(text, config.length, config.overlap)
        texts += found
        owner += [i] * len(found)
    index = np.array(owner, np.int64)
    return frame[index].with_columns(pl.Series(config.column, texts, dtype=pl.String)), index


def slices(text: str | None, length: int, overlap: int) -> list[str | None]:
    """Stretches of `length` words, each beginning `length - overlap` words after the one before; the last one ends with the text."""
    spans = [m.span() for m in WORD.finditer(text or "")]
    if text is None or len(spans) <= length:
        return [text]
    starts = range(0, len(spans) - overlap, length - overlap)
    return [text[spans[s][0] : spans[min(s + length, len(spans)) - 1][1]] for s in starts]


def merge(outputs: Mapping[str, np.ndarray], owner: np.ndarray, kinds: Mapping[str, str], rule: str) -> dict[str, np.ndarray]:
    """Graph outputs of documents from those of their slices; `kinds` by output. Logits are made of merged scores again."""
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    counts = np.diff(np.append(starts, len(owner)))[:, None]
    out = {}
    for key, value in outputs.items():
        kind = kinds[key.rpartition(".")[0]]
        scores = value.astype(np.float64)
        if kind != "number":
            scores = softmax(value).astype(np.float64) if kind == "category" else 1 / (1 + np.exp(-scores))
        if rule == "vote":
            scores = np.eye(scores.shape[1])[scores.argmax(1)] if kind == "category" else (scores > 0.5).astype(np.float64)
        whole = np.maximum.reduceat(scores, starts) if rule == "max" else np.add.reduceat(scores, starts) / counts
        if kind == "category":
            whole = np.log((whole / whole.sum(1, keepdims=True)).clip(SMALLEST, 1))
        elif kind == "label-set":
            whole = whole.clip(SMALLEST, 1 - SMALLEST)
            whole = np.log(whole / (1 - whole))
        out[key] = whole.astype(np.float32)
    return out
