"""What detectors of anomalies share: the space they measure in, and how a raw score becomes an alarm.

**Space.** Numbers as they come encoded (scaled, missing filled), then for each category how rare its value is: -log of its share of the
training rows, in deviations. A value that training never saw is as rare as one row would be.

**Alarm.** Nobody says how many training rows are anomalous, so the threshold must not depend on it. Scores are put on a robust scale:
z = (g(s) - m) / d with the median m and d = 1.4826 times the median of what lies above it (anomalies lie in the tail, and less than a half
of the upper half may be anomalous without moving d far). The tail of normal rows is taken as logistic, T(z) = 1 / (1 + exp(1.702 z)),
which is heavier than the Gaussian it approximates. `alarms` is the share of normal rows that may raise one; the probability given is
alarms / (alarms + T(z)): one half where a normal row would score as high in `alarms` of cases (after the unifying scores of Kriegel et al. 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelyard.errors import Unsupported
from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Head, Part

ALARMS = 0.01
LOGISTIC = 1.702
"""Scale at which the logistic curve is nearest to the normal one (Haley 1952)."""
CEILING = 500.0
"""z is cut here: probabilities beyond are one in float32."""


@dataclass
class Space:
    """How encoded inputs become one matrix."""

    numbers: int = 0
    rarity: list[np.ndarray] = field(default_factory=list)
    """By category column (size + 1,) float32: rarity by id; the last entry is for ids that training never saw."""

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return self.numbers + len(self.rarity)


def space_of(inputs: Mapping[str, Array]) -> Space:
    """The space of training inputs."""
    n = np.asarray(inputs["table.numbers"]).shape[1] if "table.numbers" in inputs else 0
    tables = []
    if "table.categories" in inputs:
        for ids_B in np.asarray(inputs["table.categories"]).T:
            counts = np.append(np.bincount(ids_B), 0) + 0.0
            rare = -np.log(np.maximum(counts, 1.0) / len(ids_B))
            mean = float((rare * counts).sum() / len(ids_B))
            spread = float(np.sqrt((counts * (rare - mean) ** 2).sum() / len(ids_B)))
            tables.append(((rare - mean) / (spread if spread > 1e-6 else 1.0)).astype(np.float32))
    return Space(n, tables)


def matrix(inputs: Mapping[str, Array], space: Space) -> np.ndarray:
    """`(B, width)` float32."""
    blocks = [np.nan_to_num(np.asarray(inputs["table.numbers"], np.float32))] if space.numbers else []
    if space.rarity:
        ids_Bm = np.asarray(inputs["table.categories"])
        blocks.append(np.stack([t[np.minimum(ids_Bm[:, i], len(t) - 1)] for i, t in enumerate(space.rarity)], axis=1))
    return np.ascontiguousarray(np.concatenate(blocks, axis=1), dtype=np.float32)


@dataclass
class Scale:
    """The robust scale of one detector's scores."""

    middle: float = 0.0
    spread: float = 1.0


def scale_of(scores_B: np.ndarray) -> Scale:
    """Median, and 1.4826 times the median excess over it."""
    s = np.asarray(scores_B, np.float64)
    middle = float(np.median(s))
    above = s[s > middle] - middle
    spread = 1.4826 * float(np.median(above)) if len(above) else 0.0
    floor = 1e-6 * max(1.0, abs(middle))
    return Scale(middle, max(spread, floor))


def standard(scores_B: np.ndarray, scale: Scale) -> np.ndarray:
    """(B,) z in float64."""
    return np.clip((np.asarray(scores_B, np.float64) - scale.middle) / scale.spread, -CEILING, CEILING)


def logits(z_B: np.ndarray, alarms: float) -> np.ndarray:
    """`(B, 2)` float32, normal and anomaly: half of log(alarms / T(z)) each way."""
    margin = np.log(alarms) + np.logaddexp(0.0, LOGISTIC * z_B)
    return np.stack([-margin / 2, margin / 2], axis=1).astype(np.float32)


@dataclass
class Fitted:
    """What every detector stores; each adds its own."""

    space: Space = field(default_factory=Space)
    scale: Scale = field(default_factory=Scale)
    alarms: float = ALARMS
    key: str = ""

    def __post_init__(self) -> None:
        self.space = Space(**self.space) if isinstance(self.space, dict) else self.space
        self.scale = Scale(**self.scale) if isinstance(self.scale, dict) else self.scale


