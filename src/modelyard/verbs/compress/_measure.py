"""What a model weighs and how long it takes: bytes of its files, milliseconds of its graphs for one row and for 64, models in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from modelyard.runtime.model import Model

WEIGHTS = (".onnx", ".safetensors", ".data")
SECONDS = 0.6
"""For each model and number of rows."""


def size(model: Model) -> int:
    """Bytes of the files that hold what was learnt."""
    return sum(e["size"] for name, e in model.manifest["files"].items() if name.endswith(WEIGHTS))


def milliseconds(models: list[Model], rows: Any, count: int) -> list[float]:
    """Median milliseconds of the graphs for `count` rows (encoded before), of each model, in turns so that what else runs hits all alike."""
    return in_turns([_work(model, rows[:count]) for model in models], SECONDS)


def in_turns(works: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Median milliseconds of each piece of work; `seconds` are for each."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < end or len(times[0]) < 5:
        for found, work in zip(times, works, strict=True):
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    return [1e3 * float(np.median(t)) for t in times]


def _work(model: Model, rows: Any) -> Callable[[], Any]:
    """The graphs of rows that were encoded before; models that have no graphs of their own (composites) with the encoding."""
    if type(model) is not Model:
        return lambda: model.predict(rows)
    encoded, _ = model.encode_rows(rows)
    return lambda: model.run(encoded)
