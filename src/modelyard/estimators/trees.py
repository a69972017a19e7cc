"""Gradient-boosted decision trees, fitted by LightGBM (Ke et al. 2017) and applied by NumPy or ONNX Runtime.

Features are float32 before fitting and thresholds are rounded *down* to float32, so that `x <= t` decides for every float32 x
exactly as LightGBM's float64 comparison does. A few boosters with different seeds are averaged (`bags`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from modelyard.estimators._features import onnx_model
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "raw"
KINDS = ("category", "label-set", "number")

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
    bags: Annotated[int, Between(1, 100)] = 3
    """Boosters with different seeds whose answers are averaged."""


@dataclass
class Forest:
    """All trees of one output as flat arrays; a node's children are node numbers, a leaf points to itself."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    """Where NaN goes."""
    value: np.ndarray
    """Leaf values, float64; 0 at inner nodes."""
    roots: np.ndarray
    column: np.ndarray
    """The output column that each tree adds to."""
    base: np.ndarray
    """(columns,) added at the end."""
    depth: int = 0


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
    budget_s: float | None = None, progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """Boosts one forest per output (one per label for label sets)."""
    x = matrix(inputs)
    n = np.asarray(inputs["table.numbers"]).shape[1] if "table.numbers" in inputs else 0
    state = State(n, x.shape[1] - n)
    held = None if valid is None else matrix(valid[0])
    jobs = sum(head.size if head.kind == "label-set" else 1 for head in heads)
    share = None if budget_s is None else budget_s / max(1, jobs)
    for head in heads:
        part = {"category": "index", "label-set": "multi_hot", "number": "value"}[head.kind]
        y, y_valid = targets[f"{head.output}.{part}"], None if valid is None else valid[1].get(f"{head.output}.{part}")
        state.kinds[head.key] = head.kind
        columns = range(head.size) if head.kind == "label-set" else [0]
        forests, rounds = [], []
        for k in columns:
            own = y[:, k] if head.kind == "label-set" else y
            own_valid = None if y_valid is None else (y_valid[:, k] if head.kind == "label-set" else y_valid)
            forest, r = _boost(x, own, held, own_valid, head, config, weights, seed, share, progress)
            forest.column += k
            forests.append(forest)
            rounds += r
        state.forests[head.key] = _join(forests, head.size if head.kind != "category" or head.size > 2 else 1)
        state.rounds[head.key] = rounds
    return state


def matrix(inputs: Mapping[str, Array]) -> np.ndarray:
    """`(B, n + m)` float32: numbers (NaN = missing), then category ids as numbers (by falling frequency)."""
    blocks = [np.asarray(inputs[k], np.float32) for k in ("table.numbers", "table.categories") if k in inputs]
    return np.ascontiguousarray(np.concatenate(blocks, axis=1))


