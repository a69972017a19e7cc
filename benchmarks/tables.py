"""`model: auto` on tables beside scikit-learn's HistGradientBoosting with its defaults, on the same folds.

    python benchmarks/tables.py [telco] [adult] [credit] [housing] [--folds N]
    python benchmarks/tables.py bank fraud mammography      # the sets that the settings of the trees were chosen on

Ours is `modelyard.verbs.train.train` with nothing set but the columns; `data.split.valid: 0` hands all training rows to it, as
the peer gets all. The peer reads categories as ordinal codes (-1 where new) and numbers as they are, missing values included.
Time is that of the whole of `train`: reading, fitting, saving, loading back, judging, report.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from _record import SHARED, Clock, Metric, Tally, auc, hardware, need_data, rmse, shown, verdict

from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.runtime.model import Model
from modelyard.verbs.train import train

ROOT = SHARED / "tabular"
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race", "sex",
    "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
]  # fmt: skip


@dataclass
class Task:
    """A table with what to predict."""

    frame: pl.DataFrame
    target: str
    positive: str | None
    """The label that scores are for; None for a number."""
    ignore: list[str] = field(default_factory=list)
    test_from: int | None = None
    """First row of the official test part; without it 5 folds."""


def telco() -> Task:
    """Telco churn."""
    frame = pl.read_csv(ROOT / "telco_churn" / "Telco-Customer-Churn.csv.gz", infer_schema_length=None)
    charges = pl.col("TotalCharges").str.strip_chars().cast(pl.Float64, strict=False)
    return Task(frame.with_columns(charges), "Churn", "Yes", ["customerID"])


def adult() -> Task:
    """Adult income, official split."""
    parts = [
        pl.read_csv(ROOT / "adult_income" / f"adult-{p}.csv.gz", has_header=False, new_columns=ADULT, infer_schema_length=None).drop_nulls(
            "income"
        )
        for p in ("train", "test")
    ]
    text = [c for c in ADULT if parts[0][c].dtype == pl.String]
    trimmed = [
        p.with_columns(pl.col(c).cast(pl.String).str.strip_chars().str.strip_chars_end(".").replace("?", None) for c in text) for p in parts
    ]
    numbers = [c for c in ADULT if c not in text]
    whole = pl.concat([p.with_columns(pl.col(c).cast(pl.String).str.strip_chars().cast(pl.Float64) for c in numbers) for p in trimmed])
    return Task(whole, "income", ">50K", test_from=parts[0].height)


def credit() -> Task:
    """Credit card default."""
    frame = pl.read_csv(ROOT / "credit_card_default" / "credit.csv.gz", infer_schema_length=None)
    return Task(frame.with_columns(pl.col("default").cast(pl.String)), "default", "1")


def housing() -> Task:
    """California housing, a number."""
    return Task(pl.read_csv(ROOT / "california_housing" / "housing.csv.gz", infer_schema_length=None), "median_house_value", None)


def bank() -> Task:
    """Bank marketing."""
    return Task(pl.read_csv(ROOT / "bank_marketing" / "bank.csv.gz"), "deposit", "yes")


def fraud() -> Task:
    """Vehicle claims."""
    frame = pl.read_csv(ROOT / "vehicle_claim_fraud" / "fraud_1994_1995.csv.gz").with_columns(pl.col("FraudFound_P").cast(pl.String))
    return Task(frame, "FraudFound_P", "1", ["PolicyNumber", "Training"])


def mammography() -> Task:
    """Mammography."""
    frame = pl.read_csv(ROOT / "mammography" / "mammography.csv.gz", has_header=False, quote_char="'", new_columns=[*"abcdef", "label"])
    return Task(frame.with_columns(pl.col("label").cast(pl.String)), "label", "1")


SETS: dict[str, Callable[[], Task]] = {
    "telco": telco, "adult": adult, "credit": credit, "housing": housing, "bank": bank, "fraud": fraud, "mammography": mammography,
}  # fmt: skip
JUDGED = ("telco", "adult", "credit", "housing")


def folds(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """The official split, or 5 folds (stratified for labels), seed 0."""
    from sklearn.model_selection import KFold, StratifiedKFold

    rows = np.arange(task.frame.height)
    if task.test_from is not None:
        return [(rows[: task.test_from], rows[task.test_from :])]
    if task.positive is None:
        return list(KFold(5, shuffle=True, random_state=0).split(rows))
    return list(StratifiedKFold(5, shuffle=True, random_state=0).split(rows, task.frame[task.target].to_numpy()))


def ours(task: Task, rows: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of the positive label, or numbers."""
    judge = task.frame[test]
    data = DataConfig(train=task.frame[rows], test=judge, target=task.target, ignore=task.ignore, split=SplitConfig(valid=0))
    with tempfile.TemporaryDirectory() as folder:
        result = train(data, base=Path(folder))
        answers = Model.load(result.model).predict(judge)
    if task.positive is None:
        return answers[task.target].to_numpy()
    return answers[f"{task.target}.scores"].struct.field(task.positive).to_numpy()


def peer(task: Task, rows: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The same of HistGradientBoosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import OrdinalEncoder

    columns = []
    for name in (c for c in task.frame.columns if c not in (task.target, *task.ignore)):
        values = task.frame[name]
        if values.dtype == pl.String:
            coder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=np.nan)
            known = values.to_numpy()[:, None]
            columns.append(coder.fit(known[rows]).transform(known)[:, 0])
        else:
            columns.append(values.cast(pl.Float64).to_numpy())
    x = np.column_stack(columns)
    if task.positive is None:
        y = task.frame[task.target].cast(pl.Float64).to_numpy()
        return np.asarray(HistGradientBoostingRegressor(random_state=0).fit(x[rows], y[rows]).predict(x[test]))
    y = (task.frame[task.target] == task.positive).to_numpy()
    return np.asarray(HistGradientBoostingClassifier(random_state=0).fit(x[rows], y[rows]).predict_proba(x[test])[:, 1])


def main() -> int:
    """A line per fold, then means with intervals; exit code 1 where ours is worse."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=list(JUDGED))
    parser.add_argument("--folds", type=int, default=5)
    chosen = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    ok = []
    for name in chosen.sets:
        task = SETS[name]()
        metric: Metric = rmse if task.positive is None else auc
        tally = Tally(metric)
        for rows, test in folds(task)[: chosen.folds]:
            with Clock() as clock:
                guess = ours(task, rows, test)
            with Clock() as theirs:
                other = peer(task, rows, test)
            truth = task.frame[task.target][test]
            known = truth.cast(pl.Float64).to_numpy() if task.positive is None else (truth == task.positive).to_numpy()
            print(f"{name}: {tally.add(known, guess, other)}; ours {clock}; peer {theirs}", flush=True)
        means = tally.means()
        better = means["difference"][0] <= 0 if task.positive is None else means["difference"][0] >= 0
        line = ", ".join(f"{k} {shown(v)}" for k, v in means.items())
        ok.append(
            verdict(f"{name}: {'RMSE at or below' if task.positive is None else 'AUC at or above'} HistGradientBoosting", better, line)
        )
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