def detector(learn: Callable[..., Any], measure: Callable[..., np.ndarray], nodes: Callable[..., str | None] | None = None) -> tuple[Any, Any, Any]:
    """`fit`, `apply` and `graph` of a module from `learn(x_BD, config, seed) -> Fitted`, `measure(x_BD, state) -> scores_B` (higher is odder)
    and, where there is one, `nodes(graph, x, state) -> name of the same score`."""

    def fit(
        inputs: Mapping[str, Array], targets: Mapping[str, np.ndarray], heads: list[Head], config: Any, *,
        weights: np.ndarray | None = None, valid: Any = None, seed: int = 0, budget_s: float | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """Learns what rows are like; `targets` are not looked at."""
        space = space_of(inputs)
        x = matrix(inputs, space)
        state = learn(x, config, seed)
        state.space, state.alarms, state.key = space, config.alarms, key_of(heads)
        state.scale = scale_of(measure(x, state))
        return state

    def apply(inputs: Mapping[str, Array], state: Any) -> dict[str, np.ndarray]:
        """Logits `(B, 2)` float32 of normal and anomaly."""
        return {state.key: logits(standard(measure(matrix(inputs, state.space), state), state.scale), state.alarms)}

    def graph(state: Any, inputs: Mapping[str, Part]) -> Any:
        """The same as ONNX; None where the score has no graph."""
        if nodes is None:
            return None
        made = Graph()
        score = nodes(made, made.matrix(state.space), state)
        return None if score is None else made.alarm(made.standard(score, state.scale), state.alarms, state.key, inputs)

    return fit, apply, graph


def key_of(heads: list[Head]) -> str:
    """The one output. Raises `Unsupported` where the head is not one of alarms."""
    if len(heads) != 1 or heads[0].kind != "category" or heads[0].size != 2:
        raise Unsupported("a detector of anomalies answers one output, normal or anomaly", "never")
    return heads[0].key


def sample(rows: int, most: int, seed: int) -> np.ndarray:
    """Numbers of at most `most` rows, drawn at random, in order."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


class Graph(Nodes):
    """ONNX nodes of a detector; everything is computed in float64, as NumPy does here."""

    def matrix(self, space: Space) -> str:
        """`matrix` as float64 (B, width)."""
        blocks = ["table.numbers"] if space.numbers else []
        if space.rarity:
            widest = max(len(t) for t in space.rarity)
            rows = np.stack([np.pad(t, (0, widest - len(t)), "edge") for t in space.rarity])
            last = self.constant([len(t) - 1 for t in space.rarity], np.int32)
            ids = self.node("Min", "table.categories", last)
            at = self.node("Add", ids, self.constant(np.arange(len(rows)) * widest, np.int32))
            blocks.append(self.node("Gather", self.constant(rows.reshape(-1), np.float32), at))
        joined = self.node("Concat", *blocks, axis=1) if len(blocks) > 1 else blocks[0]
        return self.cast(joined, "float64")

    def standard(self, score: str, scale: Scale) -> str:
        """`standard` of a (B,) score."""
        shifted = self.node("Sub", score, self.constant(scale.middle))
        z = self.node("Div", shifted, self.constant(scale.spread))
        return self.node("Min", self.node("Max", z, self.constant(-CEILING)), self.constant(CEILING))

    def alarm(self, z: str, alarms: float, key: str, inputs: Mapping[str, Any]) -> Any:
        """The ONNX model whose output `key` (B, 2) is `logits` of the (B,) value `z`."""
        scaled = self.node("Mul", z, self.constant(LOGISTIC))
        # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
        small = self.node("Log", self.node("Add", self.constant(1.0), self.node("Exp", self.node("Neg", self.node("Abs", scaled)))))
        soft = self.node("Add", self.node("Max", scaled, self.constant(0.0)), small)
        margin = self.node("Add", soft, self.constant(np.log(alarms)))
        column = self.node("Unsqueeze", margin, self.constant([1], np.int64))
        both = self.node("Mul", column, self.constant([[-0.5, 0.5]]))
        self.cast(both, "float32", out=key)
        return self.model(inputs, {key: 2})
