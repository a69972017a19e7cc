"""Random forest and extra trees: many deep trees on random columns, averaged.

Breiman 2001, Random Forests; Geurts, Ernst & Wehenkel 2006, Extremely randomized trees. Fitted by scikit-learn, applied by NumPy or
ONNX Runtime. Labels are learnt as columns of zeros and ones: the squared error of those is the Gini impurity, and the mean of a leaf
its class frequencies. The frequencies of all training rows vote as one tree more, so that no probability is zero, and the
answer is the logarithm of the mean.

Categories enter in the order of their mean target (Fisher 1958: for two classes and for numbers the best split into two sets lies
along that order); missing numbers go to the side that loses less.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.estimators import _forest
from modelyard.estimators._forest import Forest, rounded_down
from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "raw"
KINDS = ("category", "label-set", "number")

PRIOR = 10.0
"""Rows of the overall mean that are added to each category's before they are ordered (Micci-Barreca 2001)."""
LEAVES = 10_000
"""Leaves of a tree at most, by way of the least rows of a leaf: 300 trees of 10,000 leaves are 175 MB already."""
ROWS = 200_000
"""Rows that a tree is grown on at most, drawn anew for each: of a million rows a tree would take a quarter of a minute."""
AT_ONCE = 10
"""Trees between two looks at the clock."""
SMALLEST = 1e-7
"""Probabilities are kept from zero and one by this before their logarithm: float32 has 1e-7 around one."""

RESOURCE = "trees"
"""Setting that says how long to fit: what successive halving cuts."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the forest."""

    variant: Literal["random", "extra"] = "random"
    """random: the best threshold of each column, rows drawn with replacement; extra: a random threshold, all rows."""
    trees: Annotated[int, Between(1, 100_000)] = 300
    """Trees."""
    features: Annotated[float, Between(0.001, 1)] | Literal["auto"] = "auto"
    """Share of the columns that each split may choose from; auto: the square root of their number for labels, half of them for numbers."""
    min_leaf: Annotated[int, Between(1)] | Literal["auto"] = "auto"
    """Rows of a leaf at least; auto: 2 for numbers; for labels one in 500 of the rows, from 1 to 10."""
    categories: Literal["order", "indicators", "ids"] = "order"
    """How categories enter: ordered by mean target, one column for each value, or as ids by frequency."""


@dataclass
class State:
    """One forest per graph output, and how its features are made of the table."""

    numbers: int = 0
    forests: dict[str, Forest] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    sources: dict[str, np.ndarray] = field(default_factory=dict)
    """By output (C,) int32: the category column that feature `numbers + i` is looked up from."""
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    """By output (C, W) float32: the feature of each id; ids from W - 1 on share the last one."""

    def __post_init__(self) -> None:
        self.forests = {k: Forest(**f) if isinstance(f, dict) else f for k, f in self.forests.items()}


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """Grows one forest per output."""
    return _grow(inputs, targets, heads, config, weights, seed, budget_s, progress, None)


def out_of_bag(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, seed: int = 0, budget_s: float | None = None,
) -> tuple[State, dict[str, np.ndarray]]:
    """(the state that `fit` gives, graph outputs `(B, size)` of the training rows by the trees that did not see each of them).

    Draws rows with replacement in both variants, since otherwise every tree sees every row. The order of categories was found on
    all rows, so columns of many rare categories make these scores a little too good.
    """
    found: dict[str, np.ndarray] = {}
    return _grow(inputs, targets, heads, config, weights, seed, budget_s, None, found), found


def _grow(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, weights: np.ndarray | None,
    seed: int, budget_s: float | None, progress: Callable[[dict[str, Any]], None] | None, out: dict[str, np.ndarray] | None,
) -> State:
    state = State(_numbers(inputs).shape[1])
    for head in heads:
        y_BC = target_columns(targets[head.target], head)
        sources, tables = lookups(inputs, y_BC, weights, config.categories)
        x = features(inputs, sources, tables)
        budget = None if budget_s is None else budget_s / len(heads)
        model = _fitted(x, y_BC, head, config, weights, seed, budget, out is not None, progress)
        mean_C = np.average(y_BC, axis=0, weights=weights)
        state.kinds[head.key], state.sources[head.key], state.tables[head.key] = head.kind, sources, tables
        state.forests[head.key] = _forest_of(model, y_BC.shape[1], None if head.kind == "number" else mean_C)
        if out is not None:
            out[head.key] = _answer(_unseen(model, x, mean_C), head.kind)
    return state


