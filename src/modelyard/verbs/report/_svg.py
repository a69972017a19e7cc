"""SVG by hand: axes, marks, legends and text that stays text, in the reader's fonts and colours.

Text and lines are `currentColor`, so a picture follows the page into dark mode; series colours are mid-tones that
read on both. Pictures are 440 units wide, at which 13-unit text stays legible on a phone.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from html import escape

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#a3a323")
"""Series colours; beyond eight they repeat."""
MUTED = "#8b8f98"
FONT = "system-ui, 'Noto Sans', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
SIZE = 13


def number(value: float, digits: int = 4) -> str:
    """A short form for people: `0.9312`, `12,345`, `1.2e-05`."""
    if not math.isfinite(value):
        return "—"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        return f"{value:.{digits - 2}e}"
    if float(value).is_integer():
        return f"{int(value):,}"
    places = max(0, digits - 1 - math.floor(math.log10(size))) if size >= 1 else digits
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def width_of(text: str, size: float = SIZE) -> float:
    """Estimated width in units, for a wide font (DejaVu Sans): East Asian characters are one em, m and w 0.95, i and l 0.36, others 0.63."""
    return sum(_em(c) for c in text) * size


def _em(c: str) -> float:
    if unicodedata.east_asian_width(c) in "WF":
        return 1.0
    return 0.95 if c in "mwMW@%" else 0.36 if c in "ijlftrI.,:;'|!()[] " else 0.72 if c.isupper() else 0.63


def shorten(text: str, room: float, size: float = SIZE) -> str:
    """The text cut with an ellipsis to fit `room` units."""
    if width_of(text, size) <= room:
        return text
    while text and width_of(text + "…", size) > room:
        text = text[:-1]
    return text + "…"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside [low, high], steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= about)
    first = math.ceil(low / step - 1e-9)
    found: list[float] = []
    index = first
    while index * step <= high + span * 1e-9 and len(found) < 50:
        found.append(round(index * step, 12))
        index += 1
    return found


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    size: float = SIZE,
    room: float | None = None,
    turn: float = 0,
    weight: str = "",
    opacity: float = 1,
    colour: str = "",
) -> str:
    """A `<text>` element; cut to `room` with the whole text on hover."""
    shown = shorten(content, room, size) if room is not None else content
    hover = f"<title>{escape(content)}</title>" if shown != content else ""
    attributes = "".join(
        (
            f' text-anchor="{anchor}"' if anchor != "start" else "",
            f' font-size="{size:g}"' if size != SIZE else "",
            f' font-weight="{weight}"' if weight else "",
            f' opacity="{opacity:g}"' if opacity != 1 else "",
            f' fill="{colour}"' if colour else "",
            f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else "",
        )
    )
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(shown)}{hover}</text>'


def rect(x: float, y: float, w: float, h: float, colour: str, *, opacity: float = 1, hover: str = "") -> str:
    """A filled rectangle."""
    faint = f' fill-opacity="{opacity:.3g}"' if opacity != 1 else ""
    inner = f"<title>{escape(hover)}</title>" if hover else ""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0, w):.1f}" height="{max(0, h):.1f}"'
    return f'<rect {place} fill="{colour}"{faint}>{inner}</rect>'


def line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    opacity: float = 1,
    width: float = 1,
    colour: str = "currentColor",
    dash: str = "",
) -> str:
    """A straight line."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"'
        f' stroke-opacity="{opacity:g}"{dashed}/>'
    )


def document(title: str, description: str, body: Sequence[str], width: float, height: float, note: str = "") -> str:
    """The `<svg>` element with an accessible name, the title on top and a note at the bottom."""
    parts = [text(0, 16, title, weight="600", size=14, room=width)]
    if note:
        parts.append(text(0, height - 4, note, size=12, opacity=0.75, room=width))
    wide = f' style="min-width:{width:.0f}px"' if width > 480 else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"{wide}'
        f' font-family="{FONT}" font-size="{SIZE}" fill="currentColor">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}{''.join(body)}</svg>"
    )


def standalone(svg: str) -> str:
    """The same as a file of its own that follows the reader's light or dark mode."""
    style = "<style>@media (prefers-color-scheme:dark){:root{color:#e5e7eb;background:#14161a}}</style>"
    return svg.replace("<title>", f"{style}<title>", 1) + "\n"


