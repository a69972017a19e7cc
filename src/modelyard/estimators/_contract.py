"""What every estimator module promises: it is fitted elsewhere and applied here.

A module of this folder (or of a package, by an entry point `modelyard.estimators`) has the members of `Estimator`. `fit` may
import any library; `apply` needs NumPy alone, so that a model folder predicts with the core. No library object is kept:
a `State` is a dataclass of JSON values, NumPy arrays and dataclasses of these. `store.state.restore` builds the outermost
dataclass; nested ones arrive as dicts, and `State.__post_init__` turns them back. What is worked out from a state (look-up
tables) is a `cached_property`, which is not stored.

What a model can do is found out by `modelyard.testing.check_estimator`, not claimed here: whether it gives scores follows from the kind
of its heads, whether it has an ONNX graph from `graph`. Where `join(states) -> State` is there, it gives the mean of several models as
one (fold models of a search); where `fit` takes `monotone` (n,), answers can be kept rising or falling with numbers. `RESOURCE`, where
there, names the whole-numbered setting that says how long to fit (rounds of boosting): `tune` gives poor trials less of it. One that
learns in an environment has `fit_environment` in place of `fit`. All of them answer for new rows (they are inductive); none goes on
learning after `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from modelyard.kinds._contract import Array, Head, Part

Examples = tuple[Mapping[str, Array], Mapping[str, np.ndarray]]
"""(inputs, targets), both by `column.part`."""


@runtime_checkable
class Estimator(Protocol):
    """The members of an estimator module."""

    ACCEPTS: tuple[str, ...]
    """Encodings it reads; `table` is the block of all scalar columns."""
    NUMBERS: str
    """Encoding of number columns: `raw` (NaN where missing) or `scaled`."""
    KINDS: tuple[str, ...]
    """Kinds of output it can predict."""
    Config: type
    """Frozen keyword-only dataclass of settings, each with a default."""
    State: type

    @staticmethod
    def fit(
        inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Any, *,
        weights: np.ndarray | None = None, valid: Examples | None = None, seed: int = 0, budget_s: float | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """The state for all `heads`.

        Targets: `y.index` int64 `(B,)`, `y.multi_hot` float32 `(B, K)`, `y.value` float32 `(B,)`, scaled; empty where nothing
        is taught. `weights` `(B,)` multiply the examples' losses. `budget_s` is wall-clock time after which no new step begins; at
        least one is made. `progress` is told of steps as JSON. The same seed gives the same state. One that can keep its answers
        monotone has a further keyword `monotone`, the sign (n,) of each column of `table.numbers`, 0 for none.
        """

    @staticmethod
    def apply(inputs: Mapping[str, Array], state: Any) -> dict[str, np.ndarray]:
        """Float32 `(B, size)` by `head.key`; a row's answer does not depend on its neighbours. Ragged inputs may come padded."""

    @staticmethod
    def graph(state: Any, inputs: Mapping[str, Part]) -> Any:
        """An `onnx.ModelProto` with the same inputs and outputs as `apply`, or None where there is no such graph."""
