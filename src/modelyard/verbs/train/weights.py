"""Class weights: how much the rows of each label count, for nets (in the loss) and estimators (as weights of the rows)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.kinds._contract import Array
from modelyard.runtime.pipeline import Column, Pipeline
from modelyard.verbs.train.config import TrainConfig


def class_weights(config: TrainConfig, column: Column, target: Array | None) -> np.ndarray | None:
    """(K,) weights of the labels of one output: `balanced` is rows / (K · rows of the label); None where none are asked for."""
    labels = getattr(column.state, "labels", None)
    if config.class_weights is None or column.kind != "category" or not labels or not isinstance(target, np.ndarray):
        return None
    if config.class_weights == "balanced":
        counts_K = np.bincount(target[target >= 0], minlength=len(labels)).astype(np.float64)
        return np.asarray(counts_K.sum() / (len(labels) * np.maximum(1.0, counts_K)))
    unknown = sorted(set(config.class_weights) - set(labels))
    if unknown:
        allowed = ", ".join(labels)
        problem = Problem(f"expected {allowed}", "train.class_weights")
        raise ConfigError(f"train.class_weights names unknown labels: {', '.join(unknown)}", [problem])
    return np.array([float(config.class_weights.get(label, 1.0)) for label in labels])


def row_weights(config: TrainConfig, pipeline: Pipeline, targets: Mapping[str, Array], weights: np.ndarray | None) -> np.ndarray | None:
    """(B,) weights of the training rows for an estimator: those of the data times those of the labels.

    Raises `Unsupported` where a row has no one label (several outputs, or another kind), and for the focal loss, which only nets know.
    """
    if config.loss == "focal":
        raise Unsupported("train.loss: focal is for nets; an estimator has a loss of its own. Try train.class_weights=balanced", "use")
    if config.class_weights is None:
        return weights
    if len(pipeline.outputs) != 1 or pipeline.outputs[0].kind != "category":
        kinds = ", ".join(f"{c.name} ({c.kind})" for c in pipeline.outputs)
        reason = "train.class_weights of an estimator weigh rows by their one label; the outputs are "
        raise Unsupported(f"{reason}{kinds}. Leave it out, or use a net", "use", [Problem(f"is {kinds}", "train.class_weights")])
    column = pipeline.outputs[0]
    target = targets.get(f"{column.name}.index")
    found_K = class_weights(config, column, target)
    assert found_K is not None and isinstance(target, np.ndarray)
    own = np.where(target >= 0, found_K[np.maximum(target, 0)], 1.0).astype(np.float32)
    return own if weights is None else own * weights
