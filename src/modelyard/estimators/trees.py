"""Gradient-boosted decision trees, fitted by LightGBM (Ke et al. 2017) and applied by NumPy or ONNX Runtime.

Features are float32 before fitting and thresholds are rounded *down* to float32, so that `x <= t` decides for every float32 x
exactly as LightGBM's float64 comparison does. A few boosters with different seeds are averaged (`bags`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.estimators._forest import Forest, read, score
from modelyard.estimators._forest import join as join_forests
from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "raw"
KINDS = ("category", "label-set", "number")

RESOURCE = "trees"
"""Setting that says how long to fit: what successive halving cuts."""

SMALL = 500
"""Training rows below which no bag holds rows out: a tenth of fewer is too noisy to stop on."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the trees."""

    trees: Annotated[int, Between(1, 100_000)] = 2000
    """Most rounds of boosting; it stops earlier by itself, on the validation rows or (without any) on rows held out by each bag."""
    lr: Annotated[float, Between(1e-4, 1)] = 0.05
    """Shrinkage of each tree."""
    leaves: Annotated[int, Between(2, 10_000)] = 31
    """Leaves of a tree at most."""
    min_leaf: Annotated[int, Between(1)] = 20
    """Rows of a leaf at least."""
    features: Annotated[float, Between(0.01, 1)] = 0.7
    """Share of the columns that each tree may use."""
    rows: Annotated[float, Between(0.01, 1)] = 0.8
    """Share of the rows that each tree sees."""
    l1: Annotated[float, Between(0)] = 0.0
    """L1 penalty of leaf values."""
    l2: Annotated[float, Between(0)] = 1.0
    """L2 penalty of leaf values."""
    patience: Annotated[int, Between(1)] = 60
    """Rounds without a better validation loss after which boosting stops."""
    extra: bool = False
    """Thresholds drawn at random instead of searched (extremely randomised trees, Geurts et al. 2006): other errors, good in an average."""
    bags: Annotated[int, Between(1, 100)] = 3
    """Boosters with different seeds whose answers are averaged."""
    monotone: dict[str, Literal["increasing", "decreasing", 1, -1, 0]] = field(default_factory=dict)
    """Number columns whose rise may only raise (increasing, 1) or lower (decreasing, -1) the answer: the number, or the score of the
    last of two labels. Also written at the column: `data.inputs: {income: {kind: number, monotone: increasing}}`."""


@dataclass
class State:
    """One forest per graph output."""

    numbers: int = 0
    categories: int = 0
    forests: dict[str, Forest] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[int]] = field(default_factory=dict)
    """Rounds of each booster."""

    def __post_init__(self) -> None:
        self.forests = {k: Forest(**f) if isinstance(f, dict) else f for k, f in self.forests.items()}


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: tuple[Mapping[str, Array], Mapping[str, np.ndarray]] | None = None, seed: int = 0,
    budget_s: float | None = None, progress: Callable[[dict[str, Any]], None] | None = None, monotone: np.ndarray | None = None,
) -> State:
    """Boosts one forest per output (one per label for label sets). `monotone` (n,) is the sign of each number column, 0 for none."""
    x = matrix(inputs)
    n = np.asarray(inputs["table.numbers"]).shape[1] if "table.numbers" in inputs else 0
    state = State(n, x.shape[1] - n)
    held = None if valid is None else matrix(valid[0])
    jobs = sum(head.size if head.kind == "label-set" else 1 for head in heads)
    share = None if budget_s is None else budget_s / max(1, jobs)
    for head in heads:
        y, y_valid = targets[head.target], None if valid is None else valid[1].get(head.target)
        state.kinds[head.key] = head.kind
        columns = range(head.size) if head.kind == "label-set" else [0]
        forests, rounds = [], []
        for k in columns:
            own = y[:, k] if head.kind == "label-set" else y
            own_valid = None if y_valid is None else (y_valid[:, k] if head.kind == "label-set" else y_valid)
            forest, r = _boost(x, n, own, held, own_valid, head, config, weights, seed, share, progress, monotone)
            forest.column += k
            forests.append(forest)
            rounds += r
        state.forests[head.key] = join_forests(forests, head.size if head.kind != "category" or head.size > 2 else 1)
        state.rounds[head.key] = rounds
    return state


def matrix(inputs: Mapping[str, Array]) -> np.ndarray:
    """`(B, n + m)` float32: numbers (NaN = missing), then category ids."""
    blocks = [np.asarray(inputs[k], np.float32) for k in ("table.numbers", "table.categories") if k in inputs]
    return np.ascontiguousarray(np.concatenate(blocks, axis=1))


