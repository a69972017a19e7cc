"""A run folder: what was asked, what happened, what came out. Nothing in it is ever overwritten by another run.

config.yaml     resolved settings with the origin of each value
run.json        verb, versions, machine, data fingerprint, times, state
events.jsonl    one JSON object per event of training
metrics.json    metrics by split and output
checkpoints/ samples/ plots/ model/ report.html
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError
from modelyard.settings import without_password
from modelyard.store import atomic

PACKAGES = ("modelyard", "numpy", "polars", "torch", "lightgbm", "scikit-learn", "onnxruntime", "tokenizers", "pillow")


@dataclass
class Run:
    """One run on disk."""

    folder: Path

    @classmethod
    def create(cls, runs: Path, name: str) -> Run:
        """A new folder `<name>-0001`, the next free number; safe against two processes starting together."""
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-.").encode("utf-8")[:120].decode("utf-8", "ignore") or "run"  # file names end at 255
        runs.mkdir(parents=True, exist_ok=True)
        taken = [int(m[1]) for p in runs.iterdir() if (m := re.fullmatch(rf"{re.escape(slug)}-(\d+)", p.name))]
        number = max(taken, default=0) + 1
        while True:
            folder = runs / f"{slug}-{number:04d}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        run = cls(folder)
        run.write("run.json", {"state": "started", "started": now(), "argv": [without_password(a) for a in sys.argv[1:]], "machine": machine()})
        (runs / "latest.txt").write_text(folder.name + "\n", encoding="utf-8")
        return run

    @classmethod
    def find(cls, runs: Path, name: str | None) -> Run:
        """The run of that name or path; the latest where no name is given."""
        if name and (Path(name) / "run.json").is_file():
            return cls(Path(name))
        if name is None and (runs / "latest.txt").is_file():
            name = (runs / "latest.txt").read_text(encoding="utf-8").strip()
        if not name or not (runs / name / "run.json").is_file():
            known = sorted(p.name for p in runs.glob("*/") if (p / "run.json").is_file()) if runs.is_dir() else []
            raise ArtefactError(f"no run {name or 'at all'} in {runs}; there are: {', '.join(known) or 'none'}")
        return cls(runs / name)

    @property
    def name(self) -> str:
        """Folder name."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """The model folder of this run."""
        return self.folder / "model"

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file, replaced in one step; NaN (an undefined metric) becomes null, since JSON has none."""
        text = json.dumps(_finite(value), ensure_ascii=False, indent=1, default=str, allow_nan=False) + "\n"
        atomic.replace_file(self.folder / name, text.encode("utf-8"))

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of this run; empty where it was never written."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def update(self, **facts: Any) -> None:
        """Adds facts to `run.json`."""
        self.write("run.json", {**self.read("run.json"), **facts})

    def event(self, event: Mapping[str, Any]) -> None:
        """Appends one line to `events.jsonl`."""
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now(), **event}, ensure_ascii=False, default=str) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """All events; a last line cut short by a kill is left out."""
        path = self.folder / "events.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(), "versions": versions()}


def model_folder(given: str | Path | None, runs: Path) -> Path:
    """The model folder that a user means: a model, an export, a run folder, a run's name, `models:/NAME@ALIAS`, or the latest run's model.

    Raises `ArtefactError` naming what there is.
    """
    if given is not None:
        if str(given).startswith("models:"):
            from modelyard.store.registry import resolve

            if (registered := resolve(str(given))) is not None:
                return registered
        path = Path(given)
        for found in (path, path / "model"):
            if (found / "manifest.json").is_file():
                return found
        if path.exists() and not (path / "run.json").is_file():
            raise ArtefactError(f"{given} is neither a model folder (with manifest.json) nor a run folder (with run.json)")
    run = Run.find(runs, None if given is None else str(given))
    if not (run.model / "manifest.json").is_file():
        raise ArtefactError(
            f"{run.folder} holds no model: its state is {run.read('run.json').get('state', 'unknown')}; train it to the end with --resume"
        )
    return run.model
