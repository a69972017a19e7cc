"""The search space: what `tune.search` says, checked key by key against the settings it would change, before any data is read."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelyard import registry, settings
from modelyard.errors import ConfigError, Problem
from modelyard.verbs.train.config import DEFAULTS, TrainConfig

FORMS = "a list such as [64, 128, 256], or a range: 0..0.5, log 1e-5..1e-2, int 8..256, log int 8..256, int 8..256 step 8"
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"\s*((?:(?:log|int)\s+)*)({NUMBER})\s*\.\.\s*({NUMBER})(?:\s+step\s+({NUMBER}))?\s*")

LOOP = {*DEFAULTS, "momentum", "l1", "clip", "accumulate", "compile", "precision"}
"""Keys of `train` that only nets look at."""

REFUSED = {
    "train.seed": "draws the split too, so that trials would be judged on different rows; tune.seed varies the search",
    "train.preset": "makes a search of its own, on the validation rows too",
    "train.folds": "repeats the training; a trial is one",
    "train.repeats": "repeats the training; a trial is one",
    "train.threads": "changes the speed, not the model",
    "train.checkpoint_every": "changes nothing of the model",
    "train.smoke": "changes nothing of the model",
}
DATA = ("inputs", "ignore", "frame")
"""Keys of `data` that may vary; the others decide which rows judge."""

LARGEST_GRID = 100_000


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None

    def points(self, count: int) -> list[Any]:
        """What a grid tries: every step, else `count` values spread evenly (evenly in the logarithm with `log`)."""
        if self.step is not None:
            found = [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]
        elif self.log:
            a, b = math.log(self.low), math.log(self.high)
            found = [math.exp(a + (b - a) * i / (count - 1)) for i in range(count)]
        else:
            found = [self.low + (self.high - self.low) * i / (count - 1) for i in range(count)]
        found = [min(max(v, self.low), self.high) for v in found]
        return list(dict.fromkeys(round(v) for v in found)) if self.whole else found

    def probes(self) -> list[Any]:
        """Values whose settings are checked: both ends and one between them that is no whole number."""
        if self.whole:
            return [int(self.low), int(self.high)]
        return [self.low, self.high, self.low + 0.3819660113 * (self.high - self.low)] if self.step is None else self.points(2)


@dataclass(frozen=True)
class Choice:
    """One of some values, of any type that the key takes."""

    values: tuple[Any, ...]

    def points(self, count: int) -> list[Any]:
        """All of them."""
        return list(self.values)

    def probes(self) -> list[Any]:
        """All of them."""
        return list(self.values)

    def index(self, value: Any) -> int:
        """Place of a value (as it came from JSON)."""
        same = [json.dumps(v, sort_keys=True, default=str) for v in self.values]
        return same.index(json.dumps(value, sort_keys=True, default=str))


Dimension = Range | Choice


@dataclass(frozen=True)
class Settings:
    """What a trial is trained with: plain values of the three sections."""

    model: Any
    train: dict[str, Any]
    data: dict[str, Any]


@dataclass
class Space:
    """Checked dimensions by dotted key, those that decide about others first."""

    dimensions: dict[str, Dimension]
    base: Settings
    named: str | None = None
    """The model that is not searched, once it is known (`auto` is known when the data is)."""
    fields: dict[str, set[str] | None] = field(default_factory=dict)
    """Settings of each candidate model; None for nets that are given by input."""

    def active(self, key: str, chosen: Mapping[str, Any]) -> bool:
        """Whether a key has a meaning beside what was chosen before it: `model.leaves` only for a model with leaves."""
        section, _, rest = key.partition(".")
        name = _name(chosen["model.name"] if "model.name" in chosen else chosen["model"]) if _decides(chosen) else self.named
        if name is None or name == "auto" or key in ("model", "model.name"):
            return True
        if section == "train":
            return not (rest.split(".")[0] in LOOP and _is_estimator(name))
        known = _fields(name)
        return section != "model" or known is None or rest.split(".")[0] in known

    def applied(self, params: Mapping[str, Any]) -> Settings:
        """The base settings with the values of a trial."""
        return applied(self.base, params)

    def grid(self, count: int) -> list[dict[str, Any]]:
        """Every combination; a key without meaning beside the others does not multiply them. `ConfigError` beyond 100,000."""
        found = list(itertools.islice(self._combinations(list(self.dimensions), {}, count), LARGEST_GRID + 1))
        if len(found) > LARGEST_GRID:
            raise ConfigError(f"the grid has more than {LARGEST_GRID:,} points; give ranges a step, or use method: random or tpe")
        return found

    def _combinations(self, keys: list[str], chosen: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
        if not keys:
            yield dict(chosen)
            return
        key, rest = keys[0], keys[1:]
        if not self.active(key, chosen):
            yield from self._combinations(rest, chosen, count)
            return
        for value in self.dimensions[key].points(count):
            yield from self._combinations(rest, {**chosen, key: value}, count)


def read(search: Mapping[str, Any], base: Settings, origins: Mapping[str, str] | None = None) -> Space:
    """The space that a section describes. Raises `ConfigError` with every mistake: of forms, of keys, of values out of bounds."""
    problems: list[Problem] = []
    place = lambda key: _place(f"tune.search.{key}", origins or {})  # noqa: E731
    flat = _flat(search)
    if not flat:
        hint = "Write for example tune: {search: {train.lr: log 1e-4..1e-2}}."
        problems.append(Problem("names nothing that may vary", _place("tune.search", origins or {}), hint))
    dimensions: dict[str, Dimension] = {}
    for key, value in flat.items():
        found = dimension(value)
        if isinstance(found, str):
            problems.append(Problem(found, place(key), f"Write {FORMS}."))
        else:
            dimensions[key] = found
    order = sorted(dimensions, key=lambda k: (k != "model", k != "model.name"))
    space = Space({k: dimensions[k] for k in order}, base, _name(base.model))
    if "model" in dimensions and "model.name" in dimensions:
        problems.append(Problem("is searched twice, as model and as model.name", place("model.name"), "Keep one of them."))
    else:
        for key, dim in space.dimensions.items():
            problems += [dataclasses.replace(p, where=place(key)) for p in _mistakes(key, dim, space)]
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise ConfigError(f"the search space has {count}:", problems)
    return space


def _flat(search: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted keys; maps inside maps (`search: {train: {lr: …}}`) are opened, and what was written later wins."""
    found: dict[str, Any] = {}
    for key, value in search.items():
        where = f"{path}.{key}" if path else str(key)
        for name, item in (_flat(value, where) if isinstance(value, Mapping) else {where: value}).items():
            found.pop(name, None)
            found[name] = item
    return found


