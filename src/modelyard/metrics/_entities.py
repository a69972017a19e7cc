"""Entities found, true and right, counted sentence by sentence as `seqeval` counts them.

Truths and answers are arrays (B,) of tuples of tags. An entity is right where both ends and the type are; the averages pool all types (micro),
as in the shared tasks of CoNLL (Tjong Kim Sang & De Meulder 2003). Intervals resample sentences. Strict counting takes only what the scheme
allows (`mode="strict"` of seqeval), lenient counting what conlleval reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from modelyard.kinds.tags import _schemes
from modelyard.metrics._contract import Metric, Sums, Undefined, check_rows, weights_or_ones

Score = Literal["precision", "recall", "f1"]

REASON = {
    "precision": "no entity is found",
    "recall": "the truth has no entity",
    "f1": "neither the truth nor the answers have an entity",
}


def counts_B3(truth: np.ndarray, answers: np.ndarray, strictly: bool = False) -> np.ndarray:
    """(right, true, found) entities of each sentence, (B, 3) int64. Raises `Undefined` where the tags mark no entities."""
    labels = {t for row in (*truth, *answers) for t in row}
    scheme = _schemes.scheme_of(sorted(labels))
    if scheme == "plain" and labels - {"O"}:
        raise Undefined("the tags mark no entities (B-…, I-…)")
    read = partial(_schemes.strict, scheme=scheme) if strictly else _schemes.entities
    out = np.zeros((len(truth), 3), np.int64)
    for i, (true, said) in enumerate(zip(truth, answers, strict=True)):
        a, b = set(read(true)), set(read(said))
        out[i] = len(a & b), len(a), len(b)
    return out


def _formula(sums_R3: np.ndarray, score: Score) -> np.ndarray:
    right, true, found = sums_R3.astype(np.float64).T
    below = {"precision": found, "recall": true, "f1": (true + found) / 2}[score]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, right / below, np.nan)


def _compute(
    truth: np.ndarray, prediction: np.ndarray, *, score: Score, strictly: bool, weights: np.ndarray | None = None, **_: Any
) -> float:
    check_rows(truth, prediction, weights)
    total = weights_or_ones(weights, len(truth)) @ counts_B3(truth, prediction, strictly)
    value = float(_formula(total[None], score)[0])
    if np.isnan(value):
        raise Undefined(REASON[score])
    return value


def _sums(
    truth: np.ndarray, prediction: np.ndarray, *, score: Score, strictly: bool, weights: np.ndarray | None = None, **_: Any
) -> Sums | None:
    if weights is not None:
        return None
    return Sums(counts_B3(truth, prediction, strictly).astype(np.float32), partial(_formula, score=score))


def entity_metric(name: str, score: Score, strictly: bool = False) -> Metric:
    """A `Metric` over entities."""
    own: dict[str, Any] = {"score": score, "strictly": strictly}
    return Metric(name, "higher", "labels", ("tags",), partial(_compute, **own), partial(_sums, **own), None, (0.0, 1.0))


def by_type(truth: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> dict[str, tuple[int, int, int]]:
    """(right, true, found) entities of each type, by name."""
    out: dict[str, list[int]] = {}
    for true, said in zip(truth, answers, strict=True):
        a, b = set(_schemes.entities(true)), set(_schemes.entities(said))
        for place, found in enumerate((a & b, a, b)):
            for _, _, kind in found:
                out.setdefault(kind, [0, 0, 0])[place] += 1
    return {kind: (n[0], n[1], n[2]) for kind, n in sorted(out.items())}
