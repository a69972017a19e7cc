"""Fits a model to the data of a project and leaves a run folder with the model, its metrics and a report.

modelyard train
modelyard train data=customers.csv target=churned train.budget=2m
modelyard train --resume
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.data.source import DataConfig, Source
from modelyard.errors import GateFailed, ModelyardError, Problem, Unsupported
from modelyard.runtime.answers import Graph
from modelyard.runtime.model import Model
from modelyard.store.run import Run, now
from modelyard.tasks._binding import Bound, bind
from modelyard.verbs.train.config import TrainConfig as Config
from modelyard.verbs.train.cross_validation import cross_validate

if TYPE_CHECKING:
    from modelyard.data.split import SplitConfig
    from modelyard.verbs.train.learner import Choice

__all__ = ["Config", "Trained", "conclude", "fit", "train"]


@dataclass
class Trained:
    """What `train` leaves behind."""

    run: Path
    model: Path
    metrics: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    gate: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    segments: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`run`, `model`, `metrics`, and `segments` where there are groups of rows, as the command prints them."""
        found = {"run": str(self.run), "model": str(self.model), "metrics": self.metrics, "notes": self.notes}
        return {**found, "segments": self.segments} if self.segments else found

    def __str__(self) -> str:
        from modelyard.verbs.evaluate import table, told

        follow = [f"modelyard predict {self.run} data=new.csv", f"modelyard export {self.run}", f"modelyard serve {self.run}"]
        report = self.run / "report.html"
        lines = [table(self.metrics), *told(self.segments), "", f"model   {self.model}", f"report  {report}", "", "next:"]
        return "\n".join([*lines, *(f"  {f}" for f in follow)])


def train(
    data: DataConfig,
    task: str | None = None,
    model: Any = "auto",
    config: Config | None = None,
    *,
    name: str = "model",
    base: Path | None = None,
    runs: Path | None = None,
    resolved: Mapping[str, Any] | None = None,
    resume: str | bool = False,
    device: str = "cpu",
    source: Source | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    say: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
    judged_by: Any = None,
    lang: str = "en",
) -> Trained:
    """Bind, fit, save, load back, replay, evaluate, report.

    `base` is the folder that paths are relative to, `runs` the folder of run folders (`base/runs`), `resolved` the settings
    as they are written to the run. `judged_by` is the `evaluate` section (metrics, gates). `resume` is True for
    the latest run, or its name. `stop` set: finish the step, save, evaluate.
    """
    from modelyard.verbs.train.learner import located

    config = config or Config()
    base = Path(base or ".")
    runs = runs or base / "runs"
    say = say or (lambda text: None)
    run = Run.find(runs, None if resume is True else str(resume)) if resume else Run.create(runs, name)
    stop = stop or threading.Event()
    try:
        if resume and (run.model / "manifest.json").is_file():
            say(f"{run.name} is finished already")
            return Trained(run.folder, run.model, run.read("metrics.json"), gate=run.read("run.json").get("gate") or [])
        if resolved is not None and not resume:
            run.write("config.json", {**resolved, "base": str(base.resolve())})
            (run.folder / "config.yaml").write_text(_yaml(resolved), encoding="utf-8")
        bound = bind(data, task, base, seed=config.seed, source=source)
        for note in bound.notes:
            say(note)
        with _ctrl_c(stop, say):
            job = _Job(config, run, name, bool(resume), device, stop, progress, say)
            found = located(base, model)
            validated = cross_validate(bound, found, job, data.split, judged_by) if config.folds else {}
            folder, facts, bound, known = _fit(bound, found, job, data.split)
        return _judge(job, folder, bound, facts, judged_by, lang, known, validated)
    except ModelyardError as error:
        run.update(state="failed", finished=now(), error=error.to_json())
        raise


