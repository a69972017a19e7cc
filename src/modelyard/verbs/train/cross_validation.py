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
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.data.folds import folds
from modelyard.data.split import SplitConfig, split
from modelyard.errors import Unsupported
from modelyard.store.run import Run
from modelyard.tasks._binding import Bound

if TYPE_CHECKING:
    from modelyard.verbs.train import _Job


def cross_validate(bound: Bound, model: Any, job: _Job, config: SplitConfig, judged_by: Any) -> dict[str, Any]:
    """`{"folds": {metric: {value, low, high, spread, scores}}}`: mean, interval and standard deviation over all folds and repeats.

    A test table that came as a file of its own is left alone; all other rows take part.
    """
    if bound.stream is not None or bound.environment is not None:
        raise Unsupported("train.folds needs the rows in memory; take out data.stream (or data.env), or take out train.folds", "use")
    bound.source.refuse_folds("train.folds")
    given = {name for name in ("valid", "test") if name in bound.source.tables}
    whole = pl.concat([bound.splits[s] for s in ("train", "valid", "test") if s in bound.splits and s not in given])
    targets = [c.name for c in bound.pipeline.outputs if bound.tasks[c.name].supervised]
    k, scores, shares = int(job.config.folds or 0), [], []
    for repeat in range(job.config.repeats):
        for number, (learnt, held) in enumerate(folds(whole, config, targets, k, seed=job.config.seed + repeat)):
            job.say(f"fold {number + 1} of {k}" + (f", repeat {repeat + 1} of {job.config.repeats}" if job.config.repeats > 1 else ""))
            scores.append(_fold(bound, whole[learnt], whole[held], model, job, config, judged_by, targets))
            job.run.event({"event": "fold", "repeat": repeat, "fold": number, "scores": scores[-1]})
            shares.append(len(held) / len(learnt))
    return {"folds": summary(scores, float(np.mean(shares)))}


def _fold(
    bound: Bound, learnt: pl.DataFrame, held: pl.DataFrame, model: Any, job: _Job, config: SplitConfig, judged_by: Any, targets: list[str]
) -> dict[str, Any]:
    """Metrics of one fold; its model is thrown away."""
    from modelyard.runtime.model import Model
    from modelyard.verbs.evaluate import Config, judge
    from modelyard.verbs.train import _fit

    cut = split(learnt, dataclasses.replace(config, test=0.0), targets, given=("test",), seed=job.config.seed)
    splits = {name: learnt[index] for name, index in cut.items()} | {"test": held}
    if "valid" in bound.source.tables:
        splits["valid"] = bound.splits["valid"]
    own = dataclasses.replace(bound, pipeline=copy.deepcopy(bound.pipeline), splits=splits)
    folder = job.run.folder / "fold"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = Run(folder)
    run.write("run.json", {"state": "training"})
    saved, _, own, _ = _fit(own, model, dataclasses.replace(job, run=run, resume=False, say=lambda text: None), config)
    judged = judged_by or Config()
    found = judge(Model.load(saved, trust_code=True), own, ["test"], judged.metrics, positive=judged.positive).metrics()["test"]
    shutil.rmtree(folder)
    return found


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
