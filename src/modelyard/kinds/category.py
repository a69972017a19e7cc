"""One label out of a list. As an input it becomes an id with places for missing and unseen; as a target it is decoded with scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._alarm import Alarm
from modelyard.kinds._contract import SMALL, Array, Context, Encoding, Kind, Part, RowError

MISSING, UNSEEN, RESERVED = 0, 1, 2
"""Ids of an input category: missing, not met in training, then the values by falling frequency."""

TIES = 50
"""Rows of which one may have a score within the tolerance of a set's border: closer calls than 1e-5 are rarer still."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How labels become ids."""

    max_values: int = 10_000
    """Most frequent values that get an id of their own; the rest share the id of unseen values."""
    target: bool = False
    """A target has no reserved ids and its labels are sorted, so that the positive class of yes/no is the last one."""


@dataclass
class IndexState:
    """Counts while fitting, `labels` in id order afterwards."""

    target: bool = False
    max_values: int = 10_000
    counts: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    labels: list[str] = field(default_factory=list)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each label, for looking up a few values."""
        first = 0 if self.target else RESERVED
        return {label: first + i for i, label in enumerate(self.labels)}


class Index(Encoding):
    """An integer id per label."""

    name = "index"
    Config = IndexConfig
    State = IndexState

    def start(self, config: IndexConfig) -> IndexState:
        """No labels yet."""
        return IndexState(config.target, config.max_values)

    def update(self, state: IndexState, column: pl.Series) -> IndexState:
        """Adds the counts of a `String` column."""
        table = column.drop_nulls().value_counts()
        name = table.columns[0]
        counts = dict(zip(table[name].to_list(), table["count"].to_list(), strict=True))
        return self.merge(state, IndexState(state.target, state.max_values, counts, column.null_count()))

    def merge(self, a: IndexState, b: IndexState) -> IndexState:
        """Counts of both."""
        counts = dict(a.counts)
        for label, count in b.counts.items():
            counts[label] = counts.get(label, 0) + count
        return IndexState(a.target, a.max_values, counts, a.missing + b.missing)

    def finish(self, state: IndexState) -> IndexState:
        """Orders the labels; ties in frequency are broken by the label itself."""
        state.__dict__.pop("ids", None)
        if state.target:
            state.labels = sorted(state.counts, key=natural)
        else:
            state.labels = sorted(state.counts, key=lambda v: (-state.counts[v], v))[: state.max_values]
            state.counts = {label: state.counts[label] for label in state.labels}
        return state

    def parts(self, state: IndexState) -> dict[str, Part]:
        """`index`."""
        return {"index": Part((), "int32", len(state.labels) + (0 if state.target else RESERVED))}

    def encode(self, column: pl.Series, state: IndexState, context: Context) -> dict[str, Array]:
        """`index` (B,), int32 for inputs. A target id is int64 and -1 where the label is missing or unknown."""
        first, absent, unseen = (0, -1, -1) if state.target else (RESERVED, MISSING, UNSEEN)
        if len(column) <= SMALL:
            found = [absent if v is None else state.ids.get(v, unseen) for v in column.to_list()]
            return {"index": np.array(found, np.int64 if state.target else np.int32)}
        if not state.labels:
            ids = np.full(len(column), unseen, np.int32)
        else:
            new = np.arange(first, first + len(state.labels), dtype=np.int32)
            ids = column.replace_strict(state.labels, new, default=unseen, return_dtype=pl.Int32).to_numpy().copy()
        ids[column.is_null().to_numpy()] = absent
        return {"index": ids.astype(np.int64) if state.target else ids}  # losses take int64, graphs int32

    def head(self, state: IndexState) -> tuple[str, int]:
        """One logit a class."""
        return "logits", len(state.labels)

    def decode(self, arrays: Mapping[str, np.ndarray], state: IndexState, context: Context) -> dict[str, pl.Series]:
        """Softmax scores of `logits` (B, K), the label with the greatest `decision` (a post step) or score, and the labels of a
        conformal `set` (B, K)."""
        scores_BK = softmax(arrays["logits"])
        chosen = arrays.get("decision", scores_BK).argmax(axis=1)
        if len(chosen) <= SMALL:
            answer = pl.Series([state.labels[k] for k in chosen.tolist()], dtype=pl.String)
        else:
            answer = pl.Series(state.labels, dtype=pl.String).gather(chosen.astype(np.uint32))
        found = {"": answer, "scores": scores_struct(scores_BK, state.labels)}
        if "set" in arrays:
            held = [[label for label, inside in zip(state.labels, row, strict=True) if inside] for row in arrays["set"].tolist()]
            found["set"] = pl.Series(held, dtype=pl.List(pl.String))
        return found


class Category(Kind):
    """A short text, number or boolean taken as a label, `String`; surrounding blanks do not count, empty is missing."""

    name = "category"
    encodings = {"index": Index(), "alarm": Alarm()}  # noqa: RUF012
    target_encoding = "index"
    scalar = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Labels as text: `true`/`false`, whole floats without `.0` (CSV and JSON must agree on 1 and 1.0)."""
        return as_labels(column)

    def fits(self, column: pl.Series) -> float:
        """High where few different values repeat often."""
        present = column.drop_nulls()
        if present.is_empty() or present.dtype.is_nested():
            return 0.0
        return 1.0 - min(1.0, present.n_unique() / len(present))

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """0 where equal, 1 where not."""
        return a.ne_missing(b).to_numpy().astype(np.float64)

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As for every kind; conformal sets must be equal too, but for rare near-ties: where the scores agree, one label may stand on
        the other side of the border, in one row out of `TIES` at most. A border that moved would change more rows than that."""
        difference, ok, tie = super().agree(a, b, scale, tolerance)
        if ("set" in a) != ("set" in b):
            return difference, np.zeros(len(ok), bool), tie
        if "set" in a:
            apart = np.array([len({*x} ^ {*y}) for x, y in zip(a["set"].to_list(), b["set"].to_list(), strict=True)])
            rare = (apart > 0).sum() <= max(1, len(apart) // TIES)
            ok &= (apart == 0) | ((apart == 1) & rare)
            tie |= (apart == 1) & ok
        return difference, ok, tie

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Number of values and the 50 most frequent."""
        counts = column.drop_nulls().value_counts()
        name = counts.columns[0]
        top = counts.sort(["count", name], descending=[True, False]).head(50)
        return {
            "count": len(column),
            "missing": column.null_count(),
            "distinct": len(counts),
            "top": dict(zip(top[name].to_list(), top["count"].to_list(), strict=True)),
        }


