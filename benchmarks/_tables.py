"""The tables that benchmarks train on, with what to predict and how they are cut. `<repository>/../shared/data` or MODELYARD_SHARED."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from _record import SHARED

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
    """Bank marketing without `duration`, which is known only once the call has ended."""
    return Task(pl.read_csv(ROOT / "bank_marketing" / "bank.csv.gz"), "deposit", "yes", ["duration"])


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


def matrix(task: Task) -> tuple[np.ndarray, list[int]]:
    """(numbers with NaN for missing, categories as codes of all rows with -1 for missing; numbers of the category columns):
    how a careful user hands a table to a library of trees."""
    columns, labels = [], []
    for name in (c for c in task.frame.columns if c not in (task.target, *task.ignore)):
        values = task.frame[name]
        if values.dtype == pl.String:
            labels.append(len(columns))
            columns.append(values.cast(pl.Categorical).to_physical().cast(pl.Float64).fill_null(-1).to_numpy())
        else:
            columns.append(values.cast(pl.Float64).to_numpy())
    return np.column_stack(columns), labels


def truth(task: Task) -> np.ndarray:
    """True where the label is the positive one, or the numbers."""
    values = task.frame[task.target]
    return values.cast(pl.Float64).to_numpy() if task.positive is None else (values == task.positive).to_numpy()


def folds(task: Task, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The official split, or k folds (stratified for labels), seed 0."""
    from sklearn.model_selection import KFold, StratifiedKFold

    rows = np.arange(task.frame.height)
    if task.test_from is not None:
        return [(rows[: task.test_from], rows[task.test_from :])]
    if task.positive is None:
        return list(KFold(k, shuffle=True, random_state=0).split(rows))
    return list(StratifiedKFold(k, shuffle=True, random_state=0).split(rows, task.frame[task.target].to_numpy()))