def fit(
    bound: Bound, model: Any, config: Config, run: Run, *, name: str = "model", base: Path | None = None, resume: bool = False,
    device: str = "cpu", stop: threading.Event | None = None,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """(model folder, facts) of one model of bound data, saved as `run.model` and not judged: a trial of `tune`.

    `bound` stays as it is. `run.event` is told of every epoch (`step` of `steps`) or round; setting `stop` there ends a net's training
    after that epoch with a checkpoint, from which `resume` goes on.
    """
    from modelyard.verbs.train.learner import located

    own = dataclasses.replace(bound, pipeline=copy.deepcopy(bound.pipeline))
    job = _Job(config, run, name, resume, device, stop or threading.Event(), None, lambda text: None)
    return _fit_named(own, located(base or Path("."), model), job)


def conclude(
    run: Run, folder: Path, bound: Bound, facts: dict[str, Any], judged_by: Any = None, *, lang: str = "en", cut: bool = False,
    validated: dict[str, Any] | None = None,
) -> Trained:  # fmt: skip
    """Metrics (of valid and test; `validated` are those of folds), gates and the report of a saved model, written to `run`; `cut` where
    it was interrupted."""
    stop = threading.Event()
    if cut:
        stop.set()
    job = _Job(Config(), run, run.name, False, "cpu", stop, None, lambda text: None)
    return _judge(job, folder, bound, facts, judged_by, lang, {}, validated or {})


@dataclass
class _Job:
    """What fitting needs beside the data and the model section."""

    config: Config
    run: Run
    name: str
    resume: bool
    device: str
    stop: threading.Event
    progress: Callable[[int, int, str], None] | None
    say: Callable[[str], None]


def _fit(bound: Bound, model: Any, job: _Job, split: SplitConfig) -> tuple[Path, dict[str, Any], Bound, dict[str, np.ndarray]]:
    """(model folder, facts, the rows as they were learnt from, out-of-fold graph outputs) of one model, of a composite whose parts
    are fitted one after the other, or of what a search among candidates found."""
    from modelyard.verbs.train import search

    if search.searches(model, bound, job.config.preset):
        job.run.update(state="training", model={"model": [f"auto ({job.config.preset})"]}, data=_data(bound))
        return search.search(bound, model, job, split)
    if job.config.preset != "quick":
        job.say(f"train.preset {job.config.preset} searches among models for tables with model: auto; here one model is fitted")
    return *_fit_named(bound, model, job), bound, {}


def _fit_named(bound: Bound, model: Any, job: _Job) -> tuple[Path, dict[str, Any]]:
    from modelyard.verbs.train import calibrate, learner

    calibrate.require(bound, job.config)
    choice = learner.choose(model, bound.pipeline, bound.tasks, bound.rows["train"])
    if job.progress:
        job.progress(0, 1, f"{', '.join(choice.names)} on {bound.rows['train']} examples")
    job.run.update(state="training", model={"model": choice.names}, data=_data(bound))
    if not choice.parts:
        return _fit_one(bound, choice, job, job.run.model, job.run.folder / "checkpoints")
    from modelyard.verbs.train.calibrate import without
    from modelyard.verbs.train.compose import compose

    each = dataclasses.replace(job, config=without(job.config))  # the whole is calibrated, not its parts
    folders, seconds = {}, 0.0
    for number, section in enumerate(choice.parts):
        own = dataclasses.replace(bound, pipeline=copy.deepcopy(bound.pipeline))
        part = learner.choose(section, own.pipeline, own.tasks, own.splits["train"].height)
        label = f"{number}-{part.names[0].replace('/', '-')}"
        folder: Path = job.run.folder / "parts" / label
        facts: dict[str, Any] = {}
        if not (job.resume and (folder / "manifest.json").is_file()):
            folder, facts = _fit_one(own, part, each, folder, job.run.folder / "checkpoints" / label)
        folders[label] = folder
        seconds += facts.get("training", {}).get("seconds", 0.0)
    facts = {"training": {"seconds": seconds}, "seed": job.config.seed}
    return compose(job.run.model, job.name, folders, choice.combine, facts, bound, job.config), facts


def _fit_one(bound: Bound, choice: Choice, job: _Job, target: Path, checkpoints: Path) -> tuple[Path, dict[str, Any]]:
    """Fit the encodings and one model, and save it as `target`."""
    from modelyard.verbs.train import learner
    from modelyard.verbs.train.balanced import balanced
    from modelyard.verbs.train.save import save

    bound = balanced(bound, job.config, job.say)
    pipeline, config = bound.pipeline, job.config
    learner.set_encodings(choice, pipeline)
    if bound.stream is not None and choice.estimator:
        raise Unsupported(f"{choice.estimator} learns from arrays in memory; with data.stream choose a net, e.g. model=mlp", "use")
    frames, owner = _read_frames(bound)
    pipeline.fit([frames["train"]] if bound.stream is None else bound.stream)
    arrays = {}
    if bound.stream is not None:
        inputs = bound.stream.encode(lambda frame: pipeline.encode(frame).arrays, "input")
        arrays["train"] = inputs, bound.stream.encode(lambda frame: pipeline.targets(frame, pipeline.encode(frame).contexts), "target")
    for split in ("train", "valid") if bound.stream is None else ("valid",):
        if split in frames and frames[split].height:
            encoded = pipeline.encode(frames[split])
            arrays[split] = encoded.arrays, pipeline.targets(frames[split], encoded.contexts)
    weights = _weights(bound)
    if owner is not None:  # a document counts once, however many slices it has
        share = 1 / np.bincount(owner)[owner].astype(np.float32)
        weights = share if weights is None else weights[owner] * share
    began = time.monotonic()
    graphs: dict[str, Graph]
    beside: dict[str, str | bytes] = {}
    if choice.estimator:
        from modelyard.verbs.train import fit_estimator
        from modelyard.verbs.train.weights import row_weights

        learner.only_nets(choice.estimator, config)
        weights = row_weights(config, pipeline, arrays["train"][1], weights)
        section, graphs, stored = fit_estimator.fit(
            choice, pipeline, arrays["train"], arrays.get("valid"), weights=weights, seed=config.seed, budget_s=config.budget,
            progress=job.run.event, environment=bound.environment,
        )  # fmt: skip
        parameters: dict[str, np.ndarray] = {}
        training: dict[str, Any] = {"seconds": time.monotonic() - began}
    else:
        from modelyard.runtime.backends.torch import graphs as torch_graphs
        from modelyard.verbs.train import fit_net
        from modelyard.verbs.train.watch import watcher

        spec, families = fit_net.describe(choice, pipeline, bound.rows["train"])
        section, network, parameters, result, used, origins = fit_net.fit(
            spec, families, pipeline, bound.tasks, arrays["train"], arrays.get("valid"), config, weights=weights,
            folder=checkpoints, resume=job.resume, events=job.run.event, stop=job.stop, progress=job.progress, device=job.device,
            judge=watcher(bound, config), rows=frames if bound.stream is None and owner is None else None,
        )  # fmt: skip
        graphs, stored, beside = torch_graphs(network), {}, fit_net.beside(network, pipeline)
        if alone := fit_net.alone(network, target):
            section, parameters = {**section, **alone}, {}
        training = {
            "seconds": result.seconds, "steps": result.steps, "epochs": result.epochs, "stopped": result.stopped,
            "best_epoch": result.best_epoch + 1, "settings": {k: getattr(used, k.split(".")[1]) for k in origins}, "origins": origins,
            "parameters": sum(p.numel() for p in network.parameters()),
        }  # fmt: skip
    facts = {"training": training, "seed": config.seed}
    return save(target, job.name, bound, section, graphs, parameters, stored, facts, config, beside=beside), facts


def _read_frames(bound: Bound) -> tuple[dict[str, pl.DataFrame], np.ndarray | None]:
    """(training and validation rows as the model reads them, the example of each training row): examples themselves, or their slices."""
    module = registry.load("data/frames", bound.frame["name"])
    kept: dict[str, pl.DataFrame] = {s: bound.splits[s] for s in ("train", "valid") if s in bound.splits}
    if not hasattr(module, "cut"):
        return kept, None
    config = module.Config(**bound.frame["config"])
    found = {s: module.cut(frame, config) for s, frame in kept.items()}
    return {s: frame for s, (frame, _) in found.items()}, found["train"][1]


def _yaml(resolved: Mapping[str, Any]) -> str:
    """Settings with the origin of each value beside it, as YAML."""
    origins = resolved.get("origins", {})
    lines: list[str] = []

    def write(value: Any, path: str, depth: int) -> None:
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            beside = f"  # {origins[where]}" if where in origins else ""
            if isinstance(item, Mapping) and item:
                lines.append(f"{'  ' * depth}{key}:{beside}")
                write(item, where, depth + 1)
            elif item is not None:
                lines.append(f"{'  ' * depth}{key}: {json.dumps(item, ensure_ascii=False, default=str)}{beside}")

    write(resolved.get("settings", resolved), "", 0)
    return "\n".join([*lines, ""])


def _weights(bound: Bound) -> np.ndarray | None:
    """Example weights (B,) of the training rows, where the data names a column of them."""
    if bound.weight is None:
        return None
    frames = [bound.splits["train"]] if bound.stream is None else list(bound.stream)
    return pl.concat([f.select(bound.weight) for f in frames])[bound.weight].cast(pl.Float64).to_numpy().astype(np.float32)


def _judge(
    job: _Job, folder: Path, bound: Bound, facts: dict[str, Any], judged_by: Any, lang: str, known: dict[str, np.ndarray],
    validated: dict[str, Any],
) -> Trained:
    """Metrics and report come from the saved model, loaded back. Rows that it learnt from are judged by the out-of-fold outputs
    `known` and stand as `valid`."""
    from modelyard.verbs.evaluate import Config as Judged
    from modelyard.verbs.evaluate import gates, judge
    from modelyard.verbs.report import write_report

    judged_by, run = judged_by or Judged(), job.run
    model = Model.load(folder, trust_code=True)
    splits = [s for s in ("valid", "test") if s in bound.splits and bound.splits[s].height]
    if known:
        bound, answers = _out_of_fold(bound, known, model)
        splits = ["valid", *(s for s in splits if s != "valid")]
    evaluation = judge(
        model, bound, splits or ["train"], judged_by.metrics, positive=judged_by.positive, costs=judged_by.costs,
        known={"valid": answers} if known else None,
    )  # fmt: skip
    metrics = {**evaluation.metrics(), **validated}
    gate = gates(metrics[next(s for s in ("test", "valid", "train") if s in metrics)], judged_by.gate)
    run.write("metrics.json", metrics)
    run.update(
        state="interrupted" if job.stop.is_set() else "finished", finished=now(), version=model.version, parity=model.parity and model.parity.to_json(),
        training=facts["training"], model=_about(model, facts), data=_data(bound), facts={"version": model.version}, gate=gate,
        **({"leaderboard": facts["leaderboard"]} if "leaderboard" in facts else {}),
        **({"promises": model.manifest["promises"]} if model.manifest.get("promises") else {}),
    )  # fmt: skip
    write_report(run.folder, evaluation.splits, lang=lang)
    return Trained(run.folder, folder, metrics, bound.notes, gate, job.stop.is_set(), evaluation.segments())


def _out_of_fold(bound: Bound, known: dict[str, np.ndarray], model: Model) -> tuple[Bound, pl.DataFrame]:
    """(bound with the rows that were held out as `valid`, their answers after the model's own steps)."""
    from modelyard.runtime import post

    held = ~np.isnan(next(iter(known.values()))[:, 0])
    outputs = post.apply({key: value[held] for key, value in known.items()}, model.manifest["post"])
    answers = pl.DataFrame(bound.pipeline.decode(outputs, {}))
    valid = bound.splits["train"].filter(pl.Series(held))
    return dataclasses.replace(bound, splits={**bound.splits, "valid": valid}), answers


def _about(model: Model, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of the report's first card."""
    section = model.manifest["model"]
    if "parts" in section:
        made = f"{section['combine']} of {', '.join(section['parts'])}"
        section = {"estimator": made}
    made = (
        section.get("estimator")
        or ", ".join(n["name"] for n in section["net"].get("nets", {}).values())
        or section["net"]["user"]["module"]
    )
    training = facts["training"]
    return {
        "task": ", ".join(sorted(set(model.tasks.values()))), "model": made, "inputs": [f"{f.name} ({f.kind})" for f in model.signature.inputs],
        "outputs": [f"{f.name} ({f.kind})" for f in model.signature.outputs], "created": model.manifest["created"],
        **({"parameters": training["parameters"]} if "parameters" in training else {}), "seconds": round(training["seconds"], 1),
    }  # fmt: skip


def _data(bound: Bound) -> dict[str, Any]:
    """The report's data section: every row kept or set aside, and the balance of labels."""
    balance = {}
    for column in bound.pipeline.outputs:
        counts = getattr(column.state, "counts", None)
        if counts:
            balance[column.name] = dict(counts)
    read = sum(t.rows_read for t in bound.source.tables.values())
    aside = [vars(s) for s in bound.set_aside]
    return {
        "rows_in": read, "rows": bound.rows, "set_aside": aside[:1000], "set_aside_count": len(aside), "balance": balance,
        "fingerprint": bound.source.fingerprint, "notes": bound.notes,
    }  # fmt: skip


class _ctrl_c:
    """First Ctrl-C: finish the step, save, evaluate; second: stop now. Only the main thread may set it."""

    def __init__(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        self.stop, self.say = stop, say
        self.before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread() and os.name != "nt":
            self.before = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.stop.set()
        self.say("stopping after this step: saving and evaluating (Ctrl-C again stops now)")

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def run(project: Any, *, model: str | None = None, options: Any) -> Trained:
    """The verb: `model` is unused (`--resume RUN` names a run)."""
    from modelyard.progress import Bar

    config: Config = project.section("train")
    if project.seed is not None and project.origins.get("train.seed", "default") == "default":
        config = dataclasses.replace(config, seed=project.seed)
    if options.dry_run:
        from modelyard.verbs.plan import describe

        return describe(project)  # type: ignore[return-value]
    with Bar("training", quiet=options.quiet or options.json) as bar:

        def progress(step: int, steps: int, text: str) -> None:
            bar.total = steps
            bar.update(step, text)

        found = train(
            project.data, project.task, project.model.value, config, name=project.name, base=project.base,
            resolved={"settings": project.resolved(), "origins": project.origins}, resume=options.resume or False,
            device=options.device or "cpu", progress=progress, say=options.notice, judged_by=project.section("evaluate"),
            lang=options.lang or project.section("report").lang,
        )  # fmt: skip
    if found.interrupted:
        raise KeyboardInterrupt(f"stopped by Ctrl-C; the model so far is usable: {found.model} (go on with: modelyard train --resume)")
    missed = [g for g in found.gate if not g["passed"]]
    if missed:
        details = [Problem(f"is {g['value']:.4g}, wanted {g['limit']}", g["metric"]) for g in missed]
        raise GateFailed(f"{len(missed)} gate(s) missed", details, found)
    return found
