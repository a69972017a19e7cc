"""The column in which a row is farthest from the middle: robust z-scores (Iglewicz & Hoaglin 1993) or the box plot's fences (Tukey 1977).

The simplest detector, and the one whose reason anybody can check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from modelyard.estimators._detect import ALARMS, Fitted, Graph, detector
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the statistics."""

    by: Literal["deviation", "box"] = "deviation"
    """deviation: distance from the median in 1.4826 median deviations; box: distance beyond the nearer quartile in quartile ranges."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """Where the middle of every column ends below and above, and its unit."""

    low_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    unit_D: np.ndarray = field(default_factory=lambda: np.zeros(0))


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Medians or quartiles. A column in which over half of the rows are equal is measured in its mean deviation."""
    x = x.astype(np.float64)
    first, middle, third = np.percentile(x, [25, 50, 75], axis=0)
    low, high, unit = middle, middle, 1.4826 * np.median(np.abs(x - middle), axis=0)
    if config.by == "box":
        low, high, unit = first, third, third - first
    spare = 1.2533 * np.abs(x - middle).mean(0)  # of a normal column, its deviation
    unit = np.where(unit > 1e-6, unit, np.where(spare > 1e-6, spare, 1.0))
    return State(low_D=low, high_D=high, unit_D=unit)


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) the largest of the columns' distances."""
    return np.asarray(columns(x, state).max(1))


def columns(x: np.ndarray, state: State) -> np.ndarray:
    """(B, D) distance of every column."""
    x = x.astype(np.float64)
    return np.asarray(np.maximum(np.maximum(x - state.high_D, state.low_D - x), 0.0) / state.unit_D)


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX."""
    above = graph.node("Sub", x, graph.constant(state.high_D))
    below = graph.node("Sub", graph.constant(state.low_D), x)
    beyond = graph.node("Max", graph.node("Max", above, below), graph.constant(0.0))
    return graph.node("ReduceMax", graph.node("Div", beyond, graph.constant(state.unit_D)), graph.constant([1], np.int64), keepdims=0)


fit, apply, graph = detector(learn, measure, nodes)
