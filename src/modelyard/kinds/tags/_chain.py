"""The best tag sequence of a linear chain and its probability, in NumPy: the same for every backend.

Lafferty, McCallum & Pereira 2001, Conditional Random Fields, ICML, eq. 1 with pairwise scores that do not depend on the position; Viterbi
1967. `potentials` (B, K + 2 + L, K) hold the scores of beginning (row 0) and ending (row 1) with each tag, of stepping from one (row) to
another (column), and behind them those of each word's tags.
"""

from __future__ import annotations

import numpy as np

NEVER = -1e30
"""Score of what the scheme forbids: far below any sum of scores, and finite, so that no difference of two is undefined."""


def split(potentials_BPK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(first (B, K), last (B, K), step (B, K, K), words (B, L, K)) in float64."""
    size = potentials_BPK.shape[2]
    p = potentials_BPK.astype(np.float64)
    return p[:, 0], p[:, 1], p[:, 2 : size + 2], p[:, size + 2 :]


def best(
    potentials_BPK: np.ndarray, length_B: np.ndarray, legal: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(ids (B, L) of the best sequence, zeros behind its end; log of its probability among all legal ones (B,)).

    `legal` is `(first (K,), last (K,), step (K, K))`. A length of 0 has the empty sequence with probability 1.
    """
    first, last, step, words = split(potentials_BPK)
    first, last, step = first + _bar(legal[0]), last + _bar(legal[1]), step + _bar(legal[2])
    rows, length = len(words), words.shape[1]
    ids = np.zeros((rows, length), np.int64)
    if not length:
        return ids, np.zeros(rows)
    score_BK = first + words[:, 0]
    total_BK = score_BK
    back = np.zeros((length, rows, words.shape[2]), np.int64)
    for at in range(1, length):
        goes_on = (at < length_B)[:, None]
        paths_BKK = score_BK[:, :, None] + step
        back[at] = paths_BKK.argmax(1)
        score_BK = np.where(goes_on, paths_BKK.max(1) + words[:, at], score_BK)
        total_BK = np.where(goes_on, _logsumexp(total_BK[:, :, None] + step, 1) + words[:, at], total_BK)
    score_BK, total_BK = score_BK + last, total_BK + last
    tag_B = score_BK.argmax(1)
    every = np.arange(rows)
    value_B = score_BK[every, tag_B] - _logsumexp(total_BK, 1)
    for at in range(length - 1, -1, -1):
        here = at < length_B
        ids[here, at] = tag_B[here]
        if at:
            tag_B = np.where(here, back[at][every, tag_B], tag_B)
    empty = length_B == 0
    return ids, np.where(empty, 0.0, np.minimum(value_B, 0.0))


def _bar(allowed: np.ndarray) -> np.ndarray:
    return np.where(allowed, 0.0, NEVER)


def _logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis, keepdims=True)
    found: np.ndarray = np.log(np.exp(x - top).sum(axis)) + top.squeeze(axis)
    return found
