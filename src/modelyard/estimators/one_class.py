"""One-class support vector machine: the smallest region that holds most rows (Schölkopf et al. 2001), on random Fourier features.

The kernel exp(-γ |x - y|²) is replaced by cosines of random projections (Rahimi & Recht 2007), so that fitting is linear in the rows and a
row costs one product. γ is 1 / (columns · variance), scikit-learn's `scale`.
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


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the machine."""

    features: Annotated[int, Between(1, 10_000)] = 300
    """Random features."""
    outside: Annotated[float, Between(1e-4, 1)] = 0.1
    """ν: share of training rows that may lie outside the region at most."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """Random projections and the machine's weights."""

    directions_DF: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    phases_F: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weights_F: np.ndarray = field(default_factory=lambda: np.zeros(0))


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Draws the projections and fits the machine."""
    from sklearn.linear_model import SGDOneClassSVM

    random = np.random.default_rng(seed)
    gamma = 1.0 / (x.shape[1] * max(float(x.var(dtype=np.float64)), 1e-9))
    state = State(
        directions_DF=random.normal(size=(x.shape[1], config.features)) * np.sqrt(2 * gamma), phases_F=random.uniform(0, 2 * np.pi, config.features),
        weights_F=np.zeros(config.features),
    )  # fmt: skip
    found = SGDOneClassSVM(nu=config.outside, random_state=seed, shuffle=True).fit(_features(x, state))
    state.weights_F = np.asarray(found.coef_, np.float64).reshape(-1)
    return state


def _features(x: np.ndarray, state: State) -> np.ndarray:
    return np.asarray(np.cos(x.astype(np.float64) @ state.directions_DF + state.phases_F) * np.sqrt(2 / len(state.phases_F)))


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) how far outside: the negative of the machine's decision."""
    return -(_features(x, state) @ state.weights_F)


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX; ONNX Runtime has no cosine in float64, so it is a sine a quarter turn on, by way of its own series."""
    from onnx import TensorProto

    angle = graph.node("Add", graph.node("MatMul", x, graph.constant(state.directions_DF)), graph.constant(state.phases_F))
    turns = graph.node("Div", angle, graph.constant(2 * np.pi))
    part = graph.node("Sub", turns, graph.node("Round", turns))  # -½ … ½: small enough for float32
    small = graph.node("Cast", graph.node("Mul", part, graph.constant(2 * np.pi)), to=TensorProto.FLOAT)
    wave = graph.node("Cast", graph.node("Cos", small), to=TensorProto.DOUBLE)
    column = graph.node("MatMul", wave, graph.constant(-state.weights_F[:, None] * np.sqrt(2 / len(state.phases_F))))
    return graph.node("Squeeze", column, graph.constant([1], np.int64))


fit, apply, graph = detector(learn, measure, nodes)
