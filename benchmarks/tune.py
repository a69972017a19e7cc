"""Epochs that successive halving needs to reach what random search ends with, at equal trials.

    python benchmarks/tune.py adult --seeds 5             # an MLP on 4,000 rows of Adult, judged on 4,000 others
    python benchmarks/tune.py mnist --seeds 5             # an MLP on 5,000 MNIST digits (7 x 7), judged on 5,000 others
    python benchmarks/tune.py adult --methods tpe hyperband

Both searches go through the public verb with the same space, trials and full length of a trial. Epochs are counted from the journal, so that
a busy machine changes nothing. For each seed: the score random search ends with (its best trial on the validation rows), the epochs it
took, and the epochs after which halving had a whole trial at least as good; then the test score of both best models. "Reaches" is told
exactly and with a tolerance: random search's own spread over the seeds, below which two searches cannot be told apart.
Data: `<repository>/../shared/data` or MODELYARD_SHARED.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import SHARED, hardware, need_data

import modelyard

COLUMNS = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital", "occupation", "relationship", "race", "sex", "gain", "loss",
    "hours", "country", "income",
]  # fmt: skip

SPACE: dict[str, Any] = {
    "train.lr": "log 1e-5..1e-1",
    "train.batch": [32, 64, 128, 256, 512],
    "train.weight_decay": "log 1e-5..1",
    "model.hidden": [[32], [128], [256], [128, 128], [256, 256], [256, 128, 64]],
    "model.dropout": "0..0.6",
}


def adult() -> tuple[dict[str, pl.DataFrame], str, str]:
    """(tables, target, metric)."""
    frame = pl.read_csv(SHARED / "tabular" / "adult_income" / "adult-train.csv.gz", has_header=False, new_columns=COLUMNS, infer_schema_length=None)
    frame = frame.drop_nulls("income").drop("fnlwgt", "education")
    order = np.random.default_rng(0).permutation(frame.height)
    cut = lambda low, high: frame[np.sort(order[low:high])]  # noqa: E731
    return {"train": cut(0, 4000), "valid": cut(4000, 8000), "test": cut(8000, 18000)}, "income", "log_loss"


def mnist() -> tuple[dict[str, pl.DataFrame], str, str]:
    """(tables, target, metric): means of 4 x 4 pixels as 49 numbers."""
    folder = SHARED / "image_classification" / "mnist"

    def idx(name: str) -> np.ndarray:
        data = gzip.decompress((folder / f"{name}.gz").read_bytes())
        shape = np.frombuffer(data, ">u4", data[3], 4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

    def table(prefix: str, rows: np.ndarray) -> pl.DataFrame:
        images = idx(f"{prefix}-images-idx3-ubyte")[rows].astype(np.float32)
        small = images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(len(rows), -1)
        digits = idx(f"{prefix}-labels-idx1-ubyte")[rows]
        return pl.DataFrame({**{f"p{i}": small[:, i] for i in range(49)}, "digit": [f"d{d}" for d in digits]})

    order = np.random.default_rng(0).permutation(60_000)
    tables = {"train": table("train", order[:5000]), "valid": table("train", order[5000:10_000]), "test": table("t10k", np.arange(10_000))}
    return tables, "digit", "log_loss"


SETS: dict[str, Callable[[], tuple[dict[str, pl.DataFrame], str, str]]] = {"adult": adult, "mnist": mnist}


def search(name: str, method: str, seed: int, trials: int, epochs: int, rungs: int, folder: Path, eta: int = 3) -> dict[str, Any]:
    """One search: `{value, test, epochs, course: [(epochs so far, best whole trial so far)]}`."""
    tables, target, metric = SETS[name]()
    (folder / "modelyard.yaml").write_text(f"version: 1\nname: {method}-{seed}\n", encoding="utf-8")
    extra = {"model.frequencies": [0, 8]} if name == "adult" else {}
    found = modelyard.tune(
        str(folder), {
            "data.path": tables, "data.target": target, "model": {"name": "mlp", **({} if extra else {"frequencies": 0})}, "train.epochs": epochs,
            "train.seed": 0, "train.threads": 1, "tune.search": {**SPACE, **extra}, "tune.trials": trials, "tune.method": method, "tune.seed": seed,
            "tune.metric": metric, "tune.rungs": rungs, "tune.eta": eta, "evaluate.metrics": [metric],
        }, quiet=True,
    )  # fmt: skip
    entries = [json.loads(line) for line in (Path(found.run) / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    spent, best, course = 0, np.inf, []
    for e in (e for e in entries if e["event"] == "finished"):
        spent += e["epochs"]
        if e["state"] == "complete":
            best = min(best, e["value"])
        course.append((spent, best))
    return {"value": found.best["value"], "test": found.metrics["test"][metric]["value"], "epochs": spent, "course": course, "failed": len(found.failed)}


def reached(course: list[tuple[int, float]], value: float) -> int | None:
    """Epochs after which the best whole trial was at most `value`."""
    return next((spent for spent, best in course if best <= value), None)


def main() -> int:
    """Prints a line a seed and the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--rungs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["halving"])
    given = parser.parse_args()
    need_data()
    print(hardware())
    rows: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {m: [] for m in given.methods}
    for seed in range(given.first, given.first + given.seeds):
        with tempfile.TemporaryDirectory() as name:
            random = search(given.set, "random", seed, given.trials, given.epochs, given.rungs, Path(name))
            for method in given.methods:
                other = search(given.set, method, seed, given.trials, given.epochs, given.rungs, Path(name))
                rows[method].append((random, other))
                at = reached(other["course"], random["value"])
                print(
                    f"seed {seed}: random {random['value']:.5f} (test {random['test']:.5f}) in {random['epochs']} epochs; "
                    f"{method} {other['value']:.5f} (test {other['test']:.5f}) in {other['epochs']}, reached after {at}", flush=True,
                )  # fmt: skip
    for method, pairs in rows.items():
        finals = np.array([r["value"] for r, _ in pairs])
        tolerance = float(finals.std(ddof=1)) if len(finals) > 1 else 0.0
        for label, more in (("exactly", 0.0), (f"within random's own spread ({tolerance:.5f})", tolerance)):
            found = [reached(o["course"], r["value"] + more) for r, o in pairs]
            shares = [at / r["epochs"] for at, (r, _) in zip(found, pairs, strict=True) if at is not None]
            print(f"{method}, {label}: reached in {len(shares)} of {len(pairs)}; share of random's epochs {', '.join(f'{s:.3f}' for s in shares)}")
        whole = np.mean([o["epochs"] / r["epochs"] for r, o in pairs])
        gap = np.array([o["value"] - r["value"] for r, o in pairs])
        each = ", ".join(f"{g:+.5f}" for g in gap)
        print(f"{method}: all its epochs are {whole:.3f} of random's; final score minus random's {gap.mean():+.5f} (each {each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
