"""From the `model` section to what will be fitted: an estimator, nets with a fusion, or a user's own module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from modelyard import registry, settings
from modelyard.errors import ConfigError, Problem, Unsupported, UsageError
from modelyard.kinds._contract import Array, take
from modelyard.runtime.pipeline import TABLE, Column, Pipeline
from modelyard.tasks._contract import Task
from modelyard.verbs.train.auto import auto, families


@dataclass
class Choice:
    """What to fit. Exactly one of `estimator`, `nets` and `user` is set."""

    estimator: str | None = None
    nets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By input (`table` for the scalars): `{"name": family, "config": {…}}`."""
    fusion: dict[str, Any] = field(default_factory=dict)
    user: dict[str, Any] | None = None
    """`{"module": "file.py:Class" or "package/name", "args": {…}}`."""
    config: Any = None
    """Config of the estimator."""
    parts: list[Any] = field(default_factory=list)
    """Model sections of a composite's parts."""
    combine: dict[str, Any] = field(default_factory=dict)
    """`{"combine": rule, "weights": […]}` of a composite."""

    @property
    def names(self) -> list[str]:
        """Families, for people."""
        if self.parts:
            return [f"{self.combine['combine']} of " + " and ".join(p if isinstance(p, str) else str(p.get("name")) for p in self.parts)]
        if self.user:
            return [str(self.user["module"])]
        return [self.estimator] if self.estimator else [n["name"] for n in self.nets.values()]


def located(base: Path, model: Any) -> Any:
    """The model section with a user's module file and bases as they are found from here: paths in a project file are relative to it."""
    if isinstance(model, Mapping) and isinstance(model.get("module"), str):
        path, _, name = model["module"].rpartition(":")
        if path.endswith(".py") and not Path(path).is_absolute():
            return {**model, "module": f"{os.path.relpath(base / path)}:{name}"}
    if isinstance(model, Mapping):
        found = {k: located(base, v) if isinstance(v, Mapping) else v for k, v in model.items()}
        return {**found, "base": _base_from(base, found["base"])} if isinstance(found.get("base"), str) else found
    return model


def _base_from(base: Path, given: str) -> str:
    """A base as it is found from here: a folder, a run folder or the name of a run (its model); anything else is a hub's name."""
    for place in (base / given, base / "runs" / given):
        if place.is_dir():
            return os.path.relpath(place / "model" if (place / "model" / "manifest.json").is_file() else place)
    return given


def choose(section: Any, pipeline: Pipeline, tasks: dict[str, Task], rows: int) -> Choice:
    """Reads the `model` section; raises `ConfigError` with every mistake, `Unsupported` for what does not go together."""
    section = {"name": section} if isinstance(section, str) else dict(section or {"name": "auto"})
    if section.get("name") == "auto":
        section = auto(pipeline, tasks, rows) | {k: v for k, v in section.items() if k != "name"}
    if "module" in section:
        return Choice(user={"module": section["module"], "args": dict(section.get("args") or {})})
    if "parts" in section:
        return _composite(section, pipeline, tasks, rows)
    inputs = families(pipeline)
    if "name" not in section:
        return _per_input(section, inputs)
    name, options = section["name"], {k: v for k, v in section.items() if k not in ("name", "fusion")}
    if _is(name, "estimators"):
        module = registry.load("estimators", name)
        _can_predict(name, module, pipeline)
        _learns(name, module, tasks)
        return Choice(estimator=name, config=_config(module, options, "model"))
    if not _is(name, "nets"):
        known = [*registry.names("estimators"), *registry.names("nets"), *registry.plugins("nets"), *registry.plugins("estimators")]
        raise registry.unknown("model", str(name), ["auto", *known])
    module = registry.load("nets", name)
    accepts = set(module.ACCEPTS)
    readers = [i for i, kind in inputs.items() if accepts & set(_encodings(kind))]
    if not readers:
        raise Unsupported(f"the net {name} reads {', '.join(module.ACCEPTS)}; the inputs are {', '.join(inputs.values())}", "use")
    nets = {i: {"name": name, "config": _config(module, options, "model")} for i in readers}
    from modelyard.verbs.train.auto import FAMILIES

    for other in inputs.keys() - nets.keys():
        family = registry.load("nets", FAMILIES[inputs[other]])
        nets[other] = {"name": FAMILIES[inputs[other]], "config": family.Config()}
    return Choice(nets={i: nets[i] for i in inputs}, fusion=_fusion(section.get("fusion")))


