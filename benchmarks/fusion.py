"""One model that reads an image, a text, numbers and categories and predicts two columns: does it use all that it reads?

    python benchmarks/fusion.py [--rows 3000] [--test 1500] [--epochs 12]

A test of the mechanism, not of a task that anyone has: rows are joined from real data by their labels. Each row takes an
image (MNIST), a message (SMS spam) and a customer (Telco: tenure and total charges as numbers, contract, internet service and
payment as categories). `case` is the joint label: digit 5 or above × spam × churned (8 classes, balanced). `amount` is the
customer's monthly charge + 5 for each unit of the digit + 30 for spam.

Every input is shuffled among the test rows in turn, which keeps its distribution and breaks its bond: metrics must fall. The joint
model must beat each model that reads one input only. Intervals: 1,000 paired resamples of test rows.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import SHARED, Clock, hardware, need_data, shown, verdict

from modelyard.data.images import read_idx
from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.runtime.model import Model
from modelyard.verbs.train import Config, train

GROUPS = {
    "image": {"image": "image"},
    "text": {"message": "text"},
    "numbers": {"tenure": "number", "TotalCharges": "number"},
    "categories": {"Contract": "category", "InternetService": "category", "PaymentMethod": "category"},
}
OUTPUTS = {"case": "category", "amount": "number"}


def parts() -> tuple[np.ndarray, np.ndarray, pl.DataFrame, pl.DataFrame]:
    """(images, digits, messages, customers), the training part of MNIST and the whole of the others."""
    folder = SHARED / "image_classification/mnist"
    images, digits = (read_idx(folder / f"train-{n}-ubyte.gz") for n in ("images-idx3", "labels-idx1"))
    messages = pl.read_csv(SHARED / "text_classification/sms_spam/smsspamcollection.tsv.gz", separator="\t", quote_char=None)
    customers = pl.read_csv(SHARED / "tabular/telco_churn/Telco-Customer-Churn.csv.gz", infer_schema_length=None)
    charges = pl.col("TotalCharges").str.strip_chars().cast(pl.Float64, strict=False)
    return images, digits, messages, customers.with_columns(charges)


def joined(rows: int, test: int, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training and test rows; no image, message or customer is in both."""
    images, digits, messages, customers = parts()
    random = np.random.default_rng(seed)
    high, spam, churn = random.integers(0, 2, (3, rows + test)).astype(bool)
    picked = [
        _pick(flags, np.asarray(labels), rows, random)
        for flags, labels in ((high, digits >= 5), (spam, (messages["label"] == "spam").to_numpy()), (churn, (customers["Churn"] == "Yes").to_numpy()))
    ]
    mine = customers[picked[2]]
    names = [f"{'high' if a else 'low'} {'spam' if b else 'ham'} {'left' if c else 'stayed'}" for a, b, c in zip(high, spam, churn, strict=True)]
    frame = pl.DataFrame({
        "image": pl.Series(images[picked[0]]), "message": messages["message"][picked[1]],
        **{c: mine[c] for c in (*GROUPS["numbers"], *GROUPS["categories"])},
        "case": names, "amount": mine["MonthlyCharges"].to_numpy() + 5.0 * digits[picked[0]] + 30.0 * spam,
    })  # fmt: skip
    return frame[:rows], frame[rows:]


def _pick(flags: np.ndarray, labels: np.ndarray, rows: int, random: np.random.Generator) -> np.ndarray:
    """Row numbers whose label is `flags`; the first `rows` draw from four fifths of the source, the others from the rest."""
    order = random.permutation(len(labels))
    cut = len(order) * 4 // 5
    out = np.empty(len(flags), np.int64)
    for value in (False, True):
        for source, where in ((order[:cut], np.arange(len(flags)) < rows), (order[cut:], np.arange(len(flags)) >= rows)):
            own = source[labels[source] == value]
            wanted = where & (flags == value)
            out[wanted] = random.choice(own, int(wanted.sum()))
    return out


def fitted(learn: pl.DataFrame, groups: list[str], folder: Path, epochs: int, image: Any = "light") -> Model:
    """A model that reads these groups of inputs."""
    inputs = {k: v for g in groups for k, v in GROUPS[g].items()}
    nets: dict[str, Any] = {}
    if "image" in groups:
        nets["image"] = image
    if "text" in groups:
        nets["message"] = "bag"
    if {"numbers", "categories"} & set(groups):
        nets["table"] = "mlp"
    data = DataConfig(train=learn, inputs=inputs, outputs=dict(OUTPUTS), split=SplitConfig(test=0, valid=0.1))
    config = Config(epochs=epochs, batch=64, lr=2e-3, smoke=False)
    return Model.load(train(data, None, nets, config, base=folder, name="-".join(groups)).model)


def judged(model: Model, frame: pl.DataFrame, weights_RN: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy of `case` and R² of `amount`, one value for each row of weights."""
    answers = model.predict(frame.drop(*OUTPUTS))
    right = (answers["case"] == frame["case"]).to_numpy()
    y, guess = frame["amount"].to_numpy(), answers["amount"].to_numpy()
    total = weights_RN.sum(1)
    mean = weights_RN @ y / total
    spread = weights_RN @ (y * y) / total - mean**2
    return {"case": weights_RN @ right / total, "amount": 1 - (weights_RN @ (y - guess) ** 2 / total) / spread}


def shuffled(frame: pl.DataFrame, group: str, seed: int = 0) -> pl.DataFrame:
    """The columns of a group moved together to other rows."""
    order = np.random.default_rng(seed).permutation(frame.height)
    return frame.with_columns(frame[c][order].alias(c) for c in GROUPS[group])


def resamples(rows: int, count: int = 1000) -> np.ndarray:
    """Weights `(1 + count, rows)`: ones, then bootstrap counts."""
    drawn = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), count)
    return np.concatenate([np.ones((1, rows)), drawn])


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high) of a row of resampled values, the first of which is the value itself."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def main() -> int:
    """Fits the joint and the single models and prints what each shuffle costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=12)
    asked = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    learn, test = joined(asked.rows, asked.test)
    weights_RN, ok = resamples(test.height), []
    with tempfile.TemporaryDirectory() as name:
        with Clock() as clock:
            model = fitted(learn, list(GROUPS), Path(name), asked.epochs)
        whole = judged(model, test, weights_RN)
        print(f"joint: case accuracy {shown(spread(whole['case']))}, amount R² {shown(spread(whole['amount']))} ({clock})", flush=True)
        for group in GROUPS:
            broken = judged(model, shuffled(test, group), weights_RN)
            for output, values in whole.items():
                fall = spread(values - broken[output])
                ok.append(verdict(f"shuffling {group} lowers {output}", fall[1] > 0, f"by {shown(fall)}"))
        for group in GROUPS:
            alone = judged(fitted(learn, [group], Path(name), asked.epochs), test, weights_RN)
            for output, values in whole.items():
                lead = spread(values - alone[output])
                ok.append(verdict(f"{output}: joint beats {group} alone", lead[1] > 0, f"{alone[output][0]:.4f}, lead {shown(lead)}"))
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
