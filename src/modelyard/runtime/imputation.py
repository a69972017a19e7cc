"""What replaces missing values: fitted on the training rows, stored with the model, applied by the same code everywhere.

One value per column (mean, median, mode, constant), the mean of the nearest training rows (k-NN; Troyanskaya et al. 2001), or a
chain of regressions of every number on the others (MICE without its random draws: van Buuren & Groothuis-Oudshoorn 2011, J. Stat.
Softw. 45:3). A row's values do not depend on the rows beside it.

Means and the modes of labels are exact however the rows come in. Medians, modes of numbers, k-NN and regressions see all rows up to
`SAMPLE` (k-NN: `donors`), beyond that a seeded uniform sample: the rank of such a median is off by at most 0.4 % (95 %).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.errors import DataError, Problem
from modelyard.kinds.number import SCALED_LIMIT
from modelyard.runtime._neighbours import Neighbours

if TYPE_CHECKING:
    from modelyard.runtime.pipeline import Column

SAMPLE = 100_000
"""Training rows behind medians and regressions: 100,000 rows of 50 columns are 40 MB."""
PREDICTORS = 30
"""Columns of one regression at most, the most correlated ones: with more the Gram matrices of wide tables take minutes."""
RIDGE = 1e-3
"""Penalty of the regressions relative to the number of rows: columns that copy each other must not blow up."""
SETTLED = 1e-3
"""The chain stops when no value moves by more than this share of its column's deviation."""

SQUARABLE = 1e150
"""Values are cut to ± this where squares of them are added up."""

SINGLE = ("mean", "median", "mode", "constant")
JOINT = ("knn", "iterative")
METHODS: dict[str, tuple[str, ...]] = {
    "number": ("keep", *SINGLE, *JOINT, "delete"), "category": ("keep", "mode", "constant", "delete"),
    "timestamp": ("keep", *SINGLE, "delete"),
}  # fmt: skip
"""By kind; every other kind can keep or delete."""


def methods(kind: str) -> tuple[str, ...]:
    """What columns of a kind can do about missing values."""
    return METHODS.get(kind, ("keep", "delete"))


@dataclass
class Nearest:
    """k-NN over all number columns, in units of their deviations."""

    columns: list[str] = field(default_factory=list)
    neighbours: list[int] = field(default_factory=list)
    """Of each column; 0 where its gaps are none of ours."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scale: np.ndarray = field(default_factory=lambda: np.ones(0))
    donors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """`(N, D)` float64 in units of the data, NaN where missing."""

    @classmethod
    def fit(cls, columns: list[str], neighbours: list[int], x_ND: np.ndarray) -> Nearest:
        """Keeps the rows."""
        return cls(columns, neighbours, *moments(x_ND), x_ND)

    @cached_property
    def index(self) -> Neighbours:
        """The rows, ready for looking up."""
        return Neighbours(scaled(self.donors, self.mean, self.scale))

    def fill(self, x_BD: np.ndarray) -> np.ndarray:
        """Gaps of the columns that asked for it filled; the column's mean where no training row shares a value with the row."""
        wanted = np.asarray(self.neighbours)
        z = self.index.means(scaled(x_BD, self.mean, self.scale), wanted)
        filled = np.where(np.isnan(z), 0.0, z) * self.scale + self.mean
        return np.where(np.isnan(x_BD) & (wanted > 0), filled, x_BD)


@dataclass
class Chain:
    """Ridge regressions of each number on the others, run one after the other from the means on."""

    columns: list[str] = field(default_factory=list)
    filled: list[int] = field(default_factory=list)
    """Positions of the columns whose gaps are ours."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scale: np.ndarray = field(default_factory=lambda: np.ones(0))
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Range of each column in training (in deviations): no value is put outside."""
    target: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """`(S,)` the column that each step fills."""
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """`(S, D)`, zero at the target."""
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(cls, columns: list[str], filled: list[int], rounds: int, x_ND: np.ndarray) -> Chain:
        """Regressions until the filled training values settle."""
        mean, scale = moments(x_ND)
        z_ND = scaled(x_ND, mean, scale)
        gaps = np.isnan(z_ND)
        bounds = np.nanmin(z_ND, 0), np.nanmax(z_ND, 0)
        now, steps = np.where(gaps, 0.0, z_ND), []
        near = _predictors(now)
        for _ in range(rounds):
            before = now.copy()
            for j in range(now.shape[1]):
                w_D, b = _ridge(now[~gaps[:, j]], j, near[j])
                steps.append((j, w_D, b))
                now[gaps[:, j], j] = np.clip(_line(now[gaps[:, j]], w_D, b), bounds[0][j], bounds[1][j])
            if float(np.abs(now - before).max(initial=0.0)) < SETTLED:
                break
        stacked = np.array([s[1] for s in steps]).reshape(len(steps), now.shape[1])
        return cls(columns, filled, mean, scale, *bounds, np.array([s[0] for s in steps], np.int64), stacked, np.array([s[2] for s in steps]))

    def fill(self, x_BD: np.ndarray) -> np.ndarray:
        """Gaps of the columns that asked for it filled."""
        out = x_BD.copy()
        rows = np.flatnonzero(np.isnan(x_BD[:, self.filled]).any(1))
        z = scaled(x_BD[rows], self.mean, self.scale)
        gaps = np.isnan(z)
        z = np.where(gaps, 0.0, z)
        touched = gaps.any(0)
        for j, w_D, b in zip(self.target.tolist(), self.weights, self.bias, strict=True):
            if touched[j]:
                some = np.flatnonzero(gaps[:, j])
                z[some, j] = np.clip(_line(z[some], w_D, b), self.low[j], self.high[j])
        mine = np.zeros(x_BD.shape[1], bool)
        mine[self.filled] = True
        out[rows] = np.where(gaps & mine, z * self.scale + self.mean, x_BD[rows])
        return out


