"""k-means: groups around centres (Lloyd 1982; k-means++ starts, Arthur & Vassilvitskii 2007), on scaled numbers and categories.

With `groups: auto` the number is the one of 2 … 10 with the best mean silhouette on up to 2,000 rows (Rousseeuw 1987).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.estimators._features import Layout, layout_of, linear, onnx_linear, onnx_model, sparse
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table", "bag")
NUMBERS = "scaled"
KINDS = ("cluster",)

MOST = 10
SAMPLE = 2000


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of k-means."""

    groups: Annotated[int, Between(2, 1000)] | Literal["auto"] = "auto"
    """How many groups; auto tries 2 to 10."""
    starts: Annotated[int, Between(1, 100)] = 10
    """Runs from different starts; the tightest counts."""


@dataclass
class State:
    """Centres as a linear form: squared distance = |x|² - 2 x·c + |c|²."""

    layout: Layout
    centres: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(K, D) float32."""
    key: str = ""
    silhouettes: dict[str, float] = field(default_factory=dict)
    """Mean silhouette of every number of groups that was tried: why this number."""

    def __post_init__(self) -> None:
        if isinstance(self.layout, dict):
            self.layout = Layout(**self.layout)


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> State:
    """Finds the centres. Groups are numbered by falling size, so that a rerun gives the same names."""
    from sklearn.cluster import KMeans

    layout = layout_of(inputs)
    x = sparse(inputs, layout)
    dense = x.toarray() if x.shape[1] <= 2000 else x
    distinct = len(np.unique(dense, axis=0)) if isinstance(dense, np.ndarray) and len(dense) < 100_000 else x.shape[0]

    def run(k: int) -> Any:
        return KMeans(k, n_init=config.starts, random_state=seed).fit(dense, sample_weight=weights)

    silhouettes: dict[str, float] = {}
    if config.groups == "auto":
        best = None
        for k in range(2, min(MOST, distinct - 1, x.shape[0] - 1) + 1):
            model = run(k)
            silhouettes[str(k)] = _silhouette(dense, model.labels_, seed)
            if progress:
                progress({"event": "groups", "groups": k, "silhouette": silhouettes[str(k)]})
            if best is None or silhouettes[str(k)] > best[0]:
                best = (silhouettes[str(k)], model)
        model = best[1] if best else run(min(2, distinct))
    else:
        model = run(min(int(config.groups), distinct))
    sizes = np.bincount(model.labels_, minlength=len(model.cluster_centers_))
    centres = np.asarray(model.cluster_centers_, np.float32)[np.argsort(-sizes, kind="stable")]
    return State(layout, centres, heads[0].key, silhouettes)


def _silhouette(x: Any, labels: np.ndarray, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    if len(np.unique(labels)) < 2:
        return -1.0
    return float(silhouette_score(x, labels, sample_size=min(SAMPLE, x.shape[0]), random_state=seed))


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """Squared distances `(B, K)` float32 to every centre, up to the row's own |x|², which changes no comparison; the
    smallest is shifted to zero so that they read as how much farther each other group is."""
    bias_K = (state.centres.astype(np.float64) ** 2).sum(1)
    distances = linear(inputs, state.layout, np.ascontiguousarray(-2.0 * state.centres.T), bias_K)
    return {state.key: distances - distances.min(axis=1, keepdims=True)}


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """The same as an ONNX model."""
    from onnx import helper

    bias_K = (state.centres.astype(np.float64) ** 2).sum(1)
    nodes, constants = onnx_linear(state.layout, -2.0 * state.centres.T, bias_K, "distances", "head")
    nodes.append(helper.make_node("ReduceMin", ["distances", "axes"], ["smallest"], keepdims=1))
    nodes.append(helper.make_node("Sub", ["distances", "smallest"], [state.key]))
    from onnx import numpy_helper

    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    return onnx_model(nodes, constants, inputs, {state.key: len(state.centres)})
