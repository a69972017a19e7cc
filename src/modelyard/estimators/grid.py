"""Groups on a grid: space is cut into cells, and crowded cells that touch are one group (STING, Wang, Yang & Muntz 1997; CLIQUE,
Agrawal et al. 1998).

Time grows with the rows and not with their square, so all of them are looked at. Cells of many dimensions are all but empty, so
the grid lies in the few directions of largest variance (where CLIQUE searches subspaces of columns). A cell is crowded where it holds `dense` times as many
rows as an occupied cell does on average, and three at least. A new row gets the group of its cell, and is noise, -1, in any other cell.

With `cells: auto` 4 … 40 cells a direction are tried, and those kept whose groups have the best mean silhouette (Rousseeuw 1987), in
which noise counts 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.errors import DataError
from modelyard.estimators._groups import Groups, Space, answers, by_size, points, sampled, silhouette, space_of, suggestion
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("cluster",)

TRIED = (4, 6, 8, 10, 13, 16, 20, 25, 32, 40)
ENDS = (0.005, 0.995)
"""The grid spans these quantiles of every direction, and goes on beyond with cells of the same size: an outlier does not widen them."""
FARTHEST = 1e5
"""Cells from the middle that a row can be; farther ones are all the same."""
LEAST = 3
"""Rows of a crowded cell at least, where any cell holds as many: in many small cells single rows are no crowds."""
BLOCK = 2**20
"""Pairs of a row and a cell compared at once."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the grid."""

    cells: Annotated[int, Between(2, 1000)] | Literal["auto"] = "auto"
    """Cells along each direction; auto tries 4 to 40."""
    directions: Annotated[int, Between(1, 4)] | Literal["auto"] = "auto"
    """Directions of largest variance that the grid lies in; auto: as many as hold 80 % of it, up to 3."""
    dense: Annotated[float, Between(0.01, 100)] = 0.5
    """Rows of a crowded cell, in units of the mean over occupied cells."""


@dataclass
class State:
    """Crowded cells in a space turned and scaled so that every cell has side 1."""

    space: Space
    turn: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(D, d) float64: points @ turn + shift are coordinates in cells."""
    shift: np.ndarray = field(default_factory=lambda: np.zeros(0))
    middles: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(M, d) float64 middles of crowded cells, group by group."""
    sizes: list[int] = field(default_factory=list)
    """Cells of each group."""
    output: str = ""
    suggestion: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.space, dict):
            self.space = Space(**self.space)


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """Counts rows in cells, in one step whatever the budget; `weights` count as so many rows."""
    space = space_of(inputs)
    x = points(inputs, space)
    some = sampled(len(x), len(x), weights, seed)
    x, mass = x[some], np.ones(len(some)) if weights is None else np.asarray(weights, np.float64)[some]
    turn = _directions(x, mass, config.directions)
    along = x @ turn
    low, high = np.quantile(along, ENDS[0], axis=0), np.quantile(along, ENDS[1], axis=0)
    span = np.maximum(high - low, 1e-6)
    tried: dict[str, float] = {}
    best: tuple[np.ndarray, np.ndarray, int] | None = None
    for cells in TRIED if config.cells == "auto" else (config.cells,):
        coordinates = (along - low) / span * cells
        middles, groups, labels = _crowded(coordinates, mass, config.dense)
        tried[str(cells)] = silhouette(along, labels, seed)
        if progress is not None:
            progress({"event": "groups", "cells": cells, "groups": int(groups.max()) + 1, "silhouette": tried[str(cells)]})
        if best is None or tried[str(cells)] > max(v for c, v in tried.items() if c != str(cells)):
            best = middles, groups, cells
            noise = float((labels < 0).mean())
    if best is None or not len(best[0]):
        raise DataError("no cell is crowded; set a smaller model.dense or fewer model.cells")
    middles, groups, cells = best
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups).tolist()
    why = suggestion(
        "cells" if config.cells == "auto" else "density", len(sizes), tried if len(tried) > 1 else {}, len(x), len(x), cells=cells, noise=noise
    )
    return State(space, turn / span * cells, -low / span * cells, middles[order], sizes, heads[0].output, why)


def _directions(x_ND: np.ndarray, mass_N: np.ndarray, wanted: int | str) -> np.ndarray:
    """(D, d) principal directions; the sign of each is that its largest entry is positive."""
    centred = x_ND - np.average(x_ND, axis=0, weights=mass_N)
    values, vectors = np.linalg.eigh((centred * mass_N[:, None]).T @ centred / mass_N.sum())
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if wanted == "auto":
        held = np.cumsum(values) / max(float(values.sum()), 1e-12)
        wanted = min(3, int(np.searchsorted(held, 0.8 - 1e-9)) + 1)
    kept = vectors[:, : min(int(wanted), x_ND.shape[1])]
    signs = np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    return np.asarray(kept * signs)


def _crowded(coordinates_Nd: np.ndarray, mass_N: np.ndarray, dense: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(middles of crowded cells, their groups, group of every row); groups by falling number of rows."""
    cells = np.floor(np.clip(coordinates_Nd, -FARTHEST, FARTHEST)).astype(np.int64)
    corners, where = np.unique(cells, axis=0, return_inverse=True)
    where = where.reshape(-1)
    counts = np.bincount(where, weights=mass_N)
    kept = np.flatnonzero(counts >= max(dense * counts.mean(), min(LEAST, counts.max())))
    place = {tuple(c): i for i, c in enumerate(corners[kept].tolist())}
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * cells.shape[1], indexing="ij"), -1).reshape(-1, cells.shape[1]).tolist()
    group = np.full(len(kept), -1)
    for first in range(len(kept)):
        if group[first] >= 0:
            continue
        group[first], reached = group.max() + 1, [first]
        while reached:
            corner = corners[kept[reached.pop()]].tolist()
            for step in steps:
                other = place.get(tuple(a + b for a, b in zip(corner, step, strict=True)))
                if other is not None and group[other] < 0:
                    group[other] = group[first]
                    reached.append(other)
    of_cell = np.full(len(corners), -1)
    of_cell[kept] = group
    labels = by_size(of_cell[where])
    renamed = np.full(len(corners), -1)
    renamed[where] = labels
    return corners[kept] + 0.5, renamed[kept], labels


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """`distances` `(B, K)`: in cells, by the direction in which it is largest, to the nearest crowded cell; beyond half a cell it is noise."""
    x = np.clip(points(inputs, state.space) @ state.turn + state.shift, -FARTHEST, FARTHEST)
    starts = np.cumsum([0, *state.sizes[:-1]])
    out = np.empty((len(x), len(state.sizes)))
    step = max(1, BLOCK // len(state.middles))
    for start in range(0, len(x), step):
        far = np.abs(x[start : start + step, None] - state.middles).max(-1)
        out[start : start + step] = np.minimum.reduceat(far, starts, axis=1)
    return answers(out, 0.5, state.output)


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """The same as an ONNX model, in float64."""
    g = Groups()
    moved = g.node("Add", g.node("MatMul", g.space(state.space), g.constant(state.turn)), g.constant(state.shift))
    inside = g.node("Min", g.node("Max", moved, g.constant(-FARTHEST)), g.constant(FARTHEST))
    each = g.node("Unsqueeze", inside, g.constant([1], np.int64))
    far = g.node("Abs", g.node("Sub", each, g.constant(state.middles)))
    largest = g.node("ReduceMax", far, g.constant([2], np.int64), keepdims=0)
    return g.finish(g.by_group(largest, state.sizes, "ReduceMin"), 0.5, state.output, len(state.sizes), inputs)
