"""The stages of a compression: what each made of bytes, milliseconds and the metric, taken or left with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from modelyard.verbs.report._svg import Plot, legend_rows, line, number, text
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


def section(stages: list[Mapping[str, Any]], drawn: Mapping[str, Any] | None, say: Say, figure: Any, table: Any) -> str:
    """The report's section: the picture and the table of stages."""
    if not stages:
        return ""
    picture = f'<div class="pictures" style="margin-bottom:12px">{figure("pareto", drawn, say)}</div>' if drawn else ""
    head = [say("stage"), say("state"), say("value"), say("kibibytes"), say("ms_one"), say("ms_many"), say("model_settings"), say("reason")]
    rows = []
    for s in stages:
        state = say("stage_first" if s["accepted"] is None else "stage_taken" if s["accepted"] else "stage_left")
        numbers = [number(s["value"]), number(s["bytes"] / 1024), number(s["milliseconds_1"]), number(s["milliseconds_64"])] if s.get("bytes") else [""] * 4
        settings = ", ".join(f"{k}: {v}" for k, v in (s.get("settings") or {}).items())
        rows.append([escape(s["stage"]), state, *numbers, escape(settings), escape(s.get("reason") or "")])
    return picture + str(table(head, rows, numbers=(2, 3, 4, 5), prose=(6, 7)))