def as_labels(column: pl.Series) -> tuple[pl.Series, list[RowError]]:
    """A raw column as label texts; nested values are row errors."""
    dtype = column.dtype
    if dtype == pl.String:
        if len(column) <= SMALL and not any(_blank_ends(v) for v in column.to_list() if v is not None):
            return column, []
    elif dtype.is_integer() or dtype in (pl.Boolean, pl.Null):
        return column.cast(pl.String), []
    if column.dtype.is_float():
        whole = column.is_finite().fill_null(False) & (column == column.round())
        small = column.abs() < 2**53
        text = column.fill_nan(None).cast(pl.String)
        ints = column.set(~(whole & small).fill_null(False), None).cast(pl.Int64, strict=False).cast(pl.String)
        return ints.zip_with(whole & small, text) if len(column) else text, []
    if column.dtype == pl.Object or column.dtype.is_nested():
        values = [_as_label(v) for v in column.to_list()]
        errors = [
            RowError(i, column.name, "is a list or an object; send one label", repr(v)[:80])
            for i, (v, label) in enumerate(zip(column.to_list(), values, strict=True))
            if label is None and v is not None
        ]
        return pl.Series(column.name, values, dtype=pl.String), errors
    text = column.cast(pl.String).str.strip_chars()
    return text.set(text == "", None), []


def _blank_ends(text: str) -> bool:
    """Whether Polars might strip something: Python's blanks include all of Unicode's."""
    return not text or text[0].isspace() or text[-1].isspace()


def _as_label(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value).strip() or None if isinstance(value, str | int | float) else None


def natural(label: str) -> tuple[tuple[int, float, str], ...]:
    """Sort key that puts 2 before 10 and words in alphabetical order."""
    return tuple((0, float(t), "") if t.isdecimal() else (1, 0.0, t) for t in re.split(r"(\d+)", label) if t)


def softmax(logits_BK: np.ndarray) -> np.ndarray:
    """Row-wise softmax in float64, returned as float32: the same whatever backend made the logits."""
    x_KB = logits_BK.T.astype(np.float64, order="C")  # labels first: sums over a short last axis take five times as long
    x_KB -= x_KB.max(axis=0)
    np.exp(x_KB, out=x_KB)
    x_KB /= x_KB.sum(axis=0)
    return np.ascontiguousarray(x_KB.T, np.float32)


def scores_struct(scores_BK: np.ndarray, labels: Sequence[str]) -> pl.Series:
    """A struct column label → score."""
    return pl.DataFrame(np.ascontiguousarray(scores_BK), schema=list(labels)).to_struct("scores")


KIND = Category()
