"""What the models that find groups share: the space in which rows are near or far, numbering, suggestions, and answers by membership.

**Space.** Scaled numbers and indicators of categories over √2, so that two different values lie at distance 1 as two numbers one
deviation apart do. Points are rounded to float32, distances worked out in float64: the same in NumPy and ONNX Runtime.

**Members.** Hierarchical groups, DBSCAN and HDBSCAN have no formula for a new row. What it gets is by its distances to the rows
(or centres) that each group is made of: the nearest, the mean or the farthest of them, in units of the group's own reach; beyond the reach
of every group it is noise, -1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from modelyard.errors import DataError
from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Part

IDS = 256
"""Ids of a category with an indicator; rarer values share the place of no value."""
MOST = 10
"""Groups that are tried at most."""
SAMPLE = 2000
"""Rows for a silhouette, which compares every row with every other."""
BLOCK = 256
"""Rows compared at once: their float64 distances to 10,000 others are 20 MB."""


@dataclass
class Space:
    """How encoded inputs become points."""

    numbers: int = 0
    sizes: list[int] = field(default_factory=list)
    """Ids with an indicator, by category column."""

    @property
    def width(self) -> int:
        """Coordinates of a point."""
        return self.numbers + sum(self.sizes)


def space_of(inputs: Mapping[str, Array]) -> Space:
    """The space of encoded training inputs."""
    numbers = np.asarray(inputs["table.numbers"]).shape[1] if "table.numbers" in inputs else 0
    ids = np.asarray(inputs["table.categories"]) if "table.categories" in inputs else np.zeros((0, 0), np.int32)
    return Space(numbers, [min(IDS, int(c) + 1) for c in ids.max(axis=0, initial=0)] if ids.shape[1] else [])


def points(inputs: Mapping[str, Array], space: Space) -> np.ndarray:
    """(B, D) float64 of values that float32 can hold."""
    rows = len(next(iter(inputs.values())))
    out = np.zeros((rows, space.width), np.float32)
    if space.numbers:
        out[:, : space.numbers] = np.asarray(inputs["table.numbers"], np.float32)
    start = space.numbers
    for i, size in enumerate(space.sizes):
        ids_B = np.asarray(inputs["table.categories"])[:, i]
        known = np.flatnonzero(ids_B < size)
        out[known, start + ids_B[known]] = np.sqrt(0.5)
        start += size
    return out.astype(np.float64)


def sampled(rows: int, most: int, weights: np.ndarray | None, seed: int) -> np.ndarray:
    """Row numbers in rising order: at most `most` of those whose weight is not zero, drawn without favour."""
    some = np.arange(rows) if weights is None else np.flatnonzero(np.asarray(weights) > 0)
    if len(some) < 2:
        raise DataError(f"{len(some)} row(s) have a weight above zero; groups need two or more")
    return some if len(some) <= most else np.sort(np.random.default_rng(seed).permutation(some)[:most])


@dataclass(frozen=True)
class Sample:
    """The rows that groups are made of."""

    space: Space
    points: np.ndarray
    """(N, D) float64."""
    of: int
    """Rows that they were drawn from."""


def sample_of(inputs: Mapping[str, Array], most: int, weights: np.ndarray | None, seed: int) -> Sample:
    """At most `most` of the training rows as points; of `weights` only zeros count: such rows are left out."""
    space = space_of(inputs)
    x = points(inputs, space)
    return Sample(space, x[sampled(len(x), most, weights, seed)], len(x))


def by_size(labels_N: np.ndarray) -> np.ndarray:
    """The same groups numbered by falling size, so that a rerun gives the same names; noise stays -1."""
    found, index, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (found[i] < 0, -counts[i], i))
    place = np.empty(len(found), np.int64)
    place[order] = np.arange(len(found))
    return np.where(labels_N < 0, -1, place[index])


def silhouette(x_ND: Any, labels_N: np.ndarray, seed: int) -> float:
    """Mean silhouette (Rousseeuw 1987) on up to 2,000 rows of a matrix (or a sparse one), in which noise counts 0; -1 with fewer than two
    groups."""
    from sklearn.metrics import silhouette_samples

    some = np.random.default_rng(seed).permutation(len(labels_N))[:SAMPLE]
    inside = some[labels_N[some] >= 0]
    distinct = len(np.unique(labels_N[inside]))
    if distinct < 2 or distinct == len(inside):
        return -1.0
    return float(silhouette_samples(x_ND[inside], labels_N[inside]).sum() / len(some))


def suggestion(by: str, groups: int, tried: Mapping[str, float], used: int, rows: int, **more: Any) -> dict[str, Any]:
    """Why there are as many groups as there are: what `evaluate` and the report tell.

    `by` is `silhouette`, `cells`, `bic`, `density` or `asked`; `tried` the value of each number of groups (or cells); `used` of `rows` rows were
    looked at.
    """
    return {"by": by, "groups": groups, "tried": dict(tried), "rows": used, "of": rows, **more}


@dataclass
class Members:
    """Groups as the points they are made of."""

    space: Space
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(N, D) float32, group by group; behind them rows of no group, which only tell how crowded a place is."""
    sizes: list[int] = field(default_factory=list)
    """Points of each group."""
    rule: Literal["nearest", "mean", "farthest"] = "nearest"
    """Which distance to the points of a group counts."""
    reach: list[float] = field(default_factory=list)
    """By group: the distance at which it ends; empty where it does not, and no row is noise."""
    crowd: int = 0
    """How many points must be near a new row: a distance is at least that to the `crowd`-th nearest of all points (0: no such bound)."""
    cores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(N,) float64: the same bound of each point; empty where `crowd` is 0."""
    output: str = ""
    suggestion: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.space, dict):
            self.space = Space(**self.space)

    @cached_property
    def wide(self) -> tuple[np.ndarray, np.ndarray]:
        """((D, N) float64 of -2 points, (N,) squared lengths)."""
        x = self.points.astype(np.float64)
        return np.ascontiguousarray(-2.0 * x.T), (x * x).sum(1)

    @property
    def starts(self) -> np.ndarray:
        """(K,) first point of each group."""
        return np.cumsum([0, *self.sizes[:-1]])


def squares_to_groups(x_BD: np.ndarray, state: Members) -> np.ndarray:
    """(B, K) float64 squared distances to the groups, in units of their reach."""
    turned, lengths = state.wide
    members = sum(state.sizes)
    out = np.empty((len(x_BD), len(state.sizes)))
    for start in range(0, len(x_BD), BLOCK):
        x = x_BD[start : start + BLOCK]
        squared = np.maximum(x @ turned + lengths + (x * x).sum(1, keepdims=True), 0.0)
        if state.crowd:
            nth = np.partition(squared, state.crowd - 1, axis=1)[:, state.crowd - 1]
            squared = np.maximum(np.maximum(squared, state.cores**2), nth[:, None])
        squared = squared[:, :members]
        if state.rule == "mean":
            sums = np.add.reduceat(np.sqrt(squared), state.starts, axis=1)
            out[start : start + BLOCK] = (sums / np.array(state.sizes)) ** 2
        else:
            best = np.minimum if state.rule == "nearest" else np.maximum
            out[start : start + BLOCK] = best.reduceat(squared, state.starts, axis=1)
    return out / np.array(state.reach) ** 2 if state.reach else out


def apply_members(inputs: Mapping[str, Array], state: Members) -> dict[str, np.ndarray]:
    """`distances` `(B, K)` and, where there can be noise, `noise` `(B, 1)`, float32; the smallest of a row is 0."""
    return answers(squares_to_groups(points(inputs, state.space), state), 1.0 if state.reach else None, state.output)


def answers(distances_BK: np.ndarray, edge: float | None, output: str) -> dict[str, np.ndarray]:
    """Graph outputs of distances, which become noise beyond `edge`; the smallest of each row is taken off: in float32 the distances
    of an outlier are rounded more than their differences."""
    smallest = distances_BK.min(axis=1, keepdims=True)
    smallest = smallest if edge is None else np.minimum(smallest, edge)
    found = {f"{output}.distances": (distances_BK - smallest).astype(np.float32)}
    if edge is not None:
        found[f"{output}.noise"] = (edge - smallest).astype(np.float32)
    return found


class Groups(Nodes):
    """ONNX nodes of a model that finds groups."""

    def space(self, space: Space) -> str:
        """(B, D) float64: what `points` makes."""
        return self.points(bool(space.numbers), space.sizes, float(np.float32(np.sqrt(0.5))))

    def by_group(self, each: str, sizes: Sequence[int], op: str, rest: int = 0) -> str:
        """(B, K): a reduction of `each` (B, N) over the columns of every group."""
        lengths = [*sizes, *([rest] if rest else [])]
        parts = self.several("Split", each, self.constant(lengths, np.int64), count=len(lengths), axis=1)
        axis = self.constant([1], np.int64)
        return self.node("Concat", *(self.node(op, part, axis, keepdims=1) for part in parts[: len(sizes)]), axis=1)

    def finish(self, distances: str, edge: float | None, output: str, groups: int, inputs: Mapping[str, Part]) -> Any:
        """The model whose last steps are those of `answers`."""
        smallest = self.node("ReduceMin", distances, self.constant([1], np.int64), keepdims=1)
        sizes = {f"{output}.distances": groups}
        if edge is not None:
            far = self.constant(edge)
            smallest = self.node("Min", smallest, far)
            self.cast(self.node("Sub", far, smallest), "float32", out=f"{output}.noise")
            sizes[f"{output}.noise"] = 1
        self.cast(self.node("Sub", distances, smallest), "float32", out=f"{output}.distances")
        return self.model(inputs, sizes)


def members_graph(state: Members, inputs: Mapping[str, Part]) -> Any:
    """`apply_members` as an ONNX model in float64."""
    g = Groups()
    x = g.space(state.space)
    turned, lengths = state.wide
    product = g.node("Add", g.node("MatMul", x, g.constant(turned)), g.constant(lengths))
    own = g.node("ReduceSum", g.node("Mul", x, x), g.constant([1], np.int64), keepdims=1)
    squared = g.node("Max", g.node("Add", product, own), g.constant(0.0))
    if state.crowd:
        near, _ = g.several("TopK", squared, g.constant([state.crowd], np.int64), count=2, axis=1, largest=0, sorted=1)
        nth = g.node("Gather", near, g.constant([state.crowd - 1], np.int64), axis=1)
        squared = g.node("Max", squared, nth, g.constant(state.cores**2))
    rest = len(state.points) - sum(state.sizes)
    if state.rule == "mean":
        mean = g.by_group(g.node("Sqrt", squared), state.sizes, "ReduceMean", rest)
        found = g.node("Mul", mean, mean)
    else:
        found = g.by_group(squared, state.sizes, "ReduceMin" if state.rule == "nearest" else "ReduceMax", rest)
    if state.reach:
        found = g.node("Div", found, g.constant(np.array(state.reach) ** 2))
    return g.finish(found, 1.0 if state.reach else None, state.output, len(state.sizes), inputs)
