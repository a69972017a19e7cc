"""Single models for tables beside each other: nets, forests, neighbours and the linear model beside our boosted trees.

    python benchmarks/table_nets.py                                   # all data sets and models, one fold each
    python benchmarks/table_nets.py --sets housing adult --models trees tabm --folds 3

Every model gets the same folds and the same rows: 15 % of a training fold are held out for stopping where a model stops early, as
`train` does by itself. Settings are the defaults of each family. CPU seconds are those of the whole verb `train` (reading, encoding,
fitting, saving, evaluating, report), one thread; a quiet second core would halve the wall time of none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _record import auc, hardware, need_data, rmse
from _tables import SETS, Task, folds, truth

from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.runtime.model import Model
from modelyard.verbs.train import Config, train

MODELS: dict[str, Any] = {
    "trees": "trees", "forest": "forest", "extra": {"name": "forest", "variant": "extra"}, "linear": "linear",
    "straight": {"name": "linear", "numbers": "scaled"}, "neighbours": "neighbours", "mlp": "mlp",
    "mlp-periodic": {"name": "mlp", "numbers": "periodic"}, "mlp-plain": {"name": "mlp", "numbers": "plain"}, "tabm": "tabm",
    "ft-transformer": "ft-transformer",
}  # fmt: skip


def scores(task: Task, rows: np.ndarray, test: np.ndarray, model: Any, budget: float | None) -> tuple[np.ndarray, float, float]:
    """(scores of the positive label or numbers, CPU seconds of training, CPU seconds of predicting)."""
    data = DataConfig(train=task.frame[rows], test=task.frame[test], target=task.target, ignore=task.ignore, split=SplitConfig(valid=0.15))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        result = train(data, model=model, base=Path(folder), config=Config(threads=1, budget=budget))
        fitted = time.process_time()
        answers = Model.load(result.model).predict(task.frame[test])
        done = time.process_time()
    if task.positive is None:
        found = answers[task.target].to_numpy()
    else:
        found = answers[f"{task.target}.scores"].struct.field(task.positive).to_numpy()
    return found, fitted - began, done - fitted


def main() -> None:
    """The table, one line a data set and model; the mean over the folds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["adult", "housing", "credit", "telco", "bank"], choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--budget", type=float, help="seconds of fitting for each model (wall)")
    parser.add_argument("--out", type=Path, help="a file that gets one JSON line for each result")
    options = parser.parse_args()
    need_data()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
    print(hardware(), flush=True)
    for name in options.sets:
        task = SETS[name]()
        y, metric = truth(task), rmse if task.positive is None else auc
        for label in options.models:
            found, fits, predicts = [], [], []
            for rows, test in folds(task, 5)[: options.folds]:
                guess, fit, predict = scores(task, rows, test, MODELS[label], options.budget)
                found.append(float(metric(y[test], guess, np.ones((1, len(test)), np.float32))[0]))
                fits.append(fit)
                predicts.append(predict / len(test) * 1000)
            line = {"data": name, "model": label, "metric": metric.__name__, "value": float(np.mean(found)), "folds": len(found),
                    "cpu_seconds": float(np.mean(fits)), "cpu_ms_per_row": float(np.mean(predicts))}  # fmt: skip
            digits = ",.0f" if metric is rmse else ".4f"
            print(f"{name:8} {label:15} {metric.__name__} {line['value']:{digits}}  train {line['cpu_seconds']:6.1f} CPU s  "
                  f"predict {line['cpu_ms_per_row']:.3f} CPU ms a row", flush=True)  # fmt: skip
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
