"""Judges a net after every epoch by a metric of the validation rows, where `train.watch` names one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelyard import metrics
from modelyard.errors import ConfigError, Problem
from modelyard.tasks._binding import Bound
from modelyard.verbs.train.config import TrainConfig

if TYPE_CHECKING:
    import torch


def watcher(bound: Bound, config: TrainConfig) -> Callable[[torch.nn.Module], float] | None:
    """What the loop's `judge` takes: a network to a number of which less is better; None where nothing is named.

    The network answers the validation rows through the pipeline, as the saved model will. An undefined metric is infinitely bad. Raises
    `ConfigError` for a metric that is not measured on any output, or without validation rows.
    """
    if config.watch is None:
        return None
    output, _, name = config.watch.rpartition(".")
    where = "train.watch"
    outputs = [c for c in bound.pipeline.outputs if not output or c.name == output]
    kinds = ", ".join(f"{c.name} ({c.kind})" for c in bound.pipeline.outputs)
    metric = metrics.get(name)
    outputs = [c for c in outputs if c.kind in metric.kinds]
    if not outputs:
        problem = Problem(f"{name} is measured on {' and '.join(metric.kinds)}; the outputs are {kinds}", where)
        raise ConfigError(f"train.watch: {config.watch} cannot be measured", [problem])
    if "valid" not in bound.splits or not bound.splits["valid"].height:
        raise ConfigError("train.watch needs validation rows; set data.split.valid or data.valid")
    column, sign = outputs[0], -1.0 if metric.better == "higher" else 1.0

    def judge(network: torch.nn.Module) -> float:
        from pathlib import Path

        from modelyard.runtime.backends.torch import graphs
        from modelyard.runtime.model import Model
        from modelyard.verbs.evaluate import score

        task = bound.tasks[column.name]
        device = next(network.parameters()).device
        manifest = {"name": "watched", "model": {"program": task.program, "params": [vars(p) for p in task.params]}, "frame": bound.frame}
        model = Model(Path(), manifest, bound.pipeline, graphs(network, str(device)), "torch", "watched")
        value = float(score(model, bound, "valid", name, column.name)["value"])
        return sign * value if math.isfinite(value) else math.inf

    return judge