def _composite(section: Mapping[str, Any], pipeline: Pipeline, tasks: dict[str, Task], rows: int) -> Choice:
    """`{parts: [trees, mlp], combine: mean}`; every part is read as a model section of its own."""
    from modelyard.runtime.composite import RULES

    problems = []
    parts, rule, weights = section["parts"], section.get("combine", "mean"), section.get("weights")
    if not isinstance(parts, list) or len(parts) < 2:
        problems.append(Problem(f"got {parts!r}, expected a list of at least two models", "model.parts"))
    if rule not in RULES:
        problems.append(Problem(f"got {rule!r}, expected one of {', '.join(RULES)}", "model.combine"))
    if (rule == "weights") != (weights is not None):
        problems.append(Problem("goes with combine: weights, and only with it", "model.weights"))
    elif weights is not None and (
        not isinstance(weights, list) or len(weights) != len(parts) or min(weights, default=0) < 0 or sum(weights) <= 0
    ):
        problems.append(Problem(f"got {weights!r}, expected one weight from 0 for each part", "model.weights"))
    if stray := set(section) - {"parts", "combine", "weights"}:
        problems.append(Problem(f"{', '.join(sorted(stray))} is no key of a composite; expected parts, combine, weights", "model"))
    if problems:
        raise ConfigError(f"the model section has {len(problems)} mistake(s)", problems)
    for part in parts:
        choose(part, pipeline, tasks, rows)
    return Choice(parts=list(parts), combine={"combine": rule, **({"weights": weights} if weights else {})})


def _per_input(section: Mapping[str, Any], inputs: Mapping[str, str]) -> Choice:
    from modelyard.verbs.train.auto import FAMILIES

    problems: list[Problem] = []
    nets = {}
    for name in section.keys() - inputs.keys() - {"fusion"}:
        allowed = ", ".join([*inputs, "fusion", "name", "module"])
        problems.append(Problem(f"is no input of the model; expected one of {allowed}", f"model.{name}"))
    for name, kind in inputs.items():
        given = section.get(name) or {"name": FAMILIES.get(kind, "")}
        given = {"name": given} if isinstance(given, str) else dict(given)
        family = given.pop("name", FAMILIES.get(kind))
        try:
            module = registry.load("nets", str(family))
            if not set(module.ACCEPTS) & set(_encodings(kind)):
                raise UsageError(f"the net {family} reads {', '.join(module.ACCEPTS)}, not {kind}")
            nets[name] = {"name": family, "config": _config(module, given, f"model.{name}")}
        except UsageError as error:
            problems += error.details or [Problem(error.message, f"model.{name}")]
    if problems:
        raise ConfigError(f"the model section has {len(problems)} mistake(s)", problems)
    return Choice(nets=nets, fusion=_fusion(section.get("fusion")))


def _fusion(given: Any) -> dict[str, Any]:
    """`{"name", …}` with settings that the fusion has."""
    found = {"name": given} if isinstance(given, str) else {"name": "concatenate", **dict(given or {})}
    if set(found) == {"name"} and found["name"] == "concatenate":
        return found
    import inspect

    from modelyard.nets._fusion import FUSIONS

    if found["name"] not in FUSIONS:
        raise registry.unknown("model.fusion", str(found["name"]), list(FUSIONS))
    allowed = [k for k in inspect.signature(FUSIONS[found["name"]]).parameters if k != "widths"]
    bad = [k for k in found if k not in ("name", *allowed)]
    problems = [Problem(f"is no setting of {found['name']}; expected one of {', '.join(allowed)}", f"model.fusion.{k}") for k in bad]
    own, width, dropout = found.get("own", []), found.get("width", 1), found.get("dropout", 0.0)
    if not (isinstance(own, list | tuple) and all(isinstance(w, int) and w > 0 for w in own)):
        problems.append(Problem(f"got {own!r}, expected a list of widths such as [64]", "model.fusion.own"))
    if not (isinstance(width, int) and width > 0):
        problems.append(Problem(f"got {width!r}, expected a width from 1", "model.fusion.width"))
    if not (isinstance(dropout, int | float) and 0 <= dropout < 1):
        problems.append(Problem(f"got {dropout!r}, expected a share from 0 to below 1", "model.fusion.dropout"))
    if problems:
        raise ConfigError(f"the model section has {len(problems)} mistake(s)", problems)
    return found


def _encodings(kind: str) -> list[str]:
    return [TABLE] if kind == TABLE else list(registry.load("kinds", kind).KIND.encodings)


