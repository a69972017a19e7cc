"""k nearest neighbours: an answer is what the most similar training rows say, exactly.

Cover & Hart 1967. Rows are compared by Euclidean distance over scaled numbers and indicators of categories scaled by 1/√2, so
that two different values lie at distance 1 as two numbers one deviation apart do. `k` and the weights are chosen by leaving
each of a sample of training rows out.

A matrix product in float32 finds candidates, of which the distances are then worked out one by one in float64: equal rows are at
equal distances, ties go to the row that comes first in a shuffled order, and no row's answer depends on its neighbours in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.errors import DataError
from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category", "label-set", "number")

COUNTS = (1, 3, 5, 10, 15, 20, 30, 50, 75, 100)
"""Numbers of neighbours that are tried."""
SAMPLE = 2000
"""Training rows that are left out to choose the number and the weights."""
IDS = 256
"""Ids of a category with an indicator; rarer values have none and lie at 1/√2 from every other and at 0 from each other."""
STEP = 2.0**-30
"""Squared distances are rounded to multiples of this, so that rounding errors of another runtime do not break ties (1e-9)."""
NEAR = 1e-3
"""Added to a distance before it divides: a copy of the row weighs a thousand neighbours at distance one."""
SMALLEST = 1e-7
"""Probabilities are kept from zero and one by this before their logarithm."""
ERROR = 1e-5
"""Of a float32 product x·y, relative to |x|² + |y|²: a hundred times what a sum of a thousand terms is usually off by."""
BLOCK = 256
"""Rows compared at once: their float32 distances to 50,000 others are 51 MB."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the neighbours."""

    k: Annotated[int, Between(1, 10_000)] | Literal["auto"] = "auto"
    """Neighbours that are asked; auto tries 1 to 100."""
    weights: Literal["auto", "uniform", "distance"] = "auto"
    """uniform: every neighbour counts the same; distance: by the inverse of the distance."""
    rows: Annotated[int, Between(1)] = 50_000
    """Training rows that are kept at most; beyond, a random sample of them."""


@dataclass
class State:
    """The training rows as points."""

    k: int = 1
    by_distance: bool = False
    numbers: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(N, n) float32."""
    ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    """(N, m) int32."""
    sizes: list[int] = field(default_factory=list)
    """Ids with an indicator, by category column."""
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(N,) float64."""
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    """By graph output, (N, C) float32: numbers, or zeros and ones of classes and labels."""
    means: dict[str, np.ndarray] = field(default_factory=dict)
    """By graph output, (C,) mean answer: one neighbour more, so that no probability is zero."""
    kinds: dict[str, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    """Mean loss of every choice that was tried: `uniform 5` …"""

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """((D, N) float32 transposed points, (N,) their squared lengths less the error of a product with them)."""
        x = _points(self.numbers, self.ids, self.sizes)
        return np.ascontiguousarray(x.T), (1 - ERROR) * (x * x).sum(1)


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """Keeps the rows and chooses how many are asked; the one choice takes a pass over a sample, whatever the budget."""
    numbers, ids = _table(inputs)
    rows = np.random.default_rng(seed).permutation(len(numbers))
    if weights is not None:
        rows = rows[np.asarray(weights)[rows] > 0]
        if not len(rows):
            raise DataError("every example has weight zero, so there are no neighbours to ask")
    rows = rows[: config.rows]
    most = max(COUNTS) if config.k == "auto" else config.k
    rows = rows[_wanted(numbers[rows], ids[rows], most + 1)]
    sizes = [min(IDS, int(c) + 1) for c in ids[rows].max(axis=0, initial=0)] if ids.shape[1] else []
    kept = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)[rows]
    state = State(1, False, numbers[rows], ids[rows], sizes, kept)
    for head in heads:
        y = np.asarray(targets[head.target])
        y_NC = np.eye(head.size, dtype=np.float32)[y[rows]] if head.kind == "category" else y[rows].reshape(len(rows), -1).astype(np.float32)
        state.answers[head.key], state.kinds[head.key] = y_NC, head.kind
        state.means[head.key] = np.average(y_NC.astype(np.float64), axis=0, weights=kept)
    _choose(state, config, seed)
    if progress is not None:
        progress({"event": "fitted", "k": state.k, "weights": "distance" if state.by_distance else "uniform", "losses": state.losses})
    return state


def _table(inputs: Mapping[str, Array]) -> tuple[np.ndarray, np.ndarray]:
    rows = len(next(iter(inputs.values())))
    numbers = np.asarray(inputs["table.numbers"], np.float32) if "table.numbers" in inputs else np.zeros((rows, 0), np.float32)
    return numbers, np.asarray(inputs["table.categories"], np.int32) if "table.categories" in inputs else np.zeros((rows, 0), np.int32)


