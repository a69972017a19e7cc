"""CatBoost: boosting with trees that ask one question a level, an extra (`pip install 'modelyard[catboost]'`).

Prokhorenkova, Gusev, Vorobev, Dorogush & Gulin 2018, CatBoost: unbiased boosting with categorical features. Symmetric trees of depth
six are stiffer than LightGBM's and err elsewhere, which is what an ensemble wants. Fitted by the library, read from its JSON and applied
by NumPy or ONNX Runtime. Its statistics of categories (CTRs) are left out, since they need tables of the training rows: categories
of few values come as indicators, others in the order of their mean target, as in `forest`.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.errors import MissingExtra
from modelyard.estimators import _forest
from modelyard.estimators import forest as forests
from modelyard.estimators._forest import Forest, rounded_down
from modelyard.estimators._onnx import Nodes
from modelyard.estimators.forest import features, lookup_nodes, lookups, sum_nodes, target_columns
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "raw"
KINDS = ("category", "label-set", "number")

State = forests.State
"""The same trees over the same look-ups."""
join = forests.join

FEW = 12
"""Values of a category up to which each gets an indicator."""
SMALL = 500
"""Training rows below which none are held out to stop on."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the trees."""

    trees: Annotated[int, Between(1, 100_000)] = 1500
    """Most rounds of boosting; it stops earlier by itself, on the validation rows or (without any) on a tenth held out."""
    lr: Annotated[float, Between(1e-4, 1)] | Literal["auto"] = "auto"
    """Shrinkage of each tree; auto: the library's own choice for these rows and rounds."""
    depth: Annotated[int, Between(1, 12)] = 6
    """Questions on the way to a leaf."""
    l2: Annotated[float, Between(0)] = 3.0
    """L2 penalty of leaf values."""
    patience: Annotated[int, Between(1)] = 60
    """Rounds without a better validation loss after which boosting stops."""


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: tuple[Mapping[str, Array], Mapping[str, np.ndarray]] | None = None, seed: int = 0,
    budget_s: float | None = None, progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """Boosts one forest per output. Raises `MissingExtra` where the library is not installed."""
    numbers = np.asarray(inputs["table.numbers"]).shape[1] if "table.numbers" in inputs else 0
    state = State(numbers)
    for head in heads:
        y, checks = targets[head.target], None
        sources, tables = lookups(inputs, target_columns(y, head), weights, "order", FEW)
        x = features(inputs, sources, tables)
        rows = np.arange(len(x))
        if valid is not None and head.target in valid[1] and len(valid[1][head.target]):
            checks = features(valid[0], sources, tables), valid[1][head.target]
        elif len(x) >= SMALL:
            out = np.random.default_rng([seed, 1]).permutation(len(x)) < len(x) // 10
            checks, rows = (x[out], y[out]), np.flatnonzero(~out)
        budget = None if budget_s is None else budget_s / len(heads)
        own = None if weights is None else weights[rows]
        state.forests[head.key] = _boost(x[rows], y[rows], checks, head, config, own, seed, budget, progress)
        state.kinds[head.key], state.sources[head.key], state.tables[head.key] = head.kind, sources, tables
    return state


def _boost(
    x: np.ndarray, y: np.ndarray, checks: tuple[np.ndarray, np.ndarray] | None, head: Head, config: Config, weights: np.ndarray | None,
    seed: int, budget_s: float | None, progress: Callable[[dict[str, Any]], None] | None,
) -> Forest:
    try:
        import catboost
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "catboost", "catboost") from None
    columns = head.size if head.kind == "label-set" or (head.kind == "category" and head.size > 2) else 1
    if constant := _constant(y, head, columns):
        return constant
    loss = {"number": "RMSE", "label-set": "MultiLogloss"}.get(head.kind, "Logloss" if columns == 1 else "MultiClass")
    present = np.unique(y) if loss == "MultiClass" else np.arange(columns)  # the library wants to see every class it learns
    if loss == "MultiClass":
        y = np.searchsorted(present, y)
        if checks is not None:
            known = np.isin(checks[1], present)
            checks = (checks[0][known], np.searchsorted(present, checks[1][known])) if known.any() else None
    settings = {
        "iterations": config.trees if checks is not None else min(config.trees, 300), "depth": config.depth, "l2_leaf_reg": config.l2,
        "loss_function": loss, "random_seed": seed, "thread_count": 1 if x.size < 300_000 else -1, "allow_writing_files": False,
        "logging_level": "Silent", "nan_mode": "Min", **({"learning_rate": config.lr} if config.lr != "auto" else {}),
    }  # fmt: skip
    best = {} if checks is None else {"eval_set": catboost.Pool(*checks), "early_stopping_rounds": config.patience, "use_best_model": True}
    model = catboost.CatBoost(settings)
    model.fit(catboost.Pool(x, y, weight=weights), callbacks=[_Watch(budget_s, progress, head.output, config.trees)], **best)
    with tempfile.TemporaryDirectory() as folder:
        model.save_model(str(Path(folder) / "model.json"), format="json")
        found = read(json.loads((Path(folder) / "model.json").read_text(encoding="utf-8")), len(present))
    return found if len(present) == columns else _spread(found, present, columns)


