"""Gaussian mixture for tables: overlapping groups with a probability for each, fitted by EM (Dempster, Laird & Rubin 1977).

In a group numbers are jointly normal, and categories independent of them with shares of their own (latent classes; Hunt & Jorgensen
1999), because a normal density over 0/1 indicators can be made as large as one likes. Columns of two values (indicators of missing values)
are taken as categories for the same reason. Scores are exactly the posterior probabilities.

With `groups: auto` the number and the shape of covariances are those with the least Bayesian information criterion (Schwarz 1978)
among 1 … 10 on up to 10,000 rows; where one group is best, two are made all the same and the report says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.estimators._groups import MOST, Groups, Space, answers, points, sampled, space_of, suggestion
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("cluster",)

TRIED = 10_000
STEPS = 200
GAIN = 1e-5
"""EM ends where the mean log-likelihood of a row grows by less."""
FLOOR = 1e-3
"""Added to every variance, of columns scaled to one: a group of equal rows has a density all the same."""
STARTS = 3
Shape = Literal["full", "diagonal"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the mixture."""

    groups: Annotated[int, Between(1, 1000)] | Literal["auto"] = "auto"
    """How many groups; auto tries 1 to 10."""
    covariance: Literal["auto", "full", "diagonal"] = "auto"
    """full: numbers of a group may go together; diagonal: they are independent in a group; auto takes the better of both."""


