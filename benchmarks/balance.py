"""SMOTE beside imbalanced-learn on 20,000 × 20 numbers: the same draws, so the same rows, at several shares of the rare label.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/balance.py

Needs imbalanced-learn. Runs alternate; printed are medians of CPU time (the machine may be shared) and of wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _record import hardware

from modelyard.data.balance import between
from modelyard.data.nearest import nearest

ROWS, COLUMNS, REPEATS = 20_000, 20, 15


def ours(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """All rows, the made ones last, from imbalanced-learn's own draws."""
    rare = x[y == 1]
    near, _ = nearest(rare, 5)
    draws = np.random.RandomState(seed)
    need = len(x) - 2 * len(rare)
    base, turn = np.divmod(draws.randint(0, near.size, need), 5)
    return np.concatenate([x, between(x[y == 1], near, base, turn, draws.uniform(size=need))])


def timed(call: Callable[..., Any], *given: Any) -> tuple[Any, float, float]:
    """(result, CPU seconds, wall seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call(*given)
    return found, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Prints one line per share."""
    from imblearn.over_sampling import SMOTE

    print(hardware())
    print(f"{'rare':>6} {'ours CPU ms':>12} {'theirs':>8} {'ratio':>6} {'ours wall ms':>13} {'theirs':>8} {'ratio':>6}  largest difference")
    random = np.random.default_rng(0)
    for share in (0.01, 0.05, 0.1, 0.25):
        x, y = random.normal(size=(ROWS, COLUMNS)), (np.arange(ROWS) < share * ROWS).astype(int)
        mine, their, gap = [], [], 0.0
        for seed in range(REPEATS):
            made, *a = timed(ours, x, y, seed)
            (theirs, _), *b = timed(SMOTE(random_state=seed).fit_resample, x, y)
            mine.append(a)
            their.append(b)
            gap = max(gap, float(np.abs(made - theirs).max()))
        (ac, aw), (bc, bw) = np.median(mine, 0) * 1e3, np.median(their, 0) * 1e3
        print(f"{share:>6.0%} {ac:>12.1f} {bc:>8.1f} {bc / ac:>6.2f} {aw:>13.1f} {bw:>8.1f} {bw / aw:>6.2f}  {gap:.1e}")


if __name__ == "__main__":
    main()
