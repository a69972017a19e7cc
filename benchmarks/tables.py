"""Ours on tables beside what users would pick instead, on the same folds, with the same seconds, in turn.

    python benchmarks/tables.py                                     # quick beside HistGradientBoosting with its defaults
    python benchmarks/tables.py --pair balanced:lightgbm --budget 60
    python benchmarks/tables.py --pair best:autogluon --budget 120 --autogluon PYTHON    # a Python that has autogluon.tabular

Pairs are `preset:peer`. Peers: `hgb` (scikit-learn's HistGradientBoosting, defaults), `lightgbm` (tuned by hand: Optuna's TPE over nine
settings, three inner folds with early stopping, until the seconds are over, then fitted on all rows), `autogluon` (`good_quality`, the same
seconds; its own environment) and `flaml`. Ours is `modelyard.verbs.train.train` with nothing set but the columns, the preset and the budget; all
rows of a training fold are handed to both sides. Differences are paired: both sides are judged on the same resamples of the test rows of
every fold. "At or above" means that the 95 % interval of the difference excludes a loss of more than 0.5 % of the peer's value.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _record import Clock, Metric, Tally, auc, hardware, need_data, rmse, shown, verdict
from _tables import SETS, Task, folds, matrix, truth

from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.runtime.model import Model
from modelyard.verbs.evaluate import Config as Judged
from modelyard.verbs.train import Config, train

LOSS = 0.005
"""Of the peer's value."""


def ours(task: Task, rows: np.ndarray, test: np.ndarray, preset: str, budget: float) -> np.ndarray:
    """Scores of the positive label, or numbers."""
    judge = task.frame[test]
    data = DataConfig(train=task.frame[rows], test=judge, target=task.target, ignore=task.ignore, split=SplitConfig(valid=0))
    config = Config(preset=preset, budget=None if preset == "quick" else budget)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        judged = Judged(metrics=["rmse" if task.positive is None else "roc_auc"])
        result = train(data, base=Path(folder), config=config, judged_by=judged)
        answers = Model.load(result.model).predict(judge)
    if task.positive is None:
        return answers[task.target].to_numpy()
    return answers[f"{task.target}.scores"].struct.field(task.positive).to_numpy()


def hgb(task: Task, rows: np.ndarray, test: np.ndarray, budget: float, options: Any) -> np.ndarray:
    """HistGradientBoosting with ordinal codes and missing values as they are."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    x, labels = matrix(task)
    x[:, labels] = np.where(x[:, labels] < 0, np.nan, x[:, labels])
    y = truth(task)
    if task.positive is None:
        return np.asarray(HistGradientBoostingRegressor(random_state=0).fit(x[rows], y[rows]).predict(x[test]))
    return np.asarray(HistGradientBoostingClassifier(random_state=0).fit(x[rows], y[rows]).predict_proba(x[test])[:, 1])


def lightgbm(task: Task, rows: np.ndarray, test: np.ndarray, budget: float, options: Any) -> np.ndarray:
    """LightGBM tuned by hand; a tenth of the seconds is kept for the last fit."""
    import lightgbm as lgb
    import optuna
    from sklearn.model_selection import KFold, StratifiedKFold

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    x, labels = matrix(task)
    y = truth(task).astype(np.float64)
    number = task.positive is None
    fixed = {"objective": "regression" if number else "binary", "metric": "rmse" if number else "auc", "verbose": -1, "bagging_freq": 1}
    cut = KFold(3, shuffle=True, random_state=1) if number else StratifiedKFold(3, shuffle=True, random_state=1)
    parts = [(rows[a], rows[b]) for a, b in cut.split(rows, y[rows])]
    end, best = time.monotonic() + 0.9 * budget, (-np.inf, {}, 100)
    data = lambda index: lgb.Dataset(x[index], y[index], categorical_feature=labels, params={"verbose": -1, "feature_pre_filter": False})  # noqa: E731

    def objective(trial: Any) -> float:
        nonlocal best
        chosen = {
            "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.2, log=True), "num_leaves": trial.suggest_int("num_leaves", 4, 256, log=True),
            "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 2, 100, log=True), "feature_fraction": trial.suggest_float("feature_fraction", 0.3, 1),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1), "lambda_l1": trial.suggest_float("lambda_l1", 1e-6, 10, log=True),
            "lambda_l2": trial.suggest_float("lambda_l2", 1e-6, 30, log=True), "cat_smooth": trial.suggest_float("cat_smooth", 1, 100, log=True),
            "max_bin": trial.suggest_categorical("max_bin", [63, 255, 511]),
        }  # fmt: skip
        scores, rounds = [], []
        for learn, held in parts:
            calls = [lgb.early_stopping(50, verbose=False), _until(end)]
            own = data(learn)
            own.params["max_bin"] = chosen["max_bin"]
            booster = lgb.train({**fixed, **chosen}, own, 3000, valid_sets=[own.create_valid(x[held], y[held])], callbacks=calls)
            guess = booster.predict(x[held], num_iteration=booster.best_iteration)
            one = np.ones((1, len(held)))
            scores.append(-rmse(y[held], guess, one)[0] if number else auc(y[held] > 0, guess, one)[0])
            rounds.append(booster.best_iteration or booster.current_iteration())
        score = float(np.mean(scores))
        if score > best[0]:
            best = (score, chosen, round(float(np.mean(rounds)) * 1.2))
        return -score

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    while time.monotonic() < end:
        study.optimize(objective, n_trials=1)
    _, chosen, rounds = best
    return np.asarray(lgb.train({**fixed, **chosen}, data(rows), max(1, rounds)).predict(x[test]))


def _until(end: float) -> Any:
    import lightgbm as lgb

    def call(env: Any) -> None:
        if time.monotonic() > end:
            raise lgb.callback.EarlyStopException(env.iteration, env.evaluation_result_list)

    return call


def autogluon(task: Task, rows: np.ndarray, test: np.ndarray, budget: float, options: Any) -> np.ndarray:
    """AutoGluon `good_quality`, in the environment of `--autogluon`."""
    return _elsewhere(
        """
