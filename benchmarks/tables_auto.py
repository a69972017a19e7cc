"""What `model: auto` should mean for tables: our trees, our linear model and their average beside HistGradientBoosting.

    PYTHONPATH=src python benchmarks/tables_auto.py [telco] [adult] … [--folds N] [--set trees.lr=0.03] [--out FILE]

The target sets are telco, adult, credit and housing; bank, fraud and mammography (the "tuning" sets) are where the default
Config was chosen. All contestants see the same folds (stratified, shuffled, seed 0; Adult also its official split). Ours
split 15 % off the training fold for early stopping, as `train` does; HistGradientBoosting (scikit-learn defaults, ordinal
categories) keeps it all. Differences are paired over folds, with a t interval of 95 %. Five folds share training rows, so the
interval is somewhat too narrow (Nadeau & Bengio 2003); their correction is used. Data: `<repository>/../shared/data` or MODELYARD_SHARED.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.estimators import linear, trees
from modelyard.kinds._contract import Array, Head
from modelyard.kinds.category import KIND as CATEGORY
from modelyard.kinds.category import softmax
from modelyard.kinds.number import KIND as NUMBER

ROOT = Path(os.environ.get("MODELYARD_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data" / "tabular"
TARGETS = ("telco", "adult", "credit", "housing")
TUNING = ("bank", "fraud", "mammography")


@dataclass(frozen=True)
class Data:
    """A table with its target, and what the target is."""

    frame: pl.DataFrame
    target: np.ndarray
    """int64 0/1 or float64."""
    kind: str
    official: tuple[np.ndarray, np.ndarray] | None = None


def read(path: str, **options: Any) -> pl.DataFrame:
    """A gzipped CSV file; every column that is not all numbers is text."""
    with gzip.open(ROOT / path, "rb") as file:
        return pl.read_csv(file.read(), infer_schema_length=None, **options)


def load(name: str) -> Data:
    """A data set by name."""
    if name == "adult":
        return _adult()
    if name == "housing":
        frame = read("california_housing/housing.csv.gz")
        return Data(frame.drop("median_house_value"), frame["median_house_value"].cast(pl.Float64).to_numpy(), "number")
    path, target, positive, drop = {
        "telco": ("telco_churn/Telco-Customer-Churn.csv.gz", "Churn", "Yes", ["customerID"]),
        "credit": ("credit_card_default/credit.csv.gz", "default", "1", []),
        "bank": ("bank_marketing/bank.csv.gz", "deposit", "yes", []),
        "fraud": ("vehicle_claim_fraud/fraud_1994_1995.csv.gz", "FraudFound_P", "1", ["PolicyNumber", "Training"]),
        "mammography": ("mammography/mammography.csv.gz", "", "'1'", []),
    }[name]
    frame = read(path, has_header=name != "mammography")
    if name == "telco":  # blank in 11 rows
        frame = frame.with_columns(pl.col("TotalCharges").str.strip_chars().cast(pl.Float64, strict=False))
    target = target or frame.columns[-1]
    y = (frame[target].cast(pl.String) == positive).cast(pl.Int64).to_numpy()
    return Data(frame.drop(target, *drop), y, "category")


def _adult() -> Data:
    parts = [read(f"adult_income/adult-{part}.csv.gz", has_header=False, infer_schema=False) for part in ("train", "test")]
    parts = [p.drop_nulls() for p in parts]  # an empty line ends each file; missing values are "?"
    cut = len(parts[0])
    frame = pl.concat(parts).with_columns(pl.all().str.strip_chars())
    label, frame = frame[frame.columns[-1]], frame[:, :-1]
    numeric = [c.name for c in frame if c.cast(pl.Float64, strict=False).null_count() == 0]
    frame = frame.with_columns(pl.col(numeric).cast(pl.Float64), pl.exclude(numeric).replace("?", None))
    return Data(frame, label.str.starts_with(">50K").cast(pl.Int64).to_numpy(), "category", (np.arange(cut), np.arange(cut, len(frame))))


def encoded(frame: pl.DataFrame, train: np.ndarray, numbers: str) -> dict[str, Array]:
    """The block `table` of all rows, with encodings fitted on the training rows."""
    found: dict[str, list[np.ndarray]] = {"table.numbers": [], "table.categories": []}
    for column in frame:
        kind, name = (CATEGORY, "index") if column.dtype == pl.String else (NUMBER, numbers)
        encoding, clean = kind.encodings[name], kind.check(column)[0]
        arrays = encoding.encode(clean, encoding.fit(clean[train]), {})
        found[f"table.{'categories' if kind is CATEGORY else 'numbers'}"] += [np.asarray(a) for a in arrays.values()]
    return {k: np.stack(v, axis=1) for k, v in found.items() if v}


def rows_of(inputs: dict[str, Array], rows: np.ndarray) -> dict[str, Array]:
    """Some rows of every input."""
    return {k: np.asarray(v)[rows] for k, v in inputs.items()}


def ours(module: Any, config: Any, data: Data, train: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    """Scores of the positive class, or values, of one of our estimators."""
    x = encoded(data.frame, train, module.NUMBERS)
    shuffled = np.random.default_rng(seed).permutation(train)
    cut = len(train) * 85 // 100 if module is trees else len(train)
    fit, held = shuffled[:cut], shuffled[cut:]
    number = data.kind == "number"
    mean, scale = (float(data.target[train].mean()), float(data.target[train].std())) if number else (0.0, 1.0)
    y = ((data.target - mean) / scale).astype(np.float32) if number else data.target
    part, head = ("y.value", Head("y", "number", "value", 1)) if number else ("y.index", Head("y", "category", "logits", 2))
    valid = (rows_of(x, held), {part: y[held]}) if len(held) else None
    state = module.fit(rows_of(x, fit), {part: y[fit]}, [head], config, valid=valid, seed=seed)
    out = module.apply(rows_of(x, test), state)[head.key].astype(np.float64)
    return out[:, 0] * scale + mean if number else softmax(out)[:, 1]


def peer(data: Data, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """scikit-learn's HistGradientBoosting with its defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    x = trees.matrix(encoded(data.frame, train, "raw"))
    if data.kind == "number":
        return HistGradientBoostingRegressor(random_state=0).fit(x[train], data.target[train]).predict(x[test])
    return HistGradientBoostingClassifier(random_state=0).fit(x[train], data.target[train]).predict_proba(x[test])[:, 1]


