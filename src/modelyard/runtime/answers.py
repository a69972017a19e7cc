"""What predicting takes and gives: signature, parameters, answers, randomness and the comparison of answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.errors import Problem, UsageError
from modelyard.kinds._contract import Kind, RowError

Graph = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Named arrays in, named arrays out, example axis first. A backend supplies it."""


@dataclass(frozen=True)
class Randomness:
    """Counter-based random numbers: example `i` of a call with `seed` always draws the same (Philox, Salmon et al. 2011)."""

    seed: int
    first: int = 0
    """Index of the block's first example in the call."""
    index: np.ndarray | None = None
    """Indices of the block's examples, where some between them could not be used: their draws are those they have without bad neighbours."""

    def generator(self, example: int) -> np.random.Generator:
        """The generator of one example of the block."""
        number = self.first + example if self.index is None else int(self.index[example])
        bits = np.random.Philox(key=self.seed % 2**64, counter=[0, 0, 0, number])
        return np.random.Generator(bits)


@dataclass(frozen=True)
class Field:
    """One input or output column of a model."""

    name: str
    kind: str
    required: bool = True
    """Whether the key must be present: false where training had missing values, or the column comes with a default."""
    labels: list[str] | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    """The input that an aligned output speaks of, unit by unit."""


@dataclass(frozen=True)
class Param:
    """A setting of one call of predict, with its default and its cap."""

    name: str
    type: Literal["int", "float", "str", "bool"]
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    doc: str = ""


@dataclass(frozen=True)
class Signature:
    """Names and kinds of what goes in and comes out, and the parameters of a call."""

    inputs: list[Field]
    outputs: list[Field]
    params: list[Param]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def resolve(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """All parameters, given ones checked against type and bounds. Raises `UsageError` with every mistake."""
        return resolve(self.params, given)


def resolve(params: Sequence[Param], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """All parameters, given ones checked against type and bounds. Raises `UsageError` with every mistake."""
    given = dict(given or {})
    known = {p.name: p for p in params}
    problems = [
        Problem(f"unknown parameter; this model takes {', '.join(known) or 'none'}", f"params.{name}")
        for name in given.keys() - known.keys()
    ]
    values = {p.name: given.get(p.name, p.default) for p in params}
    for name, value in values.items():
        complaint = _complaint(known[name], value)
        if complaint:
            problems.append(Problem(f"got {value!r}; {complaint}", f"params.{name}"))
    if problems:
        raise UsageError("wrong parameters: " + "; ".join(str(p) for p in problems), problems)
    return values


def _complaint(param: Param, value: Any) -> str:
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    if not isinstance(value, kinds[param.type]) or (isinstance(value, bool) and param.type != "bool"):
        return f"expected {param.type}"
    if param.choices and value not in param.choices:
        return f"expected one of {', '.join(param.choices)}"
    if isinstance(value, int | float) and param.type in ("int", "float"):
        low = -np.inf if param.low is None else param.low
        high = np.inf if param.high is None else param.high
        if not low <= value <= high:
            return f"expected a value from {low} to {high}"
    return ""


@dataclass(frozen=True)
class Answers:
    """One row per example, in the order of the rows that came; null where the row failed."""

    columns: pl.DataFrame
    errors: list[RowError]
    rows: int
    model: str
    version: str
    kinds: dict[str, str] = field(default_factory=dict)
    """Kind of each output, for the JSON form."""

    @property
    def failed(self) -> int:
        """Number of rows without an answer."""
        return len({e.row for e in self.errors})

    def __len__(self) -> int:
        return self.columns.height

    def __getitem__(self, name: str) -> pl.Series:
        return self.columns[name]

    def to_json(self) -> list[dict[str, Any]]:
        """One object per row; `{"error": {column, reason, value}}` where it failed."""
        out: list[dict[str, Any]] = [{} for _ in range(self.columns.height)]
        for name in self.columns.columns:
            kind = self.kinds.get(name)
            series = self.columns[name]
            values = kind_of(kind).to_json(series) if kind else _finite(series)
            for row, value in zip(out, values, strict=True):
                row[name] = value
        for error in reversed(self.errors):
            out[error.row] = {"error": {"column": error.column, "reason": error.reason, "value": error.value}}
        return out


def _finite(series: pl.Series) -> list[Any]:
    return [None if isinstance(v, float) and not np.isfinite(v) else v for v in series.to_list()]


@functools.cache  # a prediction asks 100 times
def kind_of(name: str) -> Kind:
    """The kind called `name`."""
    return registry.load("kinds", name).KIND  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Parity:
    """How two sets of answers to the same rows compare."""

    rows: int
    max_difference: float
    ties: int
    """Labels that differ although their two best scores lie within twice the tolerance."""
    differing: list[int]
    """Rows that disagree beyond the tolerance."""

    @property
    def ok(self) -> bool:
        """No row disagrees."""
        return not self.differing

    def to_json(self) -> dict[str, Any]:
        """`{rows, max_difference, ties}` (+ `differing` where any)."""
        out: dict[str, Any] = {"rows": self.rows, "max_difference": self.max_difference, "ties": self.ties}
        return out | ({"differing": self.differing[:20]} if self.differing else {})


def compare(a: Answers, b: Answers, scales: Mapping[str, float], tolerance: float = 1e-5) -> Parity:
    """Compares answers output by output with each kind's `agree`; a row that failed on one side only disagrees.

    `scales[output]` is the unit in which numbers are compared (the deviation of the training target).
    """
    failed_a, failed_b = {e.row for e in a.errors}, {e.row for e in b.errors}
    good = np.array([i for i in range(a.rows) if i not in failed_a | failed_b], np.int64)
    differing = set(failed_a ^ failed_b)
    worst, ties = 0.0, 0
    for name, kind in a.kinds.items() if len(good) else ():
        pick = lambda side, name=name: {  # noqa: E731
            c.removeprefix(name).lstrip("."): side.columns[c][good]
            for c in side.columns.columns
            if c == name or c.startswith(f"{name}.")
        }
        difference, ok, tie = kind_of(kind).agree(pick(a), pick(b), scales.get(name, 1.0), tolerance)
        worst = max(worst, float(difference.max(initial=0.0)))
        ties += int(tie.sum())
        differing |= set(good[~ok].tolist())
    return Parity(a.rows, worst, ties, sorted(differing))
