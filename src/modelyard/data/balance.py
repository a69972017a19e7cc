"""Class balancing of training rows: over-sampling, under-sampling, SMOTE and SMOTE-NC on checked raw rows.

Chawla, Bowyer, Hall & Kegelmeyer 2002, "SMOTE: synthetic minority over-sampling technique" (§4.2, §6.1). Rows are made inside a
label, between a row and one of its nearest neighbours: numbers lie on the line between the two, categories are voted by the
neighbours, everything else (texts, images, times, weights, ids) is the base row's.

`balance` takes the rows *by split* and changes `train` alone, so that no copy of a row can be on both sides of a split.
Where we differ from the paper: numbers are scaled before distances are measured, else the column with the largest unit decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import polars as pl

from modelyard.data.nearest import nearest
from modelyard.errors import DataError, Unsupported

Method = Literal["over", "under", "smote"]
METHODS: tuple[str, ...] = get_args(Method)
PURPOSE = 11
"""Counter of the random generator, so that balancing draws other numbers than splitting with the same seed."""


def balance(
    splits: Mapping[str, pl.DataFrame], target: str, kinds: Mapping[str, str], method: str, *, ratio: float = 1.0, neighbours: int = 5,
    seed: int = 0,
) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """(splits with a balanced `train`, notes). All other splits are passed through as they are.

    `kinds` are the kinds of the columns (`number`, `category`, …); columns that are not named are copied. `ratio` is the
    smallest share that a label has of the most frequent one afterwards. The rows that were there come first, in their order; the
    result depends on the rows and the seed alone. Raises `Unsupported` where the target is no column of labels.
    """
    if "train" not in splits:
        raise DataError(f"balancing changes the training rows alone and needs rows by split; it got {', '.join(splits) or 'none'}")
    origin, made, notes = plan(splits["train"], target, kinds, method, ratio=ratio, neighbours=neighbours, seed=seed)
    train = splits["train"][origin]
    kept = len(origin) - made.height
    if made.height:
        train = train.with_columns(pl.concat([train[c][:kept], made[c].cast(train[c].dtype)]).alias(c) for c in made.columns)
    return {**splits, "train": train}, notes


def plan(
    train: pl.DataFrame, target: str, kinds: Mapping[str, str], method: str, *, ratio: float, neighbours: int, seed: int
) -> tuple[np.ndarray, pl.DataFrame, list[str]]:
    """(row of `train` that each balanced row is, or is made from; columns of the made rows, which are the last ones; notes)."""
    if method not in METHODS:
        raise Unsupported(f"unknown way to balance {method!r}; expected one of {', '.join(METHODS)}", "use")
    if not 0 < ratio <= 1:
        raise DataError(f"the ratio of rare to frequent labels came as {ratio}; expected a number above 0, at most 1")
    if target not in train.columns or kinds.get(target, "category") != "category":
        message = f"{target}: balancing needs a target of labels, not of kind {kinds.get(target, 'unknown')}"
        raise Unsupported(message, "never")
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, PURPOSE]))
    labels = train[target].cast(pl.String)
    members = {name: np.flatnonzero((labels == name).fill_null(False).to_numpy()) for name in sorted(labels.drop_nulls().unique())}
    if len(members) < 2:
        raise DataError(f"{target}: there are {len(members)} labels in the training rows; balancing needs two")
    counts = {name: len(rows) for name, rows in members.items()}
    if method == "under":
        most = max(1, int(min(counts.values()) / ratio))
        gone = [random.permutation(rows)[most:] for rows in members.values() if len(rows) > most]
        kept = np.setdiff1d(np.arange(train.height), np.concatenate(gone) if gone else np.zeros(0, np.int64))
        return kept, train.head(0), [_told(target, counts, {n: min(c, most) for n, c in counts.items()})]
    wanted = {name: max(count, round(ratio * max(counts.values()))) for name, count in counts.items()}
    notes = [_told(target, counts, wanted)]
    picked: list[np.ndarray] = []
    frames: list[pl.DataFrame] = []
    for name, rows in members.items():
        need = wanted[name] - counts[name]
        if not need:
            continue
        base, made = random.integers(0, len(rows), need), None
        if method == "smote" and len(rows) > 1:
            made = _made(train[rows], {c: k for c, k in kinds.items() if c != target and c in train.columns}, base, neighbours, random)
        elif method == "smote":
            notes.append(f"{target}: {name} has one training row, which has no neighbours; it was copied")
        picked.append(rows[base])
        frames.append(train[rows[base]].select(made.columns if made is not None else []) if made is None else made)
    origin = np.concatenate([np.arange(train.height), *picked])
    if method != "smote" or not any(f.width for f in frames):
        return origin, train.head(0), notes
    columns = max(frames, key=lambda f: f.width).columns
    whole = [f if f.width else train[rows].select(columns) for f, rows in zip(frames, picked, strict=True)]
    return origin, pl.concat([f.select(pl.col(c).cast(train[c].dtype) for c in columns) for f in whole]), notes


def _told(target: str, before: Mapping[str, int], after: Mapping[str, int]) -> str:
    changed = [f"{name} {count} → {after[name]}" for name, count in before.items() if after[name] != count]
    return f"{target}: training rows by label: {', '.join(changed) or 'balanced already'}"


def _made(
    rows: pl.DataFrame, kinds: Mapping[str, str], base_S: np.ndarray, neighbours: int, random: np.random.Generator
) -> pl.DataFrame:
    """Number and category columns of rows made from `rows`, all of one label."""
    numbers = [c for c, k in kinds.items() if k == "number"]
    categories = [c for c, k in kinds.items() if k == "category"]
    if not numbers and not categories:
        message = "smote needs columns of numbers or categories to go between; with texts or images alone balance by over or under"
        raise Unsupported(message, "use")
    points = space(rows, numbers, categories)
    near_NK, _ = nearest(points, min(neighbours, rows.height - 1))
    turn_S = random.integers(0, near_NK.shape[1], len(base_S))
    step_S = random.random(len(base_S))
    found: dict[str, pl.Series] = {}
    if numbers:
        raw_ND = np.stack([rows[c].cast(pl.Float64).to_numpy() for c in numbers], 1)
        made_SD = between(raw_ND, near_NK, base_S, turn_S, step_S)
        for i, name in enumerate(numbers):
            known = raw_ND[~np.isnan(raw_ND[:, i]), i]
            # counts stay counts: a made customer has 3 children, not 2.7
            column = np.round(made_SD[:, i]) if np.array_equal(known, np.round(known)) else made_SD[:, i]
            found[name] = pl.Series(name, column, nan_to_null=True)
    for name in categories:
        found[name] = rows[name][voted(_ids(rows[name]), near_NK, base_S)]
    return pl.DataFrame(list(found.values()))


def between(x_ND: np.ndarray, near_NK: np.ndarray, base_S: np.ndarray, turn_S: np.ndarray, step_S: np.ndarray) -> np.ndarray:
    """(S, D) rows on the lines from `x[base]` to their neighbours `near[base, turn]`, at `step` of the way (0 … 1).

    NaN is missing: the value is then the base row's.
    """
    start_SD = x_ND[base_S]
    out_SD = x_ND[near_NK[base_S, turn_S]]
    out_SD -= start_SD
    out_SD *= step_S[:, None]
    out_SD += start_SD
    return np.where(np.isnan(out_SD), start_SD, out_SD) if np.isnan(out_SD).any() else out_SD


def voted(ids_N: np.ndarray, near_NK: np.ndarray, base_S: np.ndarray) -> np.ndarray:
    """(S,) a row that has the value most frequent among the neighbours of each base row; ties go to the nearest neighbour."""
    votes_NK = ids_N[near_NK]
    same_NKK = votes_NK[:, :, None] == votes_NK[:, None, :]
    winner_N = same_NKK.sum(2).argmax(1)  # argmax takes the first, and neighbours come nearest first
    return near_NK[np.arange(len(near_NK)), winner_N][base_S]


def space(rows: pl.DataFrame, numbers: list[str], categories: list[str]) -> np.ndarray:
    """(N, D) points whose Euclidean distance is SMOTE-NC's: scaled numbers, and two different categories lie apart by the median
    deviation of the numbers (§6.1), which is 1 after scaling (also where there are no numbers). A missing number counts as the mean."""
    blocks: list[np.ndarray] = []
    for name in numbers:
        x = rows[name].cast(pl.Float64).to_numpy().astype(np.float64)
        known = x[~np.isnan(x)]
        largest = float(np.abs(known).max(initial=0)) or 1.0
        known = known / largest  # squares of 1e300 are infinite
        mean, deviation = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
        scaled = (x / largest - mean) / (deviation if deviation > 1e-12 else 1.0)
        blocks.append(np.nan_to_num(scaled, nan=0.0)[:, None])
    for name in categories:
        ids = _ids(rows[name])
        blocks.append(np.eye(int(ids.max(initial=0)) + 1)[ids] / np.sqrt(2))
    return np.concatenate(blocks, 1)


def _ids(column: pl.Series) -> np.ndarray:
    """(N,) number of each value; a missing value is a value of its own."""
    return column.cast(pl.String).rank("dense").fill_null(0).to_numpy().astype(np.int64)
