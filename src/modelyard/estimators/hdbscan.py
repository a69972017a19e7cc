"""HDBSCAN: crowded places of any shape and of different crowdedness, without a reach to set (Campello, Moulavi & Sander 2013).

The mutual reachability distance of two rows is the largest of their distance and of each one's distance to its `crowd`-th row. Groups
are those of the single-linkage tree over it that live longest (excess of mass, scikit-learn's HDBSCAN). Each group was born where the tree
split it from its surroundings: the smallest mutual reachability distance between one of its rows and any other. A new row belongs to the group that it
would have joined before that, the relatively nearest where there are several, else it is noise, -1. Training rows get what the tree gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.errors import DataError
from modelyard.estimators._groups import BLOCK, Members, apply_members, by_size, members_graph, sample_of, suggestion
from modelyard.kinds._contract import Array, Head
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("cluster",)

State = Members
apply = apply_members
graph = members_graph

INSIDE = 1 - 1e-9
"""A group ends just before the row that it did not take in."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of HDBSCAN."""

    min_group: Annotated[int, Between(2, 1_000_000)] | Literal["auto"] = "auto"
    """Rows that make a group; auto: one in a hundred, and at least 5."""
    crowd: Annotated[int, Between(1, 10_000)] | Literal["auto"] = "auto"
    """Rows, itself included, that must be near a row: more make more rows noise; auto: as `min_group`, up to 10."""
    rows: Annotated[int, Between(2, 50_000)] = 10_000
    """Training rows that are looked at; beyond, a random sample of them."""


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Members:
    """Finds the groups, in one step whatever the budget; of `weights` only zeros count: such rows are left out.

    Where there are no two groups, the one most crowded place is taken; `DataError` where there is none."""
    from sklearn.cluster import HDBSCAN

    drawn = sample_of(inputs, config.rows, weights, seed)
    sample, rows = drawn.points, len(drawn.points)
    least = max(5, rows // 100) if config.min_group == "auto" else config.min_group
    crowd = min(least, 10) if config.crowd == "auto" else config.crowd
    least, crowd = min(least, rows), min(crowd, rows)
    labels = np.full(rows, -1)
    for single in (False, True):
        if (labels < 0).all():
            labels = HDBSCAN(min_cluster_size=max(2, least), min_samples=crowd, allow_single_cluster=single, copy=True).fit(sample).labels_
    if (labels < 0).all():
        raise DataError(f"no place is crowded by {least} rows, so there are no groups; set a smaller model.min_group")
    labels = by_size(labels)
    order = np.argsort(np.where(labels < 0, labels.max() + 1, labels), kind="stable")
    sizes = np.bincount(labels[labels >= 0]).tolist()
    facts = {"min_rows": least, "noise": float((labels < 0).mean())}
    state = Members(drawn.space, sample[order].astype(np.float32), sizes, crowd=crowd, output=heads[0].output)
    state.cores = _cores(state)
    state.reach = _births(state, labels[order])
    state.suggestion = suggestion("density", len(sizes), {}, rows, drawn.of, **facts)
    if progress is not None:
        progress({"event": "groups", "groups": len(sizes), **facts})
    return state


def _cores(state: Members) -> np.ndarray:
    """(N,) distance of each point to its `crowd`-th, itself the first."""
    turned, lengths = state.wide
    x = state.points.astype(np.float64)
    out = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        squared = np.maximum(x[part] @ turned + lengths + lengths[part, None], 0.0)
        out[part] = np.sqrt(np.partition(squared, state.crowd - 1, axis=1)[:, state.crowd - 1])
    return out


def _births(state: Members, labels_N: np.ndarray) -> list[float]:
    """By group, the smallest mutual reachability distance from a row of it to a row that is not of it, made a little smaller.

    It is at least the bound of the group's own loosest row, which matters only for a group that is the only one."""
    turned, lengths = state.wide
    x = state.points.astype(np.float64)
    best = np.full(len(state.sizes), np.inf)
    for start in range(0, sum(state.sizes), BLOCK):
        part = slice(start, min(start + BLOCK, sum(state.sizes)))
        squared = np.maximum(x[part] @ turned + lengths + lengths[part, None], 0.0)
        mutual = np.maximum(np.maximum(np.sqrt(squared), state.cores), state.cores[part, None])
        mutual[labels_N[part, None] == labels_N] = np.inf
        np.minimum.at(best, labels_N[part], mutual.min(1))
    loosest = np.maximum.reduceat(state.cores[: sum(state.sizes)], state.starts)
    return [max(float(b) * INSIDE if np.isfinite(b) else 0.0, float(far), 1e-6) for b, far in zip(best, loosest, strict=True)]
