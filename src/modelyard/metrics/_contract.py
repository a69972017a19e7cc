"""What every metric file promises.

Axis letters: B examples, K classes, R resamples, N distinct rows of statistics, S statistics, D features.

A metric never answers 0 or 1 where it has no value: it raises `Undefined` with the reason, and `evaluate_output`
reports
NaN beside it. Class ids are int64 in `[0, K)` in the order of the labels; the *positive* class of a two-class metric is
the last label unless the option `positive` names another id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np


class Undefined(Exception):
    """The metric has no value on these rows; the message is the reason, as a sentence without a full stop."""


@dataclass(frozen=True)
class Sums:
    """A metric written as a function of sums over rows, which is what makes its bootstrap cheap.

    `rows_NS` holds the statistics of each distinct row and `counts_N` how many examples share it (None: one each).
    `formula` turns sums `(R, S)` into values `(R,)`, NaN where undefined. Resampling examples is then one matrix
    product.
    """

    rows_NS: np.ndarray
    formula: Callable[[np.ndarray], np.ndarray]
    counts_N: np.ndarray | None = None
    distance: bool = False
    """The formula is a sum of absolute sums over the last one (a weight): noise makes it larger, and resampling does not
    show by how much, so that its interval is made by the triangle inequality."""

    def total_S(self) -> np.ndarray:
        """The sums over all examples."""
        if self.counts_N is None:
            return np.asarray(self.rows_NS.sum(axis=0))
        return np.asarray(self.counts_N @ self.rows_NS)

    def value(self, reason: str) -> float:
        """The metric on all examples; `Undefined(reason)` where the formula has no value."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(self.formula(self.total_S()[None])[0])
        if not np.isfinite(value):
            raise Undefined(reason)
        return value


@dataclass(frozen=True)
class Metric:
    """One metric: `metrics/<name>.py` holds it as `METRIC`."""

    name: str
    better: Literal["higher", "lower"]
    needs: Literal["labels", "scores", "values", "features"]
    """What `prediction` is: `labels` int ids (B,) or multi-hot (B, K); `scores` probabilities (B, K), or (B,) of the
    positive class; `values` float (B,); `features`: `truth` is the matrix (B, D) and `prediction` the cluster ids
    (B,)."""
    kinds: tuple[str, ...]
    """Kinds of output it applies to: `category`, `label-set`, `number`, `cluster`."""
    compute: Callable[..., float]
    """`compute(truth, prediction, *, weights=None, labels=None, **options) -> float`; `labels` are the class names
    in id order (None: as many classes as the arrays show). Raises `Undefined`."""
    sums: Callable[..., Sums | None] | None = None
    """Same arguments as `compute`; None where the metric is no function of sums (then the interval resamples rows)."""
    closed: Callable[..., tuple[float, float] | None] | None = None
    """Same arguments and `level`: the interval by theory; None where the theory does not hold (weights)."""
    bounds: tuple[float, float] = (-np.inf, np.inf)
    """Smallest and largest possible value."""
    about: Callable[[np.ndarray, np.ndarray], dict[str, Any]] | None = None
    """Facts of (truth, prediction) that belong beside the value: the signature of a score that others compute too."""
    limit: int | None = None
    """Rows that are affordable (quadratic metrics): more are sampled with a seed, and the note says so."""


@dataclass(frozen=True)
class Predicted:
    """What a model says of B rows of one output. Give what there is: missing parts drop the metrics that need them."""

    labels: np.ndarray | None = None
    """Class ids `(B,)`, multi-hot `(B, K)` or cluster ids `(B,)`; None: from the scores (the largest, or ≥ 0.5
    each)."""
    scores: np.ndarray | None = None
    """Probabilities `(B, K)`, or `(B,)` of the positive class of two."""
    values: np.ndarray | None = None
    """Numbers `(B,)`."""
    features: np.ndarray | None = None
    """Encoded inputs `(B, D)` that clusters were made of."""

    def take(self, index: np.ndarray) -> Predicted:
        """The rows named by `index` (or a mask)."""
        parts = {name: None if part is None else part[index] for name, part in self.__dict__.items()}
        return Predicted(**parts)

    def decided(self, kind: str) -> Predicted:
        """The same with labels filled in from the scores."""
        if self.labels is not None or self.scores is None:
            return self
        if kind == "label-set" or self.scores.ndim == 1:
            return replace(self, labels=(self.scores >= 0.5).astype(np.int64))
        return replace(self, labels=self.scores.argmax(axis=1))


Labels = Sequence[Any] | None


def check_rows(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray | None) -> None:
    """Raise `Undefined` for no rows and `ValueError` for unequal lengths (a mistake of the caller)."""
    if len(truth) != len(prediction) or (weights is not None and len(weights) != len(truth)):
        counts = f"{len(truth)} and {len(prediction)}" + ("" if weights is None else f", {len(weights)} weights")
        raise ValueError(f"truth and prediction must have as many rows; got {counts}")
    if not len(truth):
        raise Undefined("there are no rows")
    if weights is not None and not weights.sum() > 0:
        raise Undefined("all weights are zero")


def weights_or_ones(weights: np.ndarray | None, rows: int) -> np.ndarray:
    """Weights `(B,)` as float64; ones where none are given."""
    return np.ones(rows) if weights is None else np.asarray(weights, np.float64)


def classes(truth: np.ndarray, prediction: np.ndarray, labels: Labels) -> int:
    """K: from the labels, else from the arrays."""
    if labels is not None:
        return len(labels)
    if prediction.ndim == 2:
        return int(prediction.shape[1])
    if truth.ndim == 2:
        return int(truth.shape[1])
    ids = prediction if np.issubdtype(prediction.dtype, np.integer) else truth
    return max(2, int(truth.max(initial=0)) + 1, int(ids.max(initial=0)) + 1)
