"""The k nearest rows of every row, exactly: a matrix product in float32 screens, float64 decides.

Squared distances come from one product of augmented rows, `[a, 1] · [-2 b, |b|²]`, in blocks that stay in cache. A bound on
the rounding error of that product (Higham 2002, "Accuracy and stability of numerical algorithms", §3.1) makes a score a true lower bound
of the distance; the smallest scores of as many groups of rows give an upper bound of the k-th distance; what lies between is
worked out in float64. Equal distances are ordered by row number, so neither blocks nor threads change an answer.
"""

from __future__ import annotations

import numpy as np

BLOCK = 256
"""Rows compared at once: 256 × 20,000 float32 scores are 20 MB."""
GROUPS = 16
"""Groups of rows per neighbour wanted: more make the bound tighter and its search longer."""
SLICE = 2**21
"""Candidate pairs worked out at once: at 20 columns 336 MB. Only tables of copies have as many."""


def nearest(points_ND: np.ndarray, k: int, queries_MD: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows_MK, distances_MK): int64 numbers of the `k` nearest points and float64 Euclidean distances, the nearest first.

    Without `queries_MD` every point is asked for its neighbours and is none of its own, although a copy of it is.
    Ties go to the lower row. Values must be finite. Raises `ValueError` for a `k` that there are not enough points for.
    """
    own = queries_MD is None
    x_ND = np.ascontiguousarray(points_ND, np.float64)
    q_MD = x_ND if own else np.ascontiguousarray(queries_MD, np.float64)
    n, m = len(x_ND), len(q_MD)
    if not 1 <= k <= n - own:
        raise ValueError(f"{k} neighbours of {n} points: there are {n - own} at most")
    centre = x_ND.mean(0) if x_ND.shape[1] else np.zeros(0)
    reach = max(float(np.abs(x_ND - centre).max(initial=0)), float(np.abs(q_MD - centre).max(initial=0))) or 1.0
    x_ND, q_MD = (x_ND - centre) / reach, (q_MD - centre) / reach
    margin = (x_ND.shape[1] + 4) * float(np.finfo(np.float32).eps)
    squares_N = (x_ND * x_ND).sum(1)
    groups = max(k + own, min(GROUPS * k, n))
    each = -(-n // groups)
    screen_DN = np.full((x_ND.shape[1] + 1, groups * each), 0, np.float32)
    screen_DN[:-1, :n] = -2 * x_ND.T
    screen_DN[-1, :n], screen_DN[-1, n:] = squares_N * (1 - 2 * margin), np.inf
    rows_MK, distances_MK = np.empty((m, k), np.int64), np.empty((m, k))
    for start in range(0, m, BLOCK):
        q_BD = q_MD[start : start + BLOCK]
        sizes_B = (q_BD * q_BD).sum(1) * (1 - 2 * margin)
        augmented = np.concatenate([q_BD, np.ones((len(q_BD), 1))], 1).astype(np.float32)
        scores_BN = augmented @ screen_DN
        if own:
            scores_BN[np.arange(len(q_BD)), np.arange(start, start + len(q_BD))] = np.inf
        limit_B = _limit(scores_BN, q_BD, x_ND, k, groups, each)
        # one step of float32 upwards: the comparison below is made in float32
        bound_B = np.nextafter((limit_B - sizes_B).astype(np.float32), np.float32(np.inf))
        found = np.flatnonzero(scores_BN <= bound_B[:, None])
        asked, near = np.divmod(found, groups * each)
        exact = _distances(q_BD, x_ND, asked, near)
        # by distance within each row; equal ones stay in row order, since the sort is stable
        order = np.argsort(exact, kind="stable")
        order = order[np.argsort(asked[order], kind="stable")]
        firsts = np.searchsorted(asked, np.arange(len(q_BD)))
        picked = order[firsts[:, None] + np.arange(k)]
        rows_MK[start : start + BLOCK] = near[picked]
        distances_MK[start : start + BLOCK] = np.sqrt(exact[picked]) * reach
    return rows_MK, distances_MK


def _limit(scores_BN: np.ndarray, q_BD: np.ndarray, x_ND: np.ndarray, k: int, groups: int, each: int) -> np.ndarray:
    """(B,) upper bound of the k-th squared distance: the exact distances of the best row of each of k groups."""
    folded = scores_BN.reshape(len(scores_BN), each, groups)  # row j is in group j % groups, so that the minimum runs over whole lines
    best_BG = folded.min(1)
    chosen_BK = np.argpartition(best_BG, k - 1, axis=1)[:, :k] if groups > k else np.tile(np.arange(groups), (len(best_BG), 1))
    inside = np.take_along_axis(folded, chosen_BK[:, None, :], 2).argmin(1)
    rows = inside * groups + chosen_BK
    asked = np.repeat(np.arange(len(q_BD)), rows.shape[1])
    exact = _distances(q_BD, x_ND, asked, rows.reshape(-1))
    return exact.reshape(rows.shape).max(1)


def _distances(q_BD: np.ndarray, x_ND: np.ndarray, asked: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Squared float64 distances of pairs, a slice at a time."""
    out = np.empty(len(asked))
    for start in range(0, len(asked), SLICE):
        part = slice(start, start + SLICE)
        difference = q_BD[asked[part]] - x_ND[near[part]]
        out[part] = np.einsum("nd,nd->n", difference, difference)
    return out