def _boost(
    x: np.ndarray, numbers: int, y: np.ndarray, x_valid: np.ndarray | None, y_valid: np.ndarray | None, head: Head, config: Config,
    weights: np.ndarray | None, seed: int, budget_s: float | None, progress: Callable[[dict[str, Any]], None] | None,
    monotone: np.ndarray | None = None,
) -> tuple[Forest, list[int]]:
    import lightgbm as lgb

    classes = head.size if head.kind == "category" else 2
    objective = "regression" if head.kind == "number" else "binary" if classes == 2 else "multiclass"
    small = len(x) < 2000  # a leaf of 20 rows is a hundredth of the data there
    shared = {
        "objective": objective, "learning_rate": config.lr, "num_leaves": config.leaves, "verbose": -1, "deterministic": True,
        "min_data_in_leaf": max(1, min(config.min_leaf, len(x) // 20 if small else config.min_leaf)), "force_row_wise": True,
        "feature_fraction": config.features, "bagging_fraction": config.rows, "bagging_freq": 1, "lambda_l1": config.l1,
        "lambda_l2": config.l2, "num_threads": 1 if x.size < 300_000 else 0, "max_bin": 255, "feature_pre_filter": False, "extra_trees": config.extra,
        **({"num_class": classes} if objective == "multiclass" else {}),
        **({} if monotone is None else {
            "monotone_constraints": [*monotone.tolist(), *[0] * (x.shape[1] - numbers)],
            # where numbers are missing LightGBM 4.7 breaks its promise under advanced (by 0.1) and intermediate (by 0.004); basic kept it
            "monotone_constraints_method": "basic" if np.isnan(x[:, :numbers]).any() else "advanced",
        }),
    }  # fmt: skip
    sets = list(range(numbers, x.shape[1]))  # split by sets of categories (Fisher 1958), which ids as numbers cannot
    binning = {"verbose": -1, "max_bin": 255, "feature_pre_filter": False}
    data = lgb.Dataset(x, np.asarray(y, np.float64).reshape(-1), weight=weights, free_raw_data=False, params=binning, categorical_feature=sets)
    checks = None
    if x_valid is not None and y_valid is not None and len(x_valid):
        y_check = np.asarray(y_valid, np.float64).reshape(-1)
        heavy = None if weights is None or objective == "regression" else _like(y, weights, y_check)
        checks = lgb.Dataset(x_valid, y_check, weight=heavy, reference=data, free_raw_data=False)
    boosters, began = [], time.monotonic()
    for bag in range(config.bags):
        deadline = None if budget_s is None else began + budget_s * (bag + 1) / config.bags
        own, check = (data, checks) if checks is not None else _held_out(data, x, y, weights, seed, bag)
        rounds = config.trees if check is not None else min(config.trees, max(20, round(10 / config.lr)))
        calls: list[Callable[..., Any]] = [lgb.early_stopping(config.patience, verbose=False)] if check is not None else []
        calls.append(_watch(deadline, progress, head.output, bag, rounds))
        params = {**shared, "seed": seed * 1009 + bag, "bagging_seed": seed * 1009 + bag, "feature_fraction_seed": seed * 1009 + bag,
                  "extra_seed": seed * 1009 + bag}  # fmt: skip
        booster = lgb.train(params, own, rounds, valid_sets=[check] if check is not None else None, callbacks=calls)
        boosters.append(booster)
    rounds_run = [max(1, b.best_iteration or b.current_iteration()) for b in boosters]
    return _forest(boosters, classes if objective == "multiclass" else 1), rounds_run


def _like(y: np.ndarray, weights: np.ndarray, y_valid: np.ndarray) -> np.ndarray:
    """Weights of the validation rows: the mean weight of their label in training, so that both losses pull the same way."""
    ids, size = np.asarray(y, np.int64).reshape(-1), int(max(np.max(y), np.max(y_valid))) + 1
    total, count = np.bincount(ids, weights, minlength=size), np.bincount(ids, minlength=size)
    return np.asarray(np.where(count, total / np.maximum(count, 1), 1.0)[y_valid.astype(np.int64)])


def _held_out(data: Any, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, seed: int, bag: int) -> tuple[Any, Any]:
    """(rows to learn from, rows to stop on) of one bag where there are no validation rows: every bag leaves out another
    tenth, spread evenly over the sorted targets, so that all rows together are learnt from (cross-validated stopping)."""
    import lightgbm as lgb

    if len(x) < SMALL:
        return data, None
    y = np.asarray(y, np.float64).reshape(-1)
    chance = np.random.default_rng([seed, 1]).random(len(x))
    tenth = np.empty(len(x), np.int64)
    tenth[np.lexsort((chance, y))] = np.arange(len(x)) % 10
    out = tenth == bag % 10
    parts = []
    for rows in (~out, out):
        weight = None if weights is None else weights[rows]
        parts.append(lgb.Dataset(x[rows], y[rows], weight=weight, reference=data, free_raw_data=False))
    return parts[0], parts[1]


def _watch(
    deadline: float | None, progress: Callable[[dict[str, Any]], None] | None, output: str, bag: int, rounds: int
) -> Callable[[Any], None]:
    """Tells of the rounds; stops at the deadline with the round whose validation loss is least (without one, the last)."""
    import lightgbm as lgb

    best: tuple[float, int, list[Any]] | None = None

    def call(env: Any) -> None:
        nonlocal best
        held = env.evaluation_result_list
        loss = held[0][2] if held else None
        if best is None or loss is None or loss < best[0]:
            best = (math.inf if loss is None else loss, env.iteration, held)
        if progress is not None and env.iteration % 20 == 0:
            progress({"event": "round", "output": output, "bag": bag, "round": env.iteration, "rounds": rounds, "valid_loss": loss})
        if deadline is not None and time.monotonic() > deadline:
            raise lgb.callback.EarlyStopException(best[1], best[2])

    return call


def _forest(boosters: list[Any], columns: int) -> Forest:
    """The trees of all boosters, averaged."""
    return read([booster.model_to_string(num_iteration=booster.best_iteration or None) for booster in boosters], columns)


def join(states: list[State]) -> State:
    """The average of several models as one: all their trees, with leaves divided by the number of models."""
    first = states[0]
    forests = {}
    for key, forest in first.forests.items():
        same = [dataclasses.replace(s.forests[key], value=s.forests[key].value / len(states)) for s in states]
        forests[key] = join_forests(same, len(forest.base))
    rounds = {key: [r for s in states for r in s.rounds[key]] for key in first.rounds}
    return State(first.numbers, first.categories, forests, dict(first.kinds), rounds)


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """Graph outputs float32: logits `(B, K)` or value `(B, 1)`."""
    x = matrix(inputs)
    return {key: _logits(score(x, forest), state.kinds[key]) for key, forest in state.forests.items()}


def _logits(raw_BC: np.ndarray, kind: str) -> np.ndarray:
    """Two classes have one score s and the logits (-s/2, s/2)."""
    if kind == "category" and raw_BC.shape[1] == 1:
        raw_BC = np.concatenate([-raw_BC, raw_BC], axis=1) / 2
    return raw_BC.astype(np.float32)


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """TreeEnsemble nodes (ai.onnx.ml 5, which knows sets of categories) behind one concatenation of the inputs.

    They add in float64: 2,400 leaf values added in float32 were off by 4e-6 of the sum.
    """
    g, names = Nodes(), []
    if state.numbers:
        names.append("table.numbers")
    if state.categories:
        names.append(g.cast("table.categories", "float32"))
    features = g.cast(g.node("Concat", *names, axis=1), "float64")
    sizes = {}
    for key, forest in state.forests.items():
        binary = state.kinds[key] == "category" and len(forest.base) == 1
        sizes[key] = 2 if binary else len(forest.base)
        total = g.cast(g.keep(ensemble(forest, g.fresh("sum"), features)), "float32", out="" if binary else key)
        if binary:
            g.node("Mul", total, g.constant([-0.5, 0.5], np.float32), out=key)
    return g.model(inputs, sizes)


def ensemble(forest: Forest, output: str, features: str) -> Any:
    """One TreeEnsemble node. Inner nodes and leaves are numbered apart; a tree of one leaf gets a root with that leaf twice."""
    from onnx import helper, numpy_helper

    leaf = forest.left == np.arange(len(forest.feature))
    inner, alone = np.flatnonzero(~leaf), forest.roots[leaf[forest.roots]]
    number = np.where(leaf, np.cumsum(leaf), np.cumsum(~leaf)) - 1
    extra, leaves, roots = np.arange(len(alone)), int(leaf.sum()), number[forest.roots].copy()
    roots[leaf[forest.roots]] = len(inner) + extra
    tree = np.repeat(np.arange(len(forest.roots)), np.diff(np.append(forest.roots, len(forest.feature))))
    ends = np.concatenate([np.flatnonzero(leaf), alone])
    choice = forest.choice[inner]
    sets = [[*forest.members[forest.bounds[c] : forest.bounds[c + 1]].tolist(), np.nan] for c in choice[choice >= 0]]
    members = {"membership_values": numpy_helper.from_array(np.concatenate(sets).astype(np.float64), "members")} if sets else {}
    padded = lambda values, more: [*np.asarray(values).tolist(), *([more] * len(alone))]  # noqa: E731
    return helper.make_node(  # type: ignore[call-overload]
        "TreeEnsemble", [features], [output], domain="ai.onnx.ml", n_targets=len(forest.base),
        aggregate_function=1, post_transform=0, tree_roots=roots.tolist(),  # 1: sum; 0: none
        nodes_splits=numpy_helper.from_array(np.array(padded(forest.threshold[inner], 0.0), np.float64), "thresholds"),
        nodes_modes=numpy_helper.from_array(np.array(padded(np.where(choice >= 0, 6, 0), 0), np.uint8), "modes"),  # 6: member; 0: <=
        nodes_featureids=padded(forest.feature[inner], 0), nodes_missing_value_tracks_true=padded(forest.missing_left[inner].astype(int), 0),
        nodes_truenodeids=[*number[forest.left[inner]].tolist(), *number[alone].tolist()],
        nodes_trueleafs=padded(leaf[forest.left[inner]].astype(int), 1),
        nodes_falsenodeids=[*number[forest.right[inner]].tolist(), *(leaves + extra).tolist()],
        nodes_falseleafs=padded(leaf[forest.right[inner]].astype(int), 1),
        leaf_targetids=forest.column[tree[ends]].tolist(), leaf_weights=numpy_helper.from_array(forest.value[ends], "leaves"), **members,
    )  # fmt: skip