class Plot:
    """Axes with a linear or logarithmic scale, to which marks are added in data units."""

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        x_label: str = "",
        y_label: str = "",
        width: float = 440,
        height: float = 320,
        log_x: bool = False,
        log_y: bool = False,
        note: str = "",
        legend_rows: int = 0,
    ) -> None:
        self.title, self.note, self.width, self.height = title, note, width, height
        self.log_x, self.log_y = log_x, log_y
        self.x, self.y = _widen(x, log_x), _widen(y, log_y)
        self.y_ticks = _log_ticks(*self.y) if log_y else ticks(*self.y)
        self.left = 12 + (16 if y_label else 0) + max((width_of(number(t), 12) for t in self.y_ticks), default=20)
        self.right, self.top = width - 14, 30 + 18 * legend_rows
        self.bottom = height - 24 - (18 if x_label else 0) - (18 if note else 0)
        self.body: list[str] = []
        self._axes(x_label, y_label)

    def px(self, x: float) -> float:
        """Data to picture units, horizontally."""
        return self.left + _place(x, *self.x, self.log_x) * (self.right - self.left)

    def py(self, y: float) -> float:
        """Data to picture units, vertically."""
        return self.bottom - _place(y, *self.y, self.log_y) * (self.bottom - self.top)

    def _axes(self, x_label: str, y_label: str) -> None:
        for t in self.y_ticks:
            self.body.append(line(self.left, self.py(t), self.right, self.py(t), opacity=0.13))
            self.body.append(text(self.left - 6, self.py(t) + 4, number(t), anchor="end", size=12, opacity=0.8))
        for t in _log_ticks(*self.x) if self.log_x else ticks(*self.x):
            self.body.append(line(self.px(t), self.bottom, self.px(t), self.bottom + 4, opacity=0.5))
            self.body.append(text(self.px(t), self.bottom + 17, number(t), anchor="middle", size=12, opacity=0.8))
        self.body.append(line(self.left, self.bottom, self.right, self.bottom, opacity=0.5))
        if x_label:
            self.body.append(
                text((self.left + self.right) / 2, self.bottom + 35, x_label, anchor="middle", opacity=0.8)
            )
        if y_label:
            self.body.append(text(12, (self.top + self.bottom) / 2, y_label, anchor="middle", turn=-90, opacity=0.8))

    def curve(
        self,
        x: Sequence[float],
        y: Sequence[float],
        colour: str,
        *,
        dash: str = "",
        hover: str = "",
        step: bool = False,
    ) -> None:
        """A line through the finite points; it breaks where a value is missing."""
        path: list[str] = []
        pen = "M"
        for a, b in zip(x, y, strict=True):
            if b is None or not math.isfinite(b) or (self.log_y and b <= 0):
                pen = "M"
                continue
            if step and pen == "L":
                path.append(f"H{self.px(a):.1f}")
            path.append(f"{pen}{self.px(a):.1f} {self.py(b):.1f}")
            pen = "L"
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.body.append(
            f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{dashed}>'
            f"<title>{escape(hover)}</title></path>"
        )

    def dots(
        self, x: Sequence[float], y: Sequence[float], colour: str, *, radius: float = 2.2, opacity: float = 0.55
    ) -> None:
        """Circles, as one path of zero-length strokes: a tenth of the bytes of `<circle>` elements."""
        path = "".join(f"M{self.px(a):.1f} {self.py(b):.1f}h0" for a, b in zip(x, y, strict=True))
        self.body.append(
            f'<path d="{path}" stroke="{colour}" stroke-width="{2 * radius:g}" stroke-linecap="round"'
            f' stroke-opacity="{opacity:g}"/>'
        )

    def diagonal(self) -> None:
        """Where x equals y."""
        low, high = max(self.x[0], self.y[0]), min(self.x[1], self.y[1])
        if low < high:
            self.body.append(line(self.px(low), self.py(low), self.px(high), self.py(high), opacity=0.5, dash="4 4"))

    def svg(self, description: str, legend: Sequence[tuple[str, str]] = ()) -> str:
        """The finished picture; `legend` is (label, colour) pairs."""
        return document(
            self.title, description, [*self.body, *legend_items(legend, self.width)], self.width, self.height, self.note
        )


def legend_rows(labels: Sequence[str], width: float = 440) -> int:
    """Rows that a legend of these labels takes."""
    return 1 + max((row for row, *_ in _legend_places(labels, width)), default=-1)


def legend_items(legend: Sequence[tuple[str, str]], width: float) -> list[str]:
    """Swatches and labels below the title, wrapped."""
    items = []
    for (label, colour), (row, x, room) in zip(legend, _legend_places([e[0] for e in legend], width), strict=True):
        y = 27 + 18 * row
        items += [rect(x, y, 10, 10, colour), text(x + 15, y + 10, label, size=12, room=room)]
    return items


def _legend_places(labels: Sequence[str], width: float) -> list[tuple[int, float, float]]:
    places: list[tuple[int, float, float]] = []
    row, x = 0, 0.0
    for label in labels:
        room = min(width_of(label, 12), width * 0.6)
        if x and x + 15 + room > width:
            row, x = row + 1, 0.0
        places.append((row, x, room + 1))
        x += 15 + room + 14
    return places


def _widen(ends: tuple[float, float], log: bool) -> tuple[float, float]:
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high)):
        return (0.1, 1.0) if log else (0.0, 1.0)
    if low == high:
        return (low / 2, high * 2) if log else (low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05)
    return low, high


def _place(v: float, low: float, high: float, log: bool) -> float:
    if log:
        return (math.log10(max(v, low * 1e-3)) - math.log10(low)) / (math.log10(high) - math.log10(low))
    return (v - low) / (high - low)


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [m * 10.0**p for p in range(first, last + 1) for m in steps if low <= m * 10.0**p <= high * (1 + 1e-9)]
