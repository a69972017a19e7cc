"""Judges a saved model on its own test rows or on new data: metrics with intervals, a baseline, and gates.

modelyard evaluate
modelyard evaluate runs/churn-0001 data=new.csv
modelyard evaluate evaluate.metrics=[roc_auc,f1]
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.verbs.evaluate._aim import aim
from modelyard.verbs.evaluate._judge import Evaluation, judge, predicted, score

__all__ = ["Config", "Evaluation", "aim", "gates", "judge", "predicted", "rows_for", "score"]

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`evaluate`: what is measured and what must hold."""

    metrics: list[str] | None = None
    """Metrics by name; without it those of the output's kind. The first is the headline."""
    gate: dict[str, str] = field(default_factory=dict)
    """metric (or output.metric) → condition such as `>= 0.80`; a missed gate makes the command exit 1."""
    positive: str | None = None
    """The label that precision, recall and F1 of two classes are about; without it the last one."""
    threshold: str | None = None
    """Tune decision thresholds on the validation rows for this metric (`f1`); makes a child model."""

    costs: dict[str, Any] | None = None
    """What mistakes cost, e.g. {false_positive: 1, false_negative: 5}, or true label → predicted label → cost. The mean cost of a row is
    reported, and the decision of least cost on the validation rows makes a child model."""

    def __post_init__(self) -> None:
        if self.threshold and self.costs:
            raise ValueError("threshold and costs both choose how to decide; write one of them")
        for name, condition in self.gate.items():
            parse_gate(name, condition)


def parse_gate(name: str, condition: str) -> tuple[Any, float]:
    """(comparison, limit) of `>= 0.8`; raises `ValueError` saying what is allowed."""
    found = re.fullmatch(r"\s*(>=|<=|>|<)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*", str(condition))
    if not found:
        raise ValueError(f"gate.{name}: got {condition!r}, expected a comparison such as '>= 0.80'")
    return OPERATORS[found[1]], float(found[2])


def gates(metrics: Mapping[str, Any], wanted: Mapping[str, str]) -> list[dict[str, Any]]:
    """`{metric, value, limit, passed}` for each gate; an undefined metric fails. Raises `ConfigError` for unknown names."""
    flat = {}
    for name, entry in metrics.items():
        if "value" in entry:
            flat[name] = entry["value"]
        else:
            flat |= {f"{name}.{metric}": e["value"] for metric, e in entry.items()}
    unknown = [name for name in wanted if name not in flat]
    if unknown:
        details = [Problem(f"was not measured; there are {', '.join(flat)}", f"evaluate.gate.{name}") for name in unknown]
        raise ConfigError(f"evaluate.gate names {', '.join(unknown)}, which was not measured", details)
    found = []
    for name, condition in wanted.items():
        compare, limit = parse_gate(name, condition)
        value = flat[name]
        found.append({"metric": name, "value": value, "limit": condition, "passed": value == value and bool(compare(value, limit))})
    return found


def table(metrics: Mapping[str, Any], baselines: Mapping[str, Any] | None = None) -> str:
    """Metrics by split as lines for a terminal: value, 95 % interval and the trivial baseline."""
    lines = []
    for split, found in metrics.items():
        outputs = {"": found} if any("value" in e for e in found.values()) else found
        for output, entries in outputs.items():
            lines.append(f"{split}{f' · {output}' if output else ''}")
            for name, e in entries.items():
                base = ((baselines or {}).get(split) or {}).get(name) or {}
                beside = f"   baseline {base['value']:.4g}" if isinstance(base.get("value"), float) else ""
                interval = f"{e['low']:.4g} … {e['high']:.4g}" if e.get("low") == e.get("low") else e.get("note", "")
                lines.append(f"  {name:<18} {e['value']:>10.4g}   {interval}{beside}")
    return "\n".join(lines)


@dataclass
class Evaluated:
    """What `evaluate` found."""

    model: str
    metrics: dict[str, Any]
    baselines: dict[str, Any]
    rows: dict[str, int]
    failed: dict[str, int]
    gate: list[dict[str, Any]]
    child: str | None = None
    costs: dict[str, Any] = field(default_factory=dict)
    """`{split: {output: {before, after}}}`: mean cost of a row under this model and under its child."""
    segments: dict[str, Any] = field(default_factory=dict)
    """`{output: {why, profiles}}` of groups of rows: why there are as many, and what sets each apart (`text` in words)."""

    def to_json(self) -> dict[str, Any]:
        """`metrics` and what is around them."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [table(self.metrics, self.baselines), *told(self.segments)]
        lines += [f"gate {g['metric']} {g['limit']}: {'passed' if g['passed'] else 'MISSED'} ({g['value']:.4g})" for g in self.gate]
        for split, outputs in self.costs.items():
            lines += [f"{split} · {name}: {c['before']:.4g} a row, {c['after']:.4g} as decided by the child" for name, c in outputs.items()]
        return "\n".join(lines + ([f"{'least cost' if self.costs else 'thresholds tuned'}: {self.child}"] if self.child else []))


def told(segments: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal: why there are as many groups, and each in a sentence."""
    lines = []
    for found in segments.values():
        lines += [found["why"]["text"]] if found["why"] else []
        lines += [f"  {s['text']}" for s in found["profiles"]]
    return lines