def _numbers(inputs: Mapping[str, Array]) -> np.ndarray:
    rows = len(next(iter(inputs.values())))
    return np.asarray(inputs["table.numbers"], np.float32) if "table.numbers" in inputs else np.zeros((rows, 0), np.float32)


def target_columns(y: np.ndarray, head: Head) -> np.ndarray:
    """(B, C) float64: one column for numbers and for two classes, else one a class or label."""
    if head.kind == "category":
        return (y == 1).astype(np.float64)[:, None] if head.size == 2 else np.eye(head.size)[y]
    return np.asarray(y, np.float64).reshape(len(y), -1)


def lookups(
    inputs: Mapping[str, Array], y_BC: np.ndarray, weights: np.ndarray | None, how: str, few: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(sources, tables) of the category columns; columns of up to `few` values as indicators, whatever `how`."""
    ids_Bm = np.asarray(inputs["table.categories"]) if "table.categories" in inputs else np.zeros((len(y_BC), 0), np.int32)
    sizes = (ids_Bm.max(axis=0, initial=0) + 1).tolist()
    width = max(sizes, default=0) + 1
    sources, rows = [], []
    for column, size in enumerate(sizes):
        there = np.unique(ids_Bm[:, column])
        if how == "indicators" or len(there) <= few:
            for i in there[1:] if len(there) == 2 else there:
                sources.append(column)
                rows.append((np.arange(width) == i).astype(np.float32))
        else:
            sources.append(column)
            order = np.arange(size, dtype=np.float32) if how == "ids" else _order(ids_Bm[:, column], y_BC, weights, size)
            rows.append(np.concatenate([order, np.full(width - size, np.nan, np.float32)]))
    return np.array(sources, np.int32), np.array(rows, np.float32).reshape(len(rows), width)


def _order(ids_B: np.ndarray, y_BC: np.ndarray, weights: np.ndarray | None, size: int) -> np.ndarray:
    """(size,) float32 rank of each id by its shrunken mean target; NaN for ids that training has not.

    With several target columns, along the first principal component of the means (Coppersmith, Hong & Hosking 1999).
    """
    w_B = np.ones(len(ids_B)) if weights is None else np.asarray(weights, np.float64)
    count_I = np.bincount(ids_B, w_B, size)
    sums_IC = np.stack([np.bincount(ids_B, w_B * column, size) for column in y_BC.T], axis=1)
    mean_C = sums_IC.sum(0) / max(count_I.sum(), 1e-12)
    means_IC = (sums_IC + PRIOR * mean_C) / (count_I + PRIOR)[:, None] - mean_C
    if means_IC.shape[1] > 1:
        _, vectors = np.linalg.eigh((means_IC * count_I[:, None]).T @ means_IC)
        means_IC = means_IC @ vectors[:, -1:]
    there = np.bincount(ids_B, minlength=size) > 0
    ranks = np.full(size, np.nan, np.float32)
    # ties, and the sign of an eigenvector, must not depend on rounding
    rounded = np.round(means_IC[there, 0] * (1 if np.abs(means_IC).max() == means_IC.max() else -1), 12)
    ranks[there] = np.unique(rounded, return_inverse=True)[1]
    return ranks


def features(inputs: Mapping[str, Array], sources: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """`(B, n + C)` float32: numbers (NaN = missing), then what the ids are looked up as."""
    numbers = _numbers(inputs)
    if not len(sources):
        return np.ascontiguousarray(numbers)
    ids_BC = np.minimum(np.asarray(inputs["table.categories"])[:, sources], tables.shape[1] - 1)
    return np.concatenate([numbers, tables[np.arange(len(sources)), ids_BC]], axis=1)


def _fitted(
    x: np.ndarray, y_BC: np.ndarray, head: Head, config: Config, weights: np.ndarray | None, seed: int, budget_s: float | None,
    drawn: bool, progress: Callable[[dict[str, Any]], None] | None,
) -> Any:
    """scikit-learn's forest, some trees at a time: the same trees as in one go."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

    extra, number = config.variant == "extra", head.kind == "number"
    share: Any = config.features if config.features != "auto" else 0.5 if number else "sqrt"
    least = int(config.min_leaf) if config.min_leaf != "auto" else min(10, max(1, len(x) // 500))
    if config.min_leaf == "auto" and number:
        least = min(2, least)
    many = len(x) > ROWS
    family = ExtraTreesRegressor if extra else RandomForestRegressor
    model = family(
        0, bootstrap=drawn or many or not extra, max_samples=ROWS if many else None, max_features=share, random_state=seed,
        min_samples_leaf=max(least, len(x) // LEAVES), warm_start=True, n_jobs=-1 if x.size > 50_000 else None,
    )  # fmt: skip
    began = time.monotonic()
    while model.n_estimators < config.trees and (not model.n_estimators or budget_s is None or time.monotonic() - began < budget_s):
        model.n_estimators = min(config.trees, model.n_estimators + AT_ONCE)
        model.fit(x, y_BC[:, 0] if y_BC.shape[1] == 1 else y_BC, sample_weight=weights)
        if progress is not None:
            progress({"event": "trees", "output": head.output, "trees": model.n_estimators, "of": config.trees})
    return model


def _forest_of(model: Any, columns: int, prior_C: np.ndarray | None) -> Forest:
    """The trees as flat arrays; a prior counts as one tree more."""
    trees = [e.tree_ for e in model.estimators_]
    share = 1.0 / (len(trees) + (prior_C is not None))
    counts = [t.node_count for t in trees]
    roots = np.cumsum([0, *counts[:-1]])
    cat = lambda name: np.concatenate([getattr(t, name) for t in trees])  # noqa: E731
    left, right = cat("children_left"), cat("children_right")
    leaf, shift = left < 0, np.repeat(roots, counts)
    own = np.arange(len(leaf))
    values_NC = np.concatenate([t.value[:, :, 0] for t in trees]) * share
    value, leaves = np.where(leaf, values_NC[:, 0], 0.0), np.zeros((0, 0))
    if columns > 1:
        value, leaves = np.where(leaf, np.cumsum(leaf) - 1.0, 0.0), values_NC[leaf]
    return Forest(
        np.where(leaf, 0, cat("feature")).astype(np.int32), np.where(leaf, 0, rounded_down(cat("threshold"))).astype(np.float32),
        np.where(leaf, own, left + shift).astype(np.int32), np.where(leaf, own, right + shift).astype(np.int32),
        leaf | (cat("missing_go_to_left") != 0), value, roots.astype(np.int32), np.zeros(len(trees), np.int32),
        np.zeros(columns) if prior_C is None else prior_C * share, max(t.max_depth for t in trees), leaves=leaves,
    )  # fmt: skip


def _unseen(model: Any, x: np.ndarray, mean_C: np.ndarray) -> np.ndarray:
    """(B, C) mean of the trees that did not draw each row, and of the overall mean as one tree more."""
    sums, counts = np.tile(mean_C, (len(x), 1)), np.ones((len(x), 1))
    for estimator, drawn in zip(model.estimators_, model.estimators_samples_, strict=True):
        free = np.ones(len(x), bool)
        free[drawn] = False
        sums[free] += estimator.tree_.value[estimator.tree_.apply(x[free]), :, 0]
        counts[free] += 1
    return np.asarray(sums / counts)


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """Graph outputs float32: logits `(B, K)` or value `(B, 1)`."""
    return {
        key: _answer(_forest.score(features(inputs, state.sources[key], state.tables[key]), forest), state.kinds[key])
        for key, forest in state.forests.items()
    }


def _answer(mean_BC: np.ndarray, kind: str) -> np.ndarray:
    """Logarithms of probabilities (label sets: log-odds), or the values themselves."""
    if kind == "number":
        return mean_BC.astype(np.float32)
    p = mean_BC.clip(SMALLEST, 1 - SMALLEST)
    if kind == "label-set":
        return np.log(p / (1 - p)).astype(np.float32)
    return np.log(np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p).astype(np.float32)


def join(states: list[State]) -> State:
    """The average of several states (of folds, of seeds) as one: all trees side by side, each with its own look-ups."""
    first = states[0]
    joined = State(first.numbers, kinds=dict(first.kinds))
    for key in first.forests:
        forests, start = [], 0
        width = max(state.tables[key].shape[1] for state in states)
        for state in states:
            f = state.forests[key]
            mine = np.where(f.feature >= first.numbers, f.feature + start, f.feature).astype(np.int32)
            value = f.value if len(f.leaves) else f.value / len(states)
            forests.append(dataclasses.replace(f, feature=mine, value=value, leaves=f.leaves / len(states)))
            start += len(state.sources[key])
        joined.forests[key] = _forest.join(forests, len(first.forests[key].base))
        joined.forests[key].base = np.mean([state.forests[key].base for state in states], axis=0)
        joined.sources[key] = np.concatenate([state.sources[key] for state in states])
        # ids beyond a state's own table share its last entry
        wide = [np.pad(s.tables[key], ((0, 0), (0, width - s.tables[key].shape[1])), "edge") for s in states if len(s.tables[key])]
        joined.tables[key] = np.concatenate(wide) if wide else first.tables[key]
    return joined


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """Look-ups, one TreeEnsemble an output and the logarithm, in float64 up to the answer."""
    g, sizes = Nodes(), {}
    for key, forest in state.forests.items():
        kind, columns = state.kinds[key], len(forest.base)
        answer = mean = sum_nodes(g, forest, lookup_nodes(g, state.numbers, state.sources[key], state.tables[key]))
        if kind != "number":
            p = g.node("Min", g.node("Max", mean, g.constant(SMALLEST)), g.constant(1 - SMALLEST))
            not_p = g.node("Sub", g.constant(1.0), p)
            if kind == "label-set":
                p = g.node("Div", p, not_p)
            elif columns == 1:
                p, columns = g.node("Concat", not_p, p, axis=1), 2
            answer = g.node("Log", p)
        g.cast(answer, "float32", out=key)
        sizes[key] = columns
    return g.model(inputs, sizes)


def lookup_nodes(g: Nodes, numbers: int, sources: np.ndarray, tables: np.ndarray) -> str:
    """What makes `features` in ONNX; its name (float64)."""
    blocks = ["table.numbers"] if numbers else []
    if len(sources):
        ids = g.node("Gather", "table.categories", g.constant(sources, np.int64), axis=1)
        capped = g.node("Min", ids, g.constant(tables.shape[1] - 1, np.int32))
        places = g.node("Add", capped, g.constant(np.arange(len(sources)) * tables.shape[1], np.int32))
        blocks.append(g.node("Gather", g.constant(tables.reshape(-1), tables.dtype), places))
    return g.cast(g.node("Concat", *blocks, axis=1), "float64")


def sum_nodes(g: Nodes, forest: Forest, wide: str) -> str:
    """The sum of the trees over the features named `wide`; its name, `(B, columns)` float64.

    A tree with vector leaves gives the number of its leaf in a column of its own; the rows of those numbers are then summed.
    """
    from modelyard.estimators.trees import ensemble

    if not len(forest.leaves):
        total = g.keep(ensemble(forest, g.fresh("total"), wide))
    else:
        numbers = g.cast(g.keep(ensemble(_numbered(forest), g.fresh("rows"), wide)), "int64")
        gathered = g.node("Gather", g.constant(forest.leaves, forest.leaves.dtype), numbers, axis=0)
        total = g.node("ReduceSum", gathered, g.constant([1], np.int64), keepdims=0)
    return g.node("Add", total, g.constant(forest.base))


def _numbered(forest: Forest) -> Forest:
    """The forest whose tree t adds the number of its leaf to column t."""
    trees = len(forest.roots)
    return dataclasses.replace(forest, column=np.arange(trees, dtype=np.int32), base=np.zeros(trees), leaves=np.zeros((0, 0)))
