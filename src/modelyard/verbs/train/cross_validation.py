"""Cross-validation of a whole training: every fold fits its encodings, its model and all that follows anew, so nothing leaks.

The folds are made as `data.split` splits: stratified, by group, or forward in time. A fold's validation rows are cut from its
training rows. The interval is Student's t with the correction of Nadeau & Bengio 2003 ("Inference for the generalization error"), because folds
share training rows: the variance of the mean is (1/n + held/learnt) times that of the scores.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.data.folds import Fold, folds
from modelyard.data.split import SplitConfig, split
from modelyard.errors import Unsupported
from modelyard.store.run import Run
from modelyard.tasks._binding import Bound

if TYPE_CHECKING:
    from modelyard.verbs.train import _Job
    from modelyard.verbs.train.config import TrainConfig

Score = Callable[[Bound, int, int], Mapping[str, Any]]
"""(rows of one fold: train, valid and, held out, test; repeat, fold) -> metrics of what was held out."""


def cross_validate(bound: Bound, model: Any, job: _Job, config: SplitConfig, judged_by: Any) -> dict[str, Any]:
    """`{"folds": …}` of the training that `model` and `job` describe; a model that searches by itself (`train.preset`) does so in each
    fold anew, on the fold's own rows: nested cross-validation (Varma & Simon 2006)."""

    def score(own: Bound, repeat: int, number: int) -> Mapping[str, Any]:
        of = f", repeat {repeat + 1} of {job.config.repeats}" if job.config.repeats > 1 else ""
        job.say(f"fold {number + 1} of {job.config.folds}{of}")
        found = _fold(own, model, job, config, judged_by)
        job.run.event({"event": "fold", "repeat": repeat, "fold": number, "scores": found})
        return found

    return over_folds(bound, config, job.config, score)


def over_folds(bound: Bound, config: SplitConfig, train: TrainConfig, score: Score) -> dict[str, Any]:
    """`{"folds": {metric: {value, low, high, spread, scores}}}`: mean, interval and standard deviation over all folds and repeats.

    A test table that came as a file of its own is left alone; all other rows take part.
    """
    _require(bound)
    scores, shares = [], []
    for repeat in range(train.repeats):
        for number, (learnt, held) in enumerate(_made(bound, config, train, repeat)):
            scores.append(dict(score(cut(bound, config, train, repeat, number), repeat, number)))
            shares.append(len(held) / len(learnt))
    return {"folds": summary(scores, float(np.mean(shares)))}


def cut(bound: Bound, config: SplitConfig, train: TrainConfig, repeat: int, number: int) -> Bound:
    """The rows of one fold: `test` is held out, `train` and `valid` are cut from the others. A function of the data and the settings,
    so that another process makes the same."""
    _require(bound)
    whole, targets = _whole(bound), _targets(bound)
    learnt, held = _made(bound, config, train, repeat)[number]
    rest = whole[learnt]
    parts = split(rest, dataclasses.replace(config, test=0.0), targets, given=("test",), seed=train.seed)
    splits = {name: rest[index] for name, index in parts.items()} | {"test": whole[held]}
    if "valid" in bound.source.tables:
        splits["valid"] = bound.splits["valid"]
    return dataclasses.replace(bound, pipeline=copy.deepcopy(bound.pipeline), splits=splits)


def _require(bound: Bound) -> None:
    if bound.stream is not None or bound.environment is not None:
        raise Unsupported("train.folds needs the rows in memory; take out data.stream (or data.env), or take out train.folds", "use")
    bound.source.refuse_folds("train.folds")


def _whole(bound: Bound) -> pl.DataFrame:
    """All rows that folds are cut from."""
    given = {name for name in ("valid", "test") if name in bound.source.tables}
    return pl.concat([bound.splits[s] for s in ("train", "valid", "test") if s in bound.splits and s not in given])


def _targets(bound: Bound) -> list[str]:
    return [c.name for c in bound.pipeline.outputs if bound.tasks[c.name].supervised]


def _made(bound: Bound, config: SplitConfig, train: TrainConfig, repeat: int) -> list[Fold]:
    return folds(_whole(bound), config, _targets(bound), int(train.folds or 0), seed=train.seed + repeat)


def _fold(own: Bound, model: Any, job: _Job, config: SplitConfig, judged_by: Any) -> dict[str, Any]:
    """Metrics of one fold; its model is thrown away."""
    from modelyard.verbs.train import _fit

    folder = job.run.folder / "fold"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = Run(folder)
    run.write("run.json", {"state": "training"})
    saved, _, own, _ = _fit(own, model, dataclasses.replace(job, run=run, resume=False, say=lambda text: None), config)
    found = judged(saved, own, judged_by)
    shutil.rmtree(folder)
    return found


def judged(saved: Path, own: Bound, judged_by: Any) -> dict[str, Any]:
    """Metrics of the held-out rows by the saved model, loaded back."""
    from modelyard.runtime.model import Model
    from modelyard.verbs.evaluate import Config, judge

    by = judged_by or Config()
    return judge(Model.load(saved, trust_code=True), own, ["test"], by.metrics, positive=by.positive).metrics()["test"]


def summary(scores: list[dict[str, Any]], share: float) -> dict[str, Any]:
    """The same maps with mean, interval, spread and the scores themselves; `share` is held rows / learnt rows."""
    found: dict[str, Any] = {}
    for name, entry in scores[0].items():
        if "value" not in entry:
            found[name] = summary([s[name] for s in scores], share)
            continue
        values = np.array([s[name]["value"] for s in scores], np.float64)
        known = values[np.isfinite(values)]
        mean = float(known.mean()) if len(known) else math.nan
        spread = float(known.std(ddof=1)) if len(known) > 1 else math.nan
        reach = student(len(known) - 1) * spread * math.sqrt(1 / len(known) + share) if len(known) > 1 else math.nan
        found[name] = {
            "value": mean, "low": mean - reach, "high": mean + reach, "better": entry["better"], "spread": spread,
            "scores": [round(float(v), 6) for v in values],
            "note": f"mean of {len(known)} folds, standard deviation {spread:.3g}",
        }  # fmt: skip
    return found


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