def _wanted(numbers: np.ndarray, ids: np.ndarray, copies: int) -> np.ndarray:
    """Positions of the first `copies` of equal rows: since ties go to the first, later ones are never asked."""
    keys = np.concatenate([numbers.view(np.int32), ids], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return np.sort(order[rank < copies])


def _points(numbers: np.ndarray, ids: np.ndarray, sizes: list[int]) -> np.ndarray:
    """(B, D) float32: numbers, then the indicators."""
    x = np.zeros((len(numbers), numbers.shape[1] + sum(sizes)), np.float32)
    x[:, : numbers.shape[1]] = numbers
    start = numbers.shape[1]
    for column, size in zip(ids.T, sizes, strict=True):
        known = np.flatnonzero(column < size)
        x[known, start + column[known]] = np.sqrt(np.float32(0.5))
        start += size
    return x


def nearest(state: State, numbers: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """((B, k) positions, (B, k) rounded squared distances float64) of the nearest rows, nearest first."""
    k = min(k, len(state.numbers))
    where, far = np.empty((len(numbers), k), np.int64), np.empty((len(numbers), k))
    for low in range(0, len(numbers), BLOCK):
        block = slice(low, low + BLOCK)
        where[block], far[block] = _nearest(state, numbers[block], ids[block], k)
    return where, far


def _nearest(state: State, numbers: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    points_DN, lengths_N = state.points
    x = _points(numbers, ids, state.sizes)
    near_BN = lengths_N - 2 * (x @ points_DN)  # without |x|², which changes no comparison
    own_B, bound_B = (x * x).sum(1), _bound(near_BN, k)
    # none of the k rows that the bound comes from is longer than this
    longest_B = (np.sqrt(own_B) + np.sqrt(np.maximum(bound_B + own_B, 0))) ** 2
    row, column = np.nonzero(near_BN <= (bound_B + 2 * ERROR * (own_B + longest_B))[:, None])
    exact = np.empty(len(row))
    for low in range(0, len(row), 200_000):
        r, c = row[low : low + 200_000], column[low : low + 200_000]
        exact[low : low + 200_000] = _distances(state, numbers, ids, r, c)
    order = np.lexsort((column, exact, row))
    starts = np.searchsorted(row, np.arange(len(x)))
    chosen = order[starts[:, None] + np.arange(k)]
    return column[chosen], exact[chosen]


def _bound(near_BN: np.ndarray, k: int) -> np.ndarray:
    """(B,) a value that at least k of each row do not exceed: the k-th least of the minima of 32 neighbours in storage each.

    A partition of all distances would take ten times as long as the product that made them.
    """
    groups = near_BN.shape[1] // 32
    if groups < 4 * k:
        return np.asarray(np.partition(near_BN, k - 1, axis=1)[:, k - 1])
    minima = near_BN[:, : groups * 32].reshape(len(near_BN), groups, 32).min(axis=2)
    return np.asarray(np.partition(minima, k - 1, axis=1)[:, k - 1])


def _distances(state: State, numbers: np.ndarray, ids: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Rounded squared distances, float64, of pairs (row of the batch, row of the state)."""
    difference = numbers[row].astype(np.float64) - state.numbers[column]
    total = np.einsum("pn,pn->p", difference, difference)
    for i, size in enumerate(state.sizes):
        a, b = ids[row, i], state.ids[column, i]
        total += np.where(a == b, 0.0, 0.5 * (a < size) + 0.5 * (b < size))
    return np.round(total / STEP) * STEP


def _choose(state: State, config: Config, seed: int) -> None:
    """Sets `k` and `by_distance` by the mean loss over all outputs of left-out rows: log-loss, or squared error in deviations."""
    weighings = [config.weights == "distance"] if config.weights != "auto" else [False, True]
    counts = [config.k] if config.k != "auto" else [c for c in COUNTS if c < len(state.numbers)] or [1]
    state.k, state.by_distance = min(counts[0], len(state.numbers)), weighings[0]
    if len(counts) * len(weighings) == 1 or len(state.numbers) < 3:
        return
    some = np.random.default_rng([seed, 1]).permutation(len(state.numbers))[:SAMPLE]
    where, far = nearest(state, state.numbers[some], state.ids[some], max(counts) + 1)
    self_last = np.argsort(where == some[:, None], axis=1, kind="stable")[:, :-1]  # the row itself goes, wherever it stands
    where, far = np.take_along_axis(where, self_last, 1), np.take_along_axis(far, self_last, 1)
    for by_distance in weighings:
        for k in counts:
            losses = []
            for key, answers in state.answers.items():
                out = _combined(state, key, where[:, :k], far[:, :k], by_distance)
                losses.append(_loss(out, answers[some], state.kinds[key], state.weights[some]))
            state.losses[f"{'distance' if by_distance else 'uniform'} {k}"] = float(np.mean(losses))
    best = min(state.losses, key=lambda name: state.losses[name])
    state.by_distance, state.k = best.startswith("distance"), int(best.split()[1])


def _loss(mean_BC: np.ndarray, truth_BC: np.ndarray, kind: str, weights_B: np.ndarray) -> float:
    if kind == "number":
        loss_B = ((mean_BC - truth_BC) ** 2).sum(1) / max(float(truth_BC.var()), 1e-12)
    else:
        p = mean_BC.clip(SMALLEST, 1 - SMALLEST)
        loss_B = -(truth_BC * np.log(p)).sum(1)
        if kind == "label-set":
            loss_B = loss_B - ((1 - truth_BC) * np.log(1 - p)).sum(1)
    return float(np.average(loss_B, weights=weights_B))


def _combined(state: State, key: str, where: np.ndarray, far: np.ndarray, by_distance: bool) -> np.ndarray:
    """(B, C) weighted mean answer of the neighbours; for labels the overall mean counts as one of them."""
    weight_BK = state.weights[where]
    if by_distance:
        weight_BK = weight_BK / (np.sqrt(far) + NEAR)
    share_BK = weight_BK / weight_BK.sum(1, keepdims=True)
    mean_BC = np.einsum("bk,bkc->bc", share_BK, state.answers[key][where].astype(np.float64))
    if state.kinds[key] == "number":
        return np.asarray(mean_BC)
    k = where.shape[1]
    return np.asarray((k * mean_BC + state.means[key]) / (k + 1))


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """Graph outputs float32: logits `(B, K)` or value `(B, 1)`."""
    numbers, ids = _table(inputs)
    where, far = nearest(state, numbers, ids, state.k)
    out = {}
    for key, kind in state.kinds.items():
        mean_BC = _combined(state, key, where, far, state.by_distance)
        p = mean_BC.clip(SMALLEST, 1 - SMALLEST)
        value = mean_BC if kind == "number" else np.log(p) if kind == "category" else np.log(p / (1 - p))
        out[key] = value.astype(np.float32)
    return out


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """One matrix product and a TopK, in float64: float32 would confuse near neighbours (2 x·y is off by 1e-7 of |x|²)."""
    g, sizes = Nodes(), {}
    x = g.points(bool(state.numbers.shape[1]), state.sizes, float(np.sqrt(0.5)))
    points = np.concatenate([state.numbers.astype(np.float64), _points(state.numbers[:, :0], state.ids, state.sizes) > 0], axis=1)
    points[:, state.numbers.shape[1] :] *= np.sqrt(0.5)
    last, k = g.constant([1], np.int64), min(state.k, len(points))
    product = g.node("MatMul", x, g.constant(-2 * points.T))
    own = g.node("ReduceSum", g.node("Mul", x, x), last, keepdims=1)
    squared = g.node("Add", g.node("Add", product, g.constant((points**2).sum(1))), own)
    rounded = g.node("Round", g.node("Mul", squared, g.constant(1 / STEP)))
    near, where = g.several("TopK", rounded, g.constant([k], np.int64), count=2, axis=1, largest=0, sorted=1)
    weight = g.node("Gather", g.constant(state.weights), where, axis=0)
    if state.by_distance:
        squares = g.node("Max", g.node("Mul", near, g.constant(STEP)), g.constant(0.0))
        weight = g.node("Div", weight, g.node("Add", g.node("Sqrt", squares), g.constant(NEAR)))
    share = g.node("Unsqueeze", g.node("Div", weight, g.node("ReduceSum", weight, last, keepdims=1)), last)
    for key, kind in state.kinds.items():
        asked = g.node("Gather", g.constant(state.answers[key]), where, axis=0)
        mean = g.node("Squeeze", g.node("MatMul", share, asked), last)
        if kind != "number":
            more = g.node("Add", g.node("Mul", mean, g.constant(k / (k + 1))), g.constant(state.means[key] / (k + 1)))
            p = g.node("Min", g.node("Max", more, g.constant(SMALLEST)), g.constant(1 - SMALLEST))
            if kind == "label-set":
                p = g.node("Div", p, g.node("Sub", g.constant(1.0), p))
            mean = g.node("Log", p)
        g.cast(mean, "float32", out=key)
        sizes[key] = state.answers[key].shape[1]
    return g.model(inputs, sizes)
