"""Promises counted: coverage of conformal sets and intervals over 200 seeds, and calibration error before and after.

    python benchmarks/conformal.py                 # Adult, credit default, vehicle fraud, California housing
    python benchmarks/conformal.py --whole         # also: 20 whole trainings, whose validation rows stopped the boosting

One model of each set is trained on two fifths of the rows. The others are divided anew for every seed: half to fit the promise on, half to
count on, as it is with a model in use. Goal: the mean coverage lies within 1 % of the promise, for every set, method and promise;
aps and raps never give an empty set, so where the likeliest label alone is right more often than promised their coverage is that of
the label, and more than promised. Exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import SHARED, hardware, need_data, verdict

SEEDS = 200
NEAR = 0.01
ADULT = (
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race", "sex",
    "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
)  # fmt: skip


def adult() -> pl.DataFrame:
    """Both official parts; '?' is missing, the dot behind the test labels is gone."""
    parts = [
        pl.read_csv(SHARED / "tabular" / "adult_income" / f"adult-{p}.csv.gz", has_header=False, new_columns=list(ADULT), null_values=["?", " ?"])
        for p in ("train", "test")
    ]  # fmt: skip
    return pl.concat(parts).with_columns(pl.col("income").str.strip_chars(" .")).drop_nulls("income")


def fraud() -> pl.DataFrame:
    """Without the number of the policy and someone's split."""
    path = SHARED / "tabular" / "vehicle_claim_fraud" / "fraud_1994_1995.csv.gz"
    return pl.read_csv(path).drop("PolicyNumber", "Training", strict=False)


SETS: dict[str, tuple[Any, str]] = {
    "adult": (adult, "income"),
    "credit default": (lambda: pl.read_csv(SHARED / "tabular" / "credit_card_default" / "credit.csv.gz", infer_schema_length=None), "default"),
    "vehicle fraud": (fraud, "FraudFound_P"),
    "california": (lambda: pl.read_csv(SHARED / "tabular" / "california_housing" / "housing.csv.gz"), "median_house_value"),
}


def trained(frame: pl.DataFrame, target: str, folder: Path, **settings: Any) -> Any:
    """What a model says of the rows that neither taught nor stopped it."""
    from modelyard.data.source import DataConfig
    from modelyard.data.split import SplitConfig
    from modelyard.runtime.model import Model
    from modelyard.tasks._binding import bind
    from modelyard.verbs.train import Config, calibrate, train

    kind = {"outputs": {target: {"kind": "category"}}} if frame[target].n_unique() == 2 else {"target": target}
    config = DataConfig(path=frame, split=SplitConfig(valid=0.1, test=0.5), **kind)
    found = train(config, None, {"name": "trees", "bags": 1}, Config(**settings), base=folder)
    model = Model.load(found.model)
    bound = bind(config, None, folder, like=model.pipeline, tasks=model.tasks)
    return calibrate.gather(model, bound.splits["test"])[target]


def count(name: str, evidence: Any, coverage: float, method: str) -> bool:
    """Coverage over the seeds, of one method."""
    from modelyard.verbs.train import Config, calibrate

    regression = evidence.column.kind == "number"
    config = Config(coverage=coverage, **({"intervals": method} if regression else {"sets": method}))  # type: ignore[arg-type]
    kept, size = [], []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(evidence))
        half = len(order) // 2
        step = calibrate.conform(evidence.take(order[:half]), replace(config, seed=seed))
        found = calibrate.kept(evidence.take(order[half:]), step)
        kept.append(found["coverage"])
        size.append(found["width"] if regression else found["size"])
    mean, spread = float(np.mean(kept)), float(np.std(kept))
    top = 0.0
    if not regression and method != "lac":
        top = float((evidence.outputs.argmax(1) == evidence.truth).mean())
    near = abs(mean - max(coverage, top)) <= NEAR
    told = f"mean {mean:.4f}, deviation {spread:.4f}, {'width' if regression else 'labels'} {np.mean(size):.4g}"
    told += f" (the likeliest label alone is right in {top:.4f})" if top > coverage else ""
    return verdict(f"{name}, {method}, promise {coverage:g}", near, told)


def calibrated(name: str, evidence: Any) -> None:
    """Calibration error before and after each method, over 20 divisions."""
    from modelyard.verbs.train import Config, calibrate

    before, after = [], {m: [] for m in (*calibrate.METHODS, "auto")}  # type: ignore[var-annotated]
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(evidence))
        fit, rest = evidence.take(order[: len(order) // 2]), evidence.take(order[len(order) // 2 :])
        before.append(calibrate.error(rest))
        for method in after:
            chosen = calibrate._choose(fit, Config(calibration="auto", seed=seed))[0] if method == "auto" else method
            after[method].append(calibrate.error(rest if chosen == "none" else rest.after([calibrate.FITS[chosen](fit)])))
    told = ", ".join(f"{m} {np.mean(v):.4f} ± {np.std(v):.4f}" for m, v in after.items())
    print(f"{name}: calibration error before {np.mean(before):.4f} ± {np.std(before):.4f}; after {told}", flush=True)


def whole(name: str, frame: pl.DataFrame, target: str, folder: Path) -> bool:
    """Twenty trainings from the start on 6,000 rows each: the validation rows that carry the promise stopped the boosting too."""
    from modelyard.data.source import DataConfig
    from modelyard.verbs.train import Config, train

    kept = []
    for seed in range(20):
        some = frame.sample(min(6000, frame.height), seed=seed)
        kind = {"outputs": {target: {"kind": "category"}}} if frame[target].n_unique() == 2 else {"target": target}
        config = Config(coverage=0.9, seed=seed, calibration="none")
        found = train(DataConfig(path=some, **kind), None, {"name": "trees", "bags": 1}, config, base=folder, name=f"m{seed}")
        kept.append(found.metrics["test"]["coverage"]["value"])
    error = float(np.std(kept, ddof=1)) / len(kept) ** 0.5
    mean = float(np.mean(kept))
    return verdict(f"{name}, whole trainings, promise 0.9", abs(mean - 0.9) <= NEAR + 2 * error, f"mean {mean:.4f} ± {error:.4f} (standard error)")


def main() -> int:
    """All sets; 0 where every promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    options = parser.parse_args()
    need_data()
    print(hardware(), flush=True)
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            load, target = SETS[name]
            frame = load()
            evidence = trained(frame, target, Path(folder))
            print(f"{name}: {len(evidence)} rows beside those of training", flush=True)
            if evidence.column.kind == "number":
                for coverage, method in ((c, m) for c in (0.8, 0.9, 0.95) for m in ("scaled", "constant")):
                    ok &= count(name, evidence, coverage, method)
            else:
                calibrated(f"{name}, trees", evidence)
                calibrated(f"{name}, trees with balanced class weights", trained(frame, target, Path(folder), class_weights="balanced"))
                for coverage, method in ((c, m) for c in (0.9, 0.95) for m in ("lac", "aps", "raps")):
                    ok &= count(name, evidence, coverage, method)
            if options.whole:
                ok &= whole(name, frame, target, Path(folder))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