def _is(name: Any, group: str) -> bool:
    return isinstance(name, str) and (name.replace("_", "-") in registry.names(group) or name in registry.plugins(group))


def _config(module: ModuleType, options: Mapping[str, Any], where: str) -> Any:
    problems: list[Problem] = []
    config = settings.parse(module.Config, dict(options), where, problems)
    if isinstance(config, tuple):
        config = config[0]
    if problems:
        raise ConfigError(f"the model section has {len(problems)} mistake(s)", problems)
    return module.settled(config) if hasattr(module, "settled") else config


NETS_ONLY = ("freeze", "unfreeze", "layer_decay")
"""Settings of training that go by the layers of a net."""


def only_nets(name: str, config: Any) -> None:
    """Raises `Unsupported` where settings that need layers are given to an estimator."""
    asked = [f"train.{s}" for s in NETS_ONLY if getattr(config, s) is not None]
    if asked:
        raise Unsupported(f"{', '.join(asked)} is for nets, and {name} has no layers; leave it out or choose a net", "never")


def _can_predict(name: str, module: ModuleType, pipeline: Pipeline) -> None:
    kinds = getattr(module, "KINDS", ())
    wrong = [c for c in pipeline.outputs if c.kind not in kinds]
    if wrong:
        message = f"{name} predicts {', '.join(kinds)}, not {', '.join(sorted({c.kind for c in wrong}))}"
        raise Unsupported(message, "use", [Problem(message, c.name) for c in wrong])
    accepts = set(module.ACCEPTS)
    unread = [c for c in pipeline.inputs if not accepts & ({TABLE} if c.rules.scalar else set(c.rules.encodings))]
    if unread:
        message = f"{name} reads {', '.join(module.ACCEPTS)}; use a net for {', '.join(c.name for c in unread)}, or leave them out"
        raise Unsupported(message, "use", [Problem(f"is of kind {c.kind}", c.name) for c in unread])


def _learns(name: str, module: ModuleType, tasks: Mapping[str, Task]) -> None:
    """A model that learns from labels needs a task with labels, and one that does not look at any a task without."""
    looks = getattr(module, "SUPERVISED", "cluster" not in getattr(module, "KINDS", ()))
    wrong = [f"{task.name} ({output})" for output, task in tasks.items() if task.supervised != looks]
    if wrong and "/" not in name:
        reason = "learns from labels, which this task has not" if looks else "looks at no labels, and this task is learnt from them"
        raise Unsupported(f"{name} {reason}: {', '.join(wrong)}", "use", [Problem(reason, "model")])


def set_encodings(choice: Choice, pipeline: Pipeline) -> None:
    """Gives every input the encoding that the chosen family reads; one that the project named is kept if it is read."""
    for column in pipeline.inputs:
        wanted = _wanted(choice, column)
        if wanted and column.encoding not in wanted:
            column.encoding = wanted[0]
            column.config = column.coder.Config()
        if choice.nets:
            net = choice.nets[TABLE if column.rules.scalar else column.name]
            module = registry.load("nets", net["name"])
            if hasattr(module, "encoding"):  # a base fixes how its column is read
                column.config = module.encoding(net["config"], column.config)


def _wanted(choice: Choice, column: Column) -> list[str]:
    if choice.user:
        return []
    if choice.estimator:
        module, config = registry.load("estimators", choice.estimator), choice.config
    else:
        net = choice.nets[TABLE if column.rules.scalar else column.name]
        module, config = registry.load("nets", net["name"]), net["config"]
    asked = module.encodings(config) if hasattr(module, "encodings") else {}
    if column.kind in asked:
        return [asked[column.kind]]
    if choice.estimator and column.kind == "number":
        return [getattr(module, "NUMBERS", "scaled")]
    return [e for e in module.ACCEPTS if e in column.rules.encodings]


def answerable(valid: tuple[dict[str, Array], dict[str, Array]] | None) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """The validation rows (inputs, targets) whose labels training has; None where there are none.

    A label that training never saw has the id -1: no model can answer it, and no loss takes it. Metrics count such rows as wrong.
    """
    if valid is None:
        return None
    inputs, targets = valid
    ids = [t for name, t in targets.items() if name.endswith(".index") and isinstance(t, np.ndarray) and t.ndim == 1]
    known = np.logical_and.reduce([t >= 0 for t in ids]) if ids else np.ones(1, bool)
    if known.all():
        return valid
    rows = np.flatnonzero(known)
    if not len(rows):
        return None
    return {k: take(v, rows) for k, v in inputs.items()}, {k: take(v, rows) for k, v in targets.items()}
