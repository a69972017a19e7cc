"""k-means: groups around centres (Lloyd 1982; k-means++ starts, Arthur & Vassilvitskii 2007), on scaled numbers and categories.

With `groups: auto` the number is the one of 2 … 10 with the best mean silhouette on up to 2,000 rows (Rousseeuw 1987), tried on up
to 20,000 rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.estimators._features import Layout, layout_of, linear, onnx_linear, sparse
from modelyard.estimators._groups import MOST, silhouette, suggestion
from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Head, Part
from modelyard.settings import Between

ACCEPTS = ("table", "bag")
NUMBERS = "scaled"
KINDS = ("cluster",)

TRIED = 20_000
"""Rows on which numbers of groups are tried; ninety runs on all of 100,000 rows would take minutes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of k-means."""

    groups: Annotated[int, Between(2, 1000)] | Literal["auto"] = "auto"
    """How many groups; auto tries 2 to 10."""
    starts: Annotated[int, Between(1, 100)] = 10
    """Runs from different starts; the tightest counts."""


@dataclass
class State:
    """Centres as a linear form: squared distance = |x|² - 2 x·c + |c|², in which |x|² changes no comparison."""

    layout: Layout
    centres: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(K, D) float32."""
    key: str = ""
    silhouettes: dict[str, float] = field(default_factory=dict)
    """Mean silhouette of every number of groups that was tried: why this number."""
    suggestion: dict[str, Any] = field(default_factory=dict)

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

    began = time.monotonic()
    layout = layout_of(inputs)
    x = sparse(inputs, layout)
    dense = x.toarray() if x.shape[1] <= 2000 else x
    distinct = len(np.unique(dense, axis=0)) if isinstance(dense, np.ndarray) and len(dense) < 100_000 else x.shape[0]

    def run(k: int, rows: np.ndarray | slice) -> Any:
        part = None if weights is None else weights[rows]
        return KMeans(k, n_init=config.starts, random_state=seed).fit(dense[rows], sample_weight=part)

    silhouettes: dict[str, float] = {}
    groups = config.groups
    if groups == "auto":
        some = np.random.default_rng(seed).permutation(x.shape[0])[:TRIED]
        for k in range(2, min(MOST, distinct - 1, x.shape[0] - 1) + 1):
            if silhouettes and budget_s is not None and time.monotonic() - began > budget_s / 2:
                break  # the other half is for the fit on all rows
            silhouettes[str(k)] = silhouette(dense[some], run(k, some).labels_, seed)
            if progress:
                progress({"event": "groups", "groups": k, "silhouette": silhouettes[str(k)]})
        groups = int(max(silhouettes, key=lambda k: silhouettes[k])) if silhouettes else 2
    model = run(min(groups, distinct), slice(None))
    sizes = np.bincount(model.labels_, minlength=len(model.cluster_centers_))
    centres = np.asarray(model.cluster_centers_, np.float32)[np.argsort(-sizes, kind="stable")]
    by = "silhouette" if config.groups == "auto" else "asked"
    why = suggestion(by, len(centres), silhouettes, min(TRIED, x.shape[0]) if silhouettes else x.shape[0], x.shape[0])
    return State(layout, centres, heads[0].key, silhouettes, why)


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    """`(B, K)` float32: how much farther (in squared distance) each group is than the nearest one.

    The row's own |x|² is left out and the smallest shifted to zero: in float32 the distances of an outlier 30 spreads away
    are rounded by 6e-5, their differences by less.
    """
    weights_DK, bias_K = _linear_form(state.centres)
    distances = linear(inputs, state.layout, weights_DK, bias_K)
    return {state.key: distances - distances.min(axis=1, keepdims=True)}


def _linear_form(centres_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, K) and bias (K,) of -2 x·c + |c|², less their means over groups: smaller numbers, the same differences."""
    centres = centres_KD.astype(np.float64)
    bias = (centres**2).sum(1)
    return np.ascontiguousarray(-2.0 * (centres - centres.mean(0)).T).astype(np.float32), bias - bias.mean()


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    """The same as an ONNX model."""
    g = Nodes()
    distances = onnx_linear(g, state.layout, *_linear_form(state.centres))
    g.node("Sub", distances, g.node("ReduceMin", distances, g.constant([1], np.int64), keepdims=1), out=state.key)
    return g.model(inputs, {state.key: len(state.centres)})
