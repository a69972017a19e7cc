"""An example is a pair: a text, one that means the same, and perhaps one that does not, or how alike the two are.

Columns are called as in sentence-transformers (`anchor`, `positive`, `negative`, `score`) unless `data.frame` says otherwise. The anchor stays
as it is; the others become one column, the truth of the output. Where there is no positive, a text is its own (SimCSE, Gao et al. 2021).
Predicting needs anchors only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from modelyard.errors import DataError, Problem


@dataclass(frozen=True, kw_only=True)
class Config:
    """Names of the columns."""

    anchor: str = "anchor"
    positive: str = "positive"
    negative: str = "negative"
    score: str = "score"
    """How alike anchor and positive are, from 0; pairs count that much in training, and judging compares it with the cosine."""
    output: str = "vector"


def examples(table: pl.DataFrame, config: Config, *, training: bool) -> tuple[pl.DataFrame, np.ndarray]:
    """(anchors, further columns and, in training, the truth; row of each example)."""
    origin = np.arange(table.height, dtype=np.int64)
    if not training:
        return table, origin
    if config.anchor not in table.columns:
        came = ", ".join(table.columns)
        hint = "Name it: data.frame: {anchor: …, positive: …}"
        raise DataError(f"pairs need a column of anchors; the data has: {came}", [Problem("is not a column", f"data.frame.anchor: {config.anchor}", hint)])
    others = {"positive": config.positive, "negative": config.negative, "score": config.score}
    present = {role: name for role, name in others.items() if name in table.columns}
    positive = table[present.get("positive", config.anchor)].cast(pl.String)
    negative = table[present["negative"]].cast(pl.String) if "negative" in present else pl.Series([None] * table.height, dtype=pl.String)
    score = table[present["score"]].cast(pl.Float64, strict=False) if "score" in present else pl.Series([None] * table.height, dtype=pl.Float64)
    truth = pl.DataFrame({"positive": positive, "negative": negative, "score": score}).to_struct(config.output)
    kept = table.drop([name for name in present.values() if name != config.anchor])
    return kept.with_columns(truth), origin