def dimension(value: Any) -> Dimension | str:
    """A list as `Choice`, a text as `Range`, or what is wrong with it."""
    if isinstance(value, list | tuple):
        if not value:
            return "is an empty list"
        same = [json.dumps(v, sort_keys=True, default=str) for v in value]
        double = [s for i, s in enumerate(same) if s in same[:i]]
        return f"lists {double[0]} twice" if double else Choice(tuple(value))
    found = RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return f"got {value!r}, which is neither a list nor a range"
    marks = found[1].split()
    low, high, step = float(found[2]), float(found[3]), None if found[4] is None else float(found[4])
    whole, log = "int" in marks, "log" in marks
    if not low < high:
        return f"got {value!r}: the low end must be below the high end"
    if log and low <= 0:
        return f"got {value!r}: a logarithmic range begins above 0"
    if whole and not (low.is_integer() and high.is_integer() and (step is None or step.is_integer())):
        return f"got {value!r}: int goes with whole numbers only"
    if step is not None and log:
        return f"got {value!r}: log and step do not go together"
    if step is not None and not 0 < step <= high - low:
        return f"got {value!r}: the step must lie between 0 and the width of the range"
    if step is not None:  # the last step may fall short of the end
        high = low + math.floor((high - low) / step + 1e-9) * step
    return Range(low, high, log, whole, step)


