"""How far out in the tails a row lies, column by column: empirical cumulative distributions (ECOD, Li et al. 2022).

The score is the sum over columns of -log of the tail probability: of the left tails, of the right tails, and of the tail towards which each
column is skewed; the largest of the three counts. No setting, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from modelyard.estimators._detect import ALARMS, Fitted, detector
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False

KEPT = 4096
"""Quantiles kept of a column with more values: tail probabilities are then off by 1/4096 at most."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the tails."""

    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """Every column's values in order, or quantiles of them."""

    sorted_ND: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    left_D: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """Columns skewed to the left."""


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Sorts the columns."""
    ordered = np.sort(x, axis=0)
    if len(ordered) > KEPT:
        ordered = ordered[np.round(np.linspace(0, len(ordered) - 1, KEPT)).astype(np.int64)]
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    return State(sorted_ND=ordered, left_D=(centred**3).mean(0) < 0)


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) the largest of the three sums."""
    rows = len(state.sorted_ND)
    left, right = np.empty(x.shape), np.empty(x.shape)
    for d in range(x.shape[1]):
        column = state.sorted_ND[:, d]
        left[:, d] = np.searchsorted(column, x[:, d], "right")
        right[:, d] = rows - np.searchsorted(column, x[:, d], "left")
    left, right = (-np.log(np.maximum(share, 0.5) / rows) for share in (left, right))  # beyond all rows: half a row
    skewed = np.where(state.left_D, left, right)
    return np.asarray(np.max([left.sum(1), right.sum(1), skewed.sum(1)], axis=0))


fit, apply, graph = detector(learn, measure)
