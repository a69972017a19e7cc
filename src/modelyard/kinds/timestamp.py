"""A moment in time. The encoding `calendar` gives its place in the day, week and year and its distance from the training time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import SMALL, Array, Context, Encoding, Kind, Part, RowError

FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y%m%d", "%d.%m.%Y", "%Y年%m月%d日",
)  # fmt: skip
"""Tried in this order; day/month orders that cannot be told apart (03/04/2020) are not guessed: they are refused."""

ISO = re.compile(r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?)?")

EPOCH = datetime(1970, 1, 1)
DAY_US = 86_400_000_000


@dataclass(frozen=True, kw_only=True)
class CalendarConfig:
    """Nothing to set."""


@dataclass
class CalendarState:
    """Moments of the day number since 1970."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    missing: int = 0


class Calendar(Encoding):
    """Nine numbers: scaled day, sine and cosine of hour, weekday, day of month and day of year; a missing value is all zeros.

    Sine and cosine keep 23:59 next to 00:00. Time zones are converted to UTC by `check`.
    """

    name = "calendar"
    Config = CalendarConfig
    State = CalendarState

    def start(self, config: CalendarConfig) -> CalendarState:
        """No values yet."""
        return CalendarState()

    def update(self, state: CalendarState, column: pl.Series) -> CalendarState:
        """Adds the moments of a `Datetime` column."""
        days = column.drop_nulls().dt.epoch("us").to_numpy() / DAY_US
        mean = float(days.mean()) if len(days) else 0.0
        return self.merge(state, CalendarState(len(days), mean, float(((days - mean) ** 2).sum()), column.null_count()))

    def merge(self, a: CalendarState, b: CalendarState) -> CalendarState:
        """Moments of both (Chan, Golub & LeVeque 1979)."""
        n = a.count + b.count
        if n == 0:
            return CalendarState(missing=a.missing + b.missing)
        delta = b.mean - a.mean
        m2 = a.m2 + b.m2 + delta * delta * a.count * b.count / n
        return CalendarState(n, a.mean + delta * b.count / n, m2, a.missing + b.missing)

    def parts(self, state: CalendarState) -> dict[str, Part]:
        """`value` (9,)."""
        return {"value": Part((9,), "float32")}

    def encode(self, column: pl.Series, state: CalendarState, context: Context) -> dict[str, Array]:
        """Float32 `value` (B, 9)."""
        moments = column.to_numpy().astype("datetime64[us]")
        absent = np.isnat(moments)
        moments = np.where(absent, np.datetime64(0, "us"), moments)
        days = moments.astype(np.int64) / DAY_US
        spread = math.sqrt(state.m2 / state.count) if state.count and state.m2 > 0 else 1.0
        date = moments.astype("datetime64[D]")
        year = ((date - date.astype("datetime64[Y]")).astype(np.int64) + 1) / 366.0
        month = ((date - date.astype("datetime64[M]")).astype(np.int64) + 1) / 31.0
        turns = np.empty((len(days), 4))
        turns[:, 0], turns[:, 2], turns[:, 3] = days % 1.0, month, year
        turns[:, 1] = ((days + 3) % 7.0) / 7.0  # 1970-01-01 was a Thursday: +3 makes Monday 0
        turns *= 2 * np.pi
        out = np.empty((len(days), 9), np.float32)
        out[:, 0] = np.minimum(np.maximum((days - state.mean) / spread, -100), 100)
        out[:, 1:5], out[:, 5:] = np.sin(turns), np.cos(turns)
        out[absent] = 0.0
        return {"value": out}


class Timestamp(Kind):
    """ISO dates and times, Unix seconds or milliseconds, `Datetime("us")` in UTC."""

    name = "timestamp"
    encodings = {"calendar": Calendar()}  # noqa: RUF012
    scalar = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Parses texts in `FORMATS`; numbers above 1e11 are milliseconds since 1970, smaller ones seconds."""
        raw = column
        if isinstance(column.dtype, pl.Datetime):
            zoned = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if column.dtype.time_zone else column
            return zoned.cast(pl.Datetime("us")), []
        if column.dtype == pl.Date or column.dtype == pl.Null:
            return column.cast(pl.Datetime("us")), []
        if column.dtype == pl.Object or column.dtype.is_nested():
            column = pl.Series(column.name, [v if isinstance(v, str) else None for v in column.to_list()], dtype=pl.String)
        if column.dtype.is_numeric():
            x = column.cast(pl.Float64).fill_nan(None)
            us = (x * x.abs().gt(1e11).replace_strict([True, False], [1e3, 1e6], default=None, return_dtype=pl.Float64))
            inside = us.abs() < 2**62
            parsed = us.set(~inside.fill_null(False), None).cast(pl.Int64, strict=False).cast(pl.Datetime("us"))
        else:
            if len(column) <= SMALL and (clear := _iso(column)) is not None:
                return clear, []
            text = column.cast(pl.String).str.strip_chars()
            raw = text.set(text == "", None)
            parsed = pl.Series(column.name, [None] * len(text), dtype=pl.Datetime("us"))
            zone = text.str.contains(r"(Z|[+-]\d\d:?\d\d)$") & text.str.contains(":")
            if zone.any():
                iso = text.set(~zone.fill_null(False), None).str.replace(r"Z$", "+00:00")
                utc = iso.str.replace(" ", "T").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", strict=False, time_unit="us")
                parsed = utc.dt.replace_time_zone(None)
            for pattern in FORMATS:
                if not (parsed.is_null() & raw.is_not_null()).any():
                    break
                parsed = parsed.fill_null(text.str.to_datetime(pattern, strict=False, time_unit="us", exact=True))
        bad = (parsed.is_null() & raw.is_not_null()).to_numpy()
        advice = "is not a date or time that can be told for certain; send ISO 8601, e.g. 2026-01-31 or 2026-01-31T13:45:00Z"
        errors = [RowError(r, column.name, advice, repr(raw[r])[:80]) for r in np.flatnonzero(bad).tolist()]
        return parsed.alias(column.name), errors

    def fits(self, column: pl.Series) -> float:
        """Share of texts that parse; numbers are never guessed to be times."""
        if column.dtype.is_temporal():
            return 1.0
        present = column.drop_nulls()
        if column.dtype != pl.String or present.is_empty():
            return 0.0
        clean, _ = self.check(present)
        return 1.0 - clean.null_count() / len(present)

    def to_json(self, column: pl.Series) -> list[Any]:
        """ISO 8601 texts in UTC without a zone."""
        return [None if v is None else v.isoformat() for v in column.to_list()]

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Seconds between."""
        return np.abs((a - b).dt.total_microseconds().to_numpy()) / 1e6

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """First and last moment."""
        first, last = column.min(), column.max()
        return {
            "count": len(column),
            "missing": column.null_count(),
            "first": first.isoformat() if first is not None else None,  # type: ignore[union-attr]
            "last": last.isoformat() if last is not None else None,  # type: ignore[union-attr]
        }


def _iso(column: pl.Series) -> pl.Series | None:
    """A few texts that are all plain ISO dates or times without a zone; None where Polars has to look at them."""
    values = column.to_list()
    if not all(v is None or ISO.fullmatch(v) for v in values):
        return None
    try:
        us = [None if v is None else (datetime.fromisoformat(v) - EPOCH) // timedelta(microseconds=1) for v in values]
    except ValueError:  # the 30th of February
        return None
    return pl.Series(column.name, us, dtype=pl.Int64).cast(pl.Datetime("us"))


KIND = Timestamp()
