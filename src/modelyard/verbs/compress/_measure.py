"""What a model weighs and how long it takes: bytes of its files, milliseconds of its graphs for one row and for 64, models in turns."""

from __future__ import annotations

import time
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
    encoded = [m.encode_rows(rows[:count])[0] for m in models]
    for model, some in zip(models, encoded, strict=True):
        model.run(some)
    times: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + SECONDS * len(models)
    while time.perf_counter() < end or len(times[0]) < 5:
        for found, model, some in zip(times, models, encoded, strict=True):
            began = time.perf_counter()
            model.run(some)
            found.append(time.perf_counter() - began)
    return [1e3 * float(np.median(t)) for t in times]
