"""One tag for every word of an input: entities in BIO, BIOES or BILOU, or plain labels such as parts of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, Literal

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, Ragged, RowError
from modelyard.kinds.tags import _chain, _schemes
from modelyard.kinds.words import joined

__all__ = ["KIND", "TagIds", "TagIdsConfig", "TagIdsState", "Tags"]

ENTITY = pl.Struct({"start": pl.Int64, "end": pl.Int64, "type": pl.String, "text": pl.String})
"""An entity of an answer: its first word and the one behind its last, counted from 0; its type; its words as a text."""


@dataclass(frozen=True, kw_only=True)
class TagIdsConfig:
    """How tags are learnt."""

    scheme: Literal["as given", "bio", "bioes"] = "as given"
    """Scheme in which entities are learnt: as given, or converted (bioes has tags of its own for last and only words). Answers are always
    in that of the data."""


@dataclass
class TagIdsState:
    """`labels` as the data has them; `classes` are what a model chooses among."""

    scheme: str = "as given"
    labels: list[str] = field(default_factory=list)
    given: str = "plain"
    """Scheme of the data: `plain`, `bio`, `bioes` or `bilou`."""
    learnt: str = "plain"
    classes: list[str] = field(default_factory=list)

    @cached_property
    def legal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which classes may begin, end and follow each other."""
        return _schemes.legal(self.classes, self.learnt)


class TagIds(Encoding):
    """Ids of tags in the learnt scheme; decoded to the best sequence that the scheme allows."""

    name = "tag_ids"
    Config = TagIdsConfig
    State = TagIdsState

    def start(self, config: TagIdsConfig) -> TagIdsState:
        """No tags yet."""
        return TagIdsState(config.scheme)

    def update(self, state: TagIdsState, column: pl.Series) -> TagIdsState:
        """Adds the tags of a checked column."""
        flat = column.drop_nulls().explode(empty_as_null=False).drop_nulls()
        return self.merge(state, TagIdsState(state.scheme, flat.unique().to_list()))

    def merge(self, a: TagIdsState, b: TagIdsState) -> TagIdsState:
        """Tags of both."""
        return TagIdsState(a.scheme, sorted({*a.labels, *b.labels}))

    def finish(self, state: TagIdsState) -> TagIdsState:
        """Finds the scheme of the data and lists what can be answered in it: every legal tag of every type that occurs."""
        state.given = _schemes.scheme_of(state.labels)
        state.learnt = state.given if state.scheme == "as given" or state.given == "plain" else state.scheme
        state.labels = _schemes.classes(state.labels, state.given)
        state.classes = _schemes.classes(state.labels, state.learnt)
        return state

    def parts(self, state: TagIdsState) -> dict[str, Part]:
        """`ids`, one for each word."""
        return {"ids": Part((None,), "int64", len(state.classes))}

    def encode(self, column: pl.Series, state: TagIdsState, context: Context) -> dict[str, Array]:
        """Ragged int64 `ids`; -1 for tags that training did not hold."""
        at = {name: i for i, name in enumerate(state.classes)}
        rows = [[at.get(t, -1) for t in self._learnt(row or [], state)] for row in column.to_list()]
        return {"ids": Ragged.from_lists(rows, np.int64)}

    def _learnt(self, row: Sequence[str], state: TagIdsState) -> Sequence[str]:
        return row if state.learnt == "plain" else _schemes.write(_schemes.entities(row), len(row), state.learnt)

    def head(self, state: TagIdsState) -> tuple[str, int]:
        """`potentials`: a score for each tag of each word behind the scores of stepping from tag to tag (see `_chain`)."""
        return "potentials", len(state.classes)

    def decode(self, arrays: Mapping[str, np.ndarray], state: TagIdsState, context: Context) -> dict[str, pl.Series]:
        """The best legal tags, their probability as a whole (`score`) and, where they mark any, the `entities`."""
        lengths = np.asarray(context["length"])
        ids_BL, log_B = _chain.best(arrays["potentials"], lengths, state.legal)
        rows = [[state.classes[k] for k in row[:n]] for row, n in zip(ids_BL.tolist(), lengths.tolist(), strict=True)]
        score = pl.Series(np.exp(log_B).tolist(), dtype=pl.Float64)
        if state.learnt == "plain":
            return {"": pl.Series(rows, dtype=pl.List(pl.String)), "score": score}
        found = [_schemes.entities(row) for row in rows]
        tags = [_schemes.write(e, len(row), state.given) for e, row in zip(found, rows, strict=True)]
        told = [
            [{"start": a, "end": b, "type": kind, "text": joined(words[a:b])} for a, b, kind in e]
            for e, words in zip(found, context["words"], strict=True)
        ]
        return {
            "": pl.Series(tags, dtype=pl.List(pl.String)),
            "entities": pl.Series(told, dtype=pl.List(ENTITY)),
            "score": score,
        }


