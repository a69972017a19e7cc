"""The study on disk: `trials.jsonl`, appended to and never rewritten, each line fsynced before anything depends on it.

    {"event": "study", "format": 1, …what must stay the same for the study to go on}
    {"event": "asked", "trial": 0, "params": {…}}                        before the trial begins
    {"event": "scored", "trial": 0, "rung": 0, "value": …}               where trials are cut: after each rung
    {"event": "finished", "trial": 0, "state": "complete", "value": …}   after its model is saved and scored

A kill can cut the last line only; it is then no whole JSON object, and is dropped before the next line is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError
from modelyard.store import atomic

FORMAT = 1


class Journal:
    """One file, one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All whole lines. Raises `ArtefactError` where a line before the last is none: that is damage, not a kill."""
        if not self.path.is_file():
            return []
        *lines, tail = self.path.read_bytes().split(b"\n")
        found = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                assert isinstance(entry, dict)
            except (ValueError, AssertionError):
                if number == len(lines) and not tail:  # a block of zeros after a power cut may end in a newline
                    break
                raise ArtefactError(f"{self.path}:{number} is damaged; restore the file from a backup, or start a new study") from None
            found.append(entry)
        return found

    def mend(self) -> None:
        """Cuts off what a kill left of a line, so that the next one begins on a line of its own."""
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = sum(len(line) + 1 for line in content.split(b"\n")[: len(self.read())])
        if whole < len(content):
            atomic.watch("truncate", self.path)
            os.truncate(self.path, whole)
            atomic.sync(self.path)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a line; when this returns it survives a power cut."""
        new = not self.path.exists()
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        atomic.watch("append", self.path)
        with self.path.open("ab", buffering=0) as file:
            while line:
                line = line[file.write(line) :]
            atomic.watch("fsync", self.path)
            os.fsync(file.fileno())
        if new:
            atomic.sync(self.path.parent)


def trials(entries: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Each trial with what is known of it: `params`, `scores` by rung, and once it is finished `state`, `value` and the rest."""
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        number, rest = int(entry.get("trial", -1)), {k: v for k, v in entry.items() if k not in ("event", "clock", "rung")}
        if entry["event"] == "asked":
            found.setdefault(number, {**rest, "scores": {}, "seconds": 0.0, "epochs": 0})
        elif entry["event"] == "scored":
            scores = {**found[number]["scores"], int(entry["rung"]): entry["value"]}
            found[number] |= {**{k: v for k, v in rest.items() if k != "value"}, "scores": scores}
        elif entry["event"] == "finished":
            found[number] |= {**rest, "scores": {int(rung): value for rung, value in entry["scores"]}}
    return found
