"""Entities from scratch on WNUT17 (English) and Weibo (Chinese), and CLINC150 with texts that are none of its intents.

    python benchmarks/tagging.py [wnut17] [weibo] [clinc150-oos]

No pretrained vectors and no other text than the training sentences. Everything is chosen on the development sentences: the epoch (entity F1), what is
taken from the score of `O` (`evaluate.threshold`), and the settings below. The test sentences are judged once, as seqeval counts.
CLINC150 beside its 151st class: the training rows hold 100 texts out of scope (the official `oos_train`); a threshold on the score of the best
intent is chosen on validation rows for the mean of in-scope accuracy and out-of-scope recall.
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
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import SHARED, Clock, hardware, need_data, verdict

from modelyard.data.conll import ConllConfig
from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.metrics._entities import by_type
from modelyard.metrics._interval import wilson
from modelyard.runtime.model import Model
from modelyard.tasks._binding import bind
from modelyard.verbs.evaluate import judge
from modelyard.verbs.evaluate._thresholds import tune
from modelyard.verbs.train import train
from modelyard.verbs.train.config import TrainConfig

NER = SHARED / "ner"

SETS: dict[str, dict[str, Any]] = {
    "wnut17": {
        "files": [NER / "wnut17" / f for f in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")],
        "model": {"name": "bilstm", "token_dropout": 0.3},
        "train": {"epochs": 12},
        "goal": 0.25,
    },
    "weibo": {
        "files": [NER / "weibo_zh" / f"weiboNER_2nd_conll.{s}" for s in ("train", "dev", "test")],
        "model": {"name": "bilstm", "token_dropout": 0.3},
        "train": {"epochs": 15},
        "goal": 0.40,
    },
}
"""Files for training, development and test; settings; the entity F1 that is to be reached."""


def tagged(name: str) -> bool:
    """Trains, tunes on the development sentences, judges the test sentences."""
    given = SETS[name]
    learn, dev, test = (str(f) for f in given["files"])
    outputs = {"tags": {"kind": "tags", **given.get("tags", {})}}
    inputs = {"tokens": {"kind": "words", **given.get("words", {})}}
    data = DataConfig(train=learn, valid=dev, test=test, target="tags", conll=ConllConfig(), inputs=inputs, outputs=outputs)
    with tempfile.TemporaryDirectory() as folder, Clock() as clock:
        config = TrainConfig(watch="entity_f1", threads=1, **given["train"])
        trained = train(data, "token-classification", given["model"], config, base=Path(folder))
        model = Model.load(trained.model)
        bound = bind(data, "token-classification", Path(folder), like=model.pipeline, tasks=model.tasks)
        child = Model.load(tune(model, bound, "entity_f1", trained.model))
        found = judge(child, bound, ["valid", "test"])
        said = child.predict_examples(bound.splits["test"].select("tokens"))["tags"].to_list()
    plain, tuned = trained.metrics["test"], found.metrics()
    value = child.manifest["post"][0]["value"]
    print(f"{name}: best epoch {model.manifest['training']['best_epoch']}, {value} taken from O; {clock}", flush=True)
    for what, m in (("dev, tuned", tuned["valid"]), ("test, as trained", plain), ("test, tuned", tuned["test"])):
        print(f"{name} · {what}: " + ", ".join(f"{k} {_interval(m[k])}" for k in ("entity_f1", "entity_precision", "entity_recall")), flush=True)
    for kind, (right, true, claimed) in by_type(bound.splits["test"]["tags"].to_list(), said).items():
        print(f"{name} · {kind}: {right} right of {true} true and {claimed} found", flush=True)
    f1 = tuned["test"]["entity_f1"]
    spent = min(clock.wall, clock.cpu)
    return verdict(f"{name}: entity F1 ≥ {given['goal']}, ≤ 300 s", f1["value"] >= given["goal"] and spent <= 300, f"{_interval(f1)}; {spent:.0f} s")


def _interval(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"


def clinc() -> bool:
    """In-scope accuracy and out-of-scope recall: with a 151st class, and with a threshold on 150 classes, both chosen on validation rows."""
    with gzip.open(SHARED / "text_classification" / "clinc150" / "data_full.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    frame = lambda *parts: pl.DataFrame([r for p in parts for r in rows[p]], schema=["text", "intent"], orient="row")  # noqa: E731
    splits = {s: frame(s, f"oos_{s}") for s in ("val", "test")}
    found = {}
    for how, learn in (("151 classes", frame("train", "oos_train")), ("150 classes and a threshold", frame("train"))):
        data = DataConfig(train=learn, target="intent", inputs={"text": "text"}, split=SplitConfig(valid=0, test=0.02))
        with tempfile.TemporaryDirectory() as folder, Clock() as clock:
            model = Model.load(train(data, base=Path(folder)).model)
            answers = {s: model.predict(f.select("text")) for s, f in splits.items()}
        known = {s: _known(a) for s, a in answers.items()}
        cut = _threshold(splits["val"]["intent"].to_numpy(), *known["val"])
        truth = splits["test"]["intent"].to_numpy()
        for tuned, limit in (("", -np.inf), (f", refused where no intent has {cut:.3f}", cut)):
            if how.startswith("150") and not tuned:
                continue
            print(f"clinc150 · {how}{tuned}: {_told(truth, *known['test'], limit)} {clock}", flush=True)
        found[how] = _scores(truth, *known["test"], cut)
    both = max(found.values(), key=sum)
    return verdict("clinc150: in-scope ≥ 0.88 with out-of-scope recall ≥ 0.50", both[0] >= 0.88 and both[1] >= 0.5, f"{both[0]:.4f} and {both[1]:.4f}")


def _known(answers: Any) -> tuple[np.ndarray, np.ndarray]:
    """(best intent or oos, score of the best of the 150 intents) of each row."""
    scores = answers["intent.scores"].struct.unnest()
    inside = scores.drop("oos", strict=False)
    return answers["intent"].to_numpy(), inside.to_numpy().max(1)


def _scores(truth: np.ndarray, said: np.ndarray, score: np.ndarray, limit: float) -> tuple[float, float]:
    refused = (said == "oos") | (score < limit)
    outside = truth == "oos"
    return float(((said == truth) & ~refused)[~outside].mean()), float(refused[outside].mean())


def _threshold(truth: np.ndarray, said: np.ndarray, score: np.ndarray) -> float:
    """The limit with the best mean of in-scope accuracy and out-of-scope recall."""
    return float(max(np.unique(np.quantile(score, np.linspace(0, 0.9, 181))), key=lambda x: sum(_scores(truth, said, score, x))))


def _told(truth: np.ndarray, said: np.ndarray, score: np.ndarray, limit: float) -> str:
    inside, recall = _scores(truth, said, score, limit)
    counts = [int((truth != "oos").sum()), int((truth == "oos").sum())]
    (a, b), (c, d) = (wilson(v * n, n) for v, n in zip((inside, recall), counts, strict=True))
    refused = (said == "oos") | (score < limit)
    precision = float((truth == "oos")[refused].mean()) if refused.any() else float("nan")
    return f"in-scope accuracy {inside:.4f} [{a:.4f}, {b:.4f}], out-of-scope recall {recall:.4f} [{c:.4f}, {d:.4f}], precision {precision:.4f};"


def main() -> int:
    """Exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=[*SETS, "clinc150-oos"])
    chosen = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    return 0 if all([clinc() if name == "clinc150-oos" else tagged(name) for name in chosen.sets]) else 1


if __name__ == "__main__":
    sys.exit(main())
