"""What every kind and encoding promises. The whole runtime rests on the types in this file.

Axis letters in names: B examples, L positions of a variable-length value, C channels, H height, W width, K classes.
Kinds use NumPy, Polars, Pillow and tokenizers; never torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

SMALL = 64
"""Values up to which a Python loop beats Polars: an expression on a Series costs about 50 µs however short the column is."""


@dataclass(frozen=True)
class Ragged:
    """Values of different lengths, one run per example, without padding.

    Example `i` owns `values[offsets[i]:offsets[i + 1]]`; `offsets` is int64 of shape `(B + 1,)` and starts at 0.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_B(self) -> np.ndarray:
        """Length of each example."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[Any]], dtype: Any) -> Ragged:
        """Build from Python lists (tests and small inputs)."""
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(x) for x in lists], out=offsets[1:])
        values = np.concatenate([np.asarray(x, dtype) for x in lists]) if lists else np.zeros(0, dtype)
        return cls(values.astype(dtype, copy=False), offsets)

    def take(self, index: np.ndarray) -> Ragged:
        """The examples named by `index`, in that order: one gather, no Python loop."""
        starts, lengths = self.offsets[:-1][index], self.lengths_B[index]
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.values[positions], offsets)

    @staticmethod
    def concat(parts: Sequence[Ragged]) -> Ragged:
        """Stack the examples of several."""
        shifts = np.cumsum([0, *(len(p.values) for p in parts)])
        offsets = np.concatenate([[0], *(p.offsets[1:] + s for p, s in zip(parts, shifts, strict=False))])
        return Ragged(np.concatenate([p.values for p in parts]), offsets.astype(np.int64))


Array = np.ndarray | Ragged


def take(array: Array, index: np.ndarray) -> Array:
    """Gather examples of a dense or ragged array."""
    return array.take(index) if isinstance(array, Ragged) else array[index]


def part(array: Array, start: int, end: int) -> Array:
    """Examples `start` to `end`; a dense array is not copied."""
    return array.take(np.arange(start, end)) if isinstance(array, Ragged) else array[start:end]


def concat(parts: Sequence[Array]) -> Array:
    """Stack the examples of several arrays, all dense or all ragged."""
    ragged = [p for p in parts if isinstance(p, Ragged)]
    return Ragged.concat(ragged) if ragged else np.concatenate([p for p in parts if isinstance(p, np.ndarray)])


def pad(
    ragged: Ragged, *, side: str = "back", multiple: int = 1, length: int | None = None, fill: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Dense `(padded_BL, length_B)` of a ragged batch; the one padding function of training and runtime.

    `side` is `back` or `front`; the length is the longest example (at least 1), rounded up to `multiple`, or `length`
    given (longer examples are cut at the end). `length_B` is int64 and counts real values.
    """
    lengths = ragged.lengths_B
    width = max(1, int(lengths.max(initial=0))) if length is None else length
    width = -(-width // multiple) * multiple
    lengths = np.minimum(lengths, width)
    out = np.full((len(ragged), width, *ragged.values.shape[1:]), fill, ragged.values.dtype)
    column = np.arange(width)
    mask = column >= width - lengths[:, None] if side == "front" else column < lengths[:, None]
    starts = np.repeat(ragged.offsets[:-1], lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    out[mask] = ragged.values[starts + within]
    return out, lengths.astype(np.int64)


@dataclass(frozen=True)
class RowError:
    """One value that cannot be used. The row leaves by its index; its neighbours are unaffected."""

    row: int
    column: str
    reason: str
    """What came, what is allowed; a full sentence for the user."""
    value: str = ""
    """The offending value, shortened to 80 characters."""


@dataclass(frozen=True)
class Part:
    """One array an encoding yields: all that a net or an estimator may know about it.

    `shape` is without the example axis: `()` scalar, `(3, 32, 32)` image; a leading `None` is the variable axis of a
    `Ragged`, padded before a graph sees it, with `<column>.length` (int64, B) beside it.
    """

    shape: tuple[int | None, ...]
    dtype: str
    cardinality: int | None = None
    """Values are ids in `[0, cardinality)`; None for measurements."""
    groups: tuple[int, ...] = ()
    """Of `table.numbers`: how many of its values belong together, in order (the bins of a column); empty: each stands alone."""
    shared: bool = False
    """Its ids mean what those of the output mean (`Encoding.joined`): a net may use one table for both."""

    @property
    def ragged(self) -> bool:
        """Whether it has a variable axis."""
        return bool(self.shape) and self.shape[0] is None


Context = dict[str, Any]
"""Per-example NumPy arrays that decoding needs (original size, token offsets, last level)."""


class Encoding(ABC):
    """Turns a checked column into arrays, with a state fitted on the training rows.

    Fitting is `start → update… → merge… → finish`; in memory it is exact, and where streaming is not (quantiles), the
    docstring states the error. A state is a dataclass of numbers, strings, lists, dicts and NumPy arrays: it is stored
    as JSON + safetensors. `Config` is a frozen keyword-only dataclass with all defaults.
    Source of the pattern: map-reduce "algebird" aggregators; scikit-learn's `partial_fit`.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    State: ClassVar[type]

    @abstractmethod
    def start(self, config: Any) -> Any:
        """An empty state."""

    @abstractmethod
    def update(self, state: Any, column: pl.Series) -> Any:
        """The state after seeing a checked column (nulls are missing values)."""

    @abstractmethod
    def merge(self, a: Any, b: Any) -> Any:
        """The state of both; for federated clients and parallel readers."""

    def finish(self, state: Any) -> Any:
        """Close fitting: cut vocabularies, fix scales."""
        return state

    def fit(self, column: pl.Series, config: Any = None) -> Any:
        """`start → update → finish` in one call."""
        return self.finish(self.update(self.start(config or self.Config()), column))

    def kept(self, config: Any) -> Any:
        """The config as a manifest keeps it once the state is fitted: without what was of this machine (a path)."""
        return config

    def beside(self, column: pl.Series) -> list[pl.Series]:
        """Values in an aligned truth that the encoding of its input is fitted on too: texts beside a text."""
        return []

    @abstractmethod
    def parts(self, state: Any) -> dict[str, Part]:
        """Names and shapes of the arrays that `encode` yields."""

    @abstractmethod
    def encode(self, column: pl.Series, state: Any, context: Context) -> dict[str, Array]:
        """Arrays of a checked column, example axis first. May write per-example arrays into `context`."""

    def head(self, state: Any) -> tuple[str, int]:
        """(part, size) that a model must produce for a target in this encoding, e.g. `("logits", K)`."""
        raise NotImplementedError(f"{self.name} is an input-only encoding")

    def learned(self, state: Any, outputs: Mapping[str, np.ndarray]) -> Any:
        """The state once a model was fitted, for what only its outputs (by part) tell: the number of groups."""
        return state

    def joined(self, own: Any, other: Any) -> tuple[Any, Any] | None:
        """(finished state, finished state of the input `other`) of unfinished ones, where an output shares what it learns with an input:
        one vocabulary for a text and its translation. None where it does not."""
        return None

    def decode(self, arrays: Mapping[str, np.ndarray], state: Any, context: Context) -> dict[str, pl.Series]:
        """Graph outputs back to answer columns: `""` is the answer, `scores`, `low`, `high`, `set` stand beside it."""
        raise NotImplementedError(f"{self.name} is an input-only encoding")


class Kind(ABC):
    """What a value is: its check, JSON form, encodings, picture, distance and summary.

    `check` accepts whatever a reader or a JSON body may hold and returns the column in its one canonical dtype.
    """

    name: ClassVar[str]
    encodings: ClassVar[dict[str, Encoding]]
    """By name; the first is the default for inputs."""
    target_encoding: ClassVar[str | None] = None
    """The encoding used when a column of this kind is predicted; None where it cannot be."""
    scalar: ClassVar[bool] = False
    """True where an example is one number or id: such columns are stacked into the block `table` (see contract.md)."""

    needs_value: ClassVar[bool] = False
    """True where a missing value cannot be encoded (an image): such a row fails with a sentence."""
    sequence: ClassVar[bool] = False
    """True where a value is a list of units that an aligned output can speak of one by one (words)."""

    @abstractmethod
    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """(canonical column with null for missing and for bad values, one RowError per bad value).

        `RowError.row` is the position in the column. Missing is never an error here: who needs a value says so.
        """

    @abstractmethod
    def fits(self, column: pl.Series) -> float:
        """How well raw values look like this kind: 0 (cannot be) … 1 (certainly). For guessing types; says nothing of roles."""

    def from_json(self, values: Sequence[Any]) -> pl.Series:
        """A raw column from decoded JSON values; `check` comes after it.

        Mixed types stay Python objects: a lenient cast would turn `"x"` beside numbers into a silent null.
        """
        try:
            return pl.Series("", list(values))
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            return pl.Series("", list(values), dtype=pl.Object)

    def to_json(self, column: pl.Series) -> list[Any]:
        """JSON values of a canonical column (null stays null)."""
        return column.to_list()

    def draw(self, value: Any) -> str:
        """An HTML or SVG fragment that shows one value of a canonical column; escaped, self-contained."""
        from html import escape

        return f"<span>{escape('—' if value is None else str(value))}</span>"

    def draw_along(self, value: Any, beside: Any) -> str | None:
        """A fragment that shows an aligned value along that of its input (marked words), escaped; None: it is shown as a text."""
        return None

    def misaligned(self, column: pl.Series, beside: pl.Series) -> list[RowError]:
        """Rows of an aligned output that do not fit the value of its input, both checked: as many tags as words."""
        return []

    @abstractmethod
    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Per-example difference of two canonical columns, 0 = same (for labels: 0 or 1)."""

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(difference_B, ok_B, tie_B) of two answers to the same rows: `{"": answer, "scores": …}` each.

        Scores may differ by `tolerance`; answers must be equal unless the two best scores lie within twice the tolerance.
        """
        same = self.distance(a[""], b[""]) == 0
        if "scores" not in a:
            return (~same).astype(np.float64), same, np.zeros(len(same), bool)
        left, right = (x["scores"].struct.unnest().to_numpy().astype(np.float64) for x in (a, b))
        if left.shape != right.shape:
            return np.ones(len(same)), np.zeros(len(same), bool), np.zeros(len(same), bool)
        difference = np.abs(left - right).max(axis=1, initial=0.0)
        top = np.sort(left, axis=1)[:, -2:]
        tie = ~same & (top[:, -1] - top[:, 0] < 2 * tolerance)
        return difference, (same | tie) & (difference <= tolerance), tie

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> Any:
        """A canonical column of answers or truths as metrics take it: ids, multi-hot vectors, numbers.

        By default the first array of the target encoding; -1 is a label that training never saw.
        """
        return next(iter(encoding.encode(column, state, {}).values()))

    def measured(self, answers: Mapping[str, pl.Series]) -> np.ndarray | None:
        """What metrics of values measure of the answers `{"": answer, "scores": …}`, for kinds that are neither label nor number; (B, …)."""
        return None

    @abstractmethod
    def summary(self, column: pl.Series) -> dict[str, Any]:
        """JSON statistics of a canonical column: `count`, `missing`, and what describes this kind."""


@dataclass(frozen=True)
class Head:
    """What a net or an estimator must produce for one output: the graph output `<output>.<part>` of shape `(B, size)`."""

    output: str
    kind: str
    part: str
    """`logits` (category, label-set), `value` (number), `distances` (cluster) …"""
    size: int
    ends: tuple[int, ...] = ()
    """Of a text that is written: ids after which nothing is."""

    @property
    def key(self) -> str:
        """Name of the graph output."""
        return f"{self.output}.{self.part}"

    @property
    def target(self) -> str:
        """Name of the array that an estimator is taught with: ids, 0/1 for each label, or scaled numbers."""
        return f"{self.output}.{ {'category': 'index', 'label-set': 'multi_hot', 'number': 'value'}[self.kind]}"
