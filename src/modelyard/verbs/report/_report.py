"""What a report shows, as plain data, and how it is read from a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError
from modelyard.store.run import Run

EVALUATION = "samples/evaluation.json"


@dataclass
class Report:
    """Everything on the page. Whatever is missing leaves its section out."""

    title: str
    evaluation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`{split: {output: {...}}}`, see `modelyard.verbs.report`."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Facts in order, e.g. `{task, net, inputs, outputs, parameters, created}`; lists are joined by commas."""
    gate: list[Mapping[str, Any]] = field(default_factory=list)
    """`{metric, value, limit, passed}` each; `limit` as written (`>= 0.9`). Empty: no gate was set."""
    events: list[Mapping[str, Any]] = field(default_factory=list)
    """Lines of `events.jsonl`; those with an `epoch` make the learning curves."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """`{rows_in, rows: {split: n}, set_aside: [{file, line, column, reason, value}], set_aside_count, balance:
    {output: {label: n}}, lengths: {column: lengths picture data}}`."""
    config: str = ""
    """The text of `config.yaml`, which names the origin of each value."""
    commands: list[str] = field(default_factory=list)
    """Command lines that make this again."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the model card: licence, intended use, limits, versions, machine, fingerprint …"""
    pictures: Mapping[str, Any] = field(default_factory=dict)
    """Pictures of the run as a whole: `importance`."""
    leaderboard: list[Mapping[str, Any]] = field(default_factory=list)
    """Candidates of a search, the best first: `{model, settings, scores, weight, fit_seconds, …}` or `{model, reason}`."""
    folds: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of cross-validation: `{metric: {value, low, high, spread, scores}}`."""
    promises: Mapping[str, Any] = field(default_factory=dict)
    """By output: what calibration and coverage came to, see `verbs/train/calibrate.py`."""
    chosen: list[Mapping[str, Any]] = field(default_factory=list)
    """What a search in each fold chose: `{repeat, fold, params, value, scores}`."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """Of a run of `tune`: its trials and what was searched, see `pictures.py`."""
    stages: list[Mapping[str, Any]] = field(default_factory=list)
    """Of a run of `compress`, see `verbs/compress`."""

    @classmethod
    def of_run(cls, folder: Path, evaluation: Mapping[str, Any] | None = None) -> Report:
        """From `run.json`, `events.jsonl`, `config.yaml`, `metrics.json` and the stored evaluation.

        Read from `run.json` where there: `name` or the folder's name, `model` (facts), `gate`, `data`, `command`,
        `facts`, `pictures`,
        `machine`, `started`, `seconds`, `argv`. Without a stored evaluation the metrics alone are shown.
        """
        if not (folder / "run.json").is_file():
            raise ArtefactError(f"{folder} is no run folder: it holds no run.json")
        run = Run(folder)
        facts = _read(folder / "run.json")
        if evaluation is None:
            evaluation = _read(folder / EVALUATION) if (folder / EVALUATION).is_file() else _from_metrics(folder)
        config = folder / "config.yaml"
        command = facts.get("command") or (["modelyard", *facts["argv"]] if facts.get("argv") else [])
        return cls(
            title=str(facts.get("name") or folder.name),
            evaluation=evaluation,
            model=_mapping(facts.get("model")),
            gate=[g for g in facts.get("gate") or [] if isinstance(g, Mapping)],
            events=list(run.events()),
            data=_mapping(facts.get("data")),
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            commands=[" ".join(command)]
            if isinstance(command, list) and command
            else [str(command)]
            if command
            else [],
            facts={**_mapping(facts.get("facts")), **_about(facts)},
            pictures=_mapping(facts.get("pictures")),
            search=_mapping(facts.get("search")),
            stages=[e for e in facts.get("stages") or [] if isinstance(e, Mapping)],
            leaderboard=[e for e in facts.get("leaderboard") or [] if isinstance(e, Mapping)],
            folds=_mapping(run.read("metrics.json").get("folds")),
            promises=_mapping(facts.get("promises")),
            chosen=[e for e in facts.get("folds") or [] if isinstance(e, Mapping)],
        )


def plain(value: Any) -> Any:
    """JSON values of nested mappings, sequences, NumPy values and paths; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged: {error}. Run the evaluation again to write it anew.") from None
    if not isinstance(found, dict):
        raise ArtefactError(f"{path} is damaged: it holds no JSON object. Run the evaluation again to write it anew.")
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _about(facts: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: facts[key] for key in ("started", "seconds", "seed", "fingerprint") if facts.get(key) is not None}
    machine = _mapping(facts.get("machine"))
    found |= {key: value for key, value in machine.items() if not isinstance(value, Mapping)}
    return {**found, **_mapping(machine.get("versions"))}


def _from_metrics(folder: Path) -> dict[str, Any]:
    """An evaluation with metrics only, of `metrics.json`: `{split: {metric: {value}}}` or `{split: {output:
    {metric: …}}}`."""
    path = folder / "metrics.json"
    found = _read(path) if path.is_file() else {}
    found = found.get("metrics", found)
    out: dict[str, Any] = {}
    for split, inside in found.items():
        if not isinstance(inside, Mapping):
            continue
        single = any(isinstance(v, Mapping) and "value" in v for v in inside.values())
        outputs = {"": inside} if single else inside
        out[split] = {name: {"metrics": m} for name, m in outputs.items() if isinstance(m, Mapping)}
    return out
