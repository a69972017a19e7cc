"""Makes a model smaller and faster, stage by stage; a stage stays only where it is measured to help and loses little.

modelyard compress runs/digits-0001                                     # the stages that suit the model
modelyard compress runs/digits-0001 compress.stages=[prune,quantise] compress.max_loss=0.005
modelyard compress runs/churn-0001 compress.stages="[{distil: {name: mlp, hidden: [64]}}, quantise]"

Each stage begins from what stands so far, gives another model, and is judged on the validation rows: the metric may lose `max_loss` of the first
model's value, and the files must be smaller or the answers faster (measured in turns, here). Else the stage is told with the reason and what stood
stays. The end is a run of its own with report; its model names its parents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from modelyard import registry
from modelyard.errors import ConfigError, ModelyardError, Problem, Unsupported
from modelyard.settings import Between

__all__ = ["Compressed", "Config", "compress"]

OTHER = ("_measure", "_work")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`compress`: stages and limits."""

    SHORTHAND: ClassVar[str] = "stages"

    stages: list[Any] | None = None
    """distil, prune, low-rank, quantise, qat, weight-only in any order, each a name or {name: settings}; without it those that suit the model."""
    metric: str | None = None
    """What is judged; without it the first metric of the output."""
    max_loss: Annotated[float, Between(0, 1)] = 0.005
    """Share of the first model's value of the metric that may be lost in all."""
    favour: Literal["both", "size", "speed"] = "both"
    """size: files that shrink may answer slower; speed: faster answers may come from larger files; both: neither."""


@dataclass
class Compressed:
    """What came out."""

    run: str
    model: str
    stages: list[dict[str, Any]]
    """`{stage, settings, accepted, reason, value, bytes, milliseconds_1, milliseconds_64}`, the model that came in first."""
    metrics: dict[str, Any] = field(default_factory=dict)
    smaller: float = 1.0
    """Bytes of the first model (as ONNX) over those of the last."""
    faster: float = 1.0
    """Milliseconds of one row, likewise."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [f"{self.run}: {self.smaller:.1f} times smaller, {self.faster:.1f} times faster for one row"]
        for s in self.stages:
            verdict = "" if s["accepted"] is None else "taken  " if s["accepted"] else "left   "
            numbers = f"{s['value']:.4g}, {s['bytes'] / 1024:.0f} KiB, {s['milliseconds_1']:.3f} ms" if s.get("bytes") else ""
            lines.append(f"  {s['stage']:10} {verdict}{numbers}  {s.get('reason') or ''}".rstrip())
        return "\n".join(lines)


def compress(
    folder: Path, data: Any, task: str | None, config: Config, *, base: Path, runs: Path, name: str, train: Any = None, judged_by: Any = None,
    lang: str = "en", trust_code: bool = False, progress: Any = None,
) -> Compressed:  # fmt: skip
    """Compresses the model of `folder` with the rows of `data` (a `DataConfig`); writes a run into `runs`. Raises `Unsupported` where no stage
    applies."""
    from modelyard.runtime.model import Model
    from modelyard.store import sealed
    from modelyard.store.run import Run
    from modelyard.verbs.compress._work import Work
    from modelyard.verbs.train import conclude

    model = Model.load(folder, trust_code=trust_code)
    sealed.forbid_copy(model.opened, folder)
    stages = parsed(config.stages) if config.stages is not None else suited(model)
    if not stages:
        raise Unsupported(f"nothing here makes a model of {model.manifest['model'].get('estimator', model.backend)} smaller without a student; "
                          "write compress.stages=[{distil: {name: trees}}] or another family", "use")  # fmt: skip
    work = Work.begin(model, data, task, config, base, train, trust_code, getattr(judged_by, "metrics", None))
    run, began = Run.create(runs, f"{name}-small"), time.monotonic()
    try:
        told = work.go(stages, run, progress)
        first, last = told[0], next(s for s in reversed(told) if s["accepted"] is not False)
        facts = {"training": {"seconds": time.monotonic() - began}, "parent": model.version}
        picture = {"metric": work.metric, "better": work.better, "limit": work.least, "points": [s for s in told if s.get("bytes")]}
        run.update(name=f"{name}, compressed", model={"model": [last["stage"]]}, pictures={"pareto": picture, **work.pictures}, stages=told)
        done = conclude(run, run.model, work.bound, facts, judged_by, lang=lang)
    except ModelyardError as error:
        run.update(state="failed", error=error.to_json())
        raise
    faster = first["milliseconds_1"] / last["milliseconds_1"]
    return Compressed(str(run.folder), str(run.model), told, done.metrics, first["bytes"] / last["bytes"], faster)


def parsed(stages: list[Any]) -> list[tuple[str, Any]]:
    """(name, checked settings) of each stage. Raises `ConfigError` with every mistake."""
    from modelyard import settings

    problems: list[Problem] = []
    found = []
    known = [n for n in registry.names("verbs/compress") if n not in OTHER]
    for i, stage in enumerate(stages):
        where = f"compress.stages[{i}]"
        name, value = next(iter(stage.items())) if isinstance(stage, Mapping) and len(stage) == 1 else (stage, {})
        name = str(name).replace("_", "-")
        if name not in known:
            problems.append(Problem(f"{name!r} is no stage; expected {', '.join(known)}, or {{name: settings}}", where))
            continue
        module = registry.load("verbs/compress", name)
        found.append((name, settings.parse(module.Config, value if value is not None else {}, f"{where}.{name}", problems)))
    if problems:
        raise ConfigError(f"compress.stages has {len(problems)} mistake(s)", problems)
    return found


def suited(model: Any) -> list[tuple[str, Any]]:
    """The stages that a model's kind can go through without a student being named."""
    if "decoder" in model.graphs:
        return parsed(["weight-only"])
    return [] if model.manifest["model"]["backend"] == "numpy" else parsed(["prune", "low-rank", "quantise"])


def run(project: Any, *, model: str | None = None, options: Any) -> Compressed:
    """The verb."""
    from modelyard.progress import Bar
    from modelyard.store.run import model_folder

    runs = project.base / "runs"
    with Bar("compressing", quiet=options.quiet or options.json) as bar:

        def progress(step: int, steps: int, text: str) -> None:
            bar.total = steps
            bar.update(step, text)

        return compress(
            model_folder(model, runs), project.data, project.task, project.section("compress"), base=project.base, runs=runs, name=project.name,
            train=project.section("train"), judged_by=project.section("evaluate"), lang=options.lang or project.section("report").lang,
            trust_code=options.trust_code, progress=progress,
        )  # fmt: skip
