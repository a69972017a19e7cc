"""Local outlier factor: how much thinner rows lie around a row than around its neighbours (Breunig, Kriegel, Ng & Sander 2000).

Finds rows that are odd for their own group though not for the whole table. New rows are measured against the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from modelyard.estimators._detect import ALARMS, Fitted, detector, sample
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False

BLOCK = 512
"""Rows compared at once: their distances to 10,000 others are 41 MB."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the neighbourhood."""

    k: Annotated[int, Between(2, 1000)] = 20
    """Neighbours."""
    rows: Annotated[int, Between(10)] = 10_000
    """Training rows that are kept at most, drawn at random; a row is compared with all of them."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """The rows kept, with how thin the rows lie around each."""

    points_ND: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    reach_N: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Distance to the k-th neighbour."""
    density_N: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Local reachability density."""
    k: int = 20


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Distances among the rows kept; a row is not its own neighbour."""
    points = x[sample(len(x), config.rows, seed)]
    k = max(1, min(config.k, len(points) - 1))
    state = State(points_ND=points, k=k)
    near, far = _nearest(points, points, k + 1)
    own = near == np.arange(len(points))[:, None]
    last = np.where(own.any(1), own.argmax(1), k)  # among equal rows the row itself may not come first, or be left out
    keep = np.arange(k + 1) != last[:, None]
    near, far = near[keep].reshape(-1, k), far[keep].reshape(-1, k)
    state.reach_N = far[:, -1].copy()
    state.density_N = _density(near, far, state.reach_N)
    return state


def _nearest(x: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """((B, k) numbers of the nearest points, (B, k) distances), nearest first; ties by number."""
    flat = points.astype(np.float64)
    lengths = (flat**2).sum(1)
    k = min(k, len(points))
    near, far = np.empty((len(x), k), np.int64), np.empty((len(x), k))
    for low in range(0, len(x), BLOCK):
        some = x[low : low + BLOCK].astype(np.float64)
        square = np.round((some**2).sum(1)[:, None] + lengths - 2 * (some @ flat.T), 9)  # equal rows at equal distances
        some_near = np.sort(np.argpartition(square, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(square, some_near, 1)
        order = np.argsort(values, axis=1, kind="stable")
        near[low : low + BLOCK] = np.take_along_axis(some_near, order, 1)
        far[low : low + BLOCK] = np.sqrt(np.maximum(np.take_along_axis(values, order, 1), 0))
    return near, far


def _density(near: np.ndarray, far: np.ndarray, reach_N: np.ndarray) -> np.ndarray:
    return 1.0 / (np.maximum(far, reach_N[near]).mean(1) + 1e-10)  # scikit-learn's constant for copies of a row


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) factors: about 1 inside a group."""
    near, far = _nearest(x, state.points_ND, state.k)
    return np.asarray(state.density_N[near].mean(1) / _density(near, far, state.reach_N))


fit, apply, graph = detector(learn, measure)
