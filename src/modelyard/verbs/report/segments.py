"""Groups of rows in words that need no statistics: who is in each, and why there are as many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modelyard.verbs.report._svg import COLOURS, MUTED, number
from modelyard.verbs.report._words import Say, words

NAMED = 2
"""Differences that make the name of a segment."""
SHOWN = 24
"""Segments on a page."""


def in_words(segments: Sequence[Mapping[str, Any]], say: Say | None = None) -> list[dict[str, Any]]:
    """The segments of `metrics.profiles` with a `name` and a `text` each, in the reader's language (English by default)."""
    say = say or words()
    return [{**s, "name": name(s, say), "text": f"{title(s, say)}: {'; '.join(sentences(s, say))}"} for s in segments]


def title(segment: Mapping[str, Any], say: Say) -> str:
    """`Segment 2 (31 % of rows)`."""
    key = "segment_noise" if segment["segment"] < 0 else "segment_title"
    return say(key, n=segment["segment"], share=_percent(segment["share"]))


def name(segment: Mapping[str, Any], say: Say) -> str:
    """What sets it apart most, in a few words: `Grocery high, city = Paris`."""
    said = []
    for d in segment["differences"][:NAMED]:
        key = {"number": "name", "timestamp": "name_time", "category": "name_value", "missing": "name_missing"}[d["kind"]]
        said.append(say(f"{key}_{'more' if d['effect'] > 0 else 'less'}", column=d["column"], value=d.get("value", "")))
    return say("and_so").join(said) or say("name_none")


def sentences(segment: Mapping[str, Any], say: Say) -> list[str]:
    """One for each difference, the largest first."""
    return [_sentence(d, say) for d in segment["differences"]] or [say("no_difference")]


def _sentence(d: Mapping[str, Any], say: Say) -> str:
    more = d["effect"] > 0
    if d["kind"] == "number":
        facts = {"column": d["column"], "here": _number(d["here"]), "everybody": _number(d["everybody"])}
        times = d.get("times")
        if times is not None and not 0.9 < times < 1.1 and times >= 0.01:
            return say("is_times", times=number(times, 2), **facts)
        return say(f"is_{'higher' if more else 'lower'}{'_median' if d.get('median') else ''}", **facts)
    if d["kind"] == "timestamp":
        return say("is_later" if more else "is_earlier", column=d["column"], here=d["here"][:10], everybody=d["everybody"][:10])
    facts = {"column": d["column"], "value": str(d.get("value", "")), "here": _percent(d["here"]), "everybody": _percent(d["everybody"])}
    if d["kind"] == "missing":
        return say("missing_more" if more else "missing_less", **facts)
    if more:
        return say("mostly" if d["here"] >= 0.5 else "more_often", **facts)
    return say("hardly_ever" if d["here"] < 0.05 else "less_often", **facts)


def why(groups: Mapping[str, Any], say: Say | None = None) -> str:
    """Why there are as many groups as there are, from what the model noted."""
    say = say or words()
    tried = {str(k): float(v) for k, v in (groups.get("tried") or {}).items() if v is not None}
    best = max(tried.values(), default=0.0) if groups["by"] != "bic" else min(tried.values(), default=0.0)
    key = f"groups_{groups['by']}"
    if groups["by"] == "density" and "reach" in groups:
        key = "groups_reach"
    facts = {
        "n": groups["groups"], "value": number(best, 3), "first": next(iter(tried), ""), "last": next(reversed(tried), ""),
        "cells": groups.get("cells", ""), "min_rows": groups.get("min_rows", ""), "reach": number(float(groups.get("reach", 0.0)), 3),
    }  # fmt: skip
    said = [say(key, **facts)]
    if groups.get("alone"):
        said.append(say("groups_alone"))
    if groups.get("noise") is not None:
        said.append(say("groups_noise", share=_percent(groups["noise"])))
    if groups["rows"] < groups["of"]:
        said.append(say("groups_rows", rows=f"{groups['rows']:,}", of=f"{groups['of']:,}"))
    return "".join(s if s.endswith("。") else f"{s} " for s in said).strip()


def section(output: Mapping[str, Any], say: Say) -> str:
    """HTML of an output's segments, with the reason for their number; empty where it has none."""
    segments = output.get("segments") or []
    groups = output.get("groups")
    reason = f"<p>{escape(why(groups, say))}</p>" + _tried(groups, say) if groups else ""
    if not segments:
        return reason
    cards = "".join(_card(s, say) for s in segments[:SHOWN])
    rest = f'<p class="soft">{say("segments_more", n=len(segments) - SHOWN)}</p>' if len(segments) > SHOWN else ""
    return f'<h3>{say("segments")}</h3>{reason}<div class="cards">{cards}</div>{rest}<p class="soft">{say("segments_note")}</p>'


def _tried(groups: Mapping[str, Any], say: Say) -> str:
    tried = groups.get("tried") or {}
    if not tried:
        return ""
    said = " · ".join(f"{escape(str(k))}: {number(float(v), 3)}" for k, v in tried.items() if v is not None)
    return f'<p class="soft">{say("tried_" + groups["by"])} {said}</p>'


def _card(segment: Mapping[str, Any], say: Say) -> str:
    colour = MUTED if segment["segment"] < 0 else COLOURS[segment["segment"] % len(COLOURS)]
    bar = (
        f'<svg viewBox="0 0 300 6" width="100%" height="6" preserveAspectRatio="none" role="presentation">'
        f'<rect width="300" height="6" rx="3" fill="{MUTED}" opacity="0.25"/>'
        f'<rect width="{max(2.0, 300 * segment["share"]):.1f}" height="6" rx="3" fill="{colour}"/></svg>'
    )
    said = "".join(f"<li>{escape(s)}</li>" for s in sentences(segment, say))
    rows = say("all_rows", n=f"{segment['rows']:,}")
    return (
        f'<div class="card"><div class="soft">{escape(title(segment, say))} · {rows}</div><b>{escape(name(segment, say))}</b>'
        f'{bar}<ul style="padding-left:1.2em;margin:.5em 0 0">{said}</ul></div>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else number(value, 3)


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "< 1"
    return "> 99" if 0.99 < share < 1 else f"{100 * share:.0f}"
