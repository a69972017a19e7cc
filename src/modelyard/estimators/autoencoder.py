"""Autoencoder: a small net learns to repeat rows through a narrow middle; what it cannot repeat is unlike the rows it saw.

Hinton & Salakhutdinov 2006; Sakurada & Yairi 2014 for anomalies. Fitted by scikit-learn's Adam, applied as four products.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from modelyard.estimators._detect import ALARMS, Fitted, Graph, detector
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False

LIMIT = 10.0
"""Inputs are cut at ten deviations: a typing error must not shape the net, and is cut for no other detector."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the net."""

    hidden: Annotated[int, Between(1, 4096)] = 64
    """Width of the layers on both sides of the middle."""
    middle: Annotated[int, Between(1, 4096)] | None = None
    """Width of the middle; without it a third of the columns, 1 to 16."""
    epochs: Annotated[int, Between(1, 10_000)] = 60
    """Passes over the rows at most; it stops on a tenth of them held out."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """Weights (in, out) and biases of the layers."""

    weights: list[np.ndarray] = field(default_factory=list)
    biases: list[np.ndarray] = field(default_factory=list)


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Fits the net to repeat the rows."""
    from sklearn.neural_network import MLPRegressor

    middle = config.middle or int(np.clip(x.shape[1] // 3, 1, 16))
    cut = np.clip(x, -LIMIT, LIMIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopping at the last epoch is what was asked for
        net = MLPRegressor(
            hidden_layer_sizes=(config.hidden, middle, config.hidden), activation="tanh", batch_size=min(256, len(x)), max_iter=config.epochs,
            random_state=seed, early_stopping=len(x) >= 100, n_iter_no_change=8, learning_rate_init=2e-3,
        ).fit(cut, cut if x.shape[1] > 1 else cut[:, 0])  # fmt: skip
    return State(weights=[np.asarray(w, np.float32) for w in net.coefs_], biases=[np.asarray(b, np.float32) for b in net.intercepts_])


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) root of the mean squared difference between the row and its repetition."""
    h = np.clip(x.astype(np.float64), -LIMIT, LIMIT)
    for i, (weight, bias) in enumerate(zip(state.weights, state.biases, strict=True)):
        h = h @ weight.astype(np.float64) + bias
        h = np.tanh(h) if i < len(state.weights) - 1 else h
    return np.asarray(np.sqrt(((x.astype(np.float64) - h) ** 2).mean(1)))


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX. tanh is 1 - 2 / (1 + e^2x), which ONNX Runtime has in float64."""
    h = graph.node("Min", graph.node("Max", x, graph.constant(-LIMIT)), graph.constant(LIMIT))
    for i, (weight, bias) in enumerate(zip(state.weights, state.biases, strict=True)):
        h = graph.node("Add", graph.node("MatMul", h, graph.constant(weight)), graph.constant(bias))
        if i < len(state.weights) - 1:
            e = graph.node("Exp", graph.node("Mul", h, graph.constant(2.0)))
            h = graph.node("Sub", graph.constant(1.0), graph.node("Div", graph.constant(2.0), graph.node("Add", e, graph.constant(1.0))))
    off = graph.node("Sub", x, h)
    return graph.node("Sqrt", graph.node("ReduceMean", graph.node("Mul", off, off), graph.constant([1], np.int64), keepdims=0))


fit, apply, graph = detector(learn, measure, nodes)
