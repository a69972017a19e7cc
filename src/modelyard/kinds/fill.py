"""What stands at the hidden places of a text: one token for each mask, in order. Predicted only, never read.

Beside the answer `y` (the likeliest token of each mask) stand `y.text` (the text with them put in), `y.top` (the likeliest few with their
probabilities) and, where the tokens were hidden by the call itself, `y.truth` and `y.chance` (the natural logarithm of the truth's
probability).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.errors import ArtefactError
from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, Ragged, RowError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOP = pl.List(pl.List(pl.Struct({"token": pl.String, "score": pl.Float64})))


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """Nothing to set."""


@dataclass
class FillState:
    """Nothing is learnt: the text's own encoding knows the tokens."""


class FillIds(Encoding):
    """Tokens by their fingerprints where answers are compared; graph outputs are the logits of every token at the asked places."""

    name = "places"
    Config = FillConfig
    State = FillState

    def start(self, config: FillConfig) -> FillState:
        """Nothing."""
        return FillState()

    def update(self, state: FillState, column: pl.Series) -> FillState:
        """There is no column to learn from."""
        return state

    def merge(self, a: FillState, b: FillState) -> FillState:
        """Nothing."""
        return a

    def parts(self, state: FillState) -> dict[str, Part]:
        """`ids`."""
        return {"ids": Part((None,), "int64")}

    def encode(self, column: pl.Series, state: FillState, context: Context) -> dict[str, Array]:
        """CRC-32 of each token."""
        return {"ids": Ragged.from_lists([[zlib.crc32(t.encode("utf-8")) for t in row or []] for row in column.to_list()], np.int64)}

    def head(self, state: FillState) -> tuple[str, int]:
        """Logits at the places that are asked about; how many tokens there are is known to the net (0 here)."""
        return "logits", 0

    def decode(self, arrays: Mapping[str, np.ndarray], state: FillState, context: Context) -> dict[str, pl.Series]:
        """Tokens of `ids` (B, M, top) with `scores`, of which `count` (B,) places are real; `places` (B, M) says where they stand."""
        from modelyard.kinds.text._pretrained import reader

        source = context.get("reader")
        if source is None:
            raise ArtefactError("an answer about tokens needs a text in the encoding 'pretrained'")
        tokenizer = reader(source.tokenizer, source.max_length)
        special = np.array(sorted(source.special.values()))
        best, top, texts, truth, chance = [], [], [], [], []
        for i, count in enumerate(arrays["count"].tolist()):
            ids_MT, scores_MT = arrays["ids"][i, :count], arrays["scores"][i, :count]
            best.append([_name(tokenizer, k) for k in ids_MT[:, 0].tolist()])
            top.append(
                [
                    [{"token": _name(tokenizer, k), "score": s} for k, s in zip(ks, ss, strict=True)]
                    for ks, ss in zip(ids_MT.tolist(), scores_MT.tolist(), strict=True)
                ]
            )
            tokens = context["tokens"].take(np.array([i])).values.copy()
            tokens[arrays["places"][i, :count]] = ids_MT[:, 0]
            texts.append(tokenizer.decode(tokens[~np.isin(tokens, special)].tolist()))
            if "truth" in arrays:
                truth.append([_name(tokenizer, k) for k in arrays["truth"][i, :count].tolist()])
                chance.append(arrays["chance"][i, :count].astype(np.float64).tolist())
        out = {"": pl.Series(best, dtype=pl.List(pl.String)), "text": pl.Series(texts, dtype=pl.String), "top": pl.Series(top, dtype=TOP)}
        if "truth" in arrays:
            out |= {"truth": pl.Series(truth, dtype=pl.List(pl.String)), "chance": pl.Series(chance, dtype=pl.List(pl.Float64))}
        return out


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.id_to_token(token) or ""


class Fill(Kind):
    """`List(String)`: one token a mask."""

    name = "fill"
    encodings = {"places": FillIds()}  # noqa: RUF012
    target_encoding = "places"

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Lists of texts."""
        values, errors = [], []
        for row, value in enumerate(column.to_list()):
            good = isinstance(value, list) and all(isinstance(t, str) for t in value)
            values.append(value if good else None)
            if not good and value is not None:
                errors.append(RowError(row, column.name, 'is no list of tokens; send ["a", "b"]', repr(value)[:80]))
        return pl.Series(column.name, values, dtype=pl.List(pl.String)), errors

    def from_json(self, values: Sequence[Any]) -> pl.Series:
        """Lists, empty ones among them."""
        try:
            return pl.Series("", list(values), dtype=pl.List(pl.String))
        except (TypeError, pl.exceptions.PolarsError):
            return pl.Series("", list(values), dtype=pl.Object)

    def fits(self, column: pl.Series) -> float:
        """Never guessed."""
        return 0.0

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Share of the places that differ; 1 where their numbers do."""
        return np.array([_differ(x, y) for x, y in zip(a.to_list(), b.to_list(), strict=True)], np.float64)

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities of the best tokens within `tolerance`; the tokens equal unless the two best lie within twice the tolerance."""
        found: list[tuple[float, bool, bool]] = []
        for x, y in zip(a["top"].to_list(), b["top"].to_list(), strict=True):
            if x is None or y is None or len(x) != len(y):
                same = x is None and y is None
                found.append((0.0, True, False) if same else (1.0, False, False))
            else:
                worst = max((abs(p["score"] - q["score"]) for m, n in zip(x, y, strict=True) for p, q in zip(m, n, strict=False)), default=0.0)
                other = [m for m, n in zip(x, y, strict=True) if m[0]["token"] != n[0]["token"]]
                close = all(len(m) > 1 and m[0]["score"] - m[1]["score"] < 2 * tolerance for m in other)
                found.append((worst, worst <= tolerance and close, bool(other) and close))
        table = np.array(found, np.float64).reshape(-1, 3)
        return table[:, 0], table[:, 1] > 0, table[:, 2] > 0

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> np.ndarray:
        """Tuples of tokens, as an object array (B,)."""
        return np.array([*(tuple(row or ()) for row in column.to_list()), None], dtype=object)[:-1]

    def measured(self, answers: Mapping[str, pl.Series]) -> np.ndarray | None:
        """(B, 2): the sum of the truths' log-probabilities of a row, and their number."""
        if "chance" not in answers:
            return None
        rows = [row or [] for row in answers["chance"].to_list()]
        return np.array([(sum(row), len(row)) for row in rows], np.float64).reshape(-1, 2)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """How many places there are."""
        return {"count": len(column), "missing": column.null_count(), "places": int(column.list.len().sum() or 0)}


def _differ(a: list[str] | None, b: list[str] | None) -> float:
    if a is None or b is None or len(a) != len(b):
        return float(a != b)
    return sum(x != y for x, y in zip(a, b, strict=True)) / max(1, len(a))


KIND = Fill()
