"""Bar pictures: histograms, class balance, cluster sizes, importances, metrics beside their baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.verbs.report._svg import (
    COLOURS,
    MUTED,
    Plot,
    document,
    legend_items,
    legend_rows,
    line,
    number,
    rect,
    text,
    width_of,
)
from modelyard.verbs.report._words import Say

MOST_BARS = 30


def histogram(data: Mapping[str, Any], say: Say, title: str) -> str:
    """Overlaid counts over common edges; the square root of the count keeps small groups visible, the axis tells
    the count."""
    edges, series = data["edges"], data["series"]
    top = max((max(s["counts"], default=0) for s in series), default=1) or 1
    labels = [say(s["label"]) for s in series if s["label"]]
    about = (
        say("score_of", label=data["about"]) if data.get("about") else say("score" if title == "scores" else "length")
    )
    note = say("beyond", n=f"{data['beyond']:,}") if data.get("beyond") else say("all_rows", n=f"{data['of']:,}")
    plot = Plot(
        say(title),
        (edges[0], edges[-1]),
        (0, top),
        x_label=about,
        y_label=say("rows"),
        note=note,
        legend_rows=legend_rows(labels),
    )
    for index, one in enumerate(series):
        for low, high, count in zip(edges, edges[1:], one["counts"], strict=False):
            if not count:
                continue
            left, width = plot.px(low), plot.px(high) - plot.px(low) - 1
            height = max(1.0, plot.bottom - plot.py(count))
            hover = f"{number(low)} – {number(high)}: {count:,} {say(one['label']) if one['label'] else ''}"
            plot.body.append(rect(left, plot.bottom - height, width, height, COLOURS[index], opacity=0.55, hover=hover))
    return plot.svg(about, list(zip(labels, COLOURS, strict=False)))


def _rows(
    title: str,
    names: Sequence[str],
    parts: Sequence[tuple[float, str, str]],
    largest: float,
    note: str = "",
    description: str = "",
) -> str:
    """Horizontal bars with a name on the left and a value on the right; `parts` are (length, value text, colour)."""
    room = min(170.0, max((width_of(n, 12) for n in names), default=40) + 4)
    tail = max((width_of(value, 12) for _, value, _ in parts), default=30) + 10
    body, y = [], 32.0
    for name, (size, value, colour) in zip(names, parts, strict=True):
        width = (440 - room - 8 - tail) * (size / largest if largest > 0 else 0)
        body += [
            text(room, y + 12, name, anchor="end", size=12, room=room),
            rect(room + 8, y + 2, max(width, 1), 13, colour, hover=f"{name}: {value}"),
            text(room + 14 + max(width, 1), y + 13, value, size=12, opacity=0.85),
        ]
        y += 20
    return document(
        title,
        description or "; ".join(f"{n} {v}" for n, (_, v, _) in zip(names, parts, strict=True)),
        body,
        440,
        y + (24 if note else 6),
        note,
    )


def counts(data: Mapping[str, Any], say: Say, title: str) -> str:
    """Rows per class or per cluster with their shares; the 30 largest of more."""
    total = sum(data["counts"]) or 1
    order = sorted(range(len(data["counts"])), key=lambda i: -data["counts"][i])
    shown = order[:MOST_BARS]
    names = [
        _cluster_name(data["labels"][i], say) if title == "cluster_sizes" else str(data["labels"][i]) for i in shown
    ]
    parts = [
        (float(data["counts"][i]), f"{data['counts'][i]:,} · {data['counts'][i] / total:.1%}", COLOURS[0])
        for i in shown
    ]
    note = say("most_of", n=len(shown), of=len(order)) if len(order) > len(shown) else ""
    return _rows(say(title), names, parts, float(max(data["counts"], default=0)), note)


def _cluster_name(label: str, say: Say) -> str:
    return say("noise") if label == "-1" else say("cluster", n=label)


def importance(data: Mapping[str, Any], say: Say) -> str:
    """Importance of columns with intervals: `{items: [{name, value, low, high}], about?}`, the 30 largest."""
    every = sorted(data["items"], key=lambda item: -abs(item["value"]))
    items = every[:MOST_BARS]
    ends = [
        v for i in items for v in (0.0, i["value"], i.get("low"), i.get("high")) if v is not None and math.isfinite(v)
    ]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = min(170.0, max((width_of(i["name"], 12) for i in items), default=40) + 4)
    span = (high - low) or 1.0
    tail = 52.0

    def at(value: float) -> float:
        return room + 8 + (440 - room - 8 - tail) * (value - low) / span

    body, y = [], 32.0
    for item in items:
        left, right = sorted((at(0), at(item["value"])))
        hover = f"{item['name']}: {number(item['value'])}"
        body.append(text(room, y + 12, item["name"], anchor="end", size=12, room=room))
        body.append(
            rect(left, y + 2, max(1, right - left), 13, COLOURS[0] if item["value"] >= 0 else MUTED, hover=hover)
        )
        if item.get("low") is not None and math.isfinite(item["low"]):
            body.append(line(at(item["low"]), y + 8.5, at(item["high"]), y + 8.5, width=1.5))
        body.append(text(440, y + 13, number(item["value"], 3), anchor="end", size=12, opacity=0.85))
        y += 20
    body.append(line(at(0), 30, at(0), y, opacity=0.5))
    note = data.get("about") or say("importance_note")
    if len(every) > len(items):
        note = say("most_of", n=len(items), of=len(every)) + "; " + note
    return document(
        say("importance"), "; ".join(f"{i['name']} {number(i['value'])}" for i in items), body, 440, y + 24, note
    )


def metric_bars(data: Mapping[str, Any], say: Say) -> str:
    """Metrics of 0 … 1 as points with their intervals, the trivial baseline as a hollow mark: `{items: [{name,
    value, low, high, baseline}]}`."""
    items = [i for i in data["items"] if i["value"] is not None and math.isfinite(i["value"])]
    names = [say(i["name"]) + (" ↓" if i.get("better") == "lower" else "") for i in items]
    room = min(190.0, max((width_of(n, 12) for n in names), default=40) + 4)
    legend = [(say("model"), COLOURS[0]), (say("baseline"), MUTED)]
    top = 32 + 18 * legend_rows([label for label, _ in legend])

    def at(value: float) -> float:
        return room + 12 + (440 - room - 70) * min(1.0, max(0.0, value))

    bottom = top + 22 * len(items)
    body = [line(at(t), top - 4, at(t), bottom, opacity=0.13) for t in (0, 0.25, 0.5, 0.75, 1)]
    body += [text(at(t), bottom + 14, number(t), anchor="middle", size=11, opacity=0.8) for t in (0, 0.5, 1)]
    for index, (name, item) in enumerate(zip(names, items, strict=True)):
        y = top + 22 * index + 9
        base = item.get("baseline")
        if base is not None and math.isfinite(base):
            body.append(
                f'<circle cx="{at(base):.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{MUTED}" stroke-width="2"/>'
            )
        if item.get("low") is not None and math.isfinite(item["low"]):
            body.append(line(at(item["low"]), y, at(item["high"]), y, colour=COLOURS[0], width=3))
        body.append(f'<circle cx="{at(item["value"]):.1f}" cy="{y:.1f}" r="4.5" fill="{COLOURS[0]}"/>')
        body.append(text(room, y + 4, name, anchor="end", size=12, room=room))
        body.append(text(440, y + 4, number(item["value"], 3), anchor="end", size=12))
    said = "; ".join(f"{n} {number(i['value'])}" for n, i in zip(names, items, strict=True))
    return document(say("metrics"), said, [*legend_items(legend, 440), *body], 440, bottom + 22)
