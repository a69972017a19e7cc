"""The other kind of source: a world to act in instead of rows to learn from (reinforcement learning)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import polars as pl

from modelyard import registry


class Environment(ABC):
    """Observations are rows, answers are actions; everything random comes from the generator that `reset` is given."""

    inputs: dict[str, str]
    """Observation columns and their kinds."""
    outputs: dict[str, str]
    """Action columns and their kinds."""

    @abstractmethod
    def states(self) -> pl.DataFrame:
        """Observations that cover the world (all of a small one, a sample of a large one): encodings are fitted on them."""

    @abstractmethod
    def actions(self) -> pl.DataFrame:
        """Every action once."""

    @abstractmethod
    def reset(self, random: np.random.Generator) -> dict[str, Any]:
        """The first observation of an episode."""

    @abstractmethod
    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool]:
        """(observation, reward, whether the episode ended)."""


def make(name: str, settings: dict[str, Any]) -> Environment:
    """The environment called `name` (`package/name`). Raises `UsageError` naming what there is."""
    return registry.load("environments", name).make(**settings)  # type: ignore[no-any-return]
