"""The confusion matrix: with digits up to 40 classes, as a heat map beyond."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.verbs.report._svg import COLOURS, document, rect, text, width_of
from modelyard.verbs.report._words import Say

WITH_DIGITS = 40


def confusion(data: Mapping[str, Any], say: Say) -> str:
    """Shade is the share of the row (the truth): right answers in green, wrong ones in red."""
    labels, matrix = [str(x) for x in data["labels"]], data["matrix"]
    k = len(labels)
    digits = k <= WITH_DIGITS
    widest = max((len(f"{int(v):,}") for row in matrix for v in row), default=1)
    cell = max(22.0, min(56.0, 8.0 * widest + 10)) if digits else max(2.0, 430.0 / k)
    if digits and k * cell < 260:
        cell = 260 / k
    room = min(130.0, max((width_of(x, 12) for x in labels), default=20) + 6) if digits else 8.0
    flat = digits and all(width_of(x, 12) <= cell - 4 for x in labels)
    top = 30 + ((18 if flat else room) if digits else 4)
    body = _cells(labels, matrix, room, top, cell, digits)
    if digits:
        for i, label in enumerate(labels):
            middle = i * cell + cell / 2
            body.append(text(room - 4, top + middle + 4, label, anchor="end", size=12, room=room - 4))
            if flat:
                body.append(text(room + middle, top - 6, label, anchor="middle", size=12))
            else:
                body.append(text(room + middle + 4, top - 5, label, size=12, room=room - 4, turn=-90))
    note, described = say("confusion_note"), _most(labels, matrix, say)
    width = max(440.0, room + k * cell + 4)
    if not digits:
        body.append(text(0, top + k * cell + 18, described, size=11, opacity=0.8, room=width))
    return document(say("confusion"), described, body, width, top + k * cell + (42 if not digits else 24), note)


def _cells(
    labels: list[str], matrix: list[list[float]], left: float, top: float, cell: float, digits: bool
) -> list[str]:
    body = [rect(left, top, len(labels) * cell, len(labels) * cell, "currentColor", opacity=0.05)]
    size = min(13.0, cell * 0.5)
    for i, row in enumerate(matrix):
        total = sum(row)
        for j, count in enumerate(row):
            if not count:
                continue
            share = count / total
            hover = f"{labels[i]} → {labels[j]}: {count:,} ({share:.1%})" if digits or i != j else ""
            colour = COLOURS[2] if i == j else COLOURS[3]
            gap = 1 if digits else 0
            body.append(
                rect(
                    left + j * cell,
                    top + i * cell,
                    cell - gap,
                    cell - gap,
                    colour,
                    opacity=0.07 + 0.83 * share,
                    hover=hover,
                )
            )
            if digits:
                x, y = left + (j + 0.5) * cell, top + (i + 0.5) * cell + size * 0.36
                shown = f"{count:,}" if float(count).is_integer() else f"{count:.1f}"
                body.append(text(x, y, shown, anchor="middle", size=round(size, 1)))
    return body


def _most(labels: list[str], matrix: list[list[float]], say: Say) -> str:
    wrong = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count]
    wrong.sort(key=lambda w: (-w[0], w[1], w[2]))
    pairs = ", ".join(f"{labels[i]} → {labels[j]} ({count:,})" for count, i, j in wrong[:3]) or "—"
    return say("confusion_most", n=len(labels), pairs=pairs)
