"""Text classification from scratch beside TF-IDF + LinearSVC on the same folds: CLINC150, SMS spam, waimai (Chinese).

    python benchmarks/text.py [clinc150] [sms] [waimai] [--folds N]

Ours is `modelyard.verbs.train.train` with `model: auto` and nothing else set, but `data.split.valid: 0`: the recipe for texts
takes its choices from folds inside the training rows. The peer is what the data README names: 1-2-grams (characters for
Chinese) with LinearSVC(C=1). Time is that of the whole of `train`: reading, fitting, saving, loading back, judging, report.
Data: `<repository>/../shared/data` or MODELYARD_SHARED.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from _record import SHARED, Clock, Metric, Tally, accuracy, f1, hardware, need_data, shown, verdict

from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.runtime.model import Model
from modelyard.verbs.train import train

ROOT = SHARED / "text_classification"

Folds = list[tuple[np.ndarray, np.ndarray]]
Data = tuple[pl.Series, pl.Series, Folds]


def clinc150() -> Data:
    """Official train and validation rows to learn from, in-scope test rows to judge."""
    with gzip.open(ROOT / "clinc150" / "data_full.json.gz", "rt", encoding="utf-8") as file:
        data = json.load(file)
    rows = data["train"] + data["val"] + data["test"]
    cut = len(data["train"]) + len(data["val"])
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


def ours(text: pl.Series, label: pl.Series, rows: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predicted labels of the test rows."""
    learn = pl.DataFrame({"text": text[rows], "label": label[rows]})
    judge = pl.DataFrame({"text": text[test], "label": label[test]})
    data = DataConfig(train=learn, test=judge, target="label", inputs={"text": "text"}, split=SplitConfig(valid=0))
    with tempfile.TemporaryDirectory() as folder:
        result = train(data, base=Path(folder))
        return Model.load(result.model).predict(judge)["label"].to_numpy()


def peer(text: pl.Series, label: pl.Series, rows: np.ndarray, test: np.ndarray, chinese: bool) -> np.ndarray:
    """Predicted labels of TF-IDF + LinearSVC."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), analyzer="char" if chinese else "word")
    model = LinearSVC(random_state=0).fit(vectoriser.fit_transform(text[rows].to_list()), label[rows].to_numpy())
    return np.asarray(model.predict(vectoriser.transform(text[test].to_list())))


SETS: dict[str, tuple[Callable[[], Data], Metric, str, float]] = {
    "sms": (sms, f1, "F1 of spam", 0.96),
    "waimai": (waimai, accuracy, "accuracy", 0.90),
    "clinc150": (clinc150, accuracy, "in-scope accuracy", 0.915),
}


def main() -> int:
    """A line per fold, then means with intervals; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--folds", type=int, default=5)
    chosen = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    ok = []
    for name in chosen.sets:
        load, metric, what, goal = SETS[name]
        text, label, folds = load()
        tally, walls = Tally(metric), []
        for rows, test in folds[: chosen.folds]:
            with Clock() as clock:
                guess = ours(text, label, rows, test)
            truth, other = label[test].to_numpy(), peer(text, label, rows, test, name == "waimai")
            if metric is f1:
                truth, guess, other = (x == "spam" for x in (truth, guess, other))
            print(f"{name}: {tally.add(truth, guess, other)} {clock}", flush=True)
            walls.append(min(clock.wall, clock.cpu))  # LIBLINEAR has one thread: on an idle machine wall is CPU time
        means = tally.means()
        line = ", ".join(f"{k} {shown(v)}" for k, v in means.items())
        good = means["ours"][0] >= goal and max(walls) <= 300
        found = f"{line}; longest {max(walls):.0f} s (the less of wall and CPU)"
        ok.append(verdict(f"{name}: {what} ≥ {goal}, each fold ≤ 300 s", good, found))
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
