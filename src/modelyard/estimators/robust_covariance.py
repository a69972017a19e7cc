"""Distance from the middle in units of how the bulk of the rows varies: Mahalanobis distance with the minimum covariance determinant.

Rousseeuw & Van Driessen 1999: mean and covariance of the half of the rows that lies closest together, so that the anomalies do not
shape the ellipse they are measured by.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from modelyard.estimators._detect import ALARMS, Fitted, Graph, detector, sample
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the ellipse."""

    rows: Annotated[int, Between(10)] = 20_000
    """Rows that it is fitted on at most, drawn at random."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""


@dataclass
class State(Fitted):
    """The ellipse."""

    middle_D: np.ndarray = field(default_factory=lambda: np.zeros(0))
    root_DD: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(x - middle) @ root has the distance as its length."""


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Fits the ellipse; directions in which rows hardly vary get a thousandth of the mean variance."""
    from sklearn.covariance import MinCovDet

    some = x[sample(len(x), config.rows, seed)].astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows on a plane: handled below
        try:
            found = MinCovDet(random_state=seed).fit(some)
            middle, covariance = found.location_, found.covariance_
        except ValueError:  # fewer rows than columns
            middle, covariance = np.median(some, axis=0), np.cov(some.T, ddof=0).reshape(some.shape[1], -1)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(1e-3 * float(values.mean()), 1e-9)
    return State(middle_D=np.asarray(middle), root_DD=vectors / np.sqrt(np.maximum(values, floor)))


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) distances."""
    return np.asarray(np.sqrt((((x.astype(np.float64) - state.middle_D) @ state.root_DD) ** 2).sum(1)))


def nodes(graph: Graph, x: str, state: State) -> str:
    """The same as ONNX."""
    turned = graph.node("MatMul", graph.node("Sub", x, graph.constant(state.middle_D)), graph.constant(state.root_DD))
    return graph.node("Sqrt", graph.node("ReduceSum", graph.node("Mul", turned, turned), graph.constant([1], np.int64), keepdims=0))


fit, apply, graph = detector(learn, measure, nodes)
