"""Progress on stderr: a bar where a person watches, nothing where no one does."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import IO, Any


def colours(stream: IO[str]) -> bool:
    """Whether to colour: NO_COLOR and TERM=dumb forbid it, FORCE_COLOR wants it, else a terminal decides."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or _terminal(stream)


def bars(stream: IO[str] | None = None) -> bool:
    """Whether a line may be drawn over itself: a terminal that is not dumb, and no NO_COLOR."""
    dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return not dumb and _terminal(stream or sys.stderr)


def _terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


class Bar:
    """One line, drawn at most ten times a second; silent with `quiet` or without a terminal.

    >>> with Bar("reading", total=2, quiet=True) as bar:
    ...     bar.step()
    """

    def __init__(
        self, label: str, total: float | None = None, quiet: bool = False, stream: IO[str] | None = None
    ) -> None:
        self.label, self.total, self.stream = label, total, stream or sys.stderr
        self.on = not quiet and bars(self.stream)
        self.done, self.began, self.drawn, self.text = 0.0, time.monotonic(), 0.0, ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.on and self.drawn:
            self.stream.write("\r\033[K")
            self.stream.flush()

    def step(self, by: float = 1, text: str = "") -> None:
        """`by` more of `total` are done; `text` stands at the end of the line."""
        self.update(self.done + by, text)

    def update(self, done: float, text: str = "") -> None:
        """`done` of `total` are done."""
        self.done, self.text = done, text or self.text
        now = time.monotonic()
        if self.on and (now - self.drawn > 0.1 or done == self.total):
            self.drawn = now
            self.stream.write("\r\033[K" + self.line(now - self.began, shutil.get_terminal_size().columns - 1))
            self.stream.flush()

    def line(self, seconds: float, width: int) -> str:
        """The text of the line: label, bar, share, time left."""
        if not self.total:
            return f"{self.label} {self.done:g} {self.text}"[:width]
        share = min(1.0, self.done / self.total)
        left = f" {seconds * (1 - share) / share:.0f}s left" if 0 < share < 1 else ""
        full = round(20 * share)
        return f"{self.label} {'━' * full}{'─' * (20 - full)} {share:4.0%}{left} {self.text}"[:width]