def _costs_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Mean cost of a row by output, before and after."""
    pairs = {"cost": (before, after)} if "cost" in before else {name: (before[name], after[name]) for name in before if "cost" in before[name]}
    return {name: {"before": a["cost"]["value"], "after": b["cost"]["value"]} for name, (a, b) in pairs.items()}


def run(project: Any, *, model: str | None = None, options: Any) -> Evaluated:
    """The verb: judges `model` (or the latest run's) on the project's data with the model's own columns."""
    from pathlib import Path

    from modelyard.errors import GateFailed
    from modelyard.runtime.model import Model
    from modelyard.store.run import Run, model_folder
    from modelyard.verbs.report import write_report

    config: Config = project.section("evaluate")
    folder = model_folder(model, project.base / "runs")
    loaded = Model.load(folder, trust_code=options.trust_code)
    bound, new = rows_for(project, folder, loaded)
    learnt = ("valid",) if loaded.manifest.get("out_of_fold") and not new else ()  # a search learns from these rows too
    present = [s for s in ("valid", "test") if s in bound.splits and bound.splits[s].height and s not in learnt]
    splits: list[str] = [*present] or ["train"]
    evaluation = judge(loaded, bound, splits, config.metrics, positive=config.positive, costs=config.costs)
    metrics = evaluation.metrics()
    last = list(metrics)[-1]
    judged = metrics[last]
    results = gates(judged, config.gate)
    run_folder = folder.parent if (folder.parent / "run.json").is_file() else None
    if run_folder is not None and not new:
        Run(run_folder).write("metrics.json", metrics)
        Run(run_folder).update(gate=results)
        write_report(run_folder, evaluation.splits, lang=options.lang or project.section("report").lang)
    child = None
    costs: dict[str, Any] = {}
    if config.threshold or config.costs:
        if learnt:
            reason = "this model was chosen by a search that learnt from the validation rows too; decide on other rows: evaluate data=FILE"
            raise Unsupported(reason, "use")
        from modelyard.verbs.evaluate._thresholds import tune

        child = str(tune(loaded, bound, config.threshold, Path(folder), config.costs, config.positive))
    if config.costs and child:
        tuned = judge(Model.load(child, trust_code=options.trust_code), bound, splits, [], positive=config.positive, costs=config.costs)
        costs = {split: _costs_of(metrics[split], found) for split, found in tuned.metrics().items()}
    failed = {s: len(e) for s, e in evaluation.failed.items()}
    found = Evaluated(
        str(folder),
        metrics,
        evaluation.baselines(),
        {s: bound.splits[s].height for s in splits if s in bound.splits},
        failed,
        results,
        child,
        costs,
        evaluation.segments(),
    )
    missed = [g for g in results if not g["passed"]]
    if missed:
        details = [Problem(f"is {g['value']:.4g}, wanted {g['limit']}", f"{last}.{g['metric']}") for g in missed]
        raise GateFailed(f"{len(missed)} gate(s) missed", details, found)
    return found


def rows_for(project: Any, folder: Any, model: Any) -> tuple[Any, bool]:
    """(`Bound`, whether they are new) of the rows that judge a model: those of its training, split as then, or the project's own data."""
    from modelyard.data.source import open_source
    from modelyard.tasks._binding import bind, of_texts

    data, base, new = _data(project, folder, model)
    source = None if data.env or data.stream else open_source(data, base, texts=of_texts(project.task, model.tasks))
    whole = new and not _splits(project)
    return bind(data, project.task, base, seed=_seed(model), source=source, like=model.pipeline, tasks=model.tasks, whole=whole), new


def _splits(project: Any) -> bool:
    """Whether the data that came says itself which rows are for what."""
    return (
        project.data.test is not None
        or project.origins.get("data.split", "default") != "default"
        or any(k.startswith("data.split.") and v != "default" for k, v in project.origins.items())
    )


def _seed(model: Any) -> int:
    return int(model.manifest.get("seed", 0))


def _data(project: Any, folder: Any, model: Any) -> tuple[Any, Any, bool]:
    """(data, base, new): the data named now, unless it is what the model was trained on: then as it was split in training,
    so that no row that trained can judge."""
    import json
    from pathlib import Path

    from modelyard import settings
    from modelyard.data.source import DataConfig, open_source
    from modelyard.project import from_environment
    from modelyard.tasks._binding import of_texts

    stored = folder.parent / "config.json"
    if not stored.is_file():
        if not project.has("data"):
            raise ConfigError(f"{folder} does not know its data; name some: modelyard evaluate {folder} data=FILE")
        return project.data, project.base, True
    named_now = any(k.split(".")[0] == "data" and origin in ("command line", "call") for k, origin in project.origins.items())
    if project.data.env:
        return project.data, project.base, True
    if project.data.stream:
        return project.data, project.base, False
    if named_now and open_source(project.data, project.base, texts=of_texts(project.task, model.tasks)).fingerprint != model.manifest["data"]["fingerprint"]:
        return project.data, project.base, True
    config = json.loads(stored.read_text(encoding="utf-8"))
    if '"<' in (kept := json.dumps(config["settings"]["data"])) or (f":{settings.HIDDEN}@" in kept and project.has("data")):
        return project.data, project.base, False  # trained from a table in Python, or a URL whose password was not kept: at hand again
    problems: list[Problem] = []
    data = settings.parse(DataConfig, from_environment(config["settings"]["data"], "data"), "data", problems)
    if problems:
        raise ConfigError("the stored data section cannot be read", problems)
    return data, Path(config.get("base", ".")), False
