"""What was promised and what came of it: calibration before and after, conformal coverage as promised and as measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from modelyard.verbs.report._svg import COLOURS, Plot, document, legend_items, legend_rows, line, number, rect, text, ticks
from modelyard.verbs.report._words import Say

Figure = Callable[..., str]
Table = Callable[..., str]


def pictures(promises: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{output.reliability | output.coverage: picture data}` of what a run has of `promises`."""
    found: dict[str, dict[str, Any]] = {}
    for output, told in promises.items():
        if shown := (told.get("calibration") or {}).get("reliability"):
            found[f"{output}.reliability"] = shown
        coverage = told.get("coverage") or {}
        if "low" in coverage.get("test", {}):
            found[f"{output}.coverage"] = {"promised": coverage["promised"], **coverage["test"]}
    return found


def section(promises: Mapping[str, Any], say: Say, figure: Figure, table: Table) -> str:
    """The block of the report; empty where nothing was promised."""
    rows: list[list[str]] = []
    for output, told in promises.items():
        rows += [*_calibration(output, told.get("calibration") or {}, say), *_coverage(output, told.get("coverage") or {}, say)]
    if not rows:
        return ""
    several = len(promises) > 1
    drawn = [figure(key.rpartition(".")[2], data, say, caption=key.rpartition(".")[0] if several else "") for key, data in pictures(promises).items()]
    head = [say(k) for k in ("output", "promise", "how", "where", "before", "after", "interval", "note")]
    shown = f'<div class="pictures" style="margin-top:12px">{"".join(drawn)}</div>' if drawn else ""
    return table(head, rows, numbers=(4, 5, 6), prose=(7,)) + shown


def _calibration(output: str, found: Mapping[str, Any], say: Say) -> list[list[str]]:
    """One row for each split: the calibration error before and after."""
    rows = []
    for split, errors in (found.get("calibration_error") or {}).items():
        note = say("calibration_fitted", n=f"{found['rows']:,}") if split == "valid" else say("promise_unseen")
        how = escape(str(found["method"]))
        rows.append([escape(output), say("calibration_error"), how, say(split), number(errors["before"]), number(errors["after"]), "", note])
    return rows


def _coverage(output: str, found: Mapping[str, Any], say: Say) -> list[list[str]]:
    """One row: the share that was promised, and of the test rows the share that holds the truth."""
    if not found:
        return []
    test = found.get("test") or {}
    sized = "size" if "size" in test else "width"
    note = f"{say('set_size' if sized == 'size' else 'interval_width')}: {number(test[sized])}; " if test else ""
    measured = number(test["coverage"]) if test else "—"
    reach = f"[{number(test['low'])}, {number(test['high'])}]" if "low" in test else ""
    note += say("coverage_fitted", n=f"{found['rows']:,}")
    return [[escape(output), say("coverage"), escape(str(found["method"])), say("test") if test else "", number(found["promised"]), measured, reach, note]]


def reliability(data: Mapping[str, Any], say: Say) -> str:
    """Reliability diagrams of the same rows before and after calibration (Guo et al. 2017, fig. 1): what was claimed, what came true."""
    series = [(say(f"{key}_short"), data[key], colour) for key, colour in (("before", COLOURS[1]), ("after", COLOURS[0]))]
    labels = [f"{name}: ECE {number(data['error'][key], 3)}" for (name, _, _), key in zip(series, ("before", "after"), strict=True)]
    note = f"{say(data['split'])}: {say('all_rows', n=format(data['after']['of'], ','))}"
    plot = Plot(
        say("reliability"), (0, 1), (0, 1), x_label=say(f"calibration_{data['after']['about']}"), y_label=say("accuracy_here"),
        note=note, height=360, legend_rows=legend_rows(labels),
    )  # fmt: skip
    plot.diagonal()
    for (name, one, colour), dash in zip(series, ("4 3", ""), strict=True):
        x, y = [b["confidence"] for b in one["bins"]], [b["accuracy"] for b in one["bins"]]
        plot.curve(x, y, colour, dash=dash, hover=name)
        plot.dots(x, y, colour, radius=4, opacity=1)
    return plot.svg("; ".join(labels), list(zip(labels, [colour for _, _, colour in series], strict=True)))


