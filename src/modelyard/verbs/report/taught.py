"""Rows that a language model was taught with, token by token; what counted in the loss has a colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modelyard.verbs.report._words import Say


def section(events: Sequence[Mapping[str, Any]], say: Say) -> str:
    """The last preview among the events of a run; nothing where there is none."""
    rows: Sequence[Sequence[tuple[str, bool]]] = next((e["preview"] for e in reversed(events) if e.get("preview")), [])
    cards = "".join(f'<div class="card"><div class="tokens">{"".join(_token(*token) for token in row)}</div></div>' for row in rows)
    return f'<h3>{say("taught")}</h3><p class="soft">{say("taught_how")}</p>{cards}' if cards else ""


def _token(text: str, counted: bool) -> str:
    shown = escape(text.replace("\n", "⏎\n"))
    return f"<mark>{shown}</mark>" if counted else f"<span>{shown}</span>"
