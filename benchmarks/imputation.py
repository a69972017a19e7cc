"""k-nearest-neighbour imputation beside scikit-learn's, interleaved, on the same table with the same values.

    python benchmarks/imputation.py            # 20,000 rows of 20 columns, a tenth missing; goal: 3 times as fast, equal to 1e-6

Both see columns in units of their deviations, as a model's pipeline makes them, with one BLAS thread each. CPU time is judged (best of
the rounds), wall time is printed beside it. A last line times one row against a model's 20,000 stored rows. Exit code 1 where a goal is
missed.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time

import numpy as np
from _record import Clock, hardware, verdict

FASTER, EQUAL = 3.0, 1e-6


def table(rows: int, columns: int, missing: float, seed: int = 0) -> np.ndarray:
    """Five hidden causes and noise; gaps at random."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 5)) @ random.normal(size=(5, columns)) + random.normal(size=(rows, columns))
    x[random.random(x.shape) < missing] = np.nan
    return x


def main() -> int:
    """Runs both in turn; 0 where both goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--missing", type=float, default=0.1)
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    from sklearn.impute import KNNImputer

    from modelyard.runtime.imputation import Nearest, moments

    print(hardware(), flush=True)
    x = table(options.rows, options.columns, options.missing)
    mean, scale = moments(x)
    names, k = [f"x{i}" for i in range(options.columns)], options.neighbours
    cpu: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    found = {}
    for _ in range(options.rounds):
        with Clock() as clock:
            fitted = Nearest.fit(names, [k] * options.columns, x)
            found["ours"] = fitted.fill(x)
        cpu["ours"].append(clock.cpu)
        print(f"ours          {clock}", flush=True)
        with Clock() as clock:
            found["scikit-learn"] = KNNImputer(n_neighbors=k).fit_transform((x - mean) / scale) * scale + mean
        cpu["scikit-learn"].append(clock.cpu)
        print(f"scikit-learn  {clock}", flush=True)
    ratio = min(cpu["scikit-learn"]) / min(cpu["ours"])
    off = float(np.abs(found["ours"] - found["scikit-learn"]).max())
    seconds = []
    for row in x[np.isnan(x).any(1)][:200]:
        began = time.thread_time()
        fitted.fill(row[None])
        seconds.append(time.thread_time() - began)
    print(f"one row against {options.rows} stored ones: {1e3 * float(np.median(seconds)):.2f} ms CPU")
    same = verdict("values of scikit-learn's KNNImputer", off <= EQUAL, f"largest difference {off:.1e}, goal {EQUAL:.0e}")
    return 0 if verdict("times as fast", ratio >= FASTER, f"{ratio:.1f}, goal {FASTER:.0f}") & same else 1


if __name__ == "__main__":
    sys.exit(main())