def _boost(
    x: np.ndarray, y: np.ndarray, x_valid: np.ndarray | None, y_valid: np.ndarray | None, head: Head, config: Config,
    weights: np.ndarray | None, seed: int, budget_s: float | None, progress: Callable[[dict[str, Any]], None] | None,
) -> tuple[Forest, list[int]]:
    import lightgbm as lgb

    classes = head.size if head.kind == "category" else 2
    objective = "regression" if head.kind == "number" else "binary" if classes == 2 else "multiclass"
    small = len(x) < 2000  # a leaf of 20 rows is a hundredth of the data there
    shared = {
        "objective": objective, "learning_rate": config.lr, "num_leaves": config.leaves, "verbose": -1, "deterministic": True,
        "min_data_in_leaf": max(1, min(config.min_leaf, len(x) // 20 if small else config.min_leaf)), "force_row_wise": True,
        "feature_fraction": config.features, "bagging_fraction": config.rows, "bagging_freq": 1, "lambda_l1": config.l1,
        "lambda_l2": config.l2, "num_threads": 1 if x.size < 300_000 else 0, "max_bin": 255, "feature_pre_filter": False,
        **({"num_class": classes} if objective == "multiclass" else {}),
    }  # fmt: skip
    data = lgb.Dataset(x, np.asarray(y, np.float64), weight=weights, free_raw_data=False, params={"verbose": -1, "max_bin": 255, "feature_pre_filter": False})
    checks = None
    if x_valid is not None and y_valid is not None and len(x_valid):
        checks = lgb.Dataset(x_valid, np.asarray(y_valid, np.float64), reference=data, free_raw_data=False)
    boosters, began = [], time.monotonic()
    for bag in range(config.bags):
        deadline = None if budget_s is None else began + budget_s * (bag + 1) / config.bags
        own, check = (data, checks) if checks is not None else _held_out(data, x, y, weights, seed, bag)
        rounds = config.trees if check is not None else min(config.trees, max(20, round(10 / config.lr)))
        calls: list[Callable[..., Any]] = [lgb.early_stopping(config.patience, verbose=False)] if check is not None else []
        calls.append(_watch(deadline, progress, head.output, bag, rounds))
        params = {**shared, "seed": seed * 1009 + bag, "bagging_seed": seed * 1009 + bag, "feature_fraction_seed": seed * 1009 + bag}
        booster = lgb.train(params, own, rounds, valid_sets=[check] if check is not None else None, callbacks=calls)
        boosters.append(booster)
    return _forest(boosters, classes if objective == "multiclass" else 1), [max(1, b.best_iteration or b.current_iteration()) for b in boosters]


def _held_out(data: Any, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, seed: int, bag: int) -> tuple[Any, Any]:
    """(rows to learn from, rows to stop on) of one bag where there are no validation rows: every bag leaves out another
    tenth, spread evenly over the sorted targets, so that all rows together are learnt from (cross-validated stopping)."""
    import lightgbm as lgb

    if len(x) < SMALL:
        return data, None
    chance = np.random.default_rng([seed, 1]).random(len(x))
    tenth = np.empty(len(x), np.int64)
    tenth[np.lexsort((chance, y))] = np.arange(len(x)) % 10
    out = tenth == bag % 10
    parts = []
    for rows in (~out, out):
        weight = None if weights is None else weights[rows]
        parts.append(lgb.Dataset(x[rows], np.asarray(y[rows], np.float64), weight=weight, reference=data, free_raw_data=False))
    return parts[0], parts[1]


def _watch(
    deadline: float | None, progress: Callable[[dict[str, Any]], None] | None, output: str, bag: int, rounds: int
) -> Callable[[Any], None]:
    import lightgbm as lgb

    def call(env: Any) -> None:
        if progress is not None and env.iteration % 20 == 0:
            loss = env.evaluation_result_list[0][2] if env.evaluation_result_list else None
            progress({"event": "round", "output": output, "bag": bag, "round": env.iteration, "rounds": rounds, "valid_loss": loss})
        if deadline is not None and time.monotonic() > deadline:
            raise lgb.callback.EarlyStopException(env.iteration, env.evaluation_result_list)

    return call


def _forest(boosters: list[Any], columns: int) -> Forest:
    """Flat arrays of all boosters' trees, leaf values divided by their number."""
    nodes: dict[str, list[Any]] = {k: [] for k in ("feature", "threshold", "left", "right", "missing_left", "value")}
    roots, column, depth = [], [], 0
    for booster in boosters:
        model = booster.dump_model(num_iteration=booster.best_iteration or None)
        for tree in model["tree_info"]:
            roots.append(len(nodes["feature"]))
            column.append(tree["tree_index"] % columns)
            depth = max(depth, _add(tree["tree_structure"], nodes, 1.0 / len(boosters)))
    return Forest(
        np.array(nodes["feature"], np.int32), np.array(nodes["threshold"], np.float32), np.array(nodes["left"], np.int32),
        np.array(nodes["right"], np.int32), np.array(nodes["missing_left"], bool), np.array(nodes["value"], np.float64),
        np.array(roots, np.int32), np.array(column, np.int32), np.zeros(columns), depth,
    )  # fmt: skip


def _add(node: dict[str, Any], nodes: dict[str, list[Any]], scale: float) -> int:
    """Appends a subtree; returns its depth."""
    me = len(nodes["feature"])
    leaf = "leaf_value" in node
    threshold = 0.0 if leaf else float(node["threshold"])
    nodes["feature"].append(0 if leaf else node["split_feature"])
    nodes["threshold"].append(np.float32(0) if leaf else rounded_down(threshold))
    nodes["left"].append(me)
    nodes["right"].append(me)
    # without missing values in training LightGBM reads NaN as zero
    nodes["missing_left"].append(leaf or (node["default_left"] if node["missing_type"] == "NaN" else 0.0 <= threshold))
    nodes["value"].append(float(node["leaf_value"]) * scale if leaf else 0.0)
    if leaf:
        return 0
    nodes["left"][me] = len(nodes["feature"])
    a = _add(node["left_child"], nodes, scale)
    nodes["right"][me] = len(nodes["feature"])
    return 1 + max(a, _add(node["right_child"], nodes, scale))


def rounded_down(threshold: float) -> np.float32:
    """The largest float32 that is not above `threshold`: for every float32 x, `x <= t` is unchanged."""
    with np.errstate(over="ignore"):
        found = np.float32(threshold)
    if math.isinf(found) and not math.isinf(threshold):
        return np.finfo(np.float32).max if threshold > 0 else np.float32(-np.inf)
    return found if float(found) <= threshold else np.nextafter(found, np.float32(-np.inf))


def _join(forests: list[Forest], columns: int) -> Forest:
    if len(forests) == 1:
        return forests[0]
    shifts = np.cumsum([0, *(len(f.feature) for f in forests[:-1])])
    cat = lambda name: np.concatenate([getattr(f, name) for f in forests])  # noqa: E731
    moved = lambda name: np.concatenate([getattr(f, name) + s for f, s in zip(forests, shifts, strict=True)]).astype(np.int32)  # noqa: E731
    return Forest(
        cat("feature"), cat("threshold"), moved("left"), moved("right"), cat("missing_left"), cat("value"), moved("roots"),
        cat("column"), np.zeros(columns), max(f.depth for f in forests),
    )  # fmt: skip


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """Graph outputs float32: logits `(B, K)` or value `(B, 1)`."""
    x = matrix(inputs)
    return {key: _logits(score(x, forest), state.kinds[key]) for key, forest in state.forests.items()}


def _logits(raw_BC: np.ndarray, kind: str) -> np.ndarray:
    """Two classes have one score s and the logits (-s/2, s/2)."""
    if kind == "category" and raw_BC.shape[1] == 1:
        raw_BC = np.concatenate([-raw_BC, raw_BC], axis=1) / 2
    return raw_BC.astype(np.float32)


def score(x: np.ndarray, forest: Forest) -> np.ndarray:
    """Raw scores `(B, columns)` in float64: all trees walk down together, a level at a time."""
    out = np.tile(forest.base, (len(x), 1))
    step = max(1, 400_000 // max(1, len(forest.roots)))  # node numbers of a block stay in the cache
    order = np.argsort(forest.column, kind="stable")
    starts = np.flatnonzero(np.diff(forest.column[order], prepend=-1))
    for low in range(0, len(x), step):
        rows = np.ascontiguousarray(x[low : low + step].T)
        node = np.repeat(forest.roots[order][:, None], rows.shape[1], axis=1)
        who = np.arange(rows.shape[1])[None, :]
        for _ in range(forest.depth):
            value = rows[forest.feature[node], who]
            left = (value <= forest.threshold[node]) | (np.isnan(value) & forest.missing_left[node])
            node = np.where(left, forest.left[node], forest.right[node])
        sums = np.add.reduceat(forest.value[node], starts, axis=0)
        out[low : low + step, forest.column[order][starts]] += sums.T
    return out


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """TreeEnsembleRegressor nodes (ai.onnx.ml) behind one concatenation of the inputs."""
    from onnx import TensorProto, helper

    nodes, names = [], []
    if state.numbers:
        names.append("table.numbers")
    if state.categories:
        nodes.append(helper.make_node("Cast", ["table.categories"], ["ids"], to=TensorProto.FLOAT))
        names.append("ids")
    nodes.append(helper.make_node("Concat", names, ["features"], axis=1) if len(names) > 1 else helper.make_node("Identity", names, ["features"]))
    sizes = {}
    for i, (key, forest) in enumerate(state.forests.items()):
        binary = state.kinds[key] == "category" and len(forest.base) == 1
        raw = f"raw{i}" if binary else key
        nodes.append(_ensemble(forest, raw))
        sizes[key] = 2 if binary else len(forest.base)
        if binary:
            nodes += [
                helper.make_node("Constant", [], [f"half{i}"], value_floats=[-0.5, 0.5]),
                helper.make_node("Mul", [raw, f"half{i}"], [key]),
            ]
    return onnx_model(nodes, [], inputs, sizes, ml=True)


def _ensemble(forest: Forest, output: str) -> Any:
    from onnx import helper

    bounds = np.append(forest.roots, len(forest.feature))
    tree = np.repeat(np.arange(len(forest.roots)), np.diff(bounds))
    start = bounds[tree]
    ids = np.arange(len(forest.feature)) - start
    leaf = forest.left == np.arange(len(forest.feature))
    return helper.make_node(
        "TreeEnsembleRegressor", ["features"], [output], domain="ai.onnx.ml", n_targets=len(forest.base),
        nodes_treeids=tree.tolist(), nodes_nodeids=ids.tolist(), nodes_featureids=forest.feature.tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(), nodes_values=forest.threshold.astype(float).tolist(),
        nodes_truenodeids=np.where(leaf, 0, forest.left - start).tolist(), nodes_falsenodeids=np.where(leaf, 0, forest.right - start).tolist(),
        nodes_missing_value_tracks_true=forest.missing_left.astype(int).tolist(),
        target_treeids=tree[leaf].tolist(), target_nodeids=ids[leaf].tolist(), target_ids=forest.column[tree[leaf]].tolist(),
        target_weights=forest.value[leaf].tolist(), post_transform="NONE", aggregate_function="SUM",
    )  # fmt: skip
