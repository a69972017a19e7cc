"""A measured number. Encodings: `scaled` (mean 0, spread 1; for nets and linear models) and `raw` (for trees)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._bins import Bins
from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, RowError

SCALED_LIMIT = 1e4
"""Scaled values are cut to ±1e4 spreads: a typing error such as 1e300 must not become infinity in float32."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class ScaledConfig:
    """Nothing to set."""


@dataclass
class ScaledState:
    """Welford moments: `m2` is the sum of squared differences from the mean."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    missing: int = 0
    scale: float = 1.0
    """Standard deviation after `finish`; 1 for a constant column."""


class Scaled(Encoding):
    """Standard score `(x - mean) / deviation`; missing becomes the mean, with an indicator where training had any.

    Moments are merged exactly (Chan, Golub & LeVeque 1979), so streaming equals in-memory to rounding.
    """

    name = "scaled"
    Config = ScaledConfig
    State = ScaledState

    def start(self, config: ScaledConfig) -> ScaledState:
        """No values yet."""
        return ScaledState()

    def update(self, state: ScaledState, column: pl.Series) -> ScaledState:
        """Adds the moments of a `Float64` column."""
        x = column.drop_nulls().to_numpy()
        mean = float(x.mean()) if len(x) else 0.0
        seen = ScaledState(len(x), mean, float(((x - mean) ** 2).sum()), column.null_count())
        return self.merge(state, seen)

    def merge(self, a: ScaledState, b: ScaledState) -> ScaledState:
        """Moments of both sets of values."""
        n = a.count + b.count
        if n == 0:
            return ScaledState(missing=a.missing + b.missing)
        delta = b.mean - a.mean
        mean = a.mean + delta * (b.count / n)
        return ScaledState(n, mean, a.m2 + b.m2 + delta * delta * (a.count * (b.count / n)), a.missing + b.missing)

    def finish(self, state: ScaledState) -> ScaledState:
        """Fixes the scale."""
        deviation = math.sqrt(state.m2 / state.count) if state.count else 0.0
        # below 1e-12 of the mean the spread is rounding noise: a constant column must not be blown up
        state.scale = deviation if deviation > 1e-12 * max(1.0, abs(state.mean)) and math.isfinite(deviation) else 1.0
        return state

    def parts(self, state: ScaledState) -> dict[str, Part]:
        """`value`, and `missing` where training had missing values."""
        value = {"value": Part((), "float32")}
        return value | {"missing": Part((), "float32")} if state.missing else value

    def encode(self, column: pl.Series, state: ScaledState, context: Context) -> dict[str, Array]:
        """Float32 `value` (B,) and, if fitted with missing values, `missing` (B,) of 0 and 1."""
        scaled = np.asarray(column.to_numpy(), np.float64) - state.mean  # null -> NaN
        scaled /= state.scale
        np.clip(scaled, -SCALED_LIMIT, SCALED_LIMIT, out=scaled)
        absent = np.isnan(scaled)
        scaled[absent] = 0.0
        out: dict[str, Array] = {"value": scaled.astype(np.float32)}
        if state.missing:
            out["missing"] = absent.astype(np.float32)
        return out

    def head(self, state: ScaledState) -> tuple[str, int]:
        """One scaled value."""
        return "value", 1

    def decode(self, arrays: Mapping[str, np.ndarray], state: ScaledState, context: Context) -> dict[str, pl.Series]:
        """`value` (B, 1) back to the unit of the data; `low` and `high` too where a post step made them."""
        unscale = lambda a: pl.Series(a.reshape(len(a)).astype(np.float64) * state.scale + state.mean)  # noqa: E731
        names = {"value": "", "low": "low", "high": "high"}
        return {names[part]: unscale(array) for part, array in arrays.items() if part in names}


@dataclass
class RawState:
    """Only whether training had missing values."""

    count: int = 0
    missing: int = 0


class Raw(Encoding):
    """The number itself in float32, NaN where missing: what trees split on."""

    name = "raw"
    Config = ScaledConfig
    State = RawState

    def start(self, config: ScaledConfig) -> RawState:
        """No values yet."""
        return RawState()

    def update(self, state: RawState, column: pl.Series) -> RawState:
        """Counts."""
        return self.merge(state, RawState(len(column), column.null_count()))

    def merge(self, a: RawState, b: RawState) -> RawState:
        """Sums."""
        return RawState(a.count + b.count, a.missing + b.missing)

    def parts(self, state: RawState) -> dict[str, Part]:
        """`value`."""
        return {"value": Part((), "float32")}

    def encode(self, column: pl.Series, state: RawState, context: Context) -> dict[str, Array]:
        """Float32 `value` (B,), NaN for missing, cut to the finite range of float32."""
        x = column.to_numpy()
        return {"value": np.minimum(np.maximum(x, -FLOAT32_MAX), FLOAT32_MAX).astype(np.float32)}


class Number(Kind):
    """Finite real numbers, `Float64`; NaN counts as missing, infinity is an error."""

    name = "number"
    encodings = {"scaled": Scaled(), "raw": Raw(), "bins": Bins()}  # noqa: RUF012
    target_encoding = "scaled"
    scalar = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Parses texts, takes booleans as 0 and 1, NaN as missing; refuses infinity and words."""
        dtype = column.dtype
        if dtype.is_numeric():
            wide = column if dtype == pl.Float64 else column.cast(pl.Float64, strict=False)
            if int(np.count_nonzero(np.isfinite(wide.to_numpy()))) + column.null_count() == len(column):
                return wide, []  # nothing to repair: the usual case, without the price of expressions
        elif dtype == pl.Null:
            return column.cast(pl.Float64), []
        raw = column
        if column.dtype == pl.Object or column.dtype.is_nested() or column.dtype.is_temporal():
            column = pl.Series(column.name, [_as_float(v) for v in column.to_list()], dtype=pl.Float64, strict=False)
        elif column.dtype == pl.String:
            text = column.str.strip_chars()
            column = text.cast(pl.Float64, strict=False)
            raw = text.set(text == "", None)
        else:
            column = column.cast(pl.Float64, strict=False)
        bad = (column.is_null() & raw.is_not_null()) | column.is_infinite().fill_null(False)
        errors = [
            RowError(row, column.name, "is not a finite number; send a number, or null for missing", repr(raw[row])[:80])
            for row in np.flatnonzero(bad.to_numpy()).tolist()
        ]
        clean = column.fill_nan(None)
        return (clean.set(bad, None) if errors else clean), errors

    def fits(self, column: pl.Series) -> float:
        """Share of non-missing values that parse as numbers."""
        present = column.drop_nulls()
        if present.is_empty():
            return 0.0
        clean, _ = self.check(present)
        return 1.0 - clean.null_count() / len(present)

    def to_json(self, column: pl.Series) -> list[Any]:
        """Whole numbers stay whole in JSON's eyes only as floats; NaN never appears."""
        return [None if v is None or not math.isfinite(v) else v for v in column.to_list()]

    def draw(self, value: Any) -> str:
        """Six significant digits."""
        return f"<span class=number>{'—' if value is None else f'{value:.6g}'}</span>"

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Absolute difference."""
        return np.abs(a.to_numpy().astype(np.float64) - b.to_numpy().astype(np.float64))

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Differences in units of `scale`, relative above one; of the answer and of the ends of its interval."""
        if a.keys() != b.keys():
            return np.ones(len(a[""])), np.zeros(len(a[""]), bool), np.zeros(len(a[""]), bool)
        difference = np.zeros(len(a[""]))
        for part, values in a.items():
            size = np.maximum(1.0, np.abs(values.to_numpy()) / scale)
            difference = np.maximum(difference, self.distance(values, b[part]) / scale / size)
        return difference, difference <= tolerance, np.zeros(len(difference), bool)

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> np.ndarray:
        """The numbers in the unit of the data."""
        return column.to_numpy().astype(np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Mean, deviation and the 0, 1, 5, 25, 50, 75, 95, 99 and 100 % quantiles."""
        x = column.drop_nulls()
        levels = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)
        found = {"count": len(column), "missing": column.null_count()}
        if x.is_empty():
            return found
        return found | {
            "mean": float(x.mean()),  # type: ignore[arg-type]
            "deviation": float(x.std(ddof=0) or 0.0),  # type: ignore[arg-type]
            "quantiles": {str(q): float(x.quantile(q, "linear")) for q in levels},  # type: ignore[arg-type]
        }


def _as_float(value: Any) -> float | None:
    """A JSON value as a float, None where it is not one (a list of one number counts: NumPy habits)."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


KIND = Number()
