"""Times in turns, with intervals of their medians, and metrics on the same rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.runtime.model import Model

if TYPE_CHECKING:
    from modelyard.tasks._binding import Bound
    from modelyard.verbs.benchmark import Config

ROUNDS = 5
"""At least; a median of fewer has no 95 % interval short of its extremes."""
MOST = 2000
"""At most: 2,000 rounds of a 0.1 ms model narrow the interval to a percent."""


def timed(entries: list[dict[str, Any]], models: Mapping[str, Model], first: Model, bound: Bound, split: str, config: Config) -> None:
    """Puts `one` and `batch` into the entries of what answers."""
    rows = _rows(first, bound, split, config.batch)
    params = first._examples()["params"]
    for key, count in (("one", 1), ("batch", config.batch)):
        some = _taken(rows, count)
        works = {name: _work(model, some, params) for name, model in models.items()}
        times = rounds(works, config.seconds)
        number = len(some)
        for entry in entries:
            if (found := times.get(entry["name"])) is not None:
                told = summary(found, times["model"])
                rate = {"rows": number, "rows_per_second": 1e3 * number / told["median"]} if key == "batch" else {}
                entry[key] = told | rate


def rounds(works: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Seconds of each piece of work in each round. All take their turn in every round, which begins with another one each time; the first round
    warms caches and does not count. `seconds` are for each piece of work."""
    names = list(works)
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds * len(names)
    count = 0
    while count < ROUNDS or (time.perf_counter() < end and count < MOST):
        for i in range(len(names)):
            name = names[(i + count) % len(names)]
            began = time.perf_counter()
            works[name]()
            found[name].append(time.perf_counter() - began)
        count += 1
    return {name: np.array(times) for name, times in found.items()}


def summary(times: np.ndarray, of_model: np.ndarray) -> dict[str, Any]:
    """Milliseconds: the median with its 95 % interval, and the median share of the model's time in the same round."""
    low, high = interval(len(times))
    ordered = np.sort(times) * 1e3
    return {
        "median": float(np.median(ordered)), "low": float(ordered[low]), "high": float(ordered[high]), "rounds": len(times),
        "share": float(np.median(times / of_model)),
    }  # fmt: skip


def interval(count: int, level: float = 0.95) -> tuple[int, int]:
    """Places (from 0) of the two order statistics that hold the median with at least `level`, whatever the distribution: the number of values below it
    is binomial(count, 1/2) (Conover 1999, Practical Nonparametric Statistics, 3.2). The extremes where `count` is too small for that (below 6)."""
    tail, place = 0.0, 0
    for k in range(count // 2 + 1):
        tail += math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2))
        if tail > (1 - level) / 2:
            place = k
            break
    low = max(0, place - 1)
    return low, count - 1 - low


def judged(entries: list[dict[str, Any]], models: Mapping[str, Model], bound: Bound, split: str, config: Config) -> int:
    """Puts `metrics` (by name, with several outputs by `output.name`) into the entries; returns the rows they were measured on."""
    from dataclasses import replace

    from modelyard.verbs.evaluate import judge, score

    if bound.environment is not None:
        for entry in entries:
            if (model := models.get(entry["name"])) is not None:
                found = judge(model, bound, ["test"]).metrics()
                entry["metrics"] = next(iter(found.values()))
        return 0
    rows = bound.splits[split].head(config.rows)
    fewer = replace(bound, splits={**bound.splits, split: rows})
    wanted = _metrics(bound, split, config.metrics)
    for entry in entries:
        if (model := models.get(entry["name"])) is not None:
            entry["metrics"] = {label: score(model, fewer, split, metric, output, intervals=True) for label, (output, metric) in wanted.items()}
    return int(rows.height)


def _metrics(bound: Bound, split: str, named: Sequence[str] | None) -> dict[str, tuple[str, str]]:
    """label → (output, metric): those named, else the first of each output that its truths allow."""
    from modelyard import metrics

    found = {}
    several = len(bound.pipeline.outputs) > 1
    for column in bound.pipeline.outputs:
        task = bound.tasks[column.name]
        known = column.name in bound.splits[split].columns or task.examine is not None
        every = named or [*(task.metrics or ()), *metrics.DEFAULTS.get(column.kind, ())]
        fits = [m for m in every if column.kind in metrics.get(m).kinds and (known or metrics.get(m).needs == "features")]
        for metric in fits if named else fits[:1]:
            found[f"{column.name}.{metric}" if several else metric] = (column.name, metric)
    return found


def _rows(model: Model, bound: Bound, split: str, count: int) -> Any:
    """Rows as a caller sends them; framed examples where an example is many rows."""
    if bound.environment is not None:
        return model.examples
    frame = bound.splits[split].select([c.name for c in bound.pipeline.inputs]).head(count)
    return [dict(r) for r in frame.to_dicts()] if model.by_row else frame


def _taken(rows: Any, count: int) -> Any:
    """`count` of them, some of them again where there are fewer; framed examples as many as there are."""
    if isinstance(rows, list):
        return (rows * -(-count // len(rows)))[:count]
    return rows.head(count)


def _work(model: Model, rows: Any, params: Mapping[str, Any]) -> Callable[[], Any]:
    """The whole way from rows to answers."""
    if isinstance(rows, list):
        return lambda: model.predict(rows, params)
    return lambda: model.predict_examples(rows, params)
