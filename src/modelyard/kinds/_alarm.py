"""The answer of models that were never told what is wrong: `normal` or `anomaly`, with a score.

A column of truths, where there is one, is for judging alone; its words are read by what they mean, see `ANOMALOUS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part

LABELS = ["normal", "anomaly"]
ANOMALOUS = frozenset({"anomaly", "1", "true", "yes", "anomalous", "abnormal", "outlier", "fraud", "attack", "defect", "fault", "bad", "异常", "是"})
NORMAL = frozenset({"normal", "0", "-1", "false", "no", "inlier", "benign", "ok", "good", "none", "正常", "否"})


@dataclass(frozen=True, kw_only=True)
class AlarmConfig:
    """Which truths are anomalies."""

    anomaly: tuple[str, ...] = ()
    """Values of the column of truths that mean an anomaly; without it such words as 1, true, yes, fraud, or else the rarer of two values."""


@dataclass
class AlarmState:
    """`labels` are always the same two; `truths` tells what the values of the judging column mean."""

    labels: list[str] = field(default_factory=lambda: list(LABELS))
    anomaly: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    truths: dict[str, int] = field(default_factory=dict)


class Alarm(Encoding):
    """Two logits, `normal` and `anomaly`; never an input."""

    name = "alarm"
    Config = AlarmConfig
    State = AlarmState

    def start(self, config: AlarmConfig) -> AlarmState:
        """No truths yet."""
        return AlarmState(anomaly=list(config.anomaly))

    def update(self, state: AlarmState, column: pl.Series) -> AlarmState:
        """Counts of the truths, where there are any."""
        counts = column.drop_nulls().value_counts()
        found = dict(zip(counts[counts.columns[0]].to_list(), counts["count"].to_list(), strict=True))
        return self.merge(state, AlarmState(anomaly=state.anomaly, counts=found))

    def merge(self, a: AlarmState, b: AlarmState) -> AlarmState:
        """Counts of both."""
        both = {value: a.counts.get(value, 0) + b.counts.get(value, 0) for value in {**a.counts, **b.counts}}
        return AlarmState(anomaly=a.anomaly, counts=both)

    def finish(self, state: AlarmState) -> AlarmState:
        """What every value means."""
        state.truths = {"normal": 0, "anomaly": 1} | {v: meaning(v, state.counts, state.anomaly) for v in state.counts}
        return state

    def encode(self, column: pl.Series, state: AlarmState, context: Context) -> dict[str, Array]:
        """`index` (B,) int64: 1 for an anomaly, 0 for a normal row, -1 where it is not known."""
        values = [-1 if v is None else state.truths.get(v, meaning(v, {}, state.anomaly)) for v in column.to_list()]
        return {"index": np.array(values, np.int64)}

    def parts(self, state: AlarmState) -> dict[str, Part]:
        """`index`."""
        return {"index": Part((), "int64", len(LABELS))}

    def head(self, state: AlarmState) -> tuple[str, int]:
        """Two logits."""
        return "logits", len(LABELS)

    def decode(self, arrays: Mapping[str, np.ndarray], state: AlarmState, context: Context) -> dict[str, pl.Series]:
        """As a category is decoded."""
        from modelyard.kinds.category import Index  # which imports this module for its list of encodings

        return Index().decode(arrays, state, context)  # type: ignore[arg-type]


def meaning(value: str, counts: Mapping[str, int], anomaly: Sequence[str]) -> int:
    """1 for an anomaly, 0 for normal, -1 where the word says nothing."""
    if anomaly:
        return int(value in anomaly)
    word = value.strip().lower()
    if word in ANOMALOUS or word in NORMAL:
        return int(word in ANOMALOUS)
    others = [v for v in counts if v != value]
    if len(others) != 1:
        return -1
    other = others[0].strip().lower()
    if other in ANOMALOUS or other in NORMAL:
        return int(other in NORMAL)
    return int((counts[value], value) < (counts[others[0]], others[0]))
