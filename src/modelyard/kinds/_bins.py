"""The encoding `bins` of numbers: how far a value has filled each of some two dozen quantile bins.

Piecewise-linear encoding (Gorishniy, Rubachev & Babenko 2022, On Embeddings for Numerical Features in Tabular Deep Learning,
arXiv:2203.05556, section 3.1): bins below the value are 1, bins above it 0, its own bin holds the share of the way through. A
linear layer on it is a piecewise-linear function of the number with bends where the data are, whatever their unit or skew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part
from modelyard.settings import Between

KEPT = 20_000
"""Points of the distribution that are kept while fitting."""

LARGEST = 1e300
"""Values are cut to this size: the width of a bin must stay finite."""

BEYOND = 1.0
"""Bin widths by which the first bin goes below 0 and the last above 1, for values outside the range of training."""


@dataclass(frozen=True, kw_only=True)
class BinsConfig:
    """How fine the encoding is."""

    bins: Annotated[int, Between(1, 1000)] = 24
    """Most bins of a column; columns of fewer values get fewer."""


@dataclass
class BinsState:
    """Weighted points while fitting, `edges` afterwards."""

    bins: int = 24
    count: int = 0
    missing: int = 0
    points: np.ndarray = field(default_factory=lambda: np.zeros(0))
    masses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    edges: np.ndarray = field(default_factory=lambda: np.array([0.0, 1.0]))
    """Increasing, float64; bin t lies between edges t and t + 1."""
    middle: float = 0.0
    """The median, which stands for missing values."""


class Bins(Encoding):
    """Shares of quantile bins; missing becomes the median, with an indicator where training had any.

    Up to 40,000 values the quantiles are exact. Beyond, points are merged into 20,000 of equal mass whenever there are twice as
    many, each time moving a quantile by at most 1/40,000 of the rows: after 100 chunks of a stream that is a quarter of a percent,
    a sixteenth of a bin.
    """

    name = "bins"
    Config = BinsConfig
    State = BinsState

    def start(self, config: BinsConfig) -> BinsState:
        """No values yet."""
        return BinsState(config.bins)

    def update(self, state: BinsState, column: pl.Series) -> BinsState:
        """Adds the values of a `Float64` column."""
        x = np.clip(column.drop_nulls().to_numpy().astype(np.float64), -LARGEST, LARGEST)
        return self.merge(state, BinsState(state.bins, len(x), column.null_count(), x, np.ones(len(x))))

    def merge(self, a: BinsState, b: BinsState) -> BinsState:
        """Points of both."""
        points, masses = np.concatenate([a.points, b.points]), np.concatenate([a.masses, b.masses])
        if len(points) > 2 * KEPT:
            order = np.argsort(points, kind="stable")
            points, masses = points[order], masses[order]
            total = masses.sum()
            points = np.interp((np.arange(KEPT) + 0.5) / KEPT, (np.cumsum(masses) - masses / 2) / total, points)
            masses = np.full(KEPT, total / KEPT)
        return BinsState(a.bins, a.count + b.count, a.missing + b.missing, points, masses)

    def finish(self, state: BinsState) -> BinsState:
        """Fixes the edges and forgets the points.

        No value counts for more than one bin's share of the rows: otherwise a column that is mostly zero would have one bin.
        """
        if len(state.points):
            values, where = np.unique(state.points, return_inverse=True)
            masses = np.bincount(where, weights=state.masses)
            state.middle = float(np.interp(0.5, (np.cumsum(masses) - masses / 2) / masses.sum(), values))
            for _ in range(30):  # what is cut off makes the share of the others larger, and so the limit smaller
                masses = np.minimum(masses, masses.sum() / state.bins)
            at = (np.cumsum(masses) - masses / 2) / masses.sum()
            inner = np.interp(np.linspace(0, 1, state.bins + 1), at, values) if len(values) > state.bins + 1 else values
            inner[0], inner[-1] = values[0], values[-1]
            state.edges = _apart(inner)
        state.points = state.masses = np.zeros(0)
        return state

    def parts(self, state: BinsState) -> dict[str, Part]:
        """`value` (T,), and `missing` where training had missing values."""
        value = {"value": Part((len(state.edges) - 1,), "float32")}
        return value | {"missing": Part((), "float32")} if state.missing else value

    def encode(self, column: pl.Series, state: BinsState, context: Context) -> dict[str, Array]:
        """Float32 `value` (B, T) and, if fitted with missing values, `missing` (B,) of 0 and 1."""
        x = np.clip(column.to_numpy().astype(np.float64), -LARGEST, LARGEST)
        absent = np.isnan(x)
        low, width, least, most = shares(state)
        out: dict[str, Array] = {
            "value": np.clip((np.where(absent, state.middle, x)[:, None] - low) / width, least, most).astype(np.float32)
        }
        if state.missing:
            out["missing"] = absent.astype(np.float32)
        return out


def shares(state: BinsState) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(low, width, least, most) of the bins: the share of each is clip((x - low) / width, least, most)."""
    low, width = state.edges[:-1], np.diff(state.edges)
    least, most = np.zeros(len(low)), np.ones(len(low))
    least[0], most[-1] = -BEYOND, 1 + BEYOND
    return low, width, least, most


def _apart(edges: np.ndarray) -> np.ndarray:
    """At least two different edges; bins of a width lost in rounding (1e-9 of the range) are joined to their neighbours."""
    edges = np.unique(edges)
    least = 1e-9 * max(float(edges[-1] - edges[0]), abs(float(edges[0])), abs(float(edges[-1])), 1e-300)
    kept = [float(edges[0])]
    for edge in edges[1:].tolist():
        if edge - kept[-1] > least:
            kept.append(edge)
    return np.array(kept if len(kept) > 1 else [kept[0], kept[0] + max(1.0, abs(kept[0]))])