class Tags(Kind):
    """`List(String)`, as long as the input that it speaks of. Output only."""

    name = "tags"
    encodings = {"tag_ids": TagIds()}  # noqa: RUF012
    target_encoding = "tag_ids"

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Lists of texts or whole numbers; a plain text is cut at blanks."""
        clean: list[list[str] | None] = []
        errors: list[RowError] = []
        for row, value in enumerate(column.to_list()):
            value = value.split() if isinstance(value, str) else value
            good = isinstance(value, Sequence) and all(isinstance(t, str | int) and not isinstance(t, bool) and t != "" for t in value)
            clean.append([str(t) for t in value] if good else None)
            if value is not None and not good:
                errors.append(RowError(row, column.name, 'is no list of tags; send ["B-person", "O"]', repr(value)[:80]))
        return pl.Series(column.name, clean, dtype=pl.List(pl.String)), errors

    def misaligned(self, column: pl.Series, beside: pl.Series) -> list[RowError]:
        """Rows with more or fewer tags than words."""
        tags, words = column.list.len(), beside.list.len()
        wrong = np.flatnonzero((tags != words).fill_null(False).to_numpy())
        return [RowError(int(r), column.name, f"has {tags[int(r)]} tags for {words[int(r)]} words of {beside.name}") for r in wrong]

    def fits(self, column: pl.Series) -> float:
        """1 for lists of texts of which at least half of the different ones mark entities, and that say something twice."""
        present = column.drop_nulls().head(2_000)
        if column.dtype != pl.List(pl.String) or present.is_empty():
            return 0.0
        names = present.explode(empty_as_null=False).drop_nulls().unique().to_list()
        marking = [t for t in names if t == "O" or (_schemes.PREFIXED.match(t) and "-" in t)]
        return 1.0 if len(names) <= 1_000 and 2 * len(marking) >= len(names) else 0.0

    def draw_along(self, value: Any, beside: Any) -> str | None:
        """The words with every entity marked and named; plain tags stand under their words."""
        if value is None or beside is None:
            return None
        if _schemes.scheme_of(value) == "plain" and any(t != "O" for t in value):
            return " ".join(f"<span>{escape(w)}<sub>{escape(t)}</sub></span>" for w, t in zip(beside, value, strict=False))
        out, at = [], 0
        for start, end, kind in _schemes.entities(value):
            out += [escape(joined(beside[at:start]))] if start > at else []
            out.append(f"<mark>{escape(joined(beside[start:end]))}<sub>{escape(kind)}</sub></mark>")
            at = end
        out += [escape(joined(beside[at:]))] if at < len(beside) else []
        return " ".join(out)

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Entities that only one of the two has; for plain tags the words tagged differently."""
        out = np.zeros(len(a))
        for i, (x, y) in enumerate(zip(a.to_list(), b.to_list(), strict=True)):
            if x == y:
                continue
            x, y = x or [], y or []
            marked = _schemes.scheme_of([*x, *y]) != "plain"
            differ = set(_schemes.entities(x)) ^ set(_schemes.entities(y)) if marked else ()
            out[i] = len(differ) or max(1, sum(s != t for s, t in zip(x, y, strict=False)) + abs(len(x) - len(y)))
        return out

    def agree(
        self, a: Mapping[str, pl.Series], b: Mapping[str, pl.Series], scale: float, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tags must be equal unless two sequences are equally probable: then their log-probabilities lie within ten tolerances."""
        left, right = (x["score"].to_numpy().astype(np.float64) for x in (a, b))
        same = self.distance(a[""], b[""]) == 0
        difference = np.abs(left - right)
        with np.errstate(divide="ignore", invalid="ignore"):
            close = np.abs(np.log(left) - np.log(right)) < 10 * tolerance
        tie = ~same & close & (left < 0.5 + tolerance)  # two different sequences cannot both be likelier than not
        return difference, (same | tie) & (difference <= tolerance), tie

    def evidence(self, column: pl.Series, encoding: Encoding, state: Any) -> Any:
        """Tuples of tags (B,): metrics read entities from them."""
        out = np.empty(len(column), object)
        out[:] = [tuple(row or ()) for row in column.to_list()]
        return out

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """How often each tag occurs (the 50 most frequent) and how many entities of each type there are."""
        flat = column.drop_nulls().explode(empty_as_null=False).drop_nulls()
        counts = flat.value_counts().sort(["count", flat.name], descending=[True, False]).head(50)
        types: dict[str, int] = {}
        if _schemes.scheme_of(flat.unique().to_list()) != "plain":
            for row in column.drop_nulls().to_list():
                for _, _, kind in _schemes.entities(row):
                    types[kind] = types.get(kind, 0) + 1
        top = dict(zip(counts[flat.name].to_list(), counts["count"].to_list(), strict=True))
        return {"count": len(column), "missing": column.null_count(), "top": top, "entities": dict(sorted(types.items()))}


KIND = Tags()