import sys, json, pandas as pd
from autogluon.tabular import TabularPredictor
job = json.load(open(sys.argv[1] + "/job.json"))
train, test = (pd.read_parquet(f"{sys.argv[1]}/{n}.parquet") for n in ("train", "test"))
metric = "root_mean_squared_error" if job["number"] else "roc_auc"
p = TabularPredictor(label=job["target"], eval_metric=metric, path=sys.argv[1] + "/ag", verbosity=0)
p.fit(train, presets="good_quality", time_limit=job["budget"], num_cpus=job["cores"], num_gpus=0, dynamic_stacking=False)
out = p.predict(test) if job["number"] else p.predict_proba(test)[job["positive"]]
out.to_frame("guess").to_parquet(sys.argv[1] + "/out.parquet")
""", task, rows, test, budget, options)  # fmt: skip


def flaml(task: Task, rows: np.ndarray, test: np.ndarray, budget: float, options: Any) -> np.ndarray:
    """FLAML with its default learners, in the environment of `--autogluon`."""
    return _elsewhere(
        """
import sys, json, pandas as pd
from flaml import AutoML
job = json.load(open(sys.argv[1] + "/job.json"))
train, test = (pd.read_parquet(f"{sys.argv[1]}/{n}.parquet") for n in ("train", "test"))
y, x = train[job["target"]], train.drop(columns=job["target"])
p = AutoML()
p.fit(x, y, task="regression" if job["number"] else "classification", metric="rmse" if job["number"] else "roc_auc",
      time_budget=job["budget"], n_jobs=job["cores"], verbose=0, seed=0)
x = test.drop(columns=job["target"])
out = p.predict(x) if job["number"] else p.predict_proba(x)[:, list(p.classes_).index(job["positive"])]
pd.DataFrame({"guess": out}).to_parquet(sys.argv[1] + "/out.parquet")
""", task, rows, test, budget, options)  # fmt: skip


def _elsewhere(script: str, task: Task, rows: np.ndarray, test: np.ndarray, budget: float, options: Any) -> np.ndarray:
    import polars as pl

    with tempfile.TemporaryDirectory() as folder:
        frame = task.frame.drop(task.ignore)
        frame[rows].write_parquet(f"{folder}/train.parquet")
        frame[test].write_parquet(f"{folder}/test.parquet")
        job = {"target": task.target, "positive": task.positive, "number": task.positive is None, "budget": budget, "cores": options.cores}
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        Path(folder, "job.py").write_text(script, encoding="utf-8")
        done = subprocess.run([options.autogluon, f"{folder}/job.py", folder], capture_output=True, text=True, check=False)
        if not Path(folder, "out.parquet").is_file():
            raise RuntimeError(done.stderr[-2000:])
        return pl.read_parquet(f"{folder}/out.parquet")["guess"].to_numpy()


PEERS = {"hgb": hgb, "lightgbm": lightgbm, "autogluon": autogluon, "flaml": flaml}


def main() -> int:
    """A line per fold, then means with intervals; exit code 1 where ours is not at or above."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--pair", default="quick:hgb", help="preset:peer")
    parser.add_argument("--budget", type=float, default=60, help="seconds of fitting, both sides")
    parser.add_argument("--folds", type=int, default=3, help="folds a table is cut into")
    parser.add_argument("--take", type=int, default=99, help="of these, the first so many")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--autogluon", default=sys.executable, help="a Python with the peer")
    options = parser.parse_args()
    preset, _, peer = options.pair.partition(":")
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(f"{hardware()}; {options.pair}, {options.budget:.0f} s", flush=True)
    ok = []
    for name in options.sets:
        task = SETS[name]()
        metric: Metric = rmse if task.positive is None else auc
        tally = Tally(metric)
        for number, (rows, test) in enumerate(folds(task, options.folds)[: options.take]):
            found = {}
            for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                with Clock() as clock:
                    found[side] = (
                        ours(task, rows, test, preset, options.budget)
                        if side == "ours"
                        else PEERS[peer](task, rows, test, options.budget, options)
                    )
                found[side + " clock"] = clock
            line = tally.add(truth(task)[test], found["ours"], found["peer"])
            print(f"{name}: {line}; ours {found['ours clock']}; peer {found['peer clock']}", flush=True)
        means = tally.means()
        sign = -1 if task.positive is None else 1
        worst = means["difference"][1] if sign > 0 else -means["difference"][2]
        line = ", ".join(f"{k} {shown(v)}" for k, v in means.items())
        what = "RMSE" if task.positive is None else "AUC"
        ok.append(verdict(f"{name}: {what} at or above {peer}", worst > -LOSS * means["peer"][0], line))
    print(f"{sum(ok)} of {len(ok)} at or above {peer}", flush=True)
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
