"""Value iteration: v(s) = max_a Σ p (r + γ v(s')), until nothing moves (Bellman 1957)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelyard.kinds._contract import Array, Head, Part

ACCEPTS = ("table",)
KINDS = ("category",)


@dataclass(frozen=True, kw_only=True)
class Config:
    discount: float = 0.99
    tolerance: float = 1e-9


@dataclass
class State:
    key: str = ""
    advantages: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(ids, moves): how much worse each move is than the best, by encoded id of the cell."""
    sweeps: int = 0


def fit_environment(environment: Any, pipeline: Any, heads: list[Head], config: Config, *, seed: int = 0) -> State:
    cells = environment.states()["cell"].to_list()
    moves = pipeline.outputs[0].state.labels
    value = dict.fromkeys(cells, 0.0)
    sweeps = 0
    while True:
        sweeps += 1
        q = {
            c: [
                sum(p * (r + config.discount * (0.0 if done else value[n])) for p, n, r, done in environment.transitions(c, m))
                for m in moves
            ]
            for c in cells
        }
        change = max(abs(max(q[c]) - value[c]) for c in cells)
        value = {c: max(q[c]) for c in cells}
        if change < config.tolerance:
            break
    ids = pipeline.encode(environment.states()).arrays["table.categories"][:, 0]
    table = np.zeros((int(ids.max()) + 1, len(moves)), np.float32)
    for i, cell in zip(ids, cells, strict=True):
        table[i] = np.array(q[cell]) - max(q[cell])
    return State(heads[0].key, table, sweeps)


def apply(inputs: Mapping[str, Array], state: State) -> dict[str, np.ndarray]:
    ids = np.asarray(inputs["table.categories"])[:, 0]
    return {state.key: state.advantages[np.minimum(ids, len(state.advantages) - 1)]}


def graph(state: State, inputs: Mapping[str, Part]) -> Any:
    return None