def contestants(changes: dict[str, dict[str, Any]]) -> dict[str, Callable[..., np.ndarray]]:
    """By name: `(data, train, test) -> scores`."""
    boosted, straight = (replace(m.Config(), **changes.get(n, {})) for m, n in ((trees, "trees"), (linear, "linear")))
    return {
        "hist-gradient-boosting": peer,
        "trees": lambda *a: ours(trees, boosted, *a),
        "linear": lambda *a: ours(linear, straight, *a),
    }


def judged(truth: np.ndarray, scores: np.ndarray, kind: str) -> dict[str, float]:
    """RMSE, or AUC, average precision, accuracy and log-loss."""
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    if kind == "number":
        return {"rmse": float(np.sqrt(((truth - scores) ** 2).mean()))}
    return {
        "auc": float(roc_auc_score(truth, scores)), "ap": float(average_precision_score(truth, scores)),
        "accuracy": float(((scores > 0.5) == truth).mean()), "log_loss": float(log_loss(truth, scores)),
    }  # fmt: skip


def folds_of(data: Data, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified (for labels), shuffled, seed 0."""
    from sklearn.model_selection import KFold, StratifiedKFold

    cut = KFold(5, shuffle=True, random_state=0) if data.kind == "number" else StratifiedKFold(5, shuffle=True, random_state=0)
    return list(cut.split(data.target, data.target))[:count]


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): corrected resampled t interval of 95 % for k-fold differences (Nadeau & Bengio 2003)."""
    from scipy.stats import t

    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, n - 1) * math.sqrt((1 / n + 1 / 4) * differences.var(ddof=1)))
    return mean, mean - half, mean + half


