"""Text classification beside TF-IDF + LinearSVC on the same folds: CLINC150, SMS spam, waimai (Chinese).

    PYTHONPATH=src python benchmarks/text.py [clinc150] [sms] [waimai] [--folds N]

Ours is the default for text: `bag` (words 1-2, characters 2-5, TF-IDF) and the linear estimator with squared hinge; C and the
calibration come from three folds inside the training rows, never from the test fold. The peer is what the data README
names: 1-2-grams (characters for Chinese) with LinearSVC(C=1). Data: `<repository>/../shared/data` or MODELYARD_SHARED.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.estimators import linear
from modelyard.kinds._contract import Head
from modelyard.kinds.category import KIND as CATEGORY
from modelyard.kinds.category import IndexConfig, softmax
from modelyard.kinds.text import KIND as TEXT

ROOT = Path(os.environ.get("MODELYARD_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data" / "text_classification"

Folds = list[tuple[np.ndarray, np.ndarray]]
Data = tuple[pl.Series, pl.Series, Folds]


def clinc150() -> Data:
    """Official train and in-scope test."""
    with gzip.open(ROOT / "clinc150" / "data_full.json.gz", "rt", encoding="utf-8") as file:
        data = json.load(file)
    rows = data["train"] + data["test"]
    cut = len(data["train"])
    text, label = (pl.Series([r[i] for r in rows]) for i in (0, 1))
    return text, label, [(np.arange(cut), np.arange(cut, len(rows)))]


def sms() -> Data:
    """Stratified 5-fold, seed 0."""
    table = pl.read_csv(ROOT / "sms_spam" / "smsspamcollection.tsv.gz", separator="\t", quote_char=None)
    return table["message"], table["label"], _folds(table["label"])


def waimai() -> Data:
    """Stratified 5-fold, seed 0."""
    table = pl.read_csv(ROOT / "waimai_10k_zh" / "waimai_10k.csv.gz")
    return table["review"], table["label"].cast(pl.String), _folds(table["label"])


def _folds(label: pl.Series) -> Folds:
    from sklearn.model_selection import StratifiedKFold

    y = label.to_numpy()
    return list(StratifiedKFold(5, shuffle=True, random_state=0).split(y, y))


def ours(text: pl.Series, label: pl.Series, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """(predicted labels, mean log-loss) on the test rows."""
    bag, index = TEXT.encodings["bag"], CATEGORY.encodings["index"]
    words, classes = bag.fit(text[train]), index.fit(label[train], IndexConfig(target=True))
    x, y = ({f"review.{k}": v for k, v in bag.encode(text[rows], words, {}).items()} for rows in (train, test))
    targets = {"y.index": np.asarray(index.encode(label[train], classes, {})["index"]).astype(np.int64)}
    state = linear.fit(x, targets, [Head("y", "category", *index.head(classes))], linear.Config())
    scores_BK = softmax(linear.apply(y, state)["y.logits"])
    truth = np.asarray(index.encode(label[test], classes, {})["index"])
    loss = float(-np.log(np.maximum(scores_BK[np.arange(len(truth)), truth], 1e-12)).mean())
    return np.asarray(classes.labels)[scores_BK.argmax(1)], loss


def peer(text: pl.Series, label: pl.Series, train: np.ndarray, test: np.ndarray, chinese: bool) -> np.ndarray:
    """Predicted labels of TF-IDF + LinearSVC."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), analyzer="char" if chinese else "word")
    model = LinearSVC(random_state=0).fit(vectoriser.fit_transform(text[train].to_list()), label[train].to_numpy())
    return np.asarray(model.predict(vectoriser.transform(text[test].to_list())))


def accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Share of equal labels."""
    return float((truth == guess).mean())


def f1_spam(truth: np.ndarray, guess: np.ndarray) -> float:
    """F1 of the label `spam`."""
    hit = float(((truth == "spam") & (guess == "spam")).sum())
    return 2 * hit / max(1.0, float((truth == "spam").sum() + (guess == "spam").sum()))


SETS: dict[str, tuple[Callable[[], Data], Callable[[np.ndarray, np.ndarray], float], float]] = {
    "sms": (sms, f1_spam, 0.96),
    "waimai": (waimai, accuracy, 0.90),
    "clinc150": (clinc150, accuracy, 0.915),
}


def main() -> None:
    """Prints a line per fold and the mean with its goal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--folds", type=int, default=5)
    chosen = parser.parse_args()
    for name in chosen.sets:
        load, metric, goal = SETS[name]
        text, label, folds = load()
        table = []
        for train, test in folds[: chosen.folds]:
            clock, wall = time.process_time(), time.perf_counter()
            guess, loss = ours(text, label, train, test)
            clock, wall = time.process_time() - clock, time.perf_counter() - wall
            truth = label[test].to_numpy()
            table.append((metric(truth, guess), metric(truth, peer(text, label, train, test, name == "waimai")), loss))
            mine, other, _ = table[-1]
            print(f"{name}: {mine:.4f} peer {other:.4f} log-loss {loss:.4f} CPU {clock:.1f} s wall {wall:.1f} s", flush=True)
        mine, other, loss = np.mean(table, axis=0)
        print(f"{name}: mean {mine:.4f} (goal {goal}) peer {other:.4f} log-loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
