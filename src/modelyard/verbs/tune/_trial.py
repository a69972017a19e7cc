"""One trial: the settings are applied, a model is fitted on train, saved, loaded back and scored on valid. Test rows are never asked.

A trial advances rung by rung; between rungs its state lies in its folder, so that any process may take it further.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelyard import registry, settings
from modelyard.data.source import DataConfig, Source
from modelyard.data.table import Table
from modelyard.errors import ConfigError, ModelyardError, Problem
from modelyard.runtime.model import Model
from modelyard.store import atomic
from modelyard.store.run import Run
from modelyard.tasks._binding import Bound, bind
from modelyard.verbs.evaluate import score
from modelyard.verbs.train import fit
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.cross_validation import cut
from modelyard.verbs.tune._space import Settings, applied

STATE = "trial.json"


class Paced(Run):
    """The run of a trial: stops a net after the epoch where its rung ends, or when the time of the search is over."""

    def __init__(self, folder: Path, share: float, deadline: float | None) -> None:
        super().__init__(folder)
        self.share, self.deadline = share, deadline
        self.stop = threading.Event()
        self.epochs, self.whole, self.late = 0, 0, False

    def event(self, event: Mapping[str, Any]) -> None:
        """Keeps the event; after an epoch it may set `stop`."""
        super().event(event)
        if event.get("event") != "epoch":
            return
        self.epochs = int(event["epoch"])
        self.whole = max(self.epochs, round(event["steps"] * event["epoch"] / event["step"]))
        self.late = self.deadline is not None and time.monotonic() > self.deadline
        if self.epochs < self.whole and (self.late or self.epochs >= target(self.whole, self.share)):
            self.stop.set()


def target(whole: int, share: float) -> int:
    """Epochs or rounds at a rung: at least one."""
    return max(1, round(whole * share))


@dataclass
class Course:
    """What every trial of a search shares. All fields but the last two are plain JSON values, so that workers can be told."""

    data: dict[str, Any]
    task: str | None
    model: Any
    train: dict[str, Any]
    base: str
    folder: str
    name: str
    seed: int
    """Draws the split: the same for every trial."""
    metric: str
    output: str
    positive: str | None
    rungs: int
    eta: int
    device: str = "cpu"
    fold: list[int] | None = None
    """[repeat, fold] of a nested search: its trials see the rows of this fold, of which `test` is held out."""
    source: Source | None = None
    bounds: dict[str, Bound] = field(default_factory=dict, repr=False)
    """Bound data by its settings; more than one where `data.` is searched."""

    def place(self, number: int) -> Path:
        """Folder of a trial."""
        return Path(self.folder) / "trials" / f"{number:04d}"

    def settings(self, params: Mapping[str, Any]) -> Settings:
        """The settings of a trial."""
        return applied(Settings(self.model, self.train, self.data), params)

    def bound(self, data: Mapping[str, Any]) -> Bound:
        """The data as these settings bind it; read once, bound once for each `data` section."""
        key = json.dumps(data, sort_keys=True, default=str)
        if key not in self.bounds:
            problems: list[Problem] = []
            config = settings.parse(DataConfig, data, "data", problems)
            if problems:
                raise ConfigError("the data section of this trial has mistakes", problems)
            if len(self.bounds) >= 4:  # each holds its own frames; the first is the project's
                self.bounds.pop(list(self.bounds)[1])
            found = bind(config, self.task, Path(self.base), seed=self.seed, source=self.source)
            if self.source is None and config.env is None and not config.stream:
                self.source = found.source
            self.bounds[key] = found if self.fold is None else self.cut(found, config)
        return self.bounds[key]

    def cut(self, bound: Bound, data: DataConfig) -> Bound:
        """The rows of this course's fold."""
        assert self.fold is not None
        return cut(bound, data.split, settings.parse(TrainConfig, self.train, "train", []), *self.fold)

    def advance(self, number: int, params: Mapping[str, Any], rung: int | None, left: float | None = None) -> dict[str, Any]:
        """Takes a trial to the end of a rung (None: to its end) and scores it.

        `{value, epochs, of, unit, late, seconds}`: `of` is what the whole trial would take, 0 where it cannot be stopped early;
        or `{error, seconds}` with the reason why it failed. `left` is what remains of the search's time, in seconds.
        """
        began = time.monotonic()
        try:
            found = self._advance(number, params, rung, None if left is None else began + left)
        except ModelyardError as error:
            found = {"error": " · ".join(dict.fromkeys([error.message, *(str(d) for d in error.details[:3])]))}
        except Exception as error:  # one that a library raised for these settings; the search goes on and shows it
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        return {**found, "seconds": round(time.monotonic() - began, 3)}

    def _advance(self, number: int, params: Mapping[str, Any], rung: int | None, deadline: float | None) -> dict[str, Any]:
        folder = self.place(number)
        fresh = not rung or not (folder / STATE).is_file()
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        own = self.settings(params)
        problems: list[Problem] = []
        config = settings.parse(TrainConfig, own.train, "train", problems)
        if problems:
            raise ConfigError("the train section of this trial has mistakes", problems)
        config = replace(config, smoke=False)  # the project's own settings passed it, or will when the best is trained on
        bound = self.bound(own.data)
        share = 1.0 if rung is None else float(self.eta) ** (rung - self.rungs + 1)
        before = {} if fresh else json.loads((folder / STATE).read_text(encoding="utf-8"))
        if before and (before["ended"] or before["epochs"] >= target(before["of"], share)):
            return {**before, "again": True}  # stopped by its patience, or so short that two rungs are one epoch
        kind, setting, whole = resource(own.model, bound, Path(self.base))
        model, run = own.model, Paced(folder, share, deadline)
        if setting:  # an estimator has no checkpoint: it begins again with more
            model = {**(model if isinstance(model, Mapping) else {"name": model}), setting: target(whole, share)}
        if kind == "estimator" and deadline is not None:
            config = replace(config, budget=max(1e-3, min(config.budget or 1e9, deadline - time.monotonic())))
        atomic.remove(folder / "model")
        net = kind == "net"
        fitted, facts = fit(
            bound, model, config, run, name=self.name, base=Path(self.base), resume=net and not fresh, device=self.device, stop=run.stop
        )
        entry = score(Model.load(fitted, trust_code=True), bound, "valid", self.metric, self.output, positive=self.positive)
        if entry["value"] != entry["value"]:
            return {"error": f"{self.metric} is {entry.get('note', 'not defined')}"}
        epochs, of = (run.epochs, run.whole) if net else (target(whole, share), whole) if setting else (0, 0)
        ended = not of or share >= 1 or (net and facts.get("training", {}).get("stopped") != "interrupt")
        unit = "epochs" if net else setting
        found = {"value": float(entry["value"]), "epochs": epochs, "of": of, "unit": unit, "late": run.late, "ended": ended}
        atomic.replace_file(folder / STATE, json.dumps(found).encode("utf-8"))
        return found


