"""Distance to the nearest of a few random rows, averaged over many such handfuls (Sugiyama & Borgwardt 2013; Ting et al. 2017).

A handful of rows lies where most rows lie, so a row far from most of them is far from its nearest. Small handfuls (16 rows) are not
masked by anomalies that stand together, which mislead the k nearest of all rows. Distances are measured on logarithms of robust deviations,
sign(z) log(1 + |z|): a column with a heavy tail would decide alone otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from modelyard.estimators._detect import ALARMS, Fitted, Graph, detector
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False

LIMIT = 30.0
"""Robust deviations are cut here before their logarithm."""

BLOCK = 2048
"""Rows compared at once: with 100 handfuls of 16 their distances are 26 MB."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the distance."""

    samples: Annotated[int, Between(1, 10_000)] = 100
    """Handfuls."""
    rows: Annotated[int, Between(1, 100_000)] = 16
    """Rows in each."""
    compress: bool = True
    """Logarithms of robust deviations; without it distances between the numbers as they are scaled."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """The rows that were drawn."""

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """(samples, rows, D) float32."""
    middle_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    unit_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Quartile range / 1.349, or the deviation where that is zero; empty where nothing is compressed."""
    shift_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    spread_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Mean and deviation of the logarithms."""


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Handfuls of `(B, D)` rows, each without repetition."""
    state = State()
    if config.compress:
        first, state.middle_D, third = np.percentile(x.astype(np.float64), [25, 50, 75], axis=0)
        unit, spare = (third - first) / 1.349, x.std(0, dtype=np.float64)
        state.unit_D = np.where(unit > 1e-9, unit, np.where(spare > 1e-9, spare, 1.0))
        logs = _logarithms(x, state)
        state.shift_D, spread = logs.mean(0), logs.std(0)
        state.spread_D = np.where(spread > 1e-9, spread, 1.0)
    random = np.random.default_rng(seed)
    most = min(config.rows, len(x))
    picked = np.stack([random.choice(len(x), most, replace=False) for _ in range(config.samples)])
    state.points = _placed(x, state).astype(np.float32)[picked]
    return state


def _logarithms(x: np.ndarray, state: State) -> np.ndarray:
    z = np.clip((x.astype(np.float64) - state.middle_D) / state.unit_D, -LIMIT, LIMIT)
    return np.asarray(np.sign(z) * np.log1p(np.abs(z)))


def _placed(x: np.ndarray, state: State) -> np.ndarray:
    """(B, D) float64 in the space where distances are measured."""
    return (_logarithms(x, state) - state.shift_D) / state.spread_D if len(state.unit_D) else x.astype(np.float64)


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) mean over the handfuls of the distance to the nearest row."""
    samples, rows, width = state.points.shape
    flat = state.points.reshape(-1, width).astype(np.float64)
    lengths = (flat**2).sum(1)
    out = np.empty(len(x))
    for low in range(0, len(x), BLOCK):
        some = _placed(x[low : low + BLOCK], state)
        square = (some**2).sum(1)[:, None] + lengths - 2 * (some @ flat.T)
        out[low : low + BLOCK] = np.sqrt(np.maximum(square.reshape(len(some), samples, rows).min(2), 0)).mean(1)
    return out


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX."""
    samples, rows, width = state.points.shape
    flat = state.points.reshape(-1, width).astype(np.float64)
    if len(state.unit_D):
        z = graph.node("Div", graph.node("Sub", x, graph.constant(state.middle_D)), graph.constant(state.unit_D))
        z = graph.node("Min", graph.node("Max", z, graph.constant(-LIMIT)), graph.constant(LIMIT))
        logs = graph.node("Mul", graph.node("Sign", z), graph.node("Log", graph.node("Add", graph.node("Abs", z), graph.constant(1.0))))
        x = graph.node("Div", graph.node("Sub", logs, graph.constant(state.shift_D)), graph.constant(state.spread_D))
    own = graph.node("ReduceSum", graph.node("Mul", x, x), graph.constant([1], np.int64), keepdims=1)
    product = graph.node("MatMul", x, graph.constant(-2 * flat.T))
    square = graph.node("Add", graph.node("Add", product, graph.constant((flat**2).sum(1))), own)
    shaped = graph.node("Reshape", square, graph.constant([-1, samples, rows], np.int64))
    least = graph.node("ReduceMin", shaped, graph.constant([2], np.int64), keepdims=0)
    return graph.node("ReduceMean", graph.node("Sqrt", graph.node("Max", least, graph.constant(0.0))), graph.constant([1], np.int64), keepdims=0)


fit, apply, graph = detector(learn, measure, nodes)
