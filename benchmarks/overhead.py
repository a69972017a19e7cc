"""What Modelyard adds to LightGBM: seconds and memory, from 10 thousand to a million rows.

    python benchmarks/overhead.py [--rows 10000,100000,1000000] [--rounds 100] [--repeats 3]

Three jobs, each in a process of its own, in turn, with the same rows (15 numbers with missing values, 5 categories, two classes; synthetic,
Parquet), the same settings, rounds, validation rows and threads:

    direct   reads the file, makes codes of the categories, calls `lightgbm.train`, predicts the test rows
    fit      the same up to the arrays, then `modelyard.estimators.trees.fit` (timed) beside `lightgbm.train` (timed) in one process
    verb     `modelyard train` on the file: reading, checking, splitting, fitting, saving, loading back, replaying, judging, report

Printed: fit / direct fit (goal ≤ 1.10), verb - direct in seconds (goal ≤ 5), peak memory verb / direct (goal ≤ 1.3).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import hardware, verdict

SETTINGS = {"lr": 0.05, "leaves": 31, "min_leaf": 20, "features": 1.0, "rows": 1.0, "l2": 1.0}
NATIVE = {
    "objective": "binary", "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 20, "feature_fraction": 1.0, "bagging_fraction": 1.0,
    "bagging_freq": 0, "lambda_l2": 1.0, "verbose": -1, "deterministic": True, "force_row_wise": True, "seed": 0, "max_bin": 255,
}  # fmt: skip


def table(rows: int, path: Path) -> None:
    """Numbers on several scales, 3 % missing in a third of them, categories of 2 to 300 values; 15 % of the labels are noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 15))
    cats = [random.integers(0, k, rows) for k in (2, 5, 12, 50, 300)]
    effect = random.normal(size=300)
    score = x[:, 0] * x[:, 1] + np.abs(x[:, 2]) - 0.8 + effect[cats[4]] * 0.5 + (cats[1] == 2)
    y = (score > 0) ^ (random.random(rows) < 0.15)
    columns: dict[str, Any] = {f"n{i}": np.where(random.random(rows) < 0.03, np.nan, x[:, i]) if i % 3 == 0 else x[:, i] for i in range(15)}
    columns |= {f"c{i}": [f"v{v}" for v in c.tolist()] for i, c in enumerate(cats)}
    pl.DataFrame({**columns, "y": ["yes" if v else "no" for v in y]}).with_columns(pl.col("^n.*$").fill_nan(None)).write_parquet(path)


def arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(numbers, ids, target, split: 0 train, 1 valid, 2 test) as a user would make them."""
    frame = pl.read_parquet(path)
    numbers = frame.select(pl.col("^n.*$").cast(pl.Float32)).to_numpy()
    ids = np.column_stack([frame[c].cast(pl.Categorical).to_physical().to_numpy() for c in frame.columns if c.startswith("c")]).astype(np.int32)
    split = np.random.default_rng(1).choice(3, frame.height, p=[0.7, 0.1, 0.2])
    return numbers, ids, (frame["y"] == "yes").to_numpy().astype(np.int64), split


def fit_direct(numbers: np.ndarray, ids: np.ndarray, y: np.ndarray, split: np.ndarray, rounds: int) -> Any:
    """LightGBM as its documentation shows it."""
    import lightgbm as lgb

    x = np.concatenate([numbers, ids.astype(np.float32)], axis=1)
    params = {**NATIVE, "num_threads": 0}
    train = lgb.Dataset(x[split == 0], y[split == 0], categorical_feature=list(range(numbers.shape[1], x.shape[1])), params={"verbose": -1})
    valid = lgb.Dataset(x[split == 1], y[split == 1], reference=train)
    return lgb.train(params, train, rounds, valid_sets=[valid], callbacks=[lgb.early_stopping(rounds, verbose=False)])


def direct(path: Path, rounds: int) -> dict[str, float]:
    """The whole job by hand."""
    numbers, ids, y, split = arrays(path)
    booster = fit_direct(numbers, ids, y, split, rounds)
    guess = booster.predict(np.concatenate([numbers, ids], axis=1)[split == 2])
    return {"accuracy": float(((guess > 0.5) == y[split == 2]).mean())}


def fit(path: Path, rounds: int) -> dict[str, float]:
    """Both fits on the same arrays, twice each in turn; the second is counted (the first imports and warms)."""
    from modelyard.estimators import trees
    from modelyard.kinds._contract import Head

    numbers, ids, y, split = arrays(path)
    config = trees.Config(trees=rounds, bags=1, patience=rounds, **SETTINGS)  # type: ignore[arg-type]
    pick = lambda s: ({"table.numbers": numbers[split == s], "table.categories": ids[split == s]}, {"y.index": y[split == s]})  # noqa: E731
    train, valid = pick(0), pick(1)
    found = {}
    for _ in range(2):
        begin = time.perf_counter(), time.process_time()
        trees.fit(*train, [Head("y", "category", "logits", 2)], config, valid=valid)
        middle = time.perf_counter(), time.process_time()
        fit_direct(numbers, ids, y, split, rounds)
        end = time.perf_counter(), time.process_time()
        found = {"ours": middle[0] - begin[0], "direct": end[0] - middle[0], "ours_cpu": middle[1] - begin[1], "direct_cpu": end[1] - middle[1]}
    return found


def verb(path: Path, rounds: int) -> dict[str, float]:
    """The verb, as the command line runs it."""
    from modelyard.data.source import DataConfig
    from modelyard.verbs.train import train

    model = {"name": "trees", "trees": rounds, "bags": 1, "patience": rounds, **SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        done = train(DataConfig(path=str(path), target="y"), model=model, base=Path(folder))
    return {"accuracy": done.metrics["test"]["accuracy"]["value"]}


JOBS = {"direct": direct, "fit": fit, "verb": verb}


def run(job: str, path: Path, rounds: int) -> dict[str, float]:
    """A job in a process of its own: what it returns, with wall seconds, CPU seconds and peak memory in MB."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--job", job, "--path", str(path), "--rounds", str(rounds)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": time.perf_counter() - begin}


def main() -> int:
    """Prints a line per size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", choices=JOBS)
    parser.add_argument("--path", type=Path)
    given = parser.parse_args()
    if given.job:
        found = JOBS[given.job](given.path, given.rounds)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({**found, "peak": used.ru_maxrss / 1024, "cpu": used.ru_utime + used.ru_stime}))
        return 0
    print(hardware(), flush=True)
    ok = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, given.rows.split(",")):
            path = Path(folder) / f"{rows}.parquet"
            table(rows, path)
            found: dict[str, list[dict[str, float]]] = {job: [] for job in JOBS}
            for _ in range(given.repeats):
                for job in JOBS:
                    found[job].append(run(job, path, given.rounds))
            middle = lambda job, key, found=found: float(np.median([f[key] for f in found[job]]))  # type: ignore[misc]  # noqa: E731
            ratio = float(np.median([f["ours"] / f["direct"] for f in found["fit"]]))
            ratio_cpu = float(np.median([f["ours_cpu"] / f["direct_cpu"] for f in found["fit"]]))
            more, more_cpu = (middle("verb", k) - middle("direct", k) for k in ("wall", "cpu"))
            memory = middle("verb", "peak") / middle("direct", "peak")
            ok.append(verdict(f"{rows:,} rows: fit / LightGBM's ≤ 1.10", ratio <= 1.1, f"wall {ratio:.3f}, CPU {ratio_cpu:.3f}"))
            said = f"wall {more:.1f} s, CPU {more_cpu:.1f} s (direct {middle('direct', 'wall'):.1f} s, verb {middle('verb', 'wall'):.1f} s)"
            ok.append(verdict(f"{rows:,} rows: verb at most 5 s more", more <= 5, said))
            said = f"{memory:.2f} ({middle('verb', 'peak'):.0f} / {middle('direct', 'peak'):.0f} MB)"
            ok.append(verdict(f"{rows:,} rows: peak memory ≤ 1.3 times", memory <= 1.3, said))
            print(f"       accuracy: direct {middle('direct', 'accuracy'):.4f}, verb {middle('verb', 'accuracy'):.4f}", flush=True)
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
