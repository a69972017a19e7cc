"""Searches settings: tries them on train, judges them on validation rows, and leaves the best model with its test metrics.

modelyard tune "search.train.lr=log 1e-4..1e-1" search.train.batch=[32,64,128]
modelyard tune data=customers.csv target=churned "tune.search={model.name: [trees, linear]}" tune.method=grid
modelyard tune --resume
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from modelyard import registry
from modelyard.errors import GateFailed, Problem
from modelyard.settings import Between, Duration

__all__ = ["Config", "Tuned", "tune"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """`tune`: what may vary, and how it is searched."""

    search: dict[str, Any] = field(default_factory=dict)
    """Dotted key → list or range: {train.lr: log 1e-5..1e-2, model.leaves: int 8..256, model.name: [trees, linear], train.dropout: 0..0.5 step 0.1}."""
    trials: Annotated[int, Between(1, 100_000)] | None = None
    """Trials in all; without it 50, or with method grid all of the grid."""
    method: str = "tpe"
    """tpe, random, grid, or one of halving, hyperband and bohb, which end poor trials early."""
    metric: str | None = None
    """Metric (or output.metric) on the validation rows; without it the first of evaluate.metrics, else that of the output's kind."""
    budget: Duration | None = None
    """Wall time of the whole search, e.g. 10m: no trial begins after it, and a net in training stops."""
    parallel: Annotated[int, Between(1, 1024)] = 1
    """Trials at a time, each in a process of its own with its share of the threads; 1 is reproducible to the last suggestion."""
    seed: Annotated[int, Between(0, 2**31)] = 0
    """Of the suggestions; the seed of training and of the split is train.seed."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine's processes; ray: the same trials as Ray tasks."""
    eta: Annotated[int, Between(2, 10)] = 3
    """halving, hyperband, bohb: one in eta goes on from each rung."""
    rungs: Annotated[int, Between(2, 10)] = 3
    """halving, hyperband, bohb: judgements of a trial; with eta 3 and 3 rungs after 1/9, 1/3 and all of its epochs or rounds."""
    points: Annotated[int, Between(2, 1000)] = 5
    """grid: values that are tried of a range without a step."""

    def __post_init__(self) -> None:
        known = [*registry.names("verbs/tune"), *registry.plugins("verbs.tune")]
        if self.method not in known:
            near = difflib.get_close_matches(self.method, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"method: got {self.method!r}, expected one of {', '.join(known)}{hint}")


@dataclass
class Tuned:
    """What `tune` leaves behind."""

    run: str
    model: str
    metric: str
    """What was compared, on the validation rows."""
    best: dict[str, Any]
    """`{trial, params, value}`."""
    settings: str
    """Project-file snippet with the best settings, to be pasted into modelyard.yaml."""
    trials: int
    """Finished in all; the journal trials.jsonl in the run folder has each of them."""
    pruned: int
    failed: list[dict[str, Any]]
    """`{trial, params, reason}` of each trial that failed."""
    epochs: int
    """Epochs (or rounds of boosting) that all trials took."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the best model: validation and test rows."""
    gate: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    folds: list[dict[str, Any]] = field(default_factory=list)
    """With train.folds: `{repeat, fold, params, value, scores}` of the search in each fold."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {k: v for k, v in asdict(self).items() if k not in ("gate", "interrupted")}

    def __str__(self) -> str:
        from modelyard.verbs.evaluate import table

        count = ", ".join([f"{self.trials} trials", *([f"{self.pruned} pruned"] if self.pruned else []), f"{len(self.failed)} failed"])
        width = max(map(len, self.best["params"]), default=0)
        lines = [f"best of {count}: {self.metric} {self.best['value']:.5g} on the validation rows (trial {self.best['trial']})"]
        lines += [f"  {key:<{width}}  {_say(value)}" for key, value in self.best["params"].items()]
        lines += ["", table(self.metrics), ""]
        lines += [f"failed  trial {f['trial']}: {f['reason']}" for f in self.failed[:5]]
        lines += [f"failed  {len(self.failed) - 5} more; see trials.jsonl"] if len(self.failed) > 5 else []
        lines += [f"note    {note}" for note in self.notes]
        lines += [f"model   {self.model}", f"best    {self.settings} (paste it into modelyard.yaml)", f"report  {Path(self.run) / 'report.html'}"]
        return "\n".join([*lines, "", "next:", f"  modelyard predict {self.run} data=new.csv", f"  modelyard serve {self.run}"])


def _say(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tune(
    project: Any, *, resume: str | bool = False, device: str = "cpu", lang: str = "en",
    say: Callable[[str], None] | None = None, progress: Callable[[int, int, str], None] | None = None,
) -> Tuned:  # fmt: skip
    """Search, save the best model, judge it on the test rows, report. `resume` is True for the latest study, or its run's name.

    Raises `ConfigError` with every mistake of the search space before data is read, `Unsupported` where there is nothing to judge by,
    `GateFailed` where every trial failed. Ctrl-C leaves the best so far with `interrupted`.
    """
    from modelyard.verbs.tune._search import Search

    return Search(project, device, say or (lambda text: None), progress, lang).run(resume)


def run(project: Any, *, model: str | None = None, options: Any) -> Tuned:
    """The verb: `model` is unused (`--resume RUN` names a run)."""
    from modelyard.progress import Bar

    with Bar("searching", quiet=options.quiet or options.json) as bar:

        def progress(done: int, trials: int, text: str) -> None:
            bar.total = trials
            bar.update(done, text)

        found = tune(
            project, resume=options.resume or False, device=options.device or "cpu", say=options.notice, progress=progress,
            lang=options.lang or project.section("report").lang,
        )  # fmt: skip
    if found.interrupted:
        raise KeyboardInterrupt(f"stopped by Ctrl-C; the best of {found.trials} trials is usable: {found.model} (go on with: modelyard tune --resume)")
    missed = [g for g in found.gate if not g["passed"]]
    if missed:
        raise GateFailed(f"{len(missed)} gate(s) missed", [Problem(f"is {g['value']:.4g}, wanted {g['limit']}", g["metric"]) for g in missed], found)
    return found
