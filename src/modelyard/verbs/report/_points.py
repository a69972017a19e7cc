"""Point pictures: predictions against truth, residuals, clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modelyard.verbs.report._svg import COLOURS, MUTED, Plot, legend_rows, line
from modelyard.verbs.report._words import Say


def predicted_true(data: Mapping[str, Any], say: Say) -> str:
    """Prediction over truth with the diagonal, on equal scales."""
    ends = _ends([*data["x"], *data["y"]])
    plot = Plot(
        say("predicted_true"),
        ends,
        ends,
        x_label=say("truth"),
        y_label=say("prediction"),
        note=_note(data, say),
        height=380,
    )
    _marks(plot, data)
    plot.diagonal()
    return plot.svg(_note(data, say))


def residuals(data: Mapping[str, Any], say: Say) -> str:
    """Truth minus prediction over the prediction: a good model leaves no pattern around the zero line."""
    plot = Plot(
        say("residuals"),
        _ends(data["x"]),
        _ends([*data["y"], 0.0]),
        x_label=say("prediction"),
        y_label=say("residual"),
        note=_note(data, say),
        height=340,
    )
    _marks(plot, data)
    plot.body.append(line(plot.left, plot.py(0), plot.right, plot.py(0), opacity=0.7, dash="4 4"))
    return plot.svg(_note(data, say))


def clusters(data: Mapping[str, Any], say: Say) -> str:
    """Rows along their two directions of largest variance, one colour per cluster; noise is grey."""
    ids = sorted(set(data["id"]), key=lambda i: (i < 0, i))
    names = [say("noise") if i < 0 else say("cluster", n=i) for i in ids]
    colours = [MUTED if i < 0 else COLOURS[k % len(COLOURS)] for k, i in enumerate(ids)]
    shown = len(ids) if len(ids) <= 12 else 12
    shares = [*data["explained"], 0.0, 0.0]
    axes = [say("direction", n=k + 1, share=f"{shares[k]:.0%}") for k in (0, 1)]
    note = (
        say("sampled", n=f"{len(data['x']):,}", of=f"{data['of']:,}")
        if data["of"] > len(data["x"])
        else _note(data, say)
    )
    plot = Plot(
        say("clusters"),
        _ends(data["x"]),
        _ends(data["y"]),
        x_label=axes[0],
        y_label=axes[1],
        note=note,
        legend_rows=legend_rows(names[:shown]),
        height=380,
    )
    for one, colour in zip(ids, colours, strict=True):
        inside = [k for k, i in enumerate(data["id"]) if i == one]
        plot.dots([data["x"][k] for k in inside], [data["y"][k] for k in inside], colour)
    return plot.svg(f"{len(ids)}; {note}", list(zip(names[:shown], colours, strict=False)))


def _marks(plot: Plot, data: Mapping[str, Any]) -> None:
    """Dots, or hexagons shaded by the logarithm of their count."""
    if "count" not in data:
        plot.dots(data["x"], data["y"], COLOURS[0])
        return
    rx = abs(plot.px(data["radius"][0]) - plot.px(0)) + 0.3
    ry = abs(plot.py(data["radius"][1]) - plot.py(0)) + 0.3
    most = math.log1p(max(data["count"]))
    corners = [(0, -1), (1, -0.5), (1, 0.5), (0, 1), (-1, 0.5), (-1, -0.5)]
    for x, y, count in zip(data["x"], data["y"], data["count"], strict=True):
        cx, cy = plot.px(x), plot.py(y)
        path = " ".join(f"{cx + rx * a:.1f},{cy + ry * b:.1f}" for a, b in corners)
        shade = 0.12 + 0.88 * math.log1p(count) / most
        plot.body.append(
            f'<polygon points="{path}" fill="{COLOURS[0]}" fill-opacity="{shade:.2f}">'
            f"<title>{count:,}</title></polygon>"
        )


def _ends(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    pad = (high - low) * 0.04
    return low - pad, high + pad


def _note(data: Mapping[str, Any], say: Say) -> str:
    return say("hexes" if "count" in data else "all_rows", n=f"{data['of']:,}")
