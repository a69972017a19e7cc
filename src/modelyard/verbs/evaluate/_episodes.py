"""Judges a model that acts: mean return over episodes, beside one that acts at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.data.environment import Environment
from modelyard.runtime.model import Model

EPISODES, LONGEST = 100, 1000


def play(model: Model, world: Environment, seed: int) -> dict[str, dict[str, Any]]:
    """`{output: {kind, metrics: {return}, baseline}}` of the first output; returns are undiscounted sums of rewards."""
    actions = world.actions()
    name = next(iter(world.outputs))
    random = np.random.default_rng(seed)

    def chosen(row: dict[str, Any]) -> dict[str, Any]:
        return {name: model.predict([row]).columns[name][0]}

    def at_random(row: dict[str, Any]) -> dict[str, Any]:
        return dict(actions.row(int(random.integers(actions.height)), named=True))

    found, base = (np.array([_episode(world, act, seed + i) for i in range(EPISODES)]) for act in (chosen, at_random))
    entry = {"kind": world.outputs[name], "headline": "return", "metrics": {"return": _mean(found)}, "baseline": {"return": _mean(base)}}
    return {name: {**entry, "pictures": {}, "worst": [], "slices": []}}


def _episode(world: Environment, act: Any, seed: int) -> float:
    row, total = world.reset(np.random.Generator(np.random.Philox(key=seed))), 0.0
    for _ in range(LONGEST):
        row, reward, done = world.step(act(row))
        total += reward
        if done:
            break
    return total


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Mean with its normal 95 % interval over episodes."""
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    return {"value": mean, "low": mean - half, "high": mean + half, "better": "higher"}