def applied(base: Settings, params: Mapping[str, Any]) -> Settings:
    """`base` with values at dotted keys; options of the project's model are kept for that model only."""
    tree = {"model": copy.deepcopy(base.model), "train": copy.deepcopy(base.train), "data": copy.deepcopy(base.data)}
    for key, value in params.items():
        if key == "model":
            tree["model"] = copy.deepcopy(value)
        elif key == "model.name":
            before = tree["model"] if isinstance(tree["model"], Mapping) else {"name": tree["model"]}
            tree["model"] = {**before, "name": value} if before.get("name") == value else {"name": value}
        else:
            _put(tree, key.split("."), value)
    return Settings(tree["model"], tree["train"], tree["data"])


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = tree.get(key)
        if isinstance(inner, str):  # a scalar stands for a map: `model: trees`, `data.inputs: {a: text}`
            inner = {"name" if keys[0] == "model" else "kind" if depth else "path": inner}
        elif isinstance(inner, list) and keys[:2] == ["data", "inputs"]:
            inner = {str(name): {} for name in inner}
        tree[key] = dict(inner or {})
        tree = tree[key]
    tree[keys[-1]] = value


def _mistakes(key: str, dim: Dimension, space: Space) -> list[Problem]:
    section, _, rest = key.partition(".")
    if key in REFUSED:
        return [Problem(f"cannot be searched: it {REFUSED[key]}")]
    if section == "train" and rest:
        return _train(key, dim, space)
    if section == "model":
        return _model(key, rest, dim, space)
    if section == "data" and rest.split(".")[0] in DATA:
        return _data(key, dim, space)
    if section == "data":
        message = "cannot be searched: it decides which rows judge, so that trials could not be compared"
        return [Problem(message, hint=f"Of data these may vary: {', '.join(f'data.{d}' for d in DATA)}.")]
    known = [*(f"train.{f}" for f in settings.docs(TrainConfig)), *(f"model.{f}" for n in _candidates(space) for f in _fields(n) or ())]
    near = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.endswith(f".{key}")][:1]
    hint = f"Did you mean {near[0]!r}?" if near else ""
    return [Problem("is no key that can be searched; expected one below train, model or data.inputs", hint=hint)]


def _train(key: str, dim: Dimension, space: Space) -> list[Problem]:
    names = _candidates(space)
    first = key.split(".")[1]
    if first in LOOP and names and all(_is_estimator(n) for n in names):
        own = [f"model.{f}" for n in names for f in _fields(n) or ()]
        near = difflib.get_close_matches(f"model.{first}", own, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Search one of {', '.join(own)}." if own else ""
        return [Problem(f"has no effect: {' and '.join(names)} fit themselves, and train.{first} is for nets", hint=hint)]
    parent = key.split(".")[1]
    if key.count(".") > 1 and isinstance(space.base.train.get(parent), str):
        return [Problem(f"train.{parent} is the text {space.base.train[parent]!r}; write it as a map to search inside it")]
    return _probed(dim, lambda value: settings_of(TrainConfig, applied(space.base, {key: value}).train, "train"))


def _data(key: str, dim: Dimension, space: Space) -> list[Problem]:
    from modelyard.data.source import DataConfig

    if key.startswith("data.inputs.") and not space.base.data.get("inputs"):
        return [Problem("needs data.inputs to name the inputs; without it they are found when the data is read")]
    return _probed(dim, lambda value: settings_of(DataConfig, applied(space.base, {key: value}).data, "data"))


def _model(key: str, rest: str, dim: Dimension, space: Space) -> list[Problem]:
    if key in ("model", "model.name"):
        if isinstance(dim, Range):
            return [Problem("is a name: list the models that may be taken, e.g. [trees, linear]")]
        return [p for value in dim.values for p in _named(value, name_only=key == "model.name")]
    names = _candidates(space)
    if not names or names == ["auto"]:
        if isinstance(space.base.model, Mapping) and "name" not in space.base.model:
            return _input_net(key, rest, dim, space)
        return [Problem("needs a named model", hint="Write model: NAME, or search model.name: [trees, linear].")]
    first = rest.split(".")[0]
    having = [n for n in names if first in (_fields(n) or ())]
    if not having:
        known = [f"model.{f}" for n in names for f in _fields(n) or ()]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        return [Problem(f"is no setting of {' or '.join(names)}; expected one of {', '.join(dict.fromkeys(known))}", hint=hint)]
    found = []
    for name in having:
        module = _module(name)
        own = applied(Settings(name, {}, {}), {})
        found += _probed(dim, lambda v, m=module, o=own: settings_of(m.Config, {k: x for k, x in applied(o, {key: v}).model.items() if k != "name"}, "model"))  # type: ignore[misc]
    return found


def _input_net(key: str, rest: str, dim: Dimension, space: Space) -> list[Problem]:
    """`model: {text: cnn, table: mlp}`: the settings of one input's net."""
    given = space.base.model.get(rest.split(".")[0])
    name = given if isinstance(given, str) else (given or {}).get("name")
    if not isinstance(name, str) or rest.count(".") < 1:
        return []  # which inputs there are is known when the data is read
    part = rest.split(".", 1)[1]
    return _probed(dim, lambda value: settings_of(_module(name).Config, applied(Settings({}, {}, {}), {f"model.{part}": value}).model, "model"))


def _named(value: Any, name_only: bool) -> list[Problem]:
    """A model by name or (for the key `model`) as a map of its settings."""
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, Mapping) or (name_only and not isinstance(value, str)):
        return [Problem(f"got {value!r}, expected the name of a model" + ("" if name_only else " or a map"))]
    name = section.get("name")
    if name is None:
        return []
    known = ["auto", *registry.names("estimators"), *registry.names("nets"), *registry.plugins("estimators"), *registry.plugins("nets")]
    if str(name).replace("_", "-") not in known and name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        return [Problem(f"unknown model {name!r}; expected one of {', '.join(known)}", hint=hint)]
    options = {k: v for k, v in section.items() if k not in ("name", "fusion", "parts", "combine", "weights")}
    return settings_of(_module(str(name)).Config, options, "model") if options and name != "auto" else []