def resource(model: Any, bound: Bound, base: Path) -> tuple[str, str, int]:
    """(`net`, `estimator` or `other`, the setting that says how long to fit, its value).

    A net's epochs are counted as they pass; "" is where there is nothing to cut: estimators that fit in one go, composites.
    """
    from modelyard.verbs.train import learner

    choice = learner.choose(learner.located(base, model), bound.pipeline, bound.tasks, bound.rows["train"])
    if not choice.estimator:
        return ("net" if choice.nets or choice.user else "other"), "", 0
    name = str(getattr(registry.load("estimators", choice.estimator), "RESOURCE", ""))
    return "estimator", name, int(getattr(choice.config, name)) if name else 0


def pack(course: Course, tables: bool) -> str:
    """The course as JSON for another process; with `tables` the source's tables are written beside the trials as Arrow files."""
    plain = {k: v for k, v in vars(course).items() if k not in ("source", "bounds")}
    kept: dict[str, str] = {}
    if tables and course.source is not None:
        place = Path(course.folder) / "tables"
        place.mkdir(exist_ok=True)
        for name, table in course.source.tables.items():
            aside = place / f".{name}.{os.getpid()}"
            table.data.write_ipc(aside)
            os.replace(aside, place / f"{name}.arrow")
            kept[name] = f"{name}.arrow"
    return json.dumps({**plain, "tables": kept})


def unpack(text: str) -> Course:
    """The course in another process."""
    import polars as pl

    plain = json.loads(text)
    kept = plain.pop("tables")
    place = Path(plain["folder"]) / "tables"
    source = Source({name: Table(name, pl.read_ipc(place / file)) for name, file in kept.items()}) if kept else None
    return Course(**plain, source=source)
