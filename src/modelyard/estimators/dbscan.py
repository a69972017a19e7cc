"""DBSCAN: groups are crowded places of any shape, and rows in none of them are noise (Ester et al. 1996).

A row is a core where `min_rows` rows, itself included, lie within `reach`; cores within reach of each other are one group. A new row
gets the group of the nearest core within reach, else -1, which is also what a training row gets (one that lies in reach of two groups gets the
nearer, where the original lets the order decide). Cores are found among up to `rows` training rows.

Without a reach it is read off the sorted distances to the `min_rows`-th row (the paper's heuristic): where their curve bends most, by
the largest gap between the curve and its chord (Satopaa et al. 2011, "Kneedle"), over the lower 98 % so that a few far outliers do not bend it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from modelyard.data.nearest import nearest
from modelyard.errors import DataError
from modelyard.estimators._groups import Members, apply_members, by_size, members_graph, sample_of, suggestion
from modelyard.kinds._contract import Array, Head
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("cluster",)

State = Members
apply = apply_members
graph = members_graph

TRIMMED = 0.98


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of DBSCAN."""

    reach: Annotated[float, Between(1e-9, 1e9)] | Literal["auto"] = "auto"
    """How near two rows are neighbours (often called eps), in deviations of a column; auto: where the curve of distances bends."""
    min_rows: Annotated[int, Between(1, 1_000_000)] | Literal["auto"] = "auto"
    """Rows within reach that make a core; auto: twice the columns (Sander et al. 1998), and at least one row in a hundred and 4."""
    rows: Annotated[int, Between(2, 100_000)] = 10_000
    """Training rows that are looked at; beyond, a random sample of them, whose density `min_rows` then speaks of."""


def fit(
    inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Config, *,
    weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Members:
    """Finds the cores, in one step whatever the budget; of `weights` only zeros count: such rows are left out.

    Raises `DataError` where no row is a core."""
    from sklearn.cluster import DBSCAN

    drawn = sample_of(inputs, config.rows, weights, seed)
    space, sample = drawn.space, drawn.points
    columns = space.numbers + len(space.sizes)
    asked = max(4, 2 * columns, len(sample) // 100) if config.min_rows == "auto" else config.min_rows
    asked = min(asked, len(sample))
    reach = knee(sample, asked) if config.reach == "auto" else float(config.reach)
    found = DBSCAN(eps=reach, min_samples=asked).fit(sample)
    cores = found.core_sample_indices_
    if not len(cores):
        raise DataError(
            f"no row has {asked} rows within {reach:g} deviations, so there are no groups; set a larger model.reach or a smaller model.min_rows"
        )
    labels = by_size(found.labels_)
    order = cores[np.argsort(labels[cores], kind="stable")]
    sizes = np.bincount(labels[cores]).tolist()
    facts = {"reach": reach, "min_rows": asked, "noise": float((labels < 0).mean())}
    if progress is not None:
        progress({"event": "groups", "groups": len(sizes), **facts})
    why = suggestion("density", len(sizes), {}, len(sample), drawn.of, **facts)
    return Members(space, sample[order].astype(np.float32), sizes, "nearest", [reach] * len(sizes), output=heads[0].output, suggestion=why)


def knee(x_ND: np.ndarray, asked: int) -> float:
    """The distance to the `asked`-th row (the row itself is the first) at the bend of its sorted curve; above zero."""
    far = np.sort(nearest(x_ND, asked - 1)[1][:, -1]) if asked > 1 else np.sort(nearest(x_ND, 1)[1][:, -1])
    curve = far[: max(2, int(TRIMMED * len(far)))]
    low, high = float(curve[0]), float(curve[-1])
    if high <= low:
        return max(high, 1e-6)
    gap = np.linspace(0.0, 1.0, len(curve)) - (curve - low) / (high - low)
    return max(float(curve[int(gap.argmax())]), 1e-6)
