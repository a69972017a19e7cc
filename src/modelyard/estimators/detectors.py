"""Several detectors of anomalies and the mean of what they say: no one of them is right everywhere (Aggarwal & Sathe 2015).

Every detector's score is put on its own robust scale, cut at `CUT` so that none decides alone, and averaged; the mean is scaled again.
The default was chosen for how different the two look at rows: random cuts along single columns, and distances over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from modelyard import registry
from modelyard.estimators._detect import ALARMS, Fitted, Graph, detector, scale_of, standard
from modelyard.settings import Between

ACCEPTS = ("table",)
NUMBERS = "scaled"
KINDS = ("category",)
SUPERVISED = False

CUT = 20.0
"""A row 20 spreads out is an anomaly for this detector; farther out changes nothing."""

Name = Literal["isolation-forest", "sampled-distance", "robust-covariance", "tails", "robust-z", "local-outlier", "one-class", "autoencoder"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which detectors."""

    of: tuple[Name, ...] = ("isolation-forest", "sampled-distance")
    """Names of detectors, each with its default settings."""
    alarms: Annotated[float, Between(1e-6, 0.5)] = ALARMS
    """Share of normal rows that may raise an alarm."""

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of is empty; name at least one detector")


@dataclass
class State(Fitted):
    """The detectors' states by name."""

    parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts = {name: _module(name).State(**part) if isinstance(part, dict) else part for name, part in self.parts.items()}


def _module(name: str) -> Any:
    return registry.load("estimators", name)


def learn(x: np.ndarray, config: Config, seed: int) -> State:
    """Every detector on `(B, D)` rows, with its scale."""
    state = State()
    for number, name in enumerate(dict.fromkeys(config.of)):
        module = _module(name)
        part = module.learn(x, module.Config(), seed + number)
        part.scale = scale_of(module.measure(x, part))
        state.parts[name] = part
    return state


def measure(x: np.ndarray, state: State) -> np.ndarray:
    """(B,) mean of the detectors' scores on their own scales."""
    found = [np.minimum(standard(_module(name).measure(x, part), part.scale), CUT) for name, part in state.parts.items()]
    return np.asarray(np.mean(found, axis=0))


def nodes(graph: Graph, x: str, state: State) -> str | None:
    """The same as ONNX; None where a detector has no graph."""
    if any(not hasattr(_module(name), "nodes") for name in state.parts):
        return None
    each = []
    for name, part in state.parts.items():
        each.append(graph.node("Min", graph.standard(_module(name).nodes(graph, x, part), part.scale), graph.constant(CUT)))
    total = graph.node("Sum", *each) if len(each) > 1 else each[0]
    return graph.node("Div", total, graph.constant(float(len(each))))


fit, apply, graph = detector(learn, measure, nodes)
