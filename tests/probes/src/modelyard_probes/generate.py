"""Reads once, then writes a character at a time until every example has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.runtime.answers import Graph, Randomness


def run(graphs: Mapping[str, Graph], inputs: dict[str, np.ndarray], params: Mapping[str, Any], random: Randomness) -> dict[str, np.ndarray]:
    found = graphs["read"](inputs)
    state, token_B = found["state"], found["start"]
    generators = [random.generator(i) for i in range(len(token_B))]
    written, ended = [], np.zeros(len(token_B), bool)
    for _ in range(params["max_length"]):
        out = graphs["step"]({"token": token_B, "state": state})
        token_B, state = _draw(out["logits"], params["temperature"], generators), out["state"]
        token_B = np.where(ended, 0, token_B)
        written.append(token_B)
        ended |= token_B == 0
        if ended.all():
            break
    return {"continuation.ids": np.stack(written, 1)}


def _draw(logits_BK: np.ndarray, temperature: float, generators: list[np.random.Generator]) -> np.ndarray:
    if temperature == 0:
        return logits_BK.argmax(1).astype(np.int64)
    scaled = logits_BK.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    cumulated = np.cumsum(weights / weights.sum(1, keepdims=True), 1)
    return np.array(
        [min(int(np.searchsorted(c, g.random())), logits_BK.shape[1] - 1) for c, g in zip(cumulated, generators, strict=True)], np.int64
    )
