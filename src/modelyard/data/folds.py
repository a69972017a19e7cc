"""Folds of cross-validation: at random, stratified by the target, by group, or forward in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from modelyard.data.split import SplitConfig, by_time, group_ids
from modelyard.errors import DataError

Fold = tuple[np.ndarray, np.ndarray]
"""(rows to learn from, rows held out), both increasing."""


def folds(frame: pl.DataFrame, config: SplitConfig, targets: Sequence[str], k: int, *, seed: int = 0) -> list[Fold]:
    """`k` folds of the rows of `frame`, made as `config` splits: no group is on both sides, nothing is learnt from the future.

    At random (and stratified) every row is held out once. Groups are dealt out by size. In time the rows are cut into
    k + 1 blocks; fold i learns from blocks 0 … i and holds block i + 1 out (Hyndman & Athanasopoulos 2021, §5.10), so the first
    block is never held out. Raises `DataError` where there are too few rows or groups.
    """
    rows = frame.height
    if config.time:
        return _forward(by_time(frame, config.time), k)
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, 1]))
    if config.by:
        number = _by_group(group_ids(frame, config.by), k, generator)
    else:
        if rows < 2 * k:
            raise DataError(f"{rows} example(s) are too few for {k} folds; give more rows or fewer folds")
        number = _dealt(frame, config, targets, k, generator)
    return [(np.flatnonzero(number != i), np.flatnonzero(number == i)) for i in range(k)]


def _dealt(frame: pl.DataFrame, config: SplitConfig, targets: Sequence[str], k: int, generator: np.random.Generator) -> np.ndarray:
    """(rows,) fold numbers. Rows are sorted by the first target and dealt out in turn, k at a time in a random order: every
    label, and every range of a number, has its share of each fold."""
    chance = generator.random(frame.height)
    usable = [t for t in targets if t in frame.columns and (frame[t].dtype == pl.String or frame[t].dtype.is_numeric())]
    order = np.argsort(chance, kind="stable")
    if usable and config.stratify != "no":
        order = np.lexsort((chance, frame[usable[0]].rank("dense").fill_null(0).to_numpy()))
    deals = -(-frame.height // k)
    turn = np.argsort(generator.random((deals, k)), axis=1).reshape(-1)[: frame.height]
    number = np.empty(frame.height, np.int64)
    number[order] = turn
    return number


def _by_group(ids: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    sizes = np.bincount(ids)
    if len(sizes) < k:
        raise DataError(f"{len(sizes)} group(s) cannot fill {k} folds; ask for at most {len(sizes)}")
    held, fold_of = np.zeros(k, np.int64), np.empty(len(sizes), np.int64)
    for group in np.lexsort((generator.random(len(sizes)), -sizes)):  # the largest first, each to the smallest fold
        fold_of[group] = held.argmin()
        held[fold_of[group]] += sizes[group]
    return fold_of[ids]


def _forward(order: np.ndarray, k: int) -> list[Fold]:
    if len(order) < 2 * (k + 1):
        raise DataError(f"{len(order)} example(s) are too few for {k} folds in time; give more rows or fewer folds")
    blocks = np.array_split(order, k + 1)
    return [(np.sort(np.concatenate(blocks[: i + 1])), np.sort(blocks[i + 1])) for i in range(k)]