def compare(name: str, folds: int, changes: dict[str, dict[str, Any]], only: list[str]) -> dict[str, Any]:
    """Scores of every contestant on every fold, and of trees and linear averaged."""
    data = load(name)
    splits = folds_of(data, folds)
    if data.official:
        splits.append(data.official)
    found: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    for train, test in splits:
        scores: dict[str, np.ndarray] = {}
        for who, call in contestants(changes).items():
            if only and who not in only:
                continue
            began = time.process_time()
            scores[who] = call(data, train, test)
            seconds[who] = seconds.get(who, 0.0) + time.process_time() - began
        if {"trees", "linear"} <= scores.keys():
            for share in (0.7, 0.5):
                scores[f"{share:g} trees + {1 - share:g} linear"] = share * scores["trees"] + (1 - share) * scores["linear"]
        for who, s in scores.items():
            found.setdefault(who, []).append(judged(data.target[test], s, data.kind))
    return {"data": name, "rows": len(data.frame), "official": data.official is not None, "scores": found, "cpu_seconds": seconds}


def show(result: dict[str, Any]) -> None:
    """One line a contestant and metric: mean of the folds, difference to the peer."""
    scores, base = result["scores"], result["scores"].get("hist-gradient-boosting")
    folds = len(next(iter(scores.values()))) - result["official"]
    seconds = {who: round(value) for who, value in result["cpu_seconds"].items()}
    print(f"\n{result['data']}: {result['rows']:,} rows, {folds} folds; CPU seconds {seconds}")
    for metric in next(iter(scores.values()))[0]:
        for who, runs in scores.items():
            own = np.array([r[metric] for r in runs[:folds]])
            line = f"  {metric:9} {who:26} {own.mean():.5g}"
            if base and who != "hist-gradient-boosting":
                mean, low, high = interval(own - np.array([r[metric] for r in base[:folds]]))
                line += f"  difference {mean:+.5g} [{low:+.5g}, {high:+.5g}]"
            print(line + (f"  official split {runs[-1][metric]:.5g}" if result["official"] else ""), flush=True)


def auto(results: list[dict[str, Any]]) -> tuple[str, dict[str, dict[str, int]]]:
    """(what `model: auto` should mean, sets on which each contestant is surely better or worse than the trees).

    Trees, unless another is better on some set and worse on none: the interval of its paired difference leaves out zero.
    """
    tally: dict[str, dict[str, int]] = {}
    for result in results:
        scores, official = result["scores"], result["official"]
        metric, sign = ("rmse", -1) if "rmse" in next(iter(scores.values()))[0] else ("auc", 1)
        runs = {who: np.array([r[metric] for r in found[: len(found) - official]]) * sign for who, found in scores.items()}
        for who in runs.keys() - {"trees"} if "trees" in runs else ():
            _, low, high = interval(runs[who] - runs["trees"])
            counts = tally.setdefault(who, {"better": 0, "worse": 0, "sets": 0})
            counts["better"] += low > 0
            counts["worse"] += high < 0
            counts["sets"] += 1
    sure = [who for who, counts in tally.items() if counts["better"] and not counts["worse"]]
    return max(sure, key=lambda who: tally[who]["better"], default="trees"), tally


def main() -> None:
    """Reads the command line and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TARGETS))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], help="trees.lr=0.03")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    changes: dict[str, dict[str, Any]] = {}
    for text in options.set:
        key, value = text.split("=")
        module, field = key.split(".")
        changes.setdefault(module, {})[field] = json.loads(value)
    results = []
    for name in options.names:
        results.append(compare(name, options.folds, changes, options.only))
        show(results[-1])
    best, tally = auto(results)
    print(f"\nauto: {best}")
    for who, counts in sorted(tally.items()):
        print(f"  {who:26} surely better than trees on {counts['better']}, worse on {counts['worse']} of {counts['sets']} sets")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