def coverage(data: Mapping[str, Any], say: Say) -> str:
    """The share measured on test rows with its interval, beside the line of what was promised."""
    low = min(data["low"], data["promised"])
    floor, top, bottom = max(0.0, low - 0.5 * (1 - low)), 56.0, 100.0
    labels = [f"{say('promised')} {number(data['promised'], 3)}", f"{say('measured')} {number(data['coverage'], 3)}"]

    def at(value: float) -> float:
        return 16 + 408 * (value - floor) / (1 - floor)

    reach = f"[{number(data['low'])}, {number(data['high'])}]"
    body = [line(at(floor), bottom, at(1), bottom, opacity=0.5)]
    for t in ticks(floor, 1):
        body += [line(at(t), bottom, at(t), bottom + 4, opacity=0.5), text(at(t), bottom + 17, number(t), anchor="middle", size=12, opacity=0.8)]
    middle = (top + bottom) / 2
    body += [
        line(at(data["promised"]), top, at(data["promised"]), bottom, colour=COLOURS[1], width=2, dash="4 3"),
        rect(at(data["low"]), middle - 4, at(data["high"]) - at(data["low"]), 8, COLOURS[0], opacity=0.35, hover=reach),
        f'<circle cx="{at(data["coverage"]):.1f}" cy="{middle:.1f}" r="5.5" fill="{COLOURS[0]}"/>',
    ]
    legend = legend_items(list(zip(labels, (COLOURS[1], COLOURS[0]), strict=True)), 440)
    note = f"{say('coverage_here')}; {say('all_rows', n=format(data['rows'], ','))}"
    return document(say("coverage"), f"{'; '.join(labels)} {reach}", [*legend, *body], 440, bottom + 46, note)


def tried(data: Mapping[str, Any], say: Say) -> str:
    """The criterion by number of groups (or cells along a direction) that were tried, with the one that was chosen marked."""
    known = [(float(k), float(v)) for k, v in data["tried"].items() if v is not None]
    known.sort()
    x, y = [k for k, _ in known], [v for _, v in known]
    chosen = float(data["cells"] if data["by"] == "cells" else data["groups"])
    pad = (max(y) - min(y)) * 0.08
    best = dict(known).get(chosen)
    labels = [say("chosen_groups", n=number(chosen), value=number(best, 3) if best is not None else "")]
    plot = Plot(
        say("groups_tried"), (min(x), max(x)), (min(y) - pad, max(y) + pad), x_label=say(f"tried_x_{data['by']}"), y_label=say(f"tried_y_{data['by']}"),
        height=280, legend_rows=legend_rows(labels),
    )  # fmt: skip
    plot.curve(x, y, COLOURS[0])
    plot.dots(x, y, COLOURS[0], radius=3.5, opacity=1)
    if best is not None:
        plot.body.append(line(plot.px(chosen), plot.top, plot.px(chosen), plot.bottom, opacity=0.5, dash="3 3"))
        plot.dots([chosen], [best], COLOURS[1], radius=7, opacity=1)
    return plot.svg("; ".join(f"{number(k)}: {number(v, 3)}" for k, v in known), [(labels[0], COLOURS[1])])


def tried_data(groups: Mapping[str, Any]) -> dict[str, Any] | None:
    """Data of the picture `groups_tried`, where more than one number of groups was tried."""
    numbers = {k: v for k, v in (groups.get("tried") or {}).items() if v is not None}
    if len(numbers) < 2 or groups["by"] not in ("silhouette", "bic", "cells"):
        return None
    return {"by": groups["by"], "groups": groups["groups"], "cells": groups.get("cells"), "tried": numbers}
