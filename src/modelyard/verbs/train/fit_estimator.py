"""Fits an estimator on the encoded training examples and wraps its state for the model folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modelyard import registry
from modelyard.errors import Unsupported
from modelyard.kinds._contract import Array, take
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline, dense
from modelyard.store.state import pack
from modelyard.verbs.train import monotone
from modelyard.verbs.train.learner import Choice, answerable


def fit(
    choice: Choice,
    pipeline: Pipeline,
    train: tuple[dict[str, Array], dict[str, Array]],
    valid: tuple[dict[str, Array], dict[str, Array]] | None,
    *,
    weights: np.ndarray | None,
    seed: int,
    budget_s: float | None,
    progress: Callable[[dict[str, Any]], None] | None,
    environment: Any = None,
) -> tuple[dict[str, Any], dict[str, Graph], dict[str, np.ndarray]]:
    """(manifest section, graphs, arrays) of the fitted estimator. `train` and `valid` are (inputs, targets)."""
    module = registry.load("estimators", str(choice.estimator))
    if (environment is not None) != hasattr(module, "fit_environment"):
        reason = "learns in an environment (data.env)" if environment is None else "learns from rows, not in an environment"
        raise Unsupported(f"{choice.estimator} {reason}", "never")
    if environment is not None:
        state = module.fit_environment(environment, pipeline, pipeline.heads(), choice.config, seed=seed)
    else:
        state = module.fit(
            train[0], train[1], pipeline.heads(), choice.config,
            weights=weights, valid=answerable(valid), seed=seed, budget_s=budget_s, progress=progress, **monotone.options(choice, pipeline),
        )  # fmt: skip
    graphs: dict[str, Graph] = {"main": lambda inputs: module.apply(inputs, state)}
    learn_outputs(pipeline, graphs["main"], train[0])
    arrays: dict[str, np.ndarray] = {}
    section = {"backend": "numpy", "estimator": choice.estimator, "state": pack(state, "model", arrays)}
    return section, graphs, arrays


def learn_outputs(pipeline: Pipeline, main: Graph, inputs: dict[str, Array]) -> None:
    """Tells every output what the fitted model's own outputs say (the number of groups)."""
    some = dense({name: take(array, np.arange(min(2, len(array)))) for name, array in inputs.items()})
    produced = main(some)
    for column in pipeline.outputs:
        mine = {k.removeprefix(f"{column.name}."): v for k, v in produced.items() if k.startswith(f"{column.name}.")}
        column.state = column.coder.learned(column.state, mine)
