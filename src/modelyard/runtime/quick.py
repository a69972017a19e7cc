"""The few rows of a request to the block `table`, without a data frame: numbers and labels that are what they should be.

A Polars expression costs 10 to 50 µs however short the column is: 0.3 ms for one row of 16 numbers, 20 µs here. A row that is not plain
(a text where a number belongs, blanks around a label, an infinity, a key that is not there) is left to the way of `pipeline.check` and
`pipeline.encode`, which repairs it or says what is wrong; so there is one set of rules, and this is its straight part.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from modelyard.kinds._bins import LARGEST, Bins, shares
from modelyard.kinds._contract import Array
from modelyard.kinds.category import MISSING, UNSEEN, Index, _blank_ends
from modelyard.kinds.number import FLOAT32_MAX, SCALED_LIMIT, Raw, Scaled
from modelyard.runtime.pipeline import TABLE, Column, Pipeline

PLAIN = {float, int, type(None)}
WORDS = {str, type(None)}


class Quick:
    """For pipelines whose inputs are numbers and labels, with missing values kept.

    Every encoding of numbers is clip((x - low) / width, least, most), once for `scaled` and `raw` and for each of the `bins`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        numbers = [c for c in pipeline.inputs if c.kind == "number"]
        labels = [c for c in pipeline.inputs if c.kind == "category"]
        self.numbers, self.labels = _getter(numbers), _getter(labels)
        self.ids = [c.state.ids for c in labels]
        lines = [_line(c) for c in numbers]
        self.fill_N = np.array([fill for fill, _, _ in lines])
        self.reach_N = np.array([reach for _, reach, _ in lines])
        self.low_V, self.width_V, self.least_V, self.most_V = (
            np.concatenate([shares[i] for _, _, shares in lines]) if lines else np.zeros(0) for i in range(4)
        )
        counts = [len(shares[0]) for _, _, shares in lines]
        flags = [_flags(c) for c in numbers]
        # the values of a number are followed by the flag that it is missing: of its encoding, of its column's settings, or both
        places = np.cumsum([0, *(n + f for n, f in zip(counts, flags, strict=True))])
        self.width = int(places[-1])
        self.number_V = np.repeat(np.arange(len(numbers)), counts)
        self.value_V = np.array([p + i for p, n in zip(places, counts, strict=False) for i in range(n)], np.int64)
        self.number_F = np.repeat(np.arange(len(numbers)), flags)
        self.flag_F = np.array([p + n + i for p, n, f in zip(places, counts, flags, strict=False) for i in range(f)], np.int64)

    @classmethod
    def of(cls, pipeline: Pipeline) -> Quick | None:
        """None where a column needs more than this knows."""
        if pipeline.imputation is not None or not all(_straight(c) for c in pipeline.inputs):
            return None
        return cls(pipeline)

    def encode(self, rows: Sequence[Any]) -> dict[str, Array] | None:
        """Arrays by graph name, as `Pipeline.encode` gives them after checking; None where a row is not plain."""
        out: dict[str, Array] = {}
        try:
            if self.numbers is not None:
                found = [self.numbers(row) for row in rows]
                if not all(PLAIN.issuperset(map(type, values)) for values in found):
                    return None
                x_BN = np.array(found, np.float64)
                if np.isinf(x_BN).any():
                    return None
                out[f"{TABLE}.numbers"] = self._encoded(x_BN)
            if self.labels is not None:
                words = [self.labels(row) for row in rows]
                if not all(WORDS.issuperset(map(type, values)) for values in words):
                    return None
                if any(v is not None and _blank_ends(v) for values in words for v in values):
                    return None
                ids = [[MISSING if v is None else of.get(v, UNSEEN) for v, of in zip(values, self.ids, strict=True)] for values in words]
                out[f"{TABLE}.categories"] = np.array(ids, np.int32)
        except (KeyError, TypeError, OverflowError):
            return None
        return out

    def _encoded(self, x_BN: np.ndarray) -> np.ndarray:
        absent_BN = np.isnan(x_BN)
        x_BN = np.minimum(np.maximum(np.where(absent_BN, self.fill_N, x_BN), -self.reach_N), self.reach_N)
        value_BV = np.minimum(np.maximum((x_BN[:, self.number_V] - self.low_V) / self.width_V, self.least_V), self.most_V)
        out = np.empty((len(x_BN), self.width), np.float32)
        out[:, self.value_V] = value_BV
        out[:, self.flag_F] = absent_BN[:, self.number_F]
        return out


def _getter(columns: Sequence[Column]) -> Any:
    """Values of a row in order, as a tuple; None where there are no columns."""
    if len(columns) == 1:
        name = columns[0].name
        return lambda row: (row[name],)
    return itemgetter(*(c.name for c in columns)) if columns else None


def _line(column: Column) -> tuple[float, float, tuple[np.ndarray, ...]]:
    """(what stands for a missing number, the size that numbers are cut to, (low, width, least, most) of each value)."""
    state = column.state
    if isinstance(column.coder, Bins):
        return state.middle, LARGEST, shares(state)
    one = (state.mean, state.scale, SCALED_LIMIT) if isinstance(column.coder, Scaled) else (0.0, 1.0, FLOAT32_MAX)
    low, width, most = one
    return (low if isinstance(column.coder, Scaled) else np.nan), np.inf, tuple(np.array([v]) for v in (low, width, -most, most))


def _flags(column: Column) -> int:
    return int(not isinstance(column.coder, Raw) and bool(column.state.missing)) + int(column.missing.indicator)


def _straight(column: Column) -> bool:
    return column.missing.method == "keep" and (
        (column.kind == "number" and type(column.coder) in (Scaled, Raw, Bins)) or (column.kind == "category" and type(column.coder) is Index)
    )
