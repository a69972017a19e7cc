"""Line pictures: learning curves, ROC, precision-recall and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.verbs.report._svg import COLOURS, MUTED, Plot, legend_rows, line, number, rect
from modelyard.verbs.report._words import Say

_NOT_METRICS = {
    "epoch",
    "step",
    "steps",
    "time",
    "seconds",
    "rows",
    "examples",
    "rows_per_second",
    "examples_per_second",
    "best",
}


def learning_data(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`{learning_curve, metric_curve, rate_curve}` from the epoch events of a run.

    Of every event with an `epoch`, nested numbers are flattened (`valid: {accuracy: 0.9}` → `valid.accuracy`);
    names with
    `loss` are losses, `lr` and `learning_rate` are rates, the rest are metrics. The best epoch is the last one marked
    `best: true`. More than 500 epochs are thinned evenly.
    """
    epochs = [e for e in events if isinstance(e.get("epoch"), int | float) and len(_flat(e)) > 1]
    if len(epochs) > 500:
        epochs = [epochs[round(i * (len(epochs) - 1) / 499)] for i in range(500)]
    flat = [_flat(e) for e in epochs]
    names = list(dict.fromkeys(name for row in flat for name in row if name.split(".")[-1] not in _NOT_METRICS))
    marked = [e["epoch"] for e in epochs if e.get("best") is True]
    groups: dict[str, list[str]] = {"learning_curve": [], "metric_curve": [], "rate_curve": []}
    for name in names:
        last = name.split(".")[-1]
        group = (
            "rate_curve" if last in ("lr", "learning_rate") else "learning_curve" if "loss" in last else "metric_curve"
        )
        groups[group].append(name)
    found: dict[str, dict[str, Any]] = {}
    for group, members in groups.items():
        series = [{"label": name, "y": [row.get(name) for row in flat]} for name in members]
        if series and len(epochs) > 1:
            found[group] = {"x": [e["epoch"] for e in epochs], "series": series, "best": marked[-1] if marked else None}
    return found


def _flat(event: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in event.items():
        if isinstance(value, Mapping):
            out |= _flat({"value": value["value"]} if "value" in value else value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[(prefix + key).removesuffix(".value")] = float(value)
    return out


def learning(data: Mapping[str, Any], say: Say, title: str) -> str:
    """Lines over epochs; a logarithmic axis where losses span more than a factor of 50."""
    series = data["series"][: len(COLOURS)]
    finite = [v for s in series for v in s["y"] if v is not None and math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    log = title in ("learning_curve", "rate_curve") and low > 0 and high / low > 50
    pad = 0 if log else (high - low) * 0.04
    labels = [s["label"] for s in series]
    plot = Plot(
        say(title),
        (min(data["x"]), max(data["x"])),
        (low - pad, high + pad),
        x_label=say("epoch"),
        log_y=log,
        legend_rows=legend_rows(labels),
        note=say("best_epoch", n=number(data["best"])) if data.get("best") is not None else "",
    )
    if data.get("best") is not None:
        plot.body.append(
            line(plot.px(data["best"]), plot.top, plot.px(data["best"]), plot.bottom, opacity=0.5, dash="3 3")
        )
    for colour, one in zip(COLOURS, series, strict=False):
        plot.curve(data["x"], one["y"], colour, hover=one["label"])
    ends = "; ".join(f"{s['label']} {number(_last(s['y']))}" for s in series)
    return plot.svg(f"{say('epoch')} {number(data['x'][-1])}: {ends}", list(zip(labels, COLOURS, strict=False)))


def _last(values: Sequence[float | None]) -> float:
    return next((v for v in reversed(values) if v is not None), math.nan)


def roc(data: Mapping[str, Any], say: Say) -> str:
    """ROC curves of up to eight classes against the rest."""
    return _unit_curves(data, say, "roc", "false_positive_rate", "true_positive_rate")


def pr(data: Mapping[str, Any], say: Say) -> str:
    """Precision over recall; dashed: the share of the class, which guessing reaches."""
    return _unit_curves(data, say, "pr", "recall", "precision")


def _unit_curves(data: Mapping[str, Any], say: Say, name: str, x: str, y: str) -> str:
    curves = data["curves"]
    labels = [f"{c['label']} {number(c['value'], 3)}" for c in curves]
    note = (
        say("most_frequent", n=len(curves), of=data["of"])
        if data["of"] > len(curves)
        else say("all_rows", n=f"{data['rows']:,}")
    )
    plot = Plot(
        say(name),
        (0, 1),
        (0, 1),
        x_label=say(x),
        y_label=say(y),
        note=note,
        legend_rows=legend_rows(labels),
        height=360,
    )
    if name == "roc":
        plot.diagonal()
    for colour, c in zip(COLOURS, curves, strict=False):
        if name == "pr" and len(curves) <= 2:
            plot.body.append(
                line(
                    plot.px(0),
                    plot.py(c["prior"]),
                    plot.px(1),
                    plot.py(c["prior"]),
                    opacity=0.6,
                    dash="4 4",
                    colour=colour,
                )
            )
        plot.curve(c["x"], c["y"], colour, hover=c["label"])
    return plot.svg("; ".join(labels), list(zip(labels, COLOURS, strict=False)))


def calibration(data: Mapping[str, Any], say: Say) -> str:
    """Reliability diagram: what was claimed against what came true, over bars of how many rows claimed it."""
    bins = data["bins"]
    plot = Plot(
        say("calibration"),
        (0, 1),
        (0, 1),
        x_label=say(f"calibration_{data['about']}"),
        y_label=say("accuracy_here"),
        note=say("calibration_note"),
        height=360,
    )
    most = max((b["count"] for b in bins), default=1)
    total = sum(b["count"] for b in bins)
    for b in bins:
        left = plot.px(max(0.0, math.ceil(b["confidence"] * 15 - 1e-9) - 1) / 15)
        height = (plot.bottom - plot.top) * 0.3 * b["count"] / most
        hover = f"{b['count']:,} ({b['count'] / total:.1%})"
        plot.body.append(
            rect(
                left + 1,
                plot.bottom - height,
                plot.px(1 / 15) - plot.px(0) - 2,
                height,
                MUTED,
                opacity=0.45,
                hover=hover,
            )
        )
    plot.diagonal()
    x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    plot.curve(x, y, COLOURS[0])
    plot.dots(x, y, COLOURS[0], radius=4, opacity=1)
    return plot.svg(
        "; ".join(f"{number(b['confidence'], 2)} → {number(b['accuracy'], 2)} ({b['count']:,})" for b in bins)
    )
