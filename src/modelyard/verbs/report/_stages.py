"""The stages of a compression: what each made of bytes, milliseconds and the metric, taken or left with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from modelyard.verbs.report._svg import COLOURS, Plot, legend_rows, line, number, text
from modelyard.verbs.report._words import Say

TAKEN, LEFT, FIRST = "#16a34a", "#9ca3af", "#3b82f6"


def pareto(data: Mapping[str, Any], say: Say) -> str:
    """Metric against bytes; what was taken is joined in order, the line across is the least that was allowed."""
    points = [p for p in data["points"] if p.get("bytes")]
    sizes, values = [p["bytes"] / 1024 for p in points], [p["value"] for p in points]
    low, high = min([*values, data["limit"]]), max([*values, data["limit"]])
    pad = 0.12 * (high - low) or 0.01
    labels = [(say("stage_first"), FIRST), (say("stage_taken"), TAKEN), (say("stage_left"), LEFT)]
    plot = Plot(
        say("pareto"), (min(sizes) * 0.7, max(sizes) * 1.4), (low - pad, high + pad), x_label=say("kibibytes"), y_label=say(data["metric"]), log_x=True,
        legend_rows=legend_rows([label for label, _ in labels]), height=340,
    )  # fmt: skip
    plot.body.append(line(plot.left, plot.py(data["limit"]), plot.right, plot.py(data["limit"]), opacity=0.6, dash="5 4"))
    taken = [(s, v) for s, v, p in zip(sizes, values, points, strict=True) if p["accepted"] is not False]
    plot.curve([s for s, _ in taken], [v for _, v in taken], TAKEN)
    for size, value, p in zip(sizes, values, points, strict=True):
        plot.dots([size], [value], FIRST if p["accepted"] is None else TAKEN if p["accepted"] else LEFT, radius=6, opacity=1)
        left = plot.px(size) > (plot.left + plot.right) / 2
        label = f"{p['stage']} · {number(p['milliseconds_1'], 3)} ms"
        plot.body.append(text(plot.px(size) + (-10 if left else 10), plot.py(value) - 9, label, anchor="end" if left else "start", size=12))
    told = "; ".join(f"{p['stage']}: {number(p['value'])}, {p['bytes']:,} bytes, {number(p['milliseconds_1'])} ms" for p in points)
    return plot.svg(told, labels)


def sensitivity(data: Mapping[str, Any], say: Say) -> str:
    """What the metric comes to where units of one layer alone are taken out, a line for each layer; the line across is the least that is allowed."""
    layers = [layer for layer in data["layers"] if all(v is not None and v == v for v in layer["values"])]
    ends = [v for layer in layers for v in layer["values"]]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    pad = 0.08 * (high - low) or 0.01
    labels = [(layer["name"], COLOURS[i % len(COLOURS)]) for i, layer in enumerate(layers)]
    plot = Plot(
        say("sensitivity"), (0.0, 0.8), (low - pad, high + pad), x_label=say("share_out"), y_label=say(data["metric"]),
        legend_rows=legend_rows([label for label, _ in labels]), height=340,
    )  # fmt: skip
    if low - pad <= data["limit"] <= high + pad:
        plot.body.append(line(plot.left, plot.py(data["limit"]), plot.right, plot.py(data["limit"]), opacity=0.6, dash="5 4"))
    for layer, (_, colour) in zip(layers, labels, strict=True):
        plot.curve(layer["shares"], layer["values"], colour)
        plot.dots(layer["shares"], layer["values"], colour, radius=3.5, opacity=1)
    told = "; ".join(f"{layer['name']}: " + ", ".join(number(v) for v in layer["values"]) for layer in layers)
    return plot.svg(told, labels)


def section(stages: list[Mapping[str, Any]], pictures: Mapping[str, Any], say: Say, figure: Any, table: Any) -> str:
    """The report's section: the pictures and the table of stages."""
    if not stages:
        return ""
    drawn = "".join(figure(name, pictures[name], say) for name in ("pareto", "sensitivity") if pictures.get(name))
    picture = f'<div class="pictures" style="margin-bottom:12px">{drawn}</div>' if drawn else ""
    head = [say("stage"), say("state"), say("value"), say("kibibytes"), say("ms_one"), say("ms_many"), say("model_settings"), say("reason")]
    rows = []
    for s in stages:
        state = say("stage_first" if s["accepted"] is None else "stage_taken" if s["accepted"] else "stage_left")
        numbers = [number(s["value"]), number(s["bytes"] / 1024), number(s["milliseconds_1"]), number(s["milliseconds_64"])] if s.get("bytes") else [""] * 4
        settings = ", ".join(f"{k}: {v}" for k, v in (s.get("settings") or {}).items())
        rows.append([escape(s["stage"]), state, *numbers, escape(settings), escape(s.get("reason") or "")])
    return picture + str(table(head, rows, numbers=(2, 3, 4, 5), prose=(6, 7)))
