"""Which models an ensemble takes, and how much each counts: greedy selection from a library of models.

Caruana, Niculescu-Mizil, Crew & Ksikes 2004, "Ensemble selection from libraries of models": models are added one at a time, with
replacement, each time the one that lowers the loss of the average most; a model added n times in N rounds weighs n / N. The loss is
measured on out-of-fold answers, so that a model which fits its own rows too closely gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.kinds._contract import Head
from modelyard.kinds.category import softmax

ROUNDS = 60
"""Rounds of selection at most: weights in steps of about 1/60."""
WAIT = 12
"""Rounds without a smaller loss after which selection stops."""

TINY = 1e-7
"""Probabilities are kept this far from zero, as in `runtime/composite.py`."""


@dataclass(frozen=True)
class Truth:
    """The targets of one output on the rows that were held out."""

    head: Head
    target: np.ndarray
    """`index` (N,), `multi_hot` (N, K) or scaled `value` (N,)."""
    weights_N: np.ndarray | None = None


def answers(head: Head, output_NK: np.ndarray) -> np.ndarray:
    """What is averaged: probabilities (N, K) of labels, values (N, 1) of numbers; float64."""
    if head.kind == "category":
        return softmax(output_NK).astype(np.float64)
    if head.kind == "label-set":
        return 1.0 / (1.0 + np.exp(-output_NK.astype(np.float64)))
    return output_NK.astype(np.float64)


def loss(truth: Truth, answers_NK: np.ndarray) -> float:
    """Log-loss in nats a row (label sets: the mean over labels), or squared error in training variances."""
    if truth.head.kind == "category":
        value_N = -np.log(answers_NK[np.arange(len(answers_NK)), truth.target].clip(TINY))
    elif truth.head.kind == "label-set":
        p = answers_NK.clip(TINY, 1 - TINY)
        value_N = -(truth.target * np.log(p) + (1 - truth.target) * np.log(1 - p)).mean(1)
    else:
        value_N = (answers_NK[:, 0] - truth.target.reshape(-1)) ** 2
    return float(np.average(value_N, weights=truth.weights_N))


def total(truths: Sequence[Truth], found: Mapping[str, np.ndarray]) -> float:
    """Sum of the losses of all outputs; `found` has what `answers` gives, by head key."""
    return sum(loss(t, found[t.head.key]) for t in truths)


def select(
    truths: Sequence[Truth], library: Sequence[Mapping[str, np.ndarray]], judge: Callable[[Mapping[str, np.ndarray]], float] | None = None
) -> list[float]:
    """(P,) weights that sum to one; `library[i]` has the out-of-fold answers of model i by head key.

    `judge` replaces the loss (lower is better). The best single model is the start, so the result is never worse on these rows.
    """
    measure = judge or (lambda found: total(truths, found))
    losses = [measure(one) for one in library]
    counts = np.zeros(len(library))
    first = int(np.argmin(losses))
    counts[first] = 1
    sums = {key: value.copy() for key, value in library[first].items()}
    best, kept, waited = losses[first], counts.copy(), 0
    for size in range(2, ROUNDS + 1):
        tried = [measure({key: (value + one[key]) / size for key, value in sums.items()}) for one in library]
        chosen = int(np.argmin(tried))
        counts[chosen] += 1
        for key in sums:
            sums[key] += library[chosen][key]
        if tried[chosen] < best - 1e-9:
            best, kept, waited = tried[chosen], counts.copy(), 0
        else:
            waited += 1
            if waited >= WAIT:
                break
    weights: list[float] = (kept / kept.sum()).tolist()
    return weights


def stack(truth: Truth, outputs_PNK: np.ndarray, ridge: float = 1e-3) -> tuple[list[float], list[float]]:
    """((P,) weights, (K,) shifts) of a linear model over the graph outputs of all models: Σ_p w_p z_p + b.

    Breiman 1996, "Stacked regressions": weights are not negative, so that two alike models cannot be played off against each other.
    They minimise `loss` plus `ridge` · |w - 1/P|², by L-BFGS-B, on out-of-fold outputs.
    """
    from scipy.optimize import minimize

    count, rows, size = outputs_PNK.shape
    z_PNK, head = outputs_PNK.astype(np.float64), truth.head
    weights_N = np.full(rows, 1 / rows) if truth.weights_N is None else truth.weights_N / truth.weights_N.sum()
    if head.kind == "category":
        target_NK = np.eye(size)[truth.target]
    else:
        target_NK = np.asarray(truth.target, np.float64).reshape(rows, -1)

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        mixed_NK = np.tensordot(p[:count], z_PNK, 1) + p[count:]
        found_NK = answers(head, mixed_NK) if head.kind != "number" else mixed_NK
        value = loss(truth, found_NK) + ridge * float(((p[:count] - 1 / count) ** 2).sum())
        share = 2.0 if head.kind == "number" else 1.0 / size if head.kind == "label-set" else 1.0
        slope_NK = share * weights_N[:, None] * (found_NK - target_NK)
        to_weights = np.tensordot(z_PNK, slope_NK, 2) + 2 * ridge * (p[:count] - 1 / count)
        return value, np.concatenate([to_weights, slope_NK.sum(0)])

    start = np.concatenate([np.full(count, 1 / count), np.zeros(size)])
    bounds = [(0.0, None)] * count + [(None, None)] * size
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return found.x[:count].tolist(), found.x[count:].tolist()


def blend(library: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """The weighted mean of answers."""
    keys = library[0].keys()
    return {key: np.tensordot(np.asarray(weights), np.stack([one[key] for one in library]), 1) for key in keys}
