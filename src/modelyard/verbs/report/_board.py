"""The leaderboard of a search: every candidate with score, interval, times and size; what failed with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modelyard.verbs.report._svg import COLOURS, MUTED, document, legend_items, legend_rows, line, number, text, ticks, width_of
from modelyard.verbs.report._words import Say

SHOWN = 25
"""Candidates of the picture."""


def board(data: Mapping[str, Any], say: Say) -> str:
    """Scores as points with their intervals, the best on top; those that make the model are filled: `{entries, metric, better}`."""
    entries = data["entries"][:SHOWN]
    room = min(150.0, max((width_of(e["model"], 12) for e in entries), default=40) + 4)
    legend = [(say("in_model"), COLOURS[0]), (say("not_in_model"), MUTED)]
    top = 36 + 18 * legend_rows([label for label, _ in legend])
    ends = [e[k] for e in entries for k in ("low", "high", "value") if e[k] is not None and math.isfinite(e[k])]
    low, high = min(ends), max(ends)
    span = (high - low) or abs(high) or 1.0

    def at(value: float) -> float:
        return room + 12 + (440 - room - 74) * (value - low) / span

    bottom = top + 18 * len(entries)
    marks = ticks(low, high, 4)
    body = [line(at(t), top - 6, at(t), bottom, opacity=0.13) for t in marks]
    body += [text(at(t), bottom + 12, number(t), anchor="middle", size=11, opacity=0.8) for t in marks]
    for index, entry in enumerate(entries):
        y = top + 18 * index + 6
        colour = COLOURS[0] if entry["weight"] else MUTED
        if entry["low"] is not None and math.isfinite(entry["low"]):
            body.append(line(at(entry["low"]), y, at(entry["high"]), y, colour=colour, width=2))
        body.append(f'<circle cx="{at(entry["value"]):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        body.append(text(room, y + 4, entry["model"], anchor="end", size=12, room=room))
        body.append(text(440, y + 4, number(entry["value"]), anchor="end", size=12))
    said = "; ".join(f"{e['model']} {number(e['value'])}" for e in entries)
    note = f"{say(data['metric'])}: {say('out_of_fold')}" + ("" if len(data["entries"]) <= SHOWN else "; " + say("most_of", n=SHOWN, of=len(data["entries"])))
    return document(say("leaderboard"), said, [*legend_items(legend, 440), *body], 440, bottom + 36, note)


def board_data(leaderboard: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Data of the picture by output."""
    scored = [e for e in leaderboard if "scores" in e]
    outputs = scored[0]["scores"] if scored else {}
    found = {}
    for output, first in outputs.items():
        entries = [{"model": e["model"], "weight": e["weight"], **{k: e["scores"][output][k] for k in ("value", "low", "high")}} for e in scored]
        known = [e for e in entries if e["value"] is not None and math.isfinite(e["value"])]
        if known:
            found[output] = {"entries": known, "metric": first["metric"], "better": first["better"]}
    return found


def board_rows(leaderboard: Sequence[Mapping[str, Any]], say: Say) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of the table, cells as HTML: the best candidates; all of them are in `run.json`."""
    head = [say(k) for k in ("model", "score", "interval", "weight", "fit_seconds", "predict_ms", "size", "settings")]
    rows = []
    for e in [e for e in leaderboard if "scores" in e][:SHOWN]:
        score: Mapping[str, Any] = next(iter(e.get("scores", {}).values()), {})
        interval = f"{number(score['low'])} … {number(score['high'])}" if isinstance(score.get("low"), float) else "—"
        rows.append([
            escape(e["model"]), number(score["value"]) if isinstance(score.get("value"), float) else "—", interval,
            f"{e['weight']:.2f}" if e.get("weight") else "—", number(float(e["fit_seconds"]), 3),
            number(1000 * e["predict_seconds_per_1000"], 3) if "predict_seconds_per_1000" in e else "—",
            f"{e['bytes'] / 1e6:.2f} MB" if "bytes" in e else "—", _settings(e),
        ])  # fmt: skip
    return head, rows


def failed_rows(leaderboard: Sequence[Mapping[str, Any]], say: Say) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of the table of what has no score: with the reason, which a phone would not show at the end of the long table."""
    head = [say(k) for k in ("model", "reason", "settings", "fit_seconds")]
    failed = [e for e in leaderboard if "scores" not in e][:SHOWN]
    return head, [[escape(e["model"]), escape(e.get("reason", "")) or "—", _settings(e), number(float(e["fit_seconds"]), 3)] for e in failed]


def _settings(entry: Mapping[str, Any]) -> str:
    return escape(", ".join(f"{k} {v}" for k, v in entry.get("settings", {}).items())) or "—"
