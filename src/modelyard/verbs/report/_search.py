"""Pictures of a search for settings: how the best came about, and what each setting did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modelyard.verbs.report._bars import importance
from modelyard.verbs.report._svg import COLOURS, MUTED, Plot, document, legend_items, legend_rows, number, text
from modelyard.verbs.report._words import Say

BEST = "#16a34a"
FAILED = "#dc2626"
SHOWN = 20
"""Trials in the table, the best first."""


def history(data: Mapping[str, Any], say: Say) -> str:
    """Value of each trial in order and the best so far; pruned trials stand at the value of their last rung, failed ones below."""
    trials = [t for t in data["trials"] if _known(t["value"])]
    groups = _groups(trials)
    failed = [t["trial"] for t in data["trials"] if t["state"] == "failed"]
    labels = [(say(f"trial_{state}"), colour) for state, colour, members in groups if members]
    labels += [(say("best_so_far"), BEST)] + ([(say("trial_failed"), FAILED)] if failed else [])
    low, high = _ends([t["value"] for t in trials])
    last = max((t["trial"] for t in data["trials"]), default=1)
    plot = Plot(
        say("search_history"), (0, max(1, last)), (low, high), x_label=say("trial"), y_label=say(data["metric"]),
        legend_rows=legend_rows([label for label, _ in labels]), height=340,
    )  # fmt: skip
    for _, colour, members in groups:
        plot.dots([t["trial"] for t in members], [_held(t["value"], low, high) for t in members], colour, radius=3, opacity=0.75)
    plot.dots(failed, [low] * len(failed), FAILED, radius=3, opacity=0.9)
    steps = _best_so_far(trials, data["better"])
    if steps:
        x, y = [*(s[0] for s in steps), last], [*(s[1] for s in steps), steps[-1][1]]
        plot.curve(x, [_held(v, low, high) for v in y], BEST, step=True, hover=say("best_so_far"))
        plot.dots([x[-2]], [y[-2]], BEST, radius=5, opacity=1)
    return plot.svg("; ".join(f"{a}: {number(v)}" for a, v in steps), labels)


def settings(data: Mapping[str, Any], say: Say) -> str:
    """One small picture a setting: its value against the metric; the best trial is marked. Alone it is as wide as other pictures."""
    trials = [t for t in data["trials"] if _known(t["value"])]
    low, high = _ends([t["value"] for t in trials])
    columns = min(3, max(1, len(data["axes"])))
    wide, tall, gap = (300.0, 230.0, 16.0) if len(data["axes"]) > 1 else (440.0, 300.0, 0.0)
    groups = [g for g in _groups(trials) if g[2]]
    labels = [(say(f"trial_{state}"), colour) for state, colour, _ in groups] + [(say("best_trial"), BEST)]
    top = (30 if gap else 12) + 18 * legend_rows([label for label, _ in labels], columns * (wide + gap))
    body = legend_items(labels, columns * (wide + gap))
    for i, (key, axis) in enumerate(data["axes"].items()):
        panel = _panel(key, axis, groups, data, (low, high), wide, tall, say)
        x, y = (i % columns) * (wide + gap), top + (i // columns) * (tall + gap)
        body.append(f'<g transform="translate({x:.0f} {y:.0f})">{panel}</g>')
    height = top + -(-len(data["axes"]) // columns) * (tall + gap)
    return document(say("search_settings") if gap else next(iter(data["axes"])), ", ".join(data["axes"]), body, columns * (wide + gap) - gap, height)


def _panel(
    key: str, axis: Mapping[str, Any], groups: Sequence[Any], data: Mapping[str, Any], ends: tuple[float, float], wide: float, tall: float,
    say: Say,
) -> str:  # fmt: skip
    names = [_text(v) for v in axis["values"]]
    every = [t["params"][key] for _, _, members in groups for t in members if key in t["params"]]
    place = (lambda v: names.index(_text(v)) + 0.0) if names else float
    xs = [place(v) for v in every]
    span = (-0.5, len(names) - 0.5) if names else (min(xs, default=0.0), max(xs, default=1.0))
    log = bool(axis["log"]) and span[0] > 0
    if not names and not log:
        pad = (span[1] - span[0]) * 0.04
        span = (span[0] - pad, span[1] + pad)
    plot = Plot("", span, ends, width=wide, height=tall, log_x=log, y_label=say(data["metric"]))
    if names or log:  # Plot's own marks are numbers, and too many for a small logarithmic axis
        marks = list(enumerate(names)) if names else [(v, number(v)) for v in _decades(*span)]
        plot.body = [b for b in plot.body if f'y="{plot.bottom + 17:.1f}"' not in b]
        room = (plot.right - plot.left) / len(marks) - 4
        for v, n in marks:
            edge = 0 if names else (plot.px(v) > plot.right - 20) - (plot.px(v) < plot.left + 20)  # numbers at the ends stay inside
            anchor = ("middle", "end", "start")[edge]
            plot.body.append(text(plot.px(v), plot.bottom + 17, n, anchor=anchor, size=12, opacity=0.8, room=room))
    for _, colour, members in groups:
        mine = [t for t in members if key in t["params"]]
        x = [place(t["params"][key]) + (_jitter(t["trial"]) if names else 0.0) for t in mine]
        plot.dots(x, [_held(t["value"], *ends) for t in mine], colour, radius=2.8, opacity=0.7)
    for t in (t for _, _, members in groups for t in members if t["trial"] == data["best"] and key in t["params"]):
        at = place(t["params"][key]) + (_jitter(t["trial"]) if names else 0.0)
        plot.dots([at], [_held(t["value"], *ends)], BEST, radius=5, opacity=1)
    return "".join([text(wide / 2, 22, key, anchor="middle", weight="600", room=wide) if len(data["axes"]) > 1 else "", *plot.body])


def section(data: Mapping[str, Any], say: Say, figure: Any, table: Any) -> str:
    """The report's section: pictures, importance, the best trials, and every failed one with its reason."""
    if not data.get("trials"):
        return ""
    drawn = [figure("search_history", data, say)]
    if data.get("importance"):
        about = {"items": data["importance"], "about": say("search_importance")}
        drawn.append(f"<figure>{importance(about, say)}</figure>")
    drawn += [figure("search_settings", {**data, "axes": {key: axis}}, say) for key, axis in data["axes"].items()]
    parts = [f'<div class="pictures">{"".join(drawn)}</div>']
    sign = -1 if data["better"] == "higher" else 1
    order = sorted((t for t in data["trials"] if _known(t["value"])), key=lambda t: (t["state"] != "complete", sign * t["value"]))
    keys = list(data["axes"])
    head = [say("trial"), escape(say(data["metric"])), say("state"), *map(escape, keys), _unit(data, say), say("seconds")]
    rows = [_row(t, keys, say) for t in order[:SHOWN]]
    parts.append(f"<h3>{say('best_trials')}</h3>{table(head, rows, numbers=(0, 1, len(head) - 2, len(head) - 1))}")
    failed = [t for t in data["trials"] if t.get("reason")]
    if failed:
        rows = [[str(t["trial"]), say(f"trial_{t['state']}"), escape(t["reason"]), escape(_text(t["params"]))] for t in failed[:100]]
        parts.append(f"<h3>{say('trials_ended')}</h3>{table([say('trial'), say('state'), say('reason'), say('search_settings')], rows, prose=(2, 3))}")
    return "".join(parts)


