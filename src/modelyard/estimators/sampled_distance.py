"""Distance to the nearest of a few random rows, averaged over many such handfuls (Sugiyama & Borgwardt 2013; Ting et al. 2017).

A handful of rows lies where most rows lie, so a row far from most of them is far from its nearest. Small handfuls (16 rows) are not
masked by anomalies that stand together, which mislead the k nearest of all rows.
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

BLOCK = 2048
"""Rows compared at once: with 100 handfuls of 16 their distances are 26 MB."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the distance."""

    samples: Annotated[int, Between(1, 10_000)] = 100
    """Handfuls."""
    rows: Annotated[int, Between(1, 100_000)] = 16
    """Rows in each."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """The rows that were drawn."""

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """(samples, rows, D) float32."""


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Handfuls of `(B, D)` rows, each without repetition."""
    random = np.random.default_rng(seed)
    most = min(config.rows, len(x))
    picked = np.stack([random.choice(len(x), most, replace=False) for _ in range(config.samples)])
    return State(points=x[picked])


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) mean over the handfuls of the distance to the nearest row."""
    samples, rows, width = state.points.shape
    flat = state.points.reshape(-1, width).astype(np.float64)
    lengths = (flat**2).sum(1)
    out = np.empty(len(x))
    for low in range(0, len(x), BLOCK):
        some = x[low : low + BLOCK].astype(np.float64)
        square = (some**2).sum(1)[:, None] + lengths - 2 * (some @ flat.T)
        out[low : low + BLOCK] = np.sqrt(np.maximum(square.reshape(len(some), samples, rows).min(2), 0)).mean(1)
    return out


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX."""
    samples, rows, width = state.points.shape
    flat = state.points.reshape(-1, width).astype(np.float64)
    own = graph.node("ReduceSum", graph.node("Mul", x, x), graph.constant([1], np.int64), keepdims=1)
    product = graph.node("MatMul", x, graph.constant(-2 * flat.T))
    square = graph.node("Add", graph.node("Add", product, graph.constant((flat**2).sum(1))), own)
    shaped = graph.node("Reshape", square, graph.constant([-1, samples, rows], np.int64))
    least = graph.node("ReduceMin", shaped, graph.constant([2], np.int64), keepdims=0)
    return graph.node("ReduceMean", graph.node("Sqrt", graph.node("Max", least, graph.constant(0.0))), graph.constant([1], np.int64), keepdims=0)


fit, apply, graph = detector(learn, measure, nodes)
