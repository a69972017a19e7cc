"""Which examples train, which choose and which judge: at random, stratified, by group, by time, by a column or by files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl

from modelyard.errors import DataError, Problem
from modelyard.settings import Between


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """`data.split`; a number alone is the share of test rows."""

    SHORTHAND: ClassVar[str] = "test"

    test: Annotated[float, Between(0, 0.9)] = 0.2
    """Share of examples kept for the final judgement (not used where a test file is given)."""
    valid: Annotated[float, Between(0, 0.9)] = 0.1
    """Share used to stop and to choose (not used where a valid file is given)."""
    by: str | list[str] | None = None
    """Group column(s): all rows of a group stay together (one patient, one customer)."""
    time: str | None = None
    """Time column: train on the past, choose on what follows, judge on the end."""
    column: str | None = None
    """A column that holds `train`, `valid` or `test` for each row."""
    stratify: Literal["auto", "yes", "no"] = "auto"
    """Keep the shares of each label in every split; auto does so for labels."""
    seed: int | None = None
    """Seed of the split alone; without it the seed of training."""

    def __post_init__(self) -> None:
        if self.test + self.valid > 0.95:
            raise ValueError(f"test {self.test} and valid {self.valid} leave less than 5 % to train on")


def split(
    frame: pl.DataFrame, config: SplitConfig, targets: Sequence[str], *, given: Sequence[str] = (), seed: int = 0
) -> dict[str, np.ndarray]:
    """Row numbers by split. `given` names tables that came as files of their own and are not cut from `frame`.

    Raises `DataError` where a split would be empty.
    """
    shares = {name: getattr(config, name) for name in ("test", "valid") if name not in given and getattr(config, name) > 0}
    if config.column:
        return _by_column(frame, config.column, given)
    generator = np.random.Generator(np.random.Philox(key=seed if config.seed is None else config.seed))
    if config.time:
        order = by_time(frame, config.time)
    elif config.by:
        return _by_group(group_ids(frame, config.by), shares, generator)
    else:
        order = _shuffled(frame, config, targets, generator)
    return _cut(order, shares, frame.height)


def _cut(order: np.ndarray, shares: dict[str, float], rows: int) -> dict[str, np.ndarray]:
    """The end of `order` is test, what comes before it valid; at least one row each, the rest trains."""
    counts = {name: max(1, round(share * rows)) for name, share in shares.items()}
    if sum(counts.values()) >= rows:
        raise DataError(f"{rows} example(s) cannot be split into train and {', '.join(counts)}; give more rows or set data.split")
    out: dict[str, np.ndarray] = {}
    end = rows
    for name in ("test", "valid"):
        if name in counts:
            out[name] = np.sort(order[end - counts[name] : end])
            end -= counts[name]
    return {"train": np.sort(order[:end]), **out}


def _shuffled(frame: pl.DataFrame, config: SplitConfig, targets: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """A random order; stratified, rows are ordered by their place within their label, so that any cut keeps the shares
    and a label with a single row goes to train."""
    chance = generator.random(frame.height)
    labelled = [t for t in targets if t in frame.columns and frame[t].dtype == pl.String]
    if config.stratify == "no" or (config.stratify == "auto" and not labelled):
        return np.argsort(chance, kind="stable")
    if not labelled:
        raise DataError("data.split.stratify: yes needs a target of labels; a number cannot be stratified")
    ids = frame[labelled[0]].fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
    order = np.lexsort((chance, ids))
    sizes = np.bincount(ids)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty(frame.height)
    within = np.arange(frame.height) - starts[ids[order]]
    # the half keeps single rows in the middle, which trains; the jitter breaks ties between labels at random
    place[order] = (within + 0.5) / sizes[ids[order]]
    return np.lexsort((chance, place))


def by_time(frame: pl.DataFrame, column: str) -> np.ndarray:
    """Row numbers from the oldest to the newest."""
    _need(frame, [column], "data.split.time")
    values = frame[column]
    if values.null_count():
        raise DataError(f"data.split.time: {column} is missing in {values.null_count()} row(s); a row without a time has no place")
    if values.dtype == pl.String:
        from modelyard.kinds.timestamp import KIND

        values, errors = KIND.check(values)
        if errors:
            e = errors[0]
            raise DataError(f"data.split.time: {column} row {e.row + 1} {e.reason} (got {e.value})")
    return values.arg_sort().to_numpy()


def group_ids(frame: pl.DataFrame, by: str | Sequence[str]) -> np.ndarray:
    """(rows,) number of the group of each row, from 0."""
    columns = [by] if isinstance(by, str) else list(by)
    _need(frame, columns, "data.split.by")
    return frame.select(pl.struct(columns).rank("dense").alias("g"))["g"].to_numpy().astype(np.int64) - 1


def _by_group(ids: np.ndarray, shares: dict[str, float], generator: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = np.bincount(ids)
    order = generator.permutation(len(sizes))
    if len(sizes) <= len(shares):
        raise DataError(f"data.split.by: {len(sizes)} group(s) cannot fill train and {', '.join(shares)}")
    taken: dict[str, set[int]] = {name: set() for name in shares}
    queue = list(order)
    for name, share in shares.items():
        rows = 0
        while queue and (not taken[name] or rows + sizes[queue[-1]] / 2 < share * len(ids)) and len(queue) > 1:
            group = queue.pop()
            taken[name].add(int(group))
            rows += int(sizes[group])
    out = {name: np.flatnonzero(np.isin(ids, list(groups))) for name, groups in taken.items()}
    return {"train": np.flatnonzero(np.isin(ids, queue)), **out}


def _by_column(frame: pl.DataFrame, column: str, given: Sequence[str]) -> dict[str, np.ndarray]:
    _need(frame, [column], "data.split.column")
    values = frame[column].cast(pl.String).str.to_lowercase().replace({"val": "valid", "validation": "valid"})
    wrong = values.filter(~values.is_in(["train", "valid", "test"]).fill_null(False))
    if len(wrong):
        shown = ", ".join(repr(v) for v in wrong.unique().to_list()[:5])
        raise DataError(f"data.split.column: {column} holds {shown} in {len(wrong)} row(s); allowed are train, valid, test")
    out = {name: np.flatnonzero((values == name).to_numpy()) for name in ("train", "valid", "test")}
    out = {name: index for name, index in out.items() if len(index) or name == "train"}
    if not len(out["train"]):
        raise DataError(f"data.split.column: {column} leaves no row to train on")
    return out


def _need(frame: pl.DataFrame, columns: Sequence[str], where: str) -> None:
    absent = [c for c in columns if c not in frame.columns]
    if absent:
        problems = [Problem(f"is not a column; the data has {', '.join(frame.columns)}", f"{where}: {c}") for c in absent]
        raise DataError(f"{where} names column(s) that the data lacks: {', '.join(absent)}", problems)
