"""The group that a model which was never told any groups puts a row in. Predicted only, never read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, RowError
from modelyard.kinds.category import scores_struct, softmax

NOISE = -1
"""The id of rows that belong to no group."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Nothing to set."""


@dataclass
class ClusterState:
    """The number of groups, known after the model was fitted."""

    groups: int = 0
    noise: bool = False
    """Whether a row may belong to none."""


class ClusterIndex(Encoding):
    """Group ids from distances to the groups."""

    name = "index"
    Config = ClusterConfig
    State = ClusterState

    def start(self, config: ClusterConfig) -> ClusterState:
        """Nothing is known before fitting."""
        return ClusterState()

    def update(self, state: ClusterState, column: pl.Series) -> ClusterState:
        """There is no column to learn from."""
        return state

    def merge(self, a: ClusterState, b: ClusterState) -> ClusterState:
        """The larger number."""
        return ClusterState(max(a.groups, b.groups), a.noise or b.noise)

    def parts(self, state: ClusterState) -> dict[str, Part]:
        """`index`."""
        return {"index": Part((), "int32", None)}

    def encode(self, column: pl.Series, state: ClusterState, context: Context) -> dict[str, Array]:
        """Ids as they are (used when answers are compared)."""
        return {"index": column.fill_null(NOISE).to_numpy().astype(np.int32)}

    def head(self, state: ClusterState) -> tuple[str, int]:
        """Squared distances to every group; the number of groups may still be open (0)."""
        return "distances", state.groups

    def learned(self, state: ClusterState, outputs: Mapping[str, np.ndarray]) -> ClusterState:
        """The number of groups is the number of distances; a model that gives `noise` knows rows of no group."""
        return ClusterState(outputs["distances"].shape[1], "noise" in outputs)

    def decode(self, arrays: Mapping[str, np.ndarray], state: ClusterState, context: Context) -> dict[str, pl.Series]:
        """The nearest group of `distances` (B, K), with a softmax of the negative distances as scores.

        `noise` (B, 1), where a model gives it, is the distance from which a row belongs to no group: -1, with a score of its own.
        """
        distances = arrays["distances"]
        names = [str(k) for k in range(distances.shape[1])]
        if "noise" in arrays:
            distances, names = np.concatenate([distances, arrays["noise"]], axis=1), [*names, str(NOISE)]
        nearest = distances.argmin(axis=1).astype(np.int64)
        if "noise" in arrays:
            nearest[nearest == len(names) - 1] = NOISE
        return {"": pl.Series(nearest), "scores": scores_struct(softmax(-distances), names)}


class Cluster(Kind):
    """A group number from 0, -1 for noise, `Int64`."""

    name = "cluster"
    encodings = {"index": ClusterIndex()}  # noqa: RUF012
    target_encoding = "index"

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Whole numbers."""
        clean = column.cast(pl.Int64, strict=False)
        bad = np.flatnonzero((clean.is_null() & column.is_not_null()).to_numpy()).tolist()
        return clean, [RowError(r, column.name, "is not a group number", repr(column[r])[:80]) for r in bad]

    def fits(self, column: pl.Series) -> float:
        """Never guessed."""
        return 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """0 where equal, 1 where not."""
        return a.ne_missing(b).to_numpy().astype(np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Sizes of the groups."""
        counts = column.drop_nulls().value_counts().sort(column.name)
        sizes = dict(zip([str(v) for v in counts[column.name]], counts["count"].to_list(), strict=True))
        return {"count": len(column), "missing": column.null_count(), "sizes": sizes}


KIND = Cluster()
