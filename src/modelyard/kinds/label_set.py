"""Several labels a row, or none: tags, genres, intents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, RowError
from modelyard.kinds.category import natural, scores_struct

SEPARATORS = ("|", ";", ",")
"""A text is cut at the first of these that it holds; lists are taken as they are."""


@dataclass(frozen=True, kw_only=True)
class MultiHotConfig:
    """Nothing but the cap."""

    max_labels: int = 5_000
    """Most frequent labels that are kept."""


@dataclass
class MultiHotState:
    """Counts while fitting; `labels` sorted afterwards."""

    max_labels: int = 5_000
    counts: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    labels: list[str] = field(default_factory=list)


class MultiHot(Encoding):
    """A 0/1 vector over the known labels; unknown ones are left out."""

    name = "multi_hot"
    Config = MultiHotConfig
    State = MultiHotState

    def start(self, config: MultiHotConfig) -> MultiHotState:
        """No labels yet."""
        return MultiHotState(config.max_labels)

    def update(self, state: MultiHotState, column: pl.Series) -> MultiHotState:
        """Adds the counts of a `List(String)` column."""
        table = column.explode(empty_as_null=False).drop_nulls().value_counts()
        counts = dict(zip(table[table.columns[0]].to_list(), table["count"].to_list(), strict=True))
        return self.merge(state, MultiHotState(state.max_labels, counts, column.null_count()))

    def merge(self, a: MultiHotState, b: MultiHotState) -> MultiHotState:
        """Counts of both."""
        counts = dict(a.counts)
        for label, count in b.counts.items():
            counts[label] = counts.get(label, 0) + count
        return MultiHotState(a.max_labels, counts, a.missing + b.missing)

    def finish(self, state: MultiHotState) -> MultiHotState:
        """Keeps the most frequent labels, sorted by name."""
        kept = sorted(state.counts, key=lambda v: (-state.counts[v], v))[: state.max_labels]
        state.labels = sorted(kept, key=natural)
        state.counts = {label: state.counts[label] for label in state.labels}
        return state

    def parts(self, state: MultiHotState) -> dict[str, Part]:
        """`multi_hot` (K,)."""
        return {"multi_hot": Part((len(state.labels),), "float32")}

    def encode(self, column: pl.Series, state: MultiHotState, context: Context) -> dict[str, Array]:
        """Float32 `multi_hot` (B, K); an empty list and a missing one are both all zeros."""
        out = np.zeros((len(column), len(state.labels)), np.float32)
        lengths = column.list.len().fill_null(0).to_numpy()
        flat = column.explode(empty_as_null=False).drop_nulls() if lengths.any() else pl.Series([], dtype=pl.String)
        if state.labels and len(flat):
            rows = np.repeat(np.arange(len(column)), lengths)
            new = np.arange(len(state.labels), dtype=np.int32)
            ids = flat.replace_strict(state.labels, new, default=-1, return_dtype=pl.Int32).to_numpy()
            known = ids >= 0
            out[rows[known], ids[known]] = 1.0
        return {"multi_hot": out}

    def head(self, state: MultiHotState) -> tuple[str, int]:
        """One logit a label."""
        return "logits", len(state.labels)

    def decode(self, arrays: Mapping[str, np.ndarray], state: MultiHotState, context: Context) -> dict[str, pl.Series]:
        """Sigmoid scores of `logits` (B, K) and the labels whose `decision` (a post step) or score exceeds one half."""
        logits = arrays["logits"].astype(np.float64)
        scores = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
        rows, columns = np.nonzero(arrays.get("decision", scores) > 0.5)
        cuts = np.searchsorted(rows, np.arange(len(scores) + 1))
        names = [state.labels[c] for c in columns]
        chosen = [names[a:b] for a, b in pairwise(cuts)]
        return {"": pl.Series(chosen, dtype=pl.List(pl.String)), "scores": scores_struct(scores, state.labels)}


class LabelSet(Kind):
    """A list of labels without order or repetition, `List(String)`."""

    name = "label-set"
    encodings = {"multi_hot": MultiHot()}  # noqa: RUF012
    target_encoding = "multi_hot"
    scalar = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Lists of scalars as they are; texts are cut at `|`, else `;`, else `,`; an empty text is an empty list."""
        errors: list[RowError] = []
        clean: list[list[str] | None] = []
        for row, value in enumerate(column.to_list()):
            labels = _split(value)
            if labels is None and value is not None:
                errors.append(RowError(row, column.name, 'is not a list of labels; send ["a", "b"]', repr(value)[:80]))
            clean.append(labels)
        return pl.Series(column.name, clean, dtype=pl.List(pl.String)), errors

    def fits(self, column: pl.Series) -> float:
        """1 for lists of texts; texts with a separator are left to `data/typing.py`."""
        return 1.0 if column.dtype == pl.List(pl.String) else 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """0 where the sets are equal, 1 where not."""
        same = [set(x or ()) == set(y or ()) for x, y in zip(a.to_list(), b.to_list(), strict=True)]
        return 1.0 - np.asarray(same, np.float64)

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each label decides alone, so a tie is a score within the tolerance of its threshold: scores must agree."""
        left, right = (x["scores"].struct.unnest().to_numpy().astype(np.float64) for x in (a, b))
        difference = np.abs(left - right).max(axis=1, initial=0.0)
        same = self.distance(a[""], b[""]) == 0
        close = difference <= tolerance
        return difference, close, ~same & close

    def draw(self, value: Any) -> str:
        """Labels side by side."""
        from html import escape

        return " ".join(f"<span class=label>{escape(str(v))}</span>" for v in value or ()) or "<span>∅</span>"

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Labels per row and the 50 most frequent."""
        flat = column.explode(empty_as_null=False).drop_nulls()
        counts = flat.value_counts().sort(["count", flat.name], descending=[True, False]).head(50)
        return {
            "count": len(column),
            "missing": column.null_count(),
            "labels_per_row": len(flat) / max(1, len(column)),
            "top": dict(zip(counts[flat.name].to_list(), counts["count"].to_list(), strict=True)),
        }


def _split(value: Any) -> list[str] | None:
    if isinstance(value, str):
        separator = next((s for s in SEPARATORS if s in value), None)
        value = value.split(separator) if separator else [value]
    if not isinstance(value, Sequence) or any(not isinstance(v, str | int | float | bool) for v in value):
        return None
    return list(dict.fromkeys(text for v in value if (text := str(v).strip())))


KIND = LabelSet()
