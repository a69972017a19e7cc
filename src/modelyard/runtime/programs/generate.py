"""Reads once, then writes a token at a time until every text has ended: the most likely ones, or drawn ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.runtime.answers import Graph, Param, Randomness
from modelyard.runtime.programs._writing import Block, Texts, blocks, log_total, top
from modelyard.runtime.sampling import PARAMS as DRAWN
from modelyard.runtime.sampling import adjust, choose

PARAMS = (*DRAWN, Param("max_length", "int", 128, 1, 1024, doc="tokens written at most"))


def run(graphs: Mapping[str, Graph], inputs: dict[str, np.ndarray], params: Mapping[str, Any], random: Randomness) -> dict[str, np.ndarray]:
    """`<output>.ids`, `<output>.score` and `<output>.gap` of every example; a text that has ended costs nothing any more."""
    texts, block = Texts(), None
    for block in blocks(graphs, inputs, params["max_length"]):
        _write(block, params, random, texts)
    assert block is not None
    return texts.arrays(block.output, block.end)


def _write(block: Block, params: Mapping[str, Any], random: Randomness, texts: Texts) -> None:
    heat = float(params["temperature"])
    generators = {int(i): random.generator(int(i)) if heat > 0 else None for i in block.example_R}
    rows = len(block.example_R)
    written: list[list[int]] = [[] for _ in range(rows)]
    total_R, gap_R = np.zeros(rows), np.full(rows, np.inf)
    seen_RV = np.zeros(block.logits_RV.shape, np.int32) if params["repetition"] != 1 else None
    own_R = np.arange(rows)  # which of `written` a row of the block is
    settings = {name: params[name] for name in ("temperature", "top_k", "top_p", "min_p", "repetition")}
    for _ in range(params["max_length"]):
        plain = heat == 0 and seen_RV is None
        logits_RV = block.logits_RV if plain else adjust(block.logits_RV, **settings, seen=None if seen_RV is None else seen_RV[own_R])
        token_R = choose(logits_RV, heat, [generators[int(i)] for i in block.example_R])
        at = np.arange(len(token_R))
        total_R[own_R] += block.logits_RV[at, token_R] - log_total(block.logits_RV)
        if heat == 0:
            best = np.take_along_axis(logits_RV, top(logits_RV, 2), 1)
            gap_R[own_R] = np.minimum(gap_R[own_R], np.abs(best[:, 1] - best[:, 0]))
        for r, token in zip(own_R.tolist(), token_R.tolist(), strict=True):
            written[r].append(token)
        if seen_RV is not None:
            seen_RV[own_R, token_R] += 1
        going = np.flatnonzero(token_R != block.end)
        if not len(going):
            break
        if len(going) < len(token_R):
            ended = np.flatnonzero(token_R == block.end)
            _put(block, ended, own_R, written, total_R, gap_R, texts)
            block.keep(going)
            own_R, token_R = own_R[going], token_R[going]
        block.go(token_R)
    _put(block, np.arange(len(own_R)), own_R, written, total_R, gap_R, texts)


def _put(
    block: Block, rows: np.ndarray, own_R: np.ndarray, written: list[list[int]], total_R: np.ndarray, gap_R: np.ndarray, texts: Texts
) -> None:
    for r in rows.tolist():
        own = int(own_R[r])
        texts.put(int(block.example_R[r]), written[own], total_R[own] / len(written[own]), float(gap_R[own]))