def _spread(forest: Forest, present: np.ndarray, columns: int) -> Forest:
    """Columns for classes that training never saw too, ten below the least."""
    base, leaves = np.full(columns, forest.base.min() - 10.0), np.zeros((len(forest.leaves), columns))
    base[present], leaves[:, present] = forest.base, forest.leaves
    return dataclasses.replace(forest, base=base, leaves=leaves)


def _constant(y: np.ndarray, head: Head, columns: int) -> Forest | None:
    """One leaf, where the target is the same in all rows: the library refuses to learn that."""
    if head.kind == "label-set" or len(np.unique(y)) > 1:
        return None
    one, zero = np.zeros(1), np.zeros(1, np.int32)
    base = np.full(columns, float(y.reshape(-1)[0]))
    if head.kind == "category":  # odds of one row more
        sure = np.log(len(y) + 1.0)
        base = np.where(np.arange(columns) == y[0], sure, 0.0) if columns > 1 else np.array([sure if y[0] == 1 else -sure])
    leaves = np.zeros((1, columns)) if columns > 1 else np.zeros((0, 0))
    return Forest(zero, one.astype(np.float32), zero, zero, np.ones(1, bool), one, zero, zero, base, 0, leaves=leaves)


class _Watch:
    """Tells of the rounds and stops at the deadline, after one round at least."""

    def __init__(self, budget_s: float | None, progress: Callable[[dict[str, Any]], None] | None, output: str, rounds: int) -> None:
        self.deadline = None if budget_s is None else time.monotonic() + budget_s
        self.progress, self.output, self.rounds = progress, output, rounds

    def after_iteration(self, info: Any) -> bool:
        """The library goes on where this is true."""
        if self.progress is not None and info.iteration % 20 == 0:
            self.progress({"event": "round", "output": self.output, "round": info.iteration, "rounds": self.rounds})
        return self.deadline is None or time.monotonic() < self.deadline


def read(model: Mapping[str, Any], columns: int) -> Forest:
    """The forest of a model in CatBoost's JSON form.

    A leaf's number has bit i set where split i is passed (`x > border`; NaN never passes), so the last split is the root of the tree
    whose leaves follow each other from left to right.
    """
    scale, bias = model["scale_and_bias"]
    trees = [_tree(t, columns, float(scale)) for t in model["oblivious_trees"]]
    forest = _forest.join(trees, columns)
    forest.base = np.asarray(bias, np.float64).reshape(columns)
    return forest


def _tree(tree: Mapping[str, Any], columns: int, scale: float) -> Forest:
    splits = tree["splits"][::-1] if tree.get("splits") else []
    depth = len(splits)
    if any(s["split_type"] != "FloatFeature" for s in splits):
        raise ValueError("only splits of numbers can be read")
    size = 2 ** (depth + 1) - 1
    level, place, number = np.zeros(size, np.int64), np.zeros(size, np.int64), 0
    left, right = np.arange(size), np.arange(size)
    stack = [(0, 0)]  # (depth, leaves before), in preorder
    while stack:
        deep, before = stack.pop()
        level[number], place[number] = deep, before
        if deep < depth:
            left[number] = number + 1
            right[number] = number + 2 ** (depth - deep)
            stack += [(deep + 1, before + 2 ** (depth - deep - 1)), (deep + 1, before)]
        number += 1
    inner = level < depth
    question = lambda name, dtype: np.array([s[name] for s in splits] + [0], dtype)[np.where(inner, level, depth)]  # noqa: E731
    values = np.asarray(tree["leaf_values"], np.float64).reshape(-1, columns) * scale
    value, leaves = np.where(inner, 0.0, values[place, 0]), np.zeros((0, 0))
    if columns > 1:
        value, leaves = np.where(inner, 0.0, place.astype(np.float64)), values
    zero = np.zeros(1, np.int32)
    return Forest(
        question("float_feature_index", np.int32), rounded_down(question("border", np.float64)), left.astype(np.int32), right.astype(np.int32),
        np.ones(size, bool), value, zero, zero, np.zeros(columns), depth, leaves=leaves,
    )  # fmt: skip


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """Graph outputs float32: logits `(B, K)` or value `(B, 1)`."""
    out = {}
    for key, forest in state.forests.items():
        raw_BC = _forest.score(features(inputs, state.sources[key], state.tables[key]), forest)
        if state.kinds[key] == "category" and raw_BC.shape[1] == 1:  # two classes have one score s and the logits (-s/2, s/2)
            raw_BC = np.concatenate([-raw_BC, raw_BC], axis=1) / 2
        out[key] = raw_BC.astype(np.float32)
    return out


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """Look-ups and one TreeEnsemble an output, in float64 up to the answer."""
    g, sizes = Nodes(), {}
    for key, forest in state.forests.items():
        total = sum_nodes(g, forest, lookup_nodes(g, state.numbers, state.sources[key], state.tables[key]))
        sizes[key] = len(forest.base)
        if state.kinds[key] == "category" and sizes[key] == 1:
            total, sizes[key] = g.node("Mul", total, g.constant([-0.5, 0.5])), 2
        g.cast(total, "float32", out=key)
    return g.model(inputs, sizes)
