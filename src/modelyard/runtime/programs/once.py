"""Runs the graph `main` once: every model whose answer is one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.runtime.answers import Graph, Randomness


def run(
    graphs: Mapping[str, Graph], inputs: dict[str, np.ndarray], params: Mapping[str, Any], random: Randomness
) -> dict[str, np.ndarray]:
    """Outputs of `main` for the padded `inputs`, example axis first."""
    return graphs["main"](inputs)
