"""Forms of one model and others beside it, on the same rows: answers, metric and times in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard import registry
from modelyard.errors import MissingExtra, ModelyardError, ParityError, Unsupported
from modelyard.runtime.answers import compare
from modelyard.runtime.model import Model
from modelyard.tasks._binding import Bound
from modelyard.verbs.benchmark import MODEL, refused
from modelyard.verbs.evaluate import judge
from modelyard.verbs.export import export

if TYPE_CHECKING:
    from modelyard.verbs.benchmark import Config

FEWEST = 5
"""Times that are taken even where one of them takes long."""


class Comparison:
    """Takes models one by one; `measured` judges and times all of them."""

    def __init__(self, model: Model, bound: Bound, split: str, output: str, metric: str, config: Config) -> None:
        self.model, self.output, self.metric, self.config = model, output, metric, config
        self.split, self.bound = split, replace(bound, splits={**bound.splits, split: bound.splits[split].head(config.rows)})
        self.frame = self.bound.splits[split].select([c.name for c in bound.pipeline.inputs])
        self.rows = self.frame.height
        self.entries: list[dict[str, Any]] = []
        self.models: dict[int, Model] = {}
        """By place in `entries`."""
        self._add(MODEL, model, _size(model.folder), model.parity.to_json() if model.parity else {})

    def form(self, name: str, place: Path, trust_code: bool) -> None:
        """Exports the model and takes what runs; a form of which only files are made is listed with what they hold."""
        module = registry.load("verbs/export", name)
        try:
            made = export(self.model.folder, name, trust_code=trust_code, into=place)
            if hasattr(module, "opened"):
                self._add(name, module.opened(self.model, place), made.bytes, made.parity)
            elif hasattr(module, "make"):
                self.entries.append({"form": name, "refused": f"{made.bytes:,} bytes for other programs, which are not run here", "why": "files"})
            else:
                self._add(name, Model.load(place, trust_code=trust_code), made.bytes, made.parity)
        except (Unsupported, ParityError, MissingExtra) as error:
            self.entries.append(refused(name, error))

    def other(self, name: str, trust_code: bool) -> None:
        """Takes another model. Raises `Unsupported` where it answers other columns."""
        from modelyard.store.run import model_folder

        folder = Path(name) if (Path(name) / "manifest.json").is_file() else model_folder(name, Path("runs"))
        other = Model.load(folder, trust_code=trust_code)
        columns = [[(c.name, c.kind) for c in side] for m in (self.model, other) for side in (m.pipeline.inputs, m.pipeline.outputs)]
        if not set(columns[2]) <= set(columns[0]) or columns[1] != columns[3]:
            raise Unsupported(f"{name} reads {columns[2]} and answers {columns[3]}, and {self.model.name} {columns[0]} and {columns[1]}", "never")
        self._add(name, other, _size(folder), other.parity.to_json() if other.parity else {})

    def _add(self, name: str, model: Model, size: int, parity: dict[str, Any]) -> None:
        self.models[len(self.entries)] = model
        self.entries.append({"form": name, "version": model.version, "backend": model.backend, "bytes": size, "parity": parity})

    def measured(self) -> list[dict[str, Any]]:
        """The entries, with answers, metric and times; one whose runtime fails on the rows is refused with the reason."""
        first = self.model.predict(self.frame)
        for place, model in list(self.models.items()):
            entry = self.entries[place]
            try:
                answers = first if model is self.model else model.predict(self.frame)
                found = compare(first, answers, self.model.pipeline.scales())
                outputs = judge(model, self.bound, [self.split], [self.metric]).splits[self.split]
                value = outputs[self.output]["metrics"][self.metric]
                entry |= {"value": value, "differing": len(found.differing), "largest": found.max_difference, "ties": found.ties}
            except ModelyardError as error:
                self.entries[place] = refused(entry["form"], error)
                del self.models[place]
        rows = self.frame.head(self.config.batch).to_dicts()
        rows = [rows[i % len(rows)] for i in range(self.config.batch)]
        models = list(self.models.values())
        one = taken([lambda m=m: m.predict(rows[:1]) for m in models], self.config.seconds)  # type: ignore[misc]
        many = taken([lambda m=m: m.predict(rows) for m in models], self.config.seconds)  # type: ignore[misc]
        for place, a, b in zip(self.models, one, many, strict=True):
            speeds = {"median": b["median"], "low": b["high"], "high": b["low"]}
            self.entries[place] |= {
                "milliseconds": {k: 1e3 * v for k, v in a.items()}, "rows_per_second": {k: len(rows) / v for k, v in speeds.items()},
            }  # fmt: skip
        return self.entries


def taken(works: list[Callable[[], Any]], seconds: float) -> list[dict[str, float]]:
    """Seconds of each work as `{median, low, high}`, in turns; the interval is the 95 % one of the median, from the order of the times (binomial:
    David & Nagaraja 2003, Order Statistics, 7.1)."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < end or len(times[0]) < FEWEST:
        for found, work in zip(times, works, strict=True):
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    count = len(times[0])
    apart = int(np.ceil(0.98 * np.sqrt(count)))  # 1.96 deviations of a count of halves
    low, high = max(0, count // 2 - apart), min(count - 1, (count + 1) // 2 + apart - 1)
    return [{"median": float(np.median(t)), "low": float(sorted(t)[low]), "high": float(sorted(t)[high])} for t in times]


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
