"""Free text: reviews, questions, messages, translations; in any script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from modelyard.kinds._contract import Encoding, Kind, RowError
from modelyard.kinds.text._bag import Bag, BagConfig, BagState
from modelyard.kinds.text._chars import Chars, CharsConfig, CharsState
from modelyard.kinds.text._language import Language, LanguageConfig, LanguageState
from modelyard.kinds.text._pretrained import Pretrained, PretrainedConfig, PretrainedState
from modelyard.kinds.text._tokens import Tokens, TokensConfig, TokensState
from modelyard.kinds.text._written import Written, WrittenConfig

__all__ = [
    "KIND", "Bag", "BagConfig", "BagState", "Chars", "CharsConfig", "CharsState", "Language", "LanguageConfig", "LanguageState", "Pretrained",
    "PretrainedConfig", "PretrainedState", "Text", "Tokens", "TokensConfig", "TokensState", "Written", "WrittenConfig",
]  # fmt: skip


ROUNDING = 10.0
"""Tolerances that a log-probability may be off: it is the difference of logits ten times the size of a score."""


class Text(Kind):
    """A text of any length as `String`; kept as it came. Numbers and booleans are taken as their text; empty is not missing.

    Normalising (NFKC, lower case) belongs to the encodings. Lone surrogates, which UTF-8 cannot hold, become U+FFFD.
    """

    name = "text"
    encodings = {  # noqa: RUF012
        "bag": Bag(), "tokens": Tokens(), "chars": Chars(), "pretrained": Pretrained(), "written": Written(), "language": Language(),
    }  # fmt: skip
    target_encoding = "written"

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Texts as they are; lists, objects and bytes that are not UTF-8 are row errors."""
        if column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or column.dtype.is_numeric():
            return column.cast(pl.String), []
        if column.dtype == pl.Boolean or column.dtype.is_temporal():
            return column.cast(pl.String), []
        errors: list[RowError] = []
        clean: list[str | None] = []
        for row, value in enumerate(column.to_list()):
            text, reason = _as_text(value)
            clean.append(text)
            if reason:
                errors.append(RowError(row, column.name, reason, repr(value)[:80]))
        return pl.Series(column.name, clean, dtype=pl.String), errors

    def from_json(self, values: Any) -> pl.Series:
        """Strings with lone surrogates (JSON may hold them as \\ud800) stay Python objects until `check` replaces them."""
        try:
            return super().from_json(values)
        except UnicodeEncodeError:
            return pl.Series("", list(values), dtype=pl.Object)

    def fits(self, column: pl.Series) -> float:
        """High where values are long, hold several words and hardly repeat."""
        present = column.drop_nulls()
        if present.is_empty() or present.dtype != pl.String:
            return 0.0
        sample = present.head(2_000)
        lengths = sample.str.len_chars()
        wordy = float(((sample.str.count_matches(r"\s") >= 2) | (lengths >= 12)).mean())  # type: ignore[arg-type]
        return wordy * sample.n_unique() / len(sample)

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """0 where equal, 1 where not."""
        return a.ne_missing(b).to_numpy().astype(np.float64)

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts must be equal unless on the way of one of them two choices lay within twice the tolerance (`gap`), where rounding decides;
        the difference is that of the mean log-probabilities of equal texts, each token's within `ROUNDING` tolerances."""
        same = self.distance(a[""], b[""]) == 0
        if "gap" not in a or "gap" not in b:
            return (~same).astype(np.float64), same, np.zeros(len(same), bool)
        gap = np.minimum(a["gap"].to_numpy(), b["gap"].to_numpy())
        tie = ~same & (gap < 2 * ROUNDING * tolerance)
        difference = np.where(same, np.abs(a["score"].to_numpy() - b["score"].to_numpy()) / ROUNDING, 0.0)
        return difference, (same & (difference <= tolerance)) | tie, tie

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> Any:
        """Texts as they are, as objects."""
        return np.array([*column.to_list(), None], dtype=object)[:-1]

    def measured(self, answers: Mapping[str, pl.Series]) -> np.ndarray | None:
        """(B, 4): -log p of the true text, its tokens, how many of them were the likeliest, its bytes; (B, 6) with pairs won and pairs."""
        names = ["nll", "tokens", "hits", "bytes"]
        if not all(n in answers for n in names):
            return None
        return np.stack([answers[n].to_numpy() for n in [*names, *(n for n in ("wins", "pairs") if n in answers)]], 1)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Lengths in characters and words, empty and distinct texts, share of Han characters (a hint at the language)."""
        present = column.drop_nulls()
        characters = present.str.len_chars()
        words = present.str.count_matches(r"\S+")
        total = int(characters.sum() or 0)
        return {
            "count": len(column),
            "missing": column.null_count(),
            "empty": int((characters == 0).sum()),
            "distinct": present.n_unique(),
            "characters": _spread(characters),
            "words": _spread(words),
            "han": round(int(present.str.count_matches(r"\p{Han}").sum() or 0) / max(1, total), 4),
        }


def _as_text(value: Any) -> tuple[str | None, str]:
    """(text or None, reason why it cannot be used)."""
    if value is None:
        return None, ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8"), ""
        except UnicodeDecodeError:
            return None, "is bytes that are not UTF-8; send a text"
    if isinstance(value, bool):
        return str(value).lower(), ""
    if isinstance(value, int | float):
        return str(value), ""
    if isinstance(value, str):
        # "surrogatepass" and back joins a split pair into its character; what stays alone is replaced.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), ""
    return None, "is a list or an object; send a text"


def _spread(counts: pl.Series) -> dict[str, float]:
    if counts.is_empty():
        return {}
    marks = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: float(counts.quantile(q, "nearest") or 0) for name, q in marks.items()}


KIND = Text()
