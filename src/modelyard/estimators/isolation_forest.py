"""Isolation forest: rows that random cuts set apart after few steps are anomalies (Liu, Ting & Zhou 2008).

s(x) = 2^(-E[h(x)] / c(ψ)): h is the depth of the row's leaf plus c(rows in it), c(n) the mean depth of a random tree of n rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from modelyard.estimators import _forest
from modelyard.estimators._detect import ALARMS, Fitted, Graph, detector
from modelyard.estimators._forest import Forest, rounded_down
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the forest."""

    trees: Annotated[int, Between(1, 10_000)] = 300
    """Random trees."""
    rows: Annotated[int, Between(2, 1_000_000)] = 256
    """Rows that each tree is grown on."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """The trees, with path lengths in their leaves."""

    forest: Forest | None = None
    depth: float = 1.0
    """c(ψ)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.forest = Forest(**self.forest) if isinstance(self.forest, dict) else self.forest


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """The trees of `(B, D)` rows."""
    from sklearn.ensemble import IsolationForest

    most = min(config.rows, len(x))
    model = IsolationForest(n_estimators=config.trees, max_samples=most, random_state=seed).fit(x)
    return State(forest=_forest_of(model), depth=max(float(mean_depth(np.array([most]))[0]), 1e-9))


def mean_depth(rows: np.ndarray) -> np.ndarray:
    """c(n) = 2 H(n - 1) - 2 (n - 1) / n: the mean depth of an unsuccessful search in a random tree (Preiss 1999)."""
    n = np.asarray(rows, np.float64)
    out = np.where(n == 2, 1.0, 0.0)
    big = n > 2
    out[big] = 2 * (np.log(n[big] - 1) + np.euler_gamma) - 2 * (n[big] - 1) / n[big]
    return out


def _forest_of(model: Any) -> Forest:
    trees = [e.tree_ for e in model.estimators_]
    counts = [t.node_count for t in trees]
    roots = np.cumsum([0, *counts[:-1]])
    cat = lambda name: np.concatenate([getattr(t, name) for t in trees])  # noqa: E731
    left, right, own = cat("children_left"), cat("children_right"), np.arange(sum(counts))
    leaf, shift = left < 0, np.repeat(roots, counts)
    depth = np.concatenate([_depths(t) for t in trees])
    value = np.where(leaf, (depth + mean_depth(cat("n_node_samples"))) / len(trees), 0.0)
    zeros = np.zeros(len(trees), np.int32)
    return Forest(
        np.where(leaf, 0, cat("feature")).astype(np.int32), np.where(leaf, 0, rounded_down(cat("threshold"))).astype(np.float32),
        np.where(leaf, own, left + shift).astype(np.int32), np.where(leaf, own, right + shift).astype(np.int32),
        np.ones(len(own), bool), value, roots.astype(np.int32), zeros, np.zeros(1), max(t.max_depth for t in trees),
    )  # fmt: skip


def _depths(tree: Any) -> np.ndarray:
    """Depth of every node of scikit-learn's tree, whose parents come before their children."""
    depth = np.zeros(tree.node_count)
    for node in range(tree.node_count):
        for child in (tree.children_left[node], tree.children_right[node]):
            if child >= 0:
                depth[child] = depth[node] + 1
    return depth


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) scores from 0 to 1."""
    assert state.forest is not None
    return np.asarray(2.0 ** (-_forest.score(x, state.forest)[:, 0] / state.depth))


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX."""
    from modelyard.estimators.trees import ensemble

    assert state.forest is not None
    path = graph.keep(ensemble(state.forest, graph.fresh("path"), x))
    length = graph.node("Squeeze", path, graph.constant([1], np.int64))
    return graph.node("Exp", graph.node("Mul", length, graph.constant(-np.log(2.0) / state.depth)))


fit, apply, graph = detector(learn, measure, nodes)