@dataclass
class State:
    """The fitted densities: log p(x, k) = bias_k - |x W_k - b_k|²/2 + Σ_j log share_kj(x_j)."""

    space: Space
    columns: list[int] = field(default_factory=list)
    """Number columns that are normal."""
    pairs: list[int] = field(default_factory=list)
    """Number columns of two values."""
    lows: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(P,) the lower of the two values, and `steps` what the other lies above it."""
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    whiten: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    """(K, d, d) float64: inverse Cholesky factors of the covariances, transposed."""
    means: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(K, d) float64."""
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(K,) log share of the group plus the log factor of its density."""
    odds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    """(2, P, K) log shares of the lower and the upper value."""
    shares: list[np.ndarray] = field(default_factory=list)
    """By category column (ids + 1, K) log shares; the last row is for ids that training never saw."""
    output: str = ""
    suggestion: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.space, dict):
            self.space = Space(**self.space)


@dataclass
class _Rows:
    """Training rows as the densities see them."""

    normal_Nd: np.ndarray
    upper_NP: np.ndarray
    ids_Nm: np.ndarray
    weights_N: np.ndarray

    def take(self, index: np.ndarray) -> _Rows:
        return _Rows(self.normal_Nd[index], self.upper_NP[index], self.ids_Nm[index], self.weights_N[index])


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """EM from k-means groups; all rows and `weights` count in the end, a sample of them while numbers of groups are tried."""
    began = time.monotonic()
    space = space_of(inputs)
    blank, rows = _prepare(inputs, space, weights)
    blank.output = heads[0].output
    x = points(inputs, space)
    some = sampled(len(x), TRIED, weights, seed)
    distinct = len(np.unique(x[some], axis=0))
    counts = range(1, min(MOST, distinct) + 1) if config.groups == "auto" else [min(config.groups, distinct)]
    shapes: list[Shape] = ["diagonal", "full"] if config.covariance == "auto" and len(blank.columns) > 1 else [
        "diagonal" if config.covariance == "diagonal" else "full"
    ]  # fmt: skip
    tried: dict[tuple[int, Shape], float] = {}
    part = rows.take(some)
    for k in counts:
        for shape in shapes:
            if tried and budget_s is not None and time.monotonic() - began > budget_s / 2:
                break  # the other half is for the fit on all rows
            if len(counts) * len(shapes) > 1:
                state, likelihood = _em(blank, part, _start(x[some], k, part.weights_N, seed), shape)
                tried[k, shape] = _parameters(state, shape) * np.log(len(some)) - 2 * likelihood * len(some)
                if progress is not None:
                    progress({"event": "groups", "groups": k, "covariance": shape, "bic": tried[k, shape]})
    usable = [c for c in tried if c[0] > 1 or config.groups != "auto"] or [(counts[-1], shapes[0])]
    k, shape = min(usable, key=lambda c: tried.get(c, np.inf))
    labels = _start(x, k, rows.weights_N, seed)
    state, _ = _em(blank, rows, labels, shape)
    by = {str(c): min(v for (n, _), v in tried.items() if n == c) for c in sorted({n for n, _ in tried})}
    alone = config.groups == "auto" and bool(by) and min(by, key=lambda c: by[c]) == "1"
    state.suggestion = suggestion(
        "bic" if config.groups == "auto" else "asked", len(state.bias), by, len(some), len(x), covariance=shape, **({"alone": True} if alone else {})
    )
    return state


def _prepare(inputs: Mapping[str, Array], space: Space, weights: np.ndarray | None) -> tuple[State, _Rows]:
    n = len(next(iter(inputs.values())))
    numbers = np.asarray(inputs["table.numbers"], np.float64) if space.numbers else np.zeros((n, 0))
    low, high = (numbers.min(0), numbers.max(0)) if space.numbers else (np.zeros(0), np.zeros(0))
    two = ((numbers == low) | (numbers == high)).all(0)
    columns, pairs = np.flatnonzero(~two).tolist(), np.flatnonzero(two & (high > low)).tolist()
    blank = State(space, columns, pairs, low[pairs], (high - low)[pairs])
    ids = np.asarray(inputs["table.categories"], np.int64) if space.sizes else np.zeros((n, 0), np.int64)
    ids = np.minimum(ids, np.array(space.sizes, np.int64)) if space.sizes else ids
    return blank, _Rows(numbers[:, columns], _upper(numbers, blank), ids, np.ones(n) if weights is None else np.asarray(weights, np.float64))


def _upper(numbers_Bn: np.ndarray, state: State) -> np.ndarray:
    """(B, P) 1 where a column of two values has its upper one; what lies between gets a share of both."""
    return np.clip((numbers_Bn[:, state.pairs] - state.lows) / state.steps, 0.0, 1.0)


def _start(x_ND: np.ndarray, k: int, weights_N: np.ndarray, seed: int) -> np.ndarray:
    """(N,) groups of k-means."""
    from sklearn.cluster import KMeans

    if k == 1:
        return np.zeros(len(x_ND), np.int64)
    return np.asarray(KMeans(k, n_init=STARTS, random_state=seed).fit(x_ND, sample_weight=weights_N).labels_, np.int64)


def _em(blank: State, rows: _Rows, labels_N: np.ndarray, shape: Shape) -> tuple[State, float]:
    """(state with groups by falling share, mean log-likelihood of a row)."""
    own_NK = np.eye(int(labels_N.max()) + 1)[labels_N]
    before = -np.inf
    for _ in range(STEPS):
        state = _maximise(blank, rows, own_NK, shape)
        joint_NK = _joint(rows.normal_Nd, rows.upper_NP, rows.ids_Nm, state)
        top_N = joint_NK.max(1, keepdims=True)
        total_N = top_N[:, 0] + np.log(np.exp(joint_NK - top_N).sum(1))
        likelihood = float(np.average(total_N, weights=rows.weights_N))
        if likelihood - before < GAIN:
            break
        before = likelihood
        own_NK = np.exp(joint_NK - total_N[:, None])
    return state, likelihood


def _maximise(blank: State, rows: _Rows, own_NK: np.ndarray, shape: Shape) -> State:
    """The state that is likeliest where rows belong to groups by `own_NK`, numbered by falling share; shares are smoothed by one row of every value."""
    mass_NK = own_NK * rows.weights_N[:, None]
    mass_NK = mass_NK[:, np.argsort(-mass_NK.sum(0), kind="stable")]
    sum_K = np.maximum(mass_NK.sum(0), 1e-9)
    d, k = rows.normal_Nd.shape[1], len(sum_K)
    means = mass_NK.T @ rows.normal_Nd / sum_K[:, None]
    whiten, logdet = np.zeros((k, d, d)), np.zeros(k)
    for j in range(k):
        centred = rows.normal_Nd - means[j]
        if shape == "diagonal":
            variance = mass_NK[:, j] @ centred**2 / sum_K[j] + FLOOR
            whiten[j], logdet[j] = np.diag(variance**-0.5), -0.5 * np.log(variance).sum()
        else:
            covariance = (centred * mass_NK[:, [j]]).T @ centred / sum_K[j] + FLOOR * np.eye(d)
            factor = np.linalg.cholesky(covariance)
            whiten[j], logdet[j] = np.linalg.inv(factor).T, -np.log(np.diag(factor)).sum()
    bias = np.log(sum_K / sum_K.sum()) + logdet - 0.5 * d * np.log(2 * np.pi)
    up_PK = (rows.upper_NP.T @ mass_NK + 1.0) / (sum_K + 2.0)
    shares = []
    for i, size in enumerate(blank.space.sizes):
        counts = np.zeros((size + 1, k))
        np.add.at(counts, rows.ids_Nm[:, i], mass_NK)
        shares.append(np.log((counts + 1.0) / (sum_K + size + 1.0)))
    odds = np.stack([np.log(1 - up_PK), np.log(up_PK)])
    return State(blank.space, blank.columns, blank.pairs, blank.lows, blank.steps, whiten, means, bias, odds, shares, blank.output)


def _joint(normal_Bd: np.ndarray, upper_BP: np.ndarray, ids_Bm: np.ndarray, state: State) -> np.ndarray:
    """(B, K) log p(row, group)."""
    out = np.tile(state.bias, (len(normal_Bd), 1))
    for j in range(len(state.bias)):
        out[:, j] -= 0.5 * (((normal_Bd - state.means[j]) @ state.whiten[j]) ** 2).sum(1)
    if state.pairs:
        out += state.odds[0].sum(0) + upper_BP @ (state.odds[1] - state.odds[0])
    for i, table in enumerate(state.shares):
        out += table[ids_Bm[:, i]]
    return out


def _parameters(state: State, shape: Shape) -> int:
    """Free parameters."""
    d, k = len(state.columns), len(state.bias)
    each = d + (d if shape == "diagonal" else d * (d + 1) // 2) + len(state.pairs) + sum(len(t) - 1 for t in state.shares)
    return k * each + k - 1


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """`(B, K)` float32: how much less likely each group is than the likeliest, as a difference of logarithms."""
    n = len(next(iter(inputs.values())))
    numbers = np.asarray(inputs["table.numbers"], np.float64) if state.space.numbers else np.zeros((n, 0))
    ids = np.asarray(inputs["table.categories"], np.int64) if state.space.sizes else np.zeros((n, 0), np.int64)
    if state.space.sizes:
        ids = np.minimum(ids, np.array(state.space.sizes, np.int64))
    return answers(-_joint(numbers[:, state.columns], _upper(numbers, state), ids, state), None, state.output)


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """The same as an ONNX model, in float64."""
    g = Groups()
    k, d = state.means.shape
    terms = [g.constant(-state.bias[None])]
    numbers = g.cast("table.numbers", "float64") if state.space.numbers else ""
    if d:
        normal = g.node("Gather", numbers, g.constant(state.columns, np.int64), axis=1)
        product = g.node("MatMul", normal, g.constant(np.concatenate(list(state.whiten), axis=1)))
        shift = g.constant(np.concatenate([m @ w for m, w in zip(state.means, state.whiten, strict=True)]))
        each = g.node("Reshape", g.node("Sub", product, shift), g.constant([-1, k, d], np.int64))
        squared = g.node("ReduceSum", g.node("Mul", each, each), g.constant([2], np.int64), keepdims=0)
        terms.append(g.node("Mul", squared, g.constant(0.5)))
    if state.pairs:
        chosen = g.node("Gather", numbers, g.constant(state.pairs, np.int64), axis=1)
        share = g.node("Div", g.node("Sub", chosen, g.constant(state.lows)), g.constant(state.steps))
        upper = g.node("Min", g.node("Max", share, g.constant(0.0)), g.constant(1.0))
        terms.append(g.node("MatMul", upper, g.constant(state.odds[0] - state.odds[1])))
        terms.append(g.constant(-state.odds[0].sum(0)[None]))
    for i, table in enumerate(state.shares):
        column = g.node("Gather", "table.categories", g.constant(i, np.int64), axis=1)
        capped = g.node("Min", column, g.constant(len(table) - 1, np.int32))
        terms.append(g.node("Gather", g.constant(-table), capped, axis=0))
    total = g.node("Sum", *terms) if len(terms) > 1 else terms[0]
    return g.finish(total, None, state.output, k, inputs)
