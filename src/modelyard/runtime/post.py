"""Stored NumPy steps between the graphs and decoding: calibration, thresholds, promises. Each is a JSON object with its `step`.

Calibration rewrites `<output>.logits`; thresholds and costs add `<output>.decision`; outside moves `<output>.potentials`; conformal steps add `<output>.set` or
`<output>.low` and `<output>.high`. All are functions of a row's own outputs, continuous where they give numbers, so that backends which
differ in the seventh digit answer alike. Axis letters: B examples, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError
from modelyard.kinds.category import softmax

Outputs = dict[str, np.ndarray]
Step = Mapping[str, Any]


def log_scores(logits_BK: np.ndarray, exclusive: bool) -> np.ndarray:
    """Float64 `(B, K)`: logarithms of the probabilities of one label out of K; of a label set, the logits themselves."""
    z = logits_BK.astype(np.float64)
    if not exclusive:
        return z
    z = z - z.max(1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))


def log_odds(logits_BK: np.ndarray, exclusive: bool) -> np.ndarray:
    """Float64 `(B, K)`: log p / (1 - p) of every label, without forming 1 - p."""
    z = logits_BK.astype(np.float64)
    if not exclusive:
        return z
    out = np.empty_like(z)
    for k in range(z.shape[1]):
        others = np.delete(z, k, 1)
        top = others.max(1)
        out[:, k] = z[:, k] - top - np.log(np.exp(others - top[:, None]).sum(1))
    return out


def temperature(outputs: Outputs, step: Step) -> Outputs:
    """Divides `<output>.logits` by a positive temperature (Guo et al. 2017); the order of the scores is unchanged."""
    key = f"{step['output']}.logits"
    return outputs | {key: (outputs[key] / np.float32(step["value"])).astype(np.float32)}


def platt(outputs: Outputs, step: Step) -> Outputs:
    """A positive scale and a shift of each label's log-score (Platt 1999; for more than two labels the vector scaling of Guo et al.
    2017, on log-probabilities, so that a constant added to all logits changes nothing)."""
    key = f"{step['output']}.logits"
    scores = log_scores(outputs[key], step["exclusive"])
    moved = scores * np.asarray(step["scale"], np.float64) + np.asarray(step["shift"], np.float64)
    return outputs | {key: moved.astype(np.float32)}


def isotonic(outputs: Outputs, step: Step) -> Outputs:
    """Rising curves from log-odds to probabilities, one per label (two labels: of the last), linear between their points."""
    key = f"{step['output']}.logits"
    odds = log_odds(outputs[key], step["exclusive"])
    if step["exclusive"] and odds.shape[1] == 2:
        p = _curve(odds[:, 1], step["curves"][0])
        half = (np.log(p) - np.log1p(-p)) / 2
        return outputs | {key: np.stack([-half, half], 1).astype(np.float32)}
    p = np.stack([_curve(odds[:, k], curve) for k, curve in enumerate(step["curves"])], 1)
    new = np.log(p / p.sum(1, keepdims=True)) if step["exclusive"] else np.log(p) - np.log1p(-p)
    return outputs | {key: new.astype(np.float32)}


def _curve(odds_B: np.ndarray, curve: Mapping[str, Sequence[float]]) -> np.ndarray:
    return np.asarray(np.interp(odds_B, curve["odds"], curve["probabilities"]))


def thresholds(outputs: Outputs, step: Step) -> Outputs:
    """Decides at stored thresholds: `decision` = score / (2 · threshold) per label, so that one half is the border.

    For one label out of K the greatest decision wins; with two classes and thresholds (1 - t, t) this is `score ≥ t`.
    """
    output, values_K = step["output"], np.asarray(step["values"], np.float64)
    logits = outputs[f"{output}.logits"].astype(np.float64)
    scores = softmax(logits).astype(np.float64) if step["exclusive"] else 1.0 / (1.0 + np.exp(-logits))
    return outputs | {f"{output}.decision": scores / (2.0 * values_K)}


def costs(outputs: Outputs, step: Step) -> Outputs:
    """Decides for the label of least expected cost: `decision` = -Σ_i p_i · cost[i][k] (Elkan 2001)."""
    output = step["output"]
    p = np.exp(log_scores(outputs[f"{output}.logits"], True))
    return outputs | {f"{output}.decision": -(p @ np.asarray(step["matrix"], np.float64))}


def sets(outputs: Outputs, step: Step) -> Outputs:
    """Conformal label sets: `set` (B, K) is True where a label's strangeness is at most the stored threshold."""
    p = np.exp(log_scores(outputs[f"{step['output']}.logits"], True))
    return outputs | {f"{step['output']}.set": strangeness(p, step) <= step["threshold"]}


def strangeness(p_BK: np.ndarray, step: Step) -> np.ndarray:
    """How little each label conforms, `(B, K)` (the score of split conformal prediction; Vovk et al. 2005).

    lac: 1 - p (Sadinle et al. 2019). aps: the probability of all likelier labels (Romano et al. 2020, without its random share of the
    label's own, so that a set is a function of its row and holds at least the likeliest label). raps: aps plus `penalty` for each
    rank beyond `free` (Angelopoulos et al. 2021).
    """
    if step["method"] == "lac":
        return 1.0 - p_BK
    order = np.argsort(-p_BK, axis=1, kind="stable")
    falling = np.take_along_axis(p_BK, order, 1)
    before = np.cumsum(falling, 1) - falling
    before[:, 0] = 0.0
    if step["method"] == "raps":
        before = before + step["penalty"] * np.maximum(0, np.arange(1, p_BK.shape[1] + 1) - step["free"])
    out = np.empty_like(before)
    np.put_along_axis(out, order, before, 1)
    return out


def intervals(outputs: Outputs, step: Step) -> Outputs:
    """Conformal intervals: `low` and `high` (B, 1), the value ∓ `quantile` · spread, in the unit of the graph output."""
    value = outputs[f"{step['output']}.value"].astype(np.float64)
    half = step["quantile"] * spread(value, step)
    return outputs | {f"{step['output']}.low": value - half, f"{step['output']}.high": value + half}


def spread(value: np.ndarray, step: Step) -> np.ndarray:
    """The error to expect of an answer of this size: linear between stored points; one point is a constant."""
    return np.asarray(np.interp(value, step["at"], step["spread"]))


def outside(outputs: Outputs, step: Step) -> Outputs:
    """Takes `value` from the score of the first tag, `O`, at every word of a tagger: above 0 more entities are found, below it fewer."""
    key = f"{step['output']}.potentials"
    potentials = outputs[key].copy()
    potentials[:, potentials.shape[2] + 2 :, 0] -= np.float32(step["value"])
    return outputs | {key: potentials}


STEPS: dict[str, Callable[[Outputs, Step], Outputs]] = {
    "temperature": temperature, "platt": platt, "isotonic": isotonic, "thresholds": thresholds, "costs": costs, "sets": sets,
    "intervals": intervals, "outside": outside,
}  # fmt: skip
CALIBRATION = ("temperature", "platt", "isotonic")
DECISION = ("thresholds", "costs", "outside")
PROMISE = ("sets", "intervals")


def apply(outputs: Outputs, steps: Sequence[Step]) -> Outputs:
    """Runs the stored steps in order."""
    for step in steps:
        if step.get("step") not in STEPS:
            raise ArtefactError(f"the model holds the post step {step.get('step')!r}; this version knows {', '.join(STEPS)}")
        outputs = STEPS[step["step"]](outputs, step)
    return outputs
