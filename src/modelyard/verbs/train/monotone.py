"""Answers that may only rise or fall with a number: who asked for it, and whether the model can keep to it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from modelyard import registry
from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.runtime.pipeline import Pipeline
from modelyard.verbs.train.learner import Choice

SIGNS = {"increasing": 1, "decreasing": -1, 1: 1, -1: -1, 0: 0}


def options(choice: Choice, pipeline: Pipeline) -> dict[str, Any]:
    """`{"monotone": (n,) signs}` of the columns of `table.numbers` for an estimator's `fit`; empty where nobody asked.

    Raises `ConfigError` for columns that are no number inputs, `Unsupported` where the model or the output cannot be constrained.
    """
    wanted = {c.name: c.monotone for c in pipeline.inputs if c.monotone}
    wanted |= {name: SIGNS[sign] for name, sign in getattr(choice.config, "monotone", {}).items()}
    wanted = {name: sign for name, sign in wanted.items() if sign}
    if not wanted:
        return {}
    numbers = {c.name for c in pipeline.inputs if c.kind == "number"}
    if stray := [name for name in wanted if name not in numbers]:
        problems = [Problem(f"is no number input; there are {', '.join(sorted(numbers)) or 'none'}", f"model.monotone.{n}") for n in stray]
        raise ConfigError(f"model.monotone names {', '.join(stray)}", problems)
    named = ", ".join(wanted)
    module = registry.load("estimators", choice.estimator) if choice.estimator else None
    if module is None or "monotone" not in inspect.signature(module.fit).parameters:
        raise Unsupported(f"{' and '.join(choice.names)} cannot promise that its answer is monotone in {named}; use model=trees", "use")
    several = [c.name for c in pipeline.outputs if c.kind == "category" and len(c.state.labels) > 2]
    if several:
        message = f"{', '.join(several)} has more than two labels: there is no one score that could be monotone in {named}"
        raise Unsupported(message, "never", [Problem("predict a number or two labels", name) for name in several])
    return {"monotone": np.array([wanted.get(name, 0) if part == "value" else 0 for name, part in pipeline.numbers()], np.int64)}
