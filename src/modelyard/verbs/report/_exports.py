"""Exports of a model side by side: size, time of a row, rate of a batch, metric and parity; what was refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from modelyard.verbs.report._svg import COLOURS, MUTED, document, line, number, rect, text, ticks, width_of
from modelyard.verbs.report._words import Say

FIRST = COLOURS[2]
"""The model itself."""
WIDTH, HIGH = 640.0, 26.0


def exports(data: Mapping[str, Any], say: Say) -> str:
    """Three panels of bars from zero with 95 % intervals, one line for each form: megabytes, milliseconds of one row, rows a second of a batch."""
    entries = sorted(data["entries"], key=lambda e: (not e["one"], not e["bytes"]))
    room = min(150.0, max(width_of(e["name"], 12) for e in entries) + 4)
    each = (WIDTH - room - 24) / 3
    panels: list[tuple[str, list[tuple[float, float | None, float | None] | None]]] = [
        (say("exports_size"), [(e["bytes"] / 1e6, None, None) if e["bytes"] else None for e in entries]),
        (say("exports_one"), [_times(e["one"]) for e in entries]),
        (f"{say('exports_many')} {data['batch']:,}", [_rates(e["batch"]) for e in entries]),
    ]
    top = 48.0
    bottom = top + HIGH * sum(bool(e["bytes"]) for e in entries)  # what was refused stands below the axes
    after = bottom + 22
    body = []
    for i, entry in enumerate(entries):
        y = top + HIGH * i + (0 if entry["bytes"] else 22)
        body.append(text(room, y + 15, entry["name"], anchor="end", size=12, room=room, weight="600" if i == 0 else ""))
        if entry["refused"] and not entry["bytes"]:
            body.append(text(room + 12, y + 15, f"{say('export_refused')}: {entry['refused']['reason']}", size=12, room=WIDTH - room - 16, colour=MUTED))
        elif entry["refused"]:
            body.append(text(room + 12 + each + 6, y + 15, say("export_untimed"), size=12, room=2 * each, colour=MUTED))
    for k, (title, values) in enumerate(panels):
        left = room + 12 + k * (each + 6)
        most = max((v[2] or v[0] for v in values if v), default=1.0) or 1.0
        scale = (each - 58) / most  # the number stands behind the bar
        body.append(text(left, 38, title, size=12, opacity=0.8, room=each))
        body.append(line(left, top, left, bottom, opacity=0.5))
        for x, t in ((left + t * scale, t) for t in ticks(0, most, 3)):
            body += [line(x, top, x, bottom, opacity=0.13), text(x, bottom + 13, number(t), anchor="middle", size=11, opacity=0.8)]
        for i, value in enumerate(values):
            if value is None:
                continue
            y, (middle, low, high) = top + HIGH * i, value
            body.append(rect(left, y + 3, middle * scale, HIGH - 10, FIRST if i == 0 else COLOURS[0], opacity=0.75))
            if low is not None and high is not None:
                body.append(line(left + low * scale, y + 11, left + high * scale, y + 11, width=2))
            body.append(text(left + (high or middle) * scale + 4, y + 15, number(middle, 3), size=12))
    told = "; ".join(f"{e['name']}: {_told(e)}" for e in entries)
    return document(say("exports"), told, body, WIDTH, after + HIGH * sum(not e["bytes"] for e in entries))


def _told(entry: Mapping[str, Any]) -> str:
    return str(entry["refused"]["reason"]) if entry["refused"] else f"{number(entry['bytes'] / 1e6)} MB, {number(entry['one']['median'])} ms"


def _times(found: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    return (found["median"], found["low"], found["high"]) if found else None


def _rates(found: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """Rows a second: a short time is a high rate, so that the ends of the interval change places."""
    return (found["rows_per_second"], 1e3 * found["rows"] / found["high"], 1e3 * found["rows"] / found["low"]) if found else None


def section(data: Mapping[str, Any], say: Say, figure: Any, table: Any) -> str:
    """The report's section: the picture, the rule, and the table of all numbers with the reasons of what was refused."""
    if not data:
        return ""
    entries = data["entries"]
    names = list(dict.fromkeys(m for e in entries for m in e["metrics"]))
    timed, left = [e for e in entries if e["one"]], [e for e in entries if not e["one"]]
    head = [
        say("export_form"), say("exports_size"), say("exports_one"), say("interval"), say("share_of_model"), f"{say('rows_second')}, {data['batch']:,}",
        say("interval"), *(x for m in names for x in (escape(say(m)), say("interval"))), say("parity"), say("largest_difference"),
    ]  # fmt: skip
    rounds = min((e[k]["rounds"] for e in entries for k in ("one", "batch") if e[k]), default=0)
    note = f'<p class="soft">{escape(say("exports_note", rounds=rounds, rule=number(data["tolerance"])))}</p>'
    whole = str(table(head, [_row(e, names, say) for e in timed], numbers=(*range(1, len(head) - 2), len(head) - 1)))
    if left:
        cells = [[escape(e["name"]), number(e["bytes"] / 1e6) if e["bytes"] else "—", escape(e["refused"]["reason"])] for e in left]
        whole += f"<h3>{say('exports_left')}</h3>" + str(table([say("export_form"), say("exports_size"), say("reason")], cells, numbers=(1,), prose=(2,)))
    picture = f'<div class="pictures" style="margin-bottom:12px">{figure("exports", data, say)}</div>'
    return picture + note + whole


def _row(entry: Mapping[str, Any], names: list[str], say: Say) -> list[str]:
    one, many, parity = entry["one"], entry["batch"], entry["parity"]
    cells = [escape(entry["name"]), number(entry["bytes"] / 1e6) if entry["bytes"] else "—"]
    cells += [number(one["median"], 3), f"{number(one['low'], 3)} … {number(one['high'], 3)}", number(one["share"], 2)] if one else ["—"] * 3
    rates = _rates(many)
    cells += [number(rates[0], 3), f"{number(rates[1], 3)} … {number(rates[2], 3)}"] if rates else ["—"] * 2
    for name in names:
        found = entry["metrics"].get(name) or {}
        known = isinstance(found.get("value"), float | int)
        wide = isinstance(found.get("low"), float) and found["low"] == found["low"]
        cells += [number(float(found["value"])) if known else "—", f"{number(found['low'])} … {number(found['high'])}" if wide else "—"]
    agrees = "—" if parity is None else say("parity_not" if parity.get("differing") else "parity_ok")
    return [*cells, say("export_other") if entry["what"] == "another model" else agrees, number(parity["max_difference"]) if parity else "—"]
