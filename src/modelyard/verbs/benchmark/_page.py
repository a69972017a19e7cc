"""The page of a comparison: metric against milliseconds, and the table with what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from modelyard.verbs.benchmark import MODEL
from modelyard.verbs.report._svg import Plot, line, number, text
from modelyard.verbs.report._words import Say, words
from modelyard.verbs.report.page import document, table

if TYPE_CHECKING:
    from modelyard.verbs.benchmark import Benchmarked

OWN, OTHER, DIFFERENT = "#3b82f6", "#16a34a", "#d97706"


def page(found: Benchmarked, model: Any, better: str, lang: str) -> str:
    """The HTML text."""
    say = words(lang)
    shown = [f for f in found.forms if "refused" not in f]
    top = f'<h1>{escape(model.name)} · {say("benchmark")}</h1><p class="soft">{say("benchmark_how", rows=f"{found.rows:,}", batch=found.batch)}</p>'
    body = [f'<div style="margin-bottom:12px"><figure>{picture(shown, found.metric, better, say)}</figure></div>', _table(found, say)]
    refused = [[escape(f["form"]), escape(f["why"]), escape(f["refused"])] for f in found.forms if "refused" in f]
    if refused:
        body.append(f"<h2>{say('not_compared')}</h2>" + table([say("form"), say("state"), say("reason")], refused, prose=(2,)))
    return document(f"{model.name} · {say('benchmark')}", lang, f'<header id="summary">{top}</header><section>{"".join(body)}</section>')


def picture(forms: Sequence[Mapping[str, Any]], metric: str, better: str, say: Say) -> str:
    """Metric (with interval) against milliseconds of one row; what lies at one height answers alike."""
    times = [f["milliseconds"]["median"] for f in forms]
    ends = [x for f in forms for x in (f["value"]["value"], f["value"].get("low"), f["value"].get("high")) if x is not None and x == x]
    low, high = min(ends), max(ends)
    pad = 0.15 * (high - low) or 0.01
    plot = Plot(
        say("benchmark_picture"), (min(times) * 0.6, max(times) * 2.2), (low - pad, high + pad), x_label=say("ms_one"),
        y_label=f"{say(metric)} ({say(better)})", log_x=True, width=720, height=380,
    )  # fmt: skip
    for place, f in enumerate(forms):
        value, x = f["value"], plot.px(f["milliseconds"]["median"])
        colour = OWN if f["form"] == MODEL else DIFFERENT if f["differing"] else OTHER
        if value.get("low") is not None and value["low"] == value["low"]:
            plot.body.append(line(x, plot.py(value["low"]), x, plot.py(value["high"]), colour=colour, opacity=0.6))
        plot.dots([f["milliseconds"]["median"]], [value["value"]], colour, radius=6, opacity=1)
        label = f"{f['form']} · {number(f['bytes'] / 1024, 3)} KiB"
        y = plot.py(value["value"]) + (-12 if place % 2 else 22)  # forms of one model share a height: labels change sides
        plot.body.append(text(x + 8, y, label, size=12))
    told = "; ".join(f"{f['form']}: {number(f['value']['value'])}, {f['bytes']:,} bytes, {number(f['milliseconds']['median'])} ms" for f in forms)
    return plot.svg(told)


def _table(found: Benchmarked, say: Say) -> str:
    head = [say("form"), say("kibibytes"), say("ms_one"), say("interval"), say("rows_second"), say("interval"), say(found.metric), say("interval"),
            say("answers_differ"), say("largest_difference")]  # fmt: skip
    rows = []
    for f in found.forms:
        if "refused" in f:
            continue
        one, many, value = f["milliseconds"], f["rows_per_second"], f["value"]
        between = lambda v: f"{number(v['low'])} … {number(v['high'])}" if v.get("low") is not None else "—"  # noqa: E731
        own = f["form"] == MODEL
        rows.append([
            escape(f["form"]), number(f["bytes"] / 1024), number(one["median"]), between(one), number(many["median"]), between(many),
            number(value["value"]), between(value), "—" if own else str(f["differing"]), "—" if own else number(f["largest"], 2),
        ])  # fmt: skip
    return str(table(head, rows, numbers=(1, 2, 4, 6, 8, 9)))