def _probed(dim: Dimension, problems_of: Any) -> list[Problem]:
    """The first mistake that a value of the dimension makes."""
    for value in dim.probes():
        found: list[Problem] = problems_of(value)
        if found:
            first = found[0]
            if isinstance(dim, Range) and not dim.whole and "a whole number" in first.message and not problems_of(float(round(dim.low))):
                return [Problem("takes whole numbers", hint=f"Write int {dim.low:g}..{dim.high:g}.")]
            return [first]
    return []


def settings_of(cls: type, value: Any, where: str) -> list[Problem]:
    """Mistakes of a section."""
    problems: list[Problem] = []
    settings.parse(cls, value, where, problems)
    return problems


def _decides(chosen: Mapping[str, Any]) -> bool:
    return "model.name" in chosen or "model" in chosen


def _name(model: Any) -> str | None:
    if isinstance(model, Mapping):
        name = model.get("name")
        return str(name) if name is not None and "module" not in model else None
    return "auto" if model is None else str(model)


def _candidates(space: Space) -> list[str]:
    """Names of the models that a trial may have; empty where the inputs have nets of their own."""
    for key in ("model", "model.name"):
        dim = space.dimensions.get(key)
        if isinstance(dim, Choice):
            return [n for n in map(_name, dim.values) if n is not None and _known(n)]
    return [space.named] if space.named is not None and (space.named == "auto" or _known(space.named)) else []


def _known(name: str) -> bool:
    return any(name.replace("_", "-") in registry.names(g) or name in registry.plugins(g) for g in ("estimators", "nets"))


def _is_estimator(name: str) -> bool:
    return name.replace("_", "-") in registry.names("estimators") or name in registry.plugins("estimators")


def _module(name: str) -> Any:
    return registry.load("estimators" if _is_estimator(name) else "nets", name)


def _fields(name: str) -> set[str] | None:
    """Settings of a model, with `fusion` for nets; None for `auto`."""
    if name == "auto" or not _known(name):
        return None
    return {f.name for f in dataclasses.fields(_module(name).Config)} | (set() if _is_estimator(name) else {"fusion"})


def _place(path: str, origins: Mapping[str, str]) -> str:
    key = path
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return f"{origins[key]}: {path}" if key and origins[key] != "default" else path