def _unit(data: Mapping[str, Any], say: Say) -> str:
    """What a trial is cut by: epochs, or the setting of an estimator (trees), of which those that were fitted again count again."""
    units = {str(t.get("unit") or "epochs") for t in data["trials"]}
    return " / ".join(say("epochs") if u == "epochs" else escape(u) for u in sorted(units))


def _row(t: Mapping[str, Any], keys: Sequence[str], say: Say) -> list[str]:
    share = f"{t['epochs']} / {t['of']}" if t.get("of") else ""
    values = [escape(_text(t["params"][k])) if k in t["params"] else "" for k in keys]
    return [str(t["trial"]), number(t["value"], 5), say(f"trial_{t['state']}"), *values, share, number(t["seconds"], 3)]


def _groups(trials: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    return [(state, colour, [t for t in trials if t["state"] == state]) for state, colour in (("pruned", MUTED), ("complete", COLOURS[0]))]


def _best_so_far(trials: Sequence[Mapping[str, Any]], better: str) -> list[tuple[int, float]]:
    sign = -1 if better == "higher" else 1
    found: list[tuple[int, float]] = []
    for t in (t for t in trials if t["state"] == "complete"):
        if not found or sign * t["value"] < sign * found[-1][1]:
            found.append((t["trial"], t["value"]))
    return found


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Of the axis: a few very bad trials must not press the others into a line, so it ends 3 quartile ranges off the middle half."""
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    first, third = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    room = 3 * (third - first) or math.inf
    low, high = max(ordered[0], first - room), min(ordered[-1], third + room)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def _held(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten inside, five at most; the ends where there are fewer than two."""
    found = [10.0**p for p in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    return found[:: -(-len(found) // 5)] if len(found) > 1 else [low, high]


def _jitter(number: int) -> float:
    """A place within a name's column, the same every time (golden-ratio sequence)."""
    return ((number * 0.6180339887) % 1 - 0.5) * 0.5


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, list | tuple) else str(value)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
