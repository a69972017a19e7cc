"""A conversation: messages with a role and a content, in order. What it is answered with is a text.

As JSON `[{"role": "user", "content": "…"}]`, or the text of it. Roles are free; `system`, `user`, `assistant` and `tool` are the usual
ones. ShareGPT's `{"from", "value"}` is read too. Inside, a column holds the JSON text of each conversation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.kinds._contract import Array, Context, Kind, Part, RowError
from modelyard.kinds.text._language import Language, LanguageConfig, LanguageState, reader, roles
from modelyard.kinds.text._tokens import ragged

ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
"""Other names of roles (ShareGPT and its kin)."""
ANSWERS = "assistant"


class Conversation(Language):
    """Input parts `tokens` and `mask` (int8): the conversation as the chat template writes it, up to where the assistant answers, and
    1 at what it said before."""

    def texts(self, column: pl.Series) -> list[str]:
        """Contents and roles."""
        return [text for m in column.drop_nulls().to_list() for one in json.loads(m) for text in (one["content"], f"{one['role']}\n")]

    def parts(self, state: LanguageState) -> dict[str, Part]:
        """`tokens` and `mask`."""
        return {"tokens": Part((None,), "int32", state.size, shared=True), "mask": Part((None,), "int8")}

    def encode(self, column: pl.Series, state: LanguageState, context: Context) -> dict[str, Array]:
        """As the class says; `context["tails"]` is what the template writes behind an answer."""
        known, spans = reader(state.tokenizer), []
        rendered, context["tails"] = [], []
        for text in column.to_list():
            prompt, tail, said = written(state.template, json.loads(text or "[]"), _tokens(state.settings))
            rendered.append(prompt)
            context["tails"].append(tail)
            spans.append(said)
        found = known.encode_batch(rendered, add_special_tokens=False)
        masks = [_inside(e.offsets, said) for e, said in zip(found, spans, strict=True)]
        return {"tokens": ragged([e.ids for e in found], np.int32), "mask": ragged(masks, np.int8)}


def _tokens(settings: str) -> dict[str, str]:
    """`bos_token` and `eos_token`, which templates may write."""
    return {"bos_token": "", "eos_token": ""} | {k: v for k, v in roles(settings).items() if k in ("bos_token", "eos_token")}


def written(
    template: str, messages: list[dict[str, Any]], tokens: Mapping[str, str] | None = None
) -> tuple[str, str, list[tuple[int, int]]]:
    """(the text up to the next answer, what follows that answer, characters [from, to) of earlier answers in the text).

    Earlier answers are marked by the template's `generation` blocks, else they are what an answer adds to the text before it; a
    template that rewrites them later (Qwen3 drops their thoughts) leaves them uncounted.
    """
    read = registry.load("runtime", "chat-template").read(template)  # the renderer lies above the kinds

    values = tokens or {"bos_token": "", "eos_token": ""}

    def pieces(some: list[dict[str, Any]], prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        found: tuple[str, list[tuple[int, int]]] = read.pieces(some, add_generation_prompt=prompt, tools=None, **values)
        return found

    whole, spans = pieces(messages, True)
    mark = "\u2402"  # an answer that no template changes, to see what follows it
    answered = pieces([*messages, {"role": ANSWERS, "content": mark}], False)[0]
    tail = answered[answered.rindex(mark) + 1 :] if mark in answered else ""
    if not spans:
        for i, one in enumerate(messages):
            if one["role"] == ANSWERS:
                before, after = pieces(messages[:i], True)[0], pieces(messages[: i + 1], False)[0]
                if after.startswith(before) and whole.startswith(after):
                    spans = [*spans, (len(before), len(after))]
    return whole, tail, spans


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each token that lies in one of the spans."""
    return [int(any(low <= a and b <= high and b > a for low, high in spans)) for a, b in offsets]


class Messages(Kind):
    """`String`: the JSON text of `[{role, content}, …]`, with one message at least."""

    name = "messages"
    encodings = {"language": Conversation()}  # noqa: RUF012
    needs_value = True

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Conversations in one form; whatever is none is a row error."""
        errors: list[RowError] = []
        clean: list[str | None] = []
        for row, value in enumerate(column.to_list()):
            found, reason = conversation(value)
            clean.append(None if found is None else json.dumps(found, ensure_ascii=False))
            if reason:
                errors.append(RowError(row, column.name, reason, str(value)[:80]))
        return pl.Series(column.name, clean, dtype=pl.String), errors

    def from_json(self, values: Sequence[Any]) -> pl.Series:
        """Lists stay objects: messages may have further keys of any type."""
        return pl.Series("", list(values), dtype=pl.Object) if any(not isinstance(v, str | None) for v in values) else pl.Series("", list(values))

    def to_json(self, column: pl.Series) -> list[Any]:
        """Lists of messages."""
        return [None if v is None else json.loads(v) for v in column.to_list()]

    def fits(self, column: pl.Series) -> float:
        """Share of the values that are conversations."""
        some = column.drop_nulls().head(200).to_list()
        return sum(conversation(v)[0] is not None for v in some) / len(some) if some else 0.0

    def draw(self, value: Any) -> str:
        """Role and content, a line each."""
        if value is None:
            return super().draw(value)
        lines = "".join(f"<div><b>{escape(str(m['role']))}</b> {escape(str(m['content']))}</div>" for m in json.loads(value))
        return f"<div>{lines}</div>"

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """0 where equal, 1 where not."""
        return a.ne_missing(b).to_numpy().astype(np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """Number of messages and their roles."""
        found = [json.loads(v) for v in column.drop_nulls().to_list()]
        roles = sorted({str(m["role"]) for f in found for m in f})
        lengths = np.array([len(f) for f in found] or [0])
        counts = {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())}
        return {"count": len(column), "missing": column.null_count(), "messages": counts, "roles": roles[:20]}


def conversation(value: Any) -> tuple[list[dict[str, Any]] | None, str]:
    """(messages, reason why they cannot be used) of a list, or of the JSON text of one."""
    if value is None:
        return None, ""
    if isinstance(value, pl.Series):
        value = value.to_list()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None, 'is no conversation; send [{"role": "user", "content": "…"}]'
    if not isinstance(value, list | tuple) or not value:
        return None, 'is no list of messages; send [{"role": "user", "content": "…"}]'
    found = []
    for number, one in enumerate(value, 1):
        if not isinstance(one, dict):
            return None, f"has no object as message {number}; send {{role, content}}"
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return None, f"has a message {number} without a role and a content that are texts"
        rest = {k: v for k, v in one.items() if k not in ("role", "content", "from", "value") and v is not None}
        found.append({"role": ROLES.get(role, role), "content": content, **rest})
    return found, ""


KIND = Messages()

__all__ = ["KIND", "Conversation", "LanguageConfig", "LanguageState", "Messages", "conversation", "written"]
