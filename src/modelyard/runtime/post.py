"""Stored NumPy steps between the graphs and decoding: temperature, thresholds. Each is a JSON object with its `step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError
from modelyard.kinds.category import softmax

Outputs = dict[str, np.ndarray]


def temperature(outputs: Outputs, step: Mapping[str, Any]) -> Outputs:
    """Divides `<output>.logits` by a positive temperature (Guo et al. 2017); the order of the scores is unchanged."""
    key = f"{step['output']}.logits"
    return outputs | {key: (outputs[key] / np.float32(step["value"])).astype(np.float32)}


def thresholds(outputs: Outputs, step: Mapping[str, Any]) -> Outputs:
    """Decides at stored thresholds: `decision` = score / (2 · threshold) per label, so that one half is the border.

    For one label out of K the greatest decision wins; with two classes and thresholds (1 - t, t) this is `score ≥ t`.
    """
    output, values_K = step["output"], np.asarray(step["values"], np.float64)
    logits = outputs[f"{output}.logits"].astype(np.float64)
    scores = softmax(logits).astype(np.float64) if step["exclusive"] else 1.0 / (1.0 + np.exp(-logits))
    return outputs | {f"{output}.decision": scores / (2.0 * values_K)}


STEPS: dict[str, Callable[[Outputs, Mapping[str, Any]], Outputs]] = {"temperature": temperature, "thresholds": thresholds}


def apply(outputs: Outputs, steps: Sequence[Mapping[str, Any]]) -> Outputs:
    """Runs the stored steps in order."""
    for step in steps:
        if step.get("step") not in STEPS:
            raise ArtefactError(f"the model holds the post step {step.get('step')!r}; this version knows {', '.join(STEPS)}")
        outputs = STEPS[step["step"]](outputs, step)
    return outputs
