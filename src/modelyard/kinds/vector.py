"""What a value means, as a vector of length one: near where meanings are near. Predicted only.

As a truth (made by the frame `pairs`) it is a struct `{positive, negative, score}` of texts and a number; as an answer a `List(Float32)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard.errors import Problem, Unsupported
from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, RowError

ANSWER = pl.List(pl.Float32)


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """Nothing to set."""


@dataclass
class VectorState:
    """What is known of the truths."""

    size: int = 0
    """Numbers of a vector, where vectors came; 0 where texts did."""
    highest: float = 0.0
    """Highest score of the training pairs."""


class Companions(Encoding):
    """The texts beside an anchor, in the encoding of the anchor itself: `positive.<part>`, `negative.<part>`, and the pair's `weight`."""

    name = "companions"
    Config = VectorConfig
    State = VectorState

    def start(self, config: VectorConfig) -> VectorState:
        """Nothing is known."""
        return VectorState()

    def update(self, state: VectorState, column: pl.Series) -> VectorState:
        """The highest score, or the length of the vectors."""
        if isinstance(column.dtype, pl.Struct):
            highest = max((x for x in column.struct.field("score").to_list() if x is not None), default=0.0)
            return self.merge(state, VectorState(0, float(highest)))
        return self.merge(state, VectorState(longest(column)))

    def merge(self, a: VectorState, b: VectorState) -> VectorState:
        """The larger ones."""
        return VectorState(max(a.size, b.size), max(a.highest, b.highest))

    def beside(self, column: pl.Series) -> list[pl.Series]:
        """The companions."""
        if not isinstance(column.dtype, pl.Struct):
            return []
        fields = column.struct.unnest()
        return [fields[role] for role in ("positive", "negative") if fields[role].null_count() < len(fields)]

    def parts(self, state: VectorState) -> dict[str, Part]:
        """`vector`."""
        return {"vector": Part((state.size,), "float32")}

    def encode(self, column: pl.Series, state: VectorState, context: Context) -> dict[str, Array]:
        """Of truths: the companions' arrays and `weight` (B,), a pair's score as a share of the highest. Of answers: the vectors."""
        if not isinstance(column.dtype, pl.Struct):
            return {"vector": matrix(column, state.size)}
        source = context["column"]
        if source.rules.scalar:
            raise Unsupported(f"{source.name} is of kind {source.kind}; text vectors are learnt from a column of kind text", "use")
        fields = column.struct.unnest()
        out: dict[str, Array] = {}
        for role in ("positive", "negative"):
            if fields[role].null_count() < len(fields):
                found = source.coder.encode(fields[role], source.state, {})
                out |= {f"{role}.{part}": array for part, array in found.items()}
        score = fields["score"].fill_null(state.highest).to_numpy()
        share = np.clip(score / state.highest, 0.0, 1.0) if state.highest > 0 else np.ones(len(column))
        return {**out, "weight": share.astype(np.float32)}

    def head(self, state: VectorState) -> tuple[str, int]:
        """The features themselves, made one long (0: the net decides how many numbers)."""
        return "vector", 0

    def decode(self, arrays: Mapping[str, np.ndarray], state: VectorState, context: Context) -> dict[str, pl.Series]:
        """`vector` (B, D) as lists."""
        return {"": pl.Series(arrays["vector"].astype(np.float32)).cast(ANSWER) if len(arrays["vector"]) else pl.Series([], dtype=ANSWER)}


def longest(column: pl.Series) -> int:
    """Numbers of the longest vector of a column."""
    return max((len(row) for row in column.to_list() if row is not None), default=0)


def matrix(column: pl.Series, size: int) -> np.ndarray:
    """(B, size) float32 of a column of vectors; NaN where there is none."""
    rows = [row if row is not None and len(row) == size else [np.nan] * size for row in column.to_list()]
    return np.array(rows, np.float32).reshape(len(rows), size)


class Vector(Kind):
    """`List(Float32)`, or the struct of a truth."""

    name = "vector"
    encodings = {"companions": Companions()}  # noqa: RUF012
    target_encoding = "companions"

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Lists of numbers; or truths, each with a positive, and with a negative where any has one."""
        if isinstance(column.dtype, pl.Struct):
            return self._truths(column)
        values, errors = [], []
        for row, value in enumerate(column.to_list()):
            good = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
            values.append(value if good else None)
            if not good and value is not None:
                errors.append(RowError(row, column.name, "is no vector; send [0.1, 0.2]", repr(value)[:80]))
        return pl.Series(column.name, values, dtype=ANSWER), errors

    def _truths(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        fields = column.struct.unnest()
        errors = []
        for role in ("positive", "negative"):
            absent = fields[role].is_null()
            if role == "positive" or not absent.all():
                errors += [RowError(int(r), column.name, f"has no {role}; every pair needs one") for r in np.flatnonzero(absent.to_numpy())]
        return column, errors

    def from_json(self, values: Sequence[Any]) -> pl.Series:
        """Lists of numbers."""
        try:
            return pl.Series("", list(values), dtype=ANSWER)
        except (TypeError, pl.exceptions.PolarsError):
            return pl.Series("", list(values), dtype=pl.Object)

    def fits(self, column: pl.Series) -> float:
        """Never guessed."""
        return 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Largest difference of a number; 1 where the lengths differ."""
        return np.array([_differ(x, y) for x, y in zip(a.to_list(), b.to_list(), strict=True)], np.float64)

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers within `tolerance`; there are no ties."""
        difference = self.distance(a[""], b[""])
        return difference, difference <= tolerance, np.zeros(len(difference), bool)

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> np.ndarray:
        """Of answers the vectors (B, D); of truths (struct of `near` and `score`) an object array (B,) of pairs."""
        if isinstance(column.dtype, pl.Struct):
            pairs = [(None if r["near"] is None else np.array(r["near"], np.float64), r["score"]) for r in column.to_list()]
            out = np.empty(len(pairs), object)
            out[:] = pairs
            return out
        return matrix(column, longest(column))

    def measured(self, answers: Mapping[str, pl.Series]) -> np.ndarray | None:
        """The vectors (B, D)."""
        return matrix(answers[""], longest(answers[""]))

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """How long they are."""
        size = 0 if isinstance(column.dtype, pl.Struct) else longest(column)
        return {"count": len(column), "missing": column.null_count(), "size": size}


def _differ(a: list[float] | None, b: list[float] | None) -> float:
    if a is None or b is None or len(a) != len(b):
        return float(a != b)
    return max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)


def one_input(names: Sequence[str]) -> None:
    """Raises `Unsupported` unless there is one input: companions are read as the anchor is."""
    if len(names) > 1:
        problems = [Problem("leave it out, or put it into the text", n) for n in names[1:]]
        raise Unsupported(f"vectors are made of one input, and there are {len(names)}: {', '.join(names)}", "not yet", problems)


KIND = Vector()