def scaled(x_BD: np.ndarray, mean_D: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    """Values in deviations, cut to ±1e4 of them as the encoding `scaled` cuts: a typing error must not become infinity in float32."""
    return np.minimum(np.maximum((x_BD - mean_D) / scale_D, -SCALED_LIMIT), SCALED_LIMIT)


def moments(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of each column without its gaps; the deviation of a constant column is 1."""
    x_ND = np.minimum(np.maximum(x_ND, -SQUARABLE), SQUARABLE)
    count = np.maximum(1, (~np.isnan(x_ND)).sum(0))
    mean = np.nansum(x_ND, 0) / count
    deviation = np.sqrt(np.nansum((x_ND - mean) ** 2, 0) / count)
    return mean, np.where(deviation > 1e-12 * np.maximum(1.0, np.abs(mean)), deviation, 1.0)


def _predictors(z_ND: np.ndarray) -> list[np.ndarray]:
    """The columns that predict each column: all others, or the `PREDICTORS` most correlated."""
    d = z_ND.shape[1]
    if d - 1 <= PREDICTORS:
        return [np.delete(np.arange(d), j) for j in range(d)]
    together = np.abs(z_ND.T @ z_ND)
    np.fill_diagonal(together, -1.0)
    return [np.sort(np.argsort(-row, kind="stable")[:PREDICTORS]) for row in together]


def _ridge(z_ND: np.ndarray, j: int, near: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (D,) and bias of column `j` on the columns `near`."""
    x, y = z_ND[:, near], z_ND[:, j]
    middle = x.mean(0)
    x = x - middle
    w = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(len(near)), x.T @ (y - y.mean())) if len(near) else np.zeros(0)
    out = np.zeros(z_ND.shape[1])
    out[near] = w
    return out, float(y.mean() - middle @ w)


def _line(z_BD: np.ndarray, w_D: np.ndarray, b: float) -> np.ndarray:
    """`z @ w + b`, added column by column: a matrix product rounds one row and many rows differently."""
    out = np.full(len(z_BD), b)
    for d in np.flatnonzero(w_D):
        out += z_BD[:, d] * w_D[d]
    return out


@dataclass
class Imputation:
    """All fillings of a model."""

    values: dict[str, Any] = field(default_factory=dict)
    """JSON value by column (mean, median, mode, constant)."""
    nearest: Nearest | None = None
    chain: Chain | None = None

    def __post_init__(self) -> None:
        if isinstance(self.nearest, dict):  # as they come back from JSON
            self.nearest = Nearest(**self.nearest)
        if isinstance(self.chain, dict):
            self.chain = Chain(**self.chain)

    @classmethod
    def fit(cls, columns: Sequence[Column], chunks: Iterable[pl.DataFrame]) -> Imputation:
        """From checked training rows. Raises `DataError` naming every column that has no value to learn from."""
        seen = _Seen(columns)
        for chunk in chunks:
            seen.add(chunk)
        empty = [c.name for c in columns if c.missing.method in (*SINGLE[:3], *JOINT) and not seen.count[c.name]]
        if empty:
            hint = "Leave the column out, or write missing: {method: constant, value: …}."
            problems = [Problem("has no value in the training rows to fill gaps from", name, hint) for name in empty]
            raise DataError(f"{len(empty)} column(s) have only missing values in training", problems)
        values = {c.name: seen.value(c) for c in columns if c.missing.method in SINGLE}
        numbers = [c for c in columns if c.kind == "number"]
        names, found = [c.name for c in numbers], cls(values)
        x_ND = seen.matrix(names)
        by = {c.name: c.missing for c in numbers}
        if any(m.method == "knn" for m in by.values()):
            donors = max(m.donors for m in by.values() if m.method == "knn")
            neighbours = [m.neighbours if m.method == "knn" else 0 for m in by.values()]
            found.nearest = Nearest.fit(names, neighbours, x_ND[seen.drawn(donors)])
        if any(m.method == "iterative" for m in by.values()):
            filled = [i for i, m in enumerate(by.values()) if m.method == "iterative"]
            usable = np.flatnonzero((~np.isnan(x_ND)).any(0))
            again = [int(np.flatnonzero(usable == i)[0]) for i in filled]
            rounds = max(m.rounds for m in by.values() if m.method == "iterative")
            found.chain = Chain.fit([names[i] for i in usable], again, rounds, x_ND[seen.drawn(SAMPLE)][:, usable])
        return found

    def fill(self, frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
        """Checked rows without gaps in the columns that asked for it; k-NN and the chain see the values as they came."""
        made: dict[str, pl.Series] = {}
        for stage in (self.nearest, self.chain):
            if stage is not None:
                made |= _stage(stage, frame)
        rules = {c.name: c.rules for c in columns}
        for name, value in self.values.items():
            if name in frame.columns and frame[name].null_count():
                one = rules[name].check(rules[name].from_json([value]))[0]
                made[name] = frame[name].fill_null(one[0])
        return frame.with_columns(**made) if made else frame


def _stage(stage: Nearest | Chain, frame: pl.DataFrame) -> dict[str, pl.Series]:
    ours = (np.flatnonzero(stage.neighbours) if isinstance(stage, Nearest) else np.asarray(stage.filled)).tolist()
    gaps = [i for i in ours if frame[stage.columns[i]].null_count()]
    if not gaps:
        return {}
    x = np.stack([frame[c].to_numpy().astype(np.float64) for c in stage.columns], 1)
    filled = stage.fill(x)
    return {stage.columns[i]: pl.Series(stage.columns[i], filled[:, i]) for i in gaps}


class _Seen:
    """One pass over the training rows: counts, sums and a seeded sample of the numbers."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.scalars = [c.name for c in columns if c.kind in ("number", "timestamp")]
        self.limit = max([SAMPLE, *(c.missing.donors for c in columns if c.missing.method == "knn")])
        self.count = dict.fromkeys((c.name for c in columns), 0)
        self.sum = dict.fromkeys(self.scalars, 0.0)
        self.labels: dict[str, dict[str, int]] = {c.name: {} for c in columns if c.kind == "category" and c.missing.method == "mode"}
        self.rows = np.zeros((0, len(self.scalars)))
        self.chance = np.zeros(0)
        self.chunks = 0

    def add(self, chunk: pl.DataFrame) -> None:
        for column in self.columns:
            self.count[column.name] += chunk.height - chunk[column.name].null_count()
        for name, counts in self.labels.items():
            table = chunk[name].drop_nulls().value_counts()
            for label, count in zip(table[name].to_list(), table["count"].to_list(), strict=True):
                counts[label] = counts.get(label, 0) + count
        x = np.stack([_physical(chunk[n]) for n in self.scalars], 1) if self.scalars else np.zeros((chunk.height, 0))
        for i, name in enumerate(self.scalars):
            self.sum[name] += float(np.nansum(x[:, i]))
        chance = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 0, self.chunks])).random(chunk.height)
        self.chunks += 1
        rows, drawn = np.concatenate([self.rows, x]), np.concatenate([self.chance, chance])
        if len(rows) > self.limit:
            keep = np.sort(np.argpartition(drawn, self.limit)[: self.limit])
            rows, drawn = rows[keep], drawn[keep]
        self.rows, self.chance = rows, drawn

    def drawn(self, limit: int) -> np.ndarray:
        """Positions of at most `limit` rows of the sample, drawn at random, in their order."""
        return np.sort(np.argsort(self.chance, kind="stable")[:limit])

    def matrix(self, names: list[str]) -> np.ndarray:
        """`(N, D)` of the sample, NaN where missing."""
        return self.rows[:, [self.scalars.index(n) for n in names]]

    def value(self, column: Column) -> Any:
        """The JSON value that fills this column."""
        method, name, rules = column.missing.method, column.name, column.rules
        if method == "constant":
            return rules.to_json(rules.check(rules.from_json([column.missing.value]))[0])[0]
        if name in self.labels:
            return min(self.labels[name], key=lambda v: (-self.labels[name][v], v))
        if method == "mean":
            found = self.sum[name] / self.count[name]
        else:
            x = self.matrix([name])[:, 0]
            x = x[~np.isnan(x)]
            found = self.sum[name] / self.count[name] if not len(x) else _mode(x) if method == "mode" else float(np.median(x))
        if column.kind == "number":
            return found
        return rules.to_json(pl.Series(name, [round(found)]).cast(pl.Datetime("us")))[0]


def _mode(x: np.ndarray) -> float:
    """The most frequent value; of equally frequent ones the least."""
    values, counts = np.unique(x, return_counts=True)
    return float(values[counts.argmax()])


def _physical(column: pl.Series) -> np.ndarray:
    """Numbers, or microseconds since 1970, as float64 with NaN for missing (exact up to the year 2255)."""
    return column.to_physical().cast(pl.Float64).to_numpy()
