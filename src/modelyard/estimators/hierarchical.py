"""Hierarchical groups: the two nearest groups are joined again and again (Ward 1963; Lance & Williams 1967).

Comparing all pairs takes memory by the square of the rows, so the tree is made of up to `rows` of them. A new row gets the
group that is nearest to it as the linkage measures: by its centre (ward), its nearest row (single), its rows' mean distance (average) or
its farthest row (complete). A training row on a border may so get another group than the tree gave it.
With `groups: auto` the tree is cut where the mean silhouette of 2 … 10 groups is best (Rousseeuw 1987).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.estimators._groups import (
    MOST,
    Members,
    apply_members,
    by_size,
    members_graph,
    sample_of,
    silhouette,
    suggestion,
)
from modelyard.kinds._contract import Array, Head
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("cluster",)

State = Members
apply = apply_members
graph = members_graph


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the tree of groups."""

    groups: Annotated[int, Between(2, 1000)] | Literal["auto"] = "auto"
    """How many groups; auto tries 2 to 10."""
    linkage: Literal["ward", "average", "complete", "single"] = "ward"
    """What the distance of two groups is: growth of the squares, or the mean, largest or smallest distance of their rows."""
    rows: Annotated[int, Between(2, 20_000)] = 5000
    """Rows that the tree is made of at most; beyond, a random sample of them. 5,000 take 100 MB, 20,000 take 1.6 GB."""


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Members:
    """Makes the tree and cuts it, in one step whatever the budget; of `weights` only zeros count: such rows are left out."""
    from scipy.cluster.hierarchy import fcluster, linkage

    drawn = sample_of(inputs, config.rows, weights, seed)
    sample = drawn.points
    tree = linkage(sample, config.linkage)
    distinct = len(np.unique(sample, axis=0))
    tried: dict[str, float] = {}
    groups = config.groups
    if groups == "auto":
        for k in range(2, min(MOST, distinct - 1) + 1):
            tried[str(k)] = silhouette(sample, fcluster(tree, k, "maxclust"), seed)
            if progress is not None:
                progress({"event": "groups", "groups": k, "silhouette": tried[str(k)]})
        groups = int(max(tried, key=lambda k: tried[k])) if tried else 2
    labels = by_size(fcluster(tree, min(groups, distinct), "maxclust"))
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels).tolist()
    if config.linkage == "ward":
        kept, sizes = np.stack([sample[labels == k].mean(0) for k in range(len(sizes))]), [1] * len(sizes)
    else:
        kept = sample[order]
    rule: Any = {"ward": "nearest", "single": "nearest", "average": "mean", "complete": "farthest"}[config.linkage]
    why = suggestion("silhouette" if tried else "asked", len(sizes), tried, len(sample), drawn.of)
    return Members(drawn.space, kept.astype(np.float32), sizes, rule, output=heads[0].output, suggestion=why)
