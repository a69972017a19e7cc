"""Finding the companion of each text among those of all: shared by the metrics of text vectors."""

from __future__ import annotations

import numpy as np

from modelyard.metrics._contract import Undefined

BLOCK = 2048
"""Anchors compared at a time: 2,048 × 20,000 similarities are 330 MB."""
EQUAL = 1e-6
"""Similarities this close are one: the same text in another batch differs in the seventh digit."""


def ranks(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(B,) place, from 1, of each row's own companion when all companions are sorted by cosine; equals count as not before it.

    `truth` is an object array (B,) of (vector, score), `prediction` (B, D).
    """
    near_BD = unit(companions(truth))
    anchors_BD = unit(np.asarray(prediction, np.float64))
    own_B = (anchors_BD * near_BD).sum(1)
    before = [
        (anchors_BD[low : low + BLOCK] @ near_BD.T > own_B[low : low + BLOCK, None] + EQUAL).sum(1) for low in range(0, len(own_B), BLOCK)
    ]
    return np.asarray(1 + np.concatenate(before))


def companions(truth: np.ndarray) -> np.ndarray:
    """(B, D) vectors of the texts that mean the same; raises `Undefined` where rows have none."""
    found = [vector for vector, _ in truth]
    if not found or any(v is None for v in found):
        raise Undefined("the rows have no texts that mean the same (a column of positives)")
    return np.stack(found)


def unit(x_BD: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return np.asarray(x_BD / np.maximum(np.linalg.norm(x_BD, axis=1, keepdims=True), 1e-12))
