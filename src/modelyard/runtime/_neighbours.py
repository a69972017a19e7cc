"""The nearest training rows of rows with gaps, exactly, at the price of one matrix product.

The distance is scikit-learn's `nan_euclidean`: the squared difference of the columns that both rows have, over their number.
Float32 products name candidates; their distances are worked out again in float64, column by column, so that a row's answer does
not depend on the rows beside it. A bound on the rounding of the product says whether a row outside the candidates could be
nearer; where it could, all training rows are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

CELLS = 8_000_000
"""Distances in hand at once: 32 MB in float32, and as much again for the numbers of shared columns."""


@dataclass
class Neighbours:
    """Training rows `z_ND` (float64, NaN where missing, in comparable units) that fill the gaps of others."""

    z_ND: np.ndarray

    @cached_property
    def present_ND(self) -> np.ndarray:
        """Where a value is."""
        return ~np.isnan(self.z_ND)

    @cached_property
    def zero_ND(self) -> np.ndarray:
        """The values with 0 for missing."""
        return np.nan_to_num(self.z_ND)

    @cached_property
    def factor_EN(self) -> np.ndarray:
        """Right side of the product that gives Σ (x - y)² over shared columns: rows `[present, y², y]`."""
        return np.ascontiguousarray(np.concatenate([self.present_ND, self.zero_ND**2, self.zero_ND], 1).T.astype(np.float32))

    def means(self, z_BD: np.ndarray, neighbours_D: np.ndarray) -> np.ndarray:
        """`z_BD` with each gap filled by the mean of the `neighbours_D[d]` nearest rows that have the column; where
        `neighbours_D` is 0 or no training row shares a column with it, the gap stays."""
        out = z_BD.copy()
        gaps_BD = np.isnan(z_BD) & (neighbours_D > 0)
        rows = np.flatnonzero(gaps_BD.any(1))
        size = max(1, CELLS // max(1, len(self.z_ND)))
        for low in range(0, len(rows), size):
            some = rows[low : low + size]
            out[some] = self._fill(z_BD[some], gaps_BD[some], neighbours_D)
        return out

    def _fill(self, z_RD: np.ndarray, gaps_RD: np.ndarray, neighbours_D: np.ndarray) -> np.ndarray:
        candidates_RM, bound_R = self._candidates(z_RD, int(neighbours_D.max()))
        distance_RM = self._distances(z_RD, candidates_RM)
        order = np.lexsort((candidates_RM, distance_RM))
        nearest_RM = np.take_along_axis(candidates_RM, order, 1)
        distance_RM = np.take_along_axis(distance_RM, order, 1)
        out, unsure = z_RD.copy(), np.zeros(len(z_RD), bool)
        for d in np.flatnonzero(gaps_RD.any(0)):
            k, rows = int(neighbours_D[d]), np.flatnonzero(gaps_RD[:, d])
            usable = self.present_ND[nearest_RM[rows], d] & np.isfinite(distance_RM[rows])
            chosen = usable & (np.cumsum(usable, 1) <= k)
            count = chosen.sum(1)
            farthest = np.where(chosen, distance_RM[rows], -np.inf).max(1)
            unsure[rows] |= ((count < k) & np.isfinite(bound_R[rows])) | (farthest >= bound_R[rows])
            out[rows, d] = _mean(np.where(chosen, self.zero_ND[nearest_RM[rows], d], 0.0), chosen, k)
        for row in np.flatnonzero(unsure):
            out[row] = self._fill_exactly(z_RD[row : row + 1], gaps_RD[row], neighbours_D)
        return out

    def _candidates(self, z_RD: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers (R, M), the least distance (R,) that any other row can have)."""
        rows, columns = len(self.z_ND), z_RD.shape[1]
        m = min(rows, 4 * most + 12)
        if m == rows:
            return np.tile(np.arange(rows), (len(z_RD), 1)), np.full(len(z_RD), np.inf)
        present, zero = ~np.isnan(z_RD), np.nan_to_num(z_RD)
        left = np.concatenate([zero**2, present, -2.0 * zero], 1).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            about = left @ self.factor_EN
            shared = present.astype(np.float32) @ self.factor_EN[:columns]
            about /= shared
        about[np.isnan(about)] = np.inf
        found = np.argpartition(about, m - 1, axis=1)[:, :m]
        edge = np.take_along_axis(about, found[:, m - 1 :], 1)[:, 0].astype(np.float64)
        # |computed - true| <= g (x² + y² + 2|xy|) for a product of 3D terms; with y <= x + distance this leaves 6 g x² + 4 g distance
        g = (3 * columns + 8) * 2.0**-24
        return found, (edge - 6 * g * (zero**2).max(1)) / (1 + 4 * g)

    def _distances(self, z_RD: np.ndarray, index_RM: np.ndarray) -> np.ndarray:
        """Squared distances over the number of shared columns, one column after the other; infinite where none is shared."""
        total = np.zeros(index_RM.shape)
        shared = np.zeros(index_RM.shape)
        for d in range(z_RD.shape[1]):
            difference = z_RD[:, d, None] - self.z_ND[index_RM, d]
            both = ~np.isnan(difference)
            total += np.where(both, difference, 0.0) ** 2
            shared += both
        return np.where(shared > 0, total / np.maximum(shared, 1), np.inf)

    def _fill_exactly(self, z_1D: np.ndarray, gaps_D: np.ndarray, neighbours_D: np.ndarray) -> np.ndarray:
        """One row against all training rows."""
        everyone = np.arange(len(self.z_ND))[None]
        distance_N = self._distances(z_1D, everyone)[0]
        order = np.argsort(distance_N, kind="stable")
        out = z_1D[0].copy()
        for d in np.flatnonzero(gaps_D):
            k = int(neighbours_D[d])
            chosen = order[self.present_ND[order, d] & np.isfinite(distance_N[order])][:k]
            values = np.zeros((1, k))
            values[0, : len(chosen)] = self.zero_ND[chosen, d]
            out[d] = _mean(values, np.arange(k)[None] < len(chosen), k)[0]
        return out


def _mean(values_RM: np.ndarray, chosen_RM: np.ndarray, k: int) -> np.ndarray:
    """Mean of at most `k` chosen values a row, added in their order; NaN where none is chosen."""
    place = np.argsort(~chosen_RM, axis=1, kind="stable")[:, :k]
    total = np.zeros(len(values_RM))
    for i in range(place.shape[1]):
        total += np.take_along_axis(np.where(chosen_RM, values_RM, 0.0), place[:, i : i + 1], 1)[:, 0]
    count = chosen_RM.sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
