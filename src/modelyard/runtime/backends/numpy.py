"""Graphs of estimators: their `apply` in NumPy, with the core alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard import registry
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline
from modelyard.store.state import restore


def load(
    folder: Path, manifest: Mapping[str, Any], pipeline: Pipeline, arrays: dict[str, np.ndarray], options: Mapping[str, Any]
) -> dict[str, Graph]:
    """`main` of the stored estimator."""
    module = registry.load("estimators", manifest["model"]["estimator"])
    state = restore(module.State, manifest["model"]["state"], arrays)
    return {"main": lambda inputs: module.apply(inputs, state)}
