"""`modelyard.yaml` and `key=value` → a `Project`. Order: command line > file > preset > default; all mistakes at once.

Each section belongs to a verb: `verbs/<verb>/config.py` or `verbs/<verb>/__init__.py` defines its `Config` (or
`<Verb>Config`), found without importing it and imported when the section is parsed.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from modelyard import registry, settings
from modelyard.errors import ConfigError, MissingExtra, Problem, UsageError
from modelyard.project_file import Node, as_node, read_file, read_value

FILE = "modelyard.yaml"
TOP = {
    "version": "Version of the file format: 1.",
    "name": "Name of runs and models; without it the folder's.",
    "task": "What is predicted: classification, regression … or a Hugging Face name such as text-classification.",
    "preset": "A project file that this one is laid over.",
    "seed": "Seed of every section that has none of its own.",
    "data": "Where the rows are.",
    "model": "auto, the name of a net or an estimator, or a map.",
}
"""Keys that belong to no verb, and what they mean."""

TABLES = ("path", "train", "valid", "test", "unlabelled")
"""Keys of `data` that hold paths when they hold texts."""


@dataclass(frozen=True)
class RawNode:
    """A section that is parsed later, because what it may hold depends on what it names."""

    value: Any
    where: str
    origins: Mapping[str, str] = field(default_factory=dict)

    def parse(self, cls: type, value: Any, where: str, problems: list[Problem]) -> Any:
        """`settings.parse` with the places of this file."""
        return settings.parse(cls, value, where, problems, self.origins)


@dataclass(frozen=True)
class Project:
    """Everything asked for, checked. Sections are attributes: `project.train.epochs`."""

    version: int
    name: str
    task: str | None
    seed: int | None
    data: Any
    """`modelyard.data.source.DataConfig`."""
    model: RawNode
    base: Path
    """Folder that paths are relative to."""
    file: Path | None
    origins: dict[str, str]
    """Dotted key → `file:line`, `command line`, `call`, `preset …` or `default`."""
    sections: dict[str, Any] = field(default_factory=dict)
    """Parsed sections that were written, by verb."""
    hidden: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Dotted key → text with `${env:NAME}`, shown in place of the value."""

    def section(self, verb: str) -> Any:
        """The `Config` of a verb, defaults where the file says nothing. Raises `KeyError` where the verb has none."""
        if verb not in self.sections:
            cls = section_class(verb)
            if cls is None:
                raise KeyError(f"the verb {verb} has no settings")
            seeded = {"seed": self.seed} if self.seed is not None and "seed" in settings.docs(cls) else {}
            self.sections[verb] = cls(**seeded)
            self.origins.update(_defaults(verb, settings.plain(self.sections[verb]), self.origins))
            if seeded:
                self.origins[f"{verb}.seed"] = self.origins.get("seed", "default")
        return self.sections[verb]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self.section(name.replace("_", "-"))
        except KeyError as error:
            raise AttributeError(str(error)) from None

    def has(self, section: str) -> bool:
        """Whether anything was written in a section."""
        return any(k == section or k.startswith(f"{section}.") for k, v in self.origins.items() if v != "default")

    def resolved(self) -> dict[str, Any]:
        """Plain values of everything, secrets unresolved: what `plan` shows and `config.yaml` keeps."""
        found: dict[str, Any] = {k: getattr(self, k) for k in ("version", "name", "task", "seed")}
        found |= {"data": _shown(settings.plain(self.data)), "model": settings.plain(self.model.value)}
        found |= {verb: settings.plain(config) for verb, config in sorted(self.sections.items())}
        for key, text in self.hidden.items():
            _put(found, key.split("."), text)
        return found


def load_project(
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    verb: str | None = None,
) -> Project:
    """Read, lay over each other and check.

    `file` defaults to `modelyard.yaml` here, where there is one. `overrides` are texts `train.epochs=3`; `values`
    the same as Python objects. A key without its section is accepted where only one section has it, `verb`'s own first.
    Raises `ConfigError` with every mistake; `UsageError` for a text that is no `key=value`.
    """
    problems: list[Problem] = []
    path = Path(file) if file is not None else Path(FILE)
    if path.is_dir():
        path = path / FILE
    found = file is not None or path.is_file()
    tree = read_file(path, problems) if found else Node({}, "default")
    base = path.parent if found else Path()
    tree = _under_preset(tree, base, problems)
    for layer in _layers(overrides, values or {}, verb, problems):
        tree = _over(tree, _from_here(layer, base), None)
    return _build(tree, base, path if found else None, problems)


def from_environment(stored: Any, where: str) -> Any:
    """Settings that a run kept, with `${env:NAME}` filled in. Raises `ConfigError` naming what is not set."""
    flat = _Flat([])
    found = flat.resolve(stored, where)
    if flat.problems:
        raise ConfigError("the stored settings name what this environment lacks", flat.problems)
    return found


def override(text: str) -> tuple[str, Node]:
    """`key=value` as (key, node)."""
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.\-/ ]+", key):
        raise UsageError(f"{text!r} is no key=value; write for example train.epochs=3 or data=customers.csv")
    return key.strip(), read_value(value, "command line")


# --- the sections ----------------------------------------------------------------------------------------------------


@cache
def section_source(verb: str) -> tuple[str, ast.ClassDef] | None:
    """(module, class) of a section's `Config`, read as text; None where the verb has no settings."""
    if verb == "data":
        found = _find_class(registry.ROOT / "data" / "source.py", ("DataConfig",))
        return ("modelyard.data.source", found) if found else None
    if verb.replace("_", "-") not in registry.names("verbs") and not (registry.ROOT / "verbs" / verb).is_dir():
        return None
    folder = verb.replace("-", "_")
    wanted = ("Config", "".join(w.title() for w in verb.split("-")) + "Config")
    for stem in ("config", "__init__"):
        found = _find_class(registry.ROOT / "verbs" / folder / f"{stem}.py", wanted)
        if found:
            return f"modelyard.verbs.{folder}" + (".config" if stem == "config" else ""), found
    return None


def _find_class(path: Path, wanted: Sequence[str]) -> ast.ClassDef | None:
    if not path.is_file():
        return None
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return next((n for n in body if isinstance(n, ast.ClassDef) and n.name in wanted), None)


def section_class(verb: str) -> type | None:
    """The `Config` of a section, imported."""
    if "/" in verb:
        config = getattr(registry.load("verbs", verb), "Config", None) if verb in registry.plugins("verbs") else None
        return config if isinstance(config, type) else None
    found = section_source(verb)
    return getattr(importlib.import_module(found[0]), found[1].name) if found else None


def section_keys(verb: str) -> dict[str, str]:
    """Keys of a section and what they mean, without importing it."""
    found = section_source(verb)
    if not found:
        return {}
    documented = settings.field_docs(found[1])
    return {
        n.target.id: documented.get(n.target.id, "")
        for n in found[1].body
        if isinstance(n, ast.AnnAssign)
        and isinstance(n.target, ast.Name)
        and "ClassVar" not in ast.unparse(n.annotation)
    }


@cache
def sections() -> tuple[str, ...]:
    """All sections: `data` and the verbs that have settings."""
    folders = [p.name.replace("_", "-") for p in (registry.ROOT / "verbs").glob("*/") if not p.name.startswith("_")]
    return ("data", *sorted(v for v in folders if section_source(v)))


# --- laying trees over each other ------------------------------------------------------------------------------------


def _layers(
    overrides: Sequence[str], values: Mapping[str, Any], verb: str | None, problems: list[Problem]
) -> Iterator[Node]:
    pairs = [(key, as_node(value, "call")) for key, value in values.items()] + [override(text) for text in overrides]
    for key, node in pairs:
        full = _full_key(key, node.origin, verb, problems)
        if full:
            for part in reversed(full.split(".")):
                node = Node({part: node}, node.origin)
            yield node


def _full_key(key: str, origin: str, verb: str | None, problems: list[Problem]) -> str | None:
    """`epochs` → `train.epochs`, where that is the only one."""
    first = key.split(".")[0]
    if first in TOP or first in sections() or first.replace("_", "-") in sections() or "/" in first:
        return key if first in TOP or "/" in first else key.replace(first, first.replace("_", "-"), 1)
    homes = [s for s in sections() if first.replace("-", "_") in section_keys(s)]
    own = [s for s in ("data", verb) if s in homes]
    if len(homes) == 1 or own:
        return f"{(own or homes)[0]}.{key}"
    if homes:
        hint = "Write one of " + ", ".join(f"{s}.{first}" for s in homes) + "."
        problems.append(Problem(f"{first!r} is a key of several sections", f"{origin}: {key}", hint))
        return None
    known = [*TOP, *sections(), *(k for s in sections() for k in section_keys(s))]
    problems.append(Problem("unknown key; write section.key=value", f"{origin}: {key}", _near(first, known)))
    return None


def _near(came: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(came, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def _over(low: Node, high: Node, cls: type | None, top: bool = True) -> Node:
    """`high` laid over `low`: maps key by key; a scalar that stands for a map is opened first."""
    low, high = (_opened(n, cls, other) for n, other in ((low, high), (high, low)))
    if not (low.is_map and high.is_map):
        return high
    merged = dict(low.value)
    for key, node in high.value.items():
        name = key if key in merged else key.replace("-", "_") if key.replace("-", "_") in merged else key
        if name not in merged:
            merged[name] = node
            continue
        below = _child(key, cls, top)
        if top and key == "model" and not node.is_map:
            merged[name] = node  # another model: the options of the old one do not carry over
        else:
            merged[name] = _over(merged[name], node, below, False)
    return Node(merged, high.origin if not low.value else low.origin)


def _child(key: str, cls: type | None, top: bool) -> type | None:
    if top:
        return _Model if key == "model" else section_class(key) if key in sections() else None
    if cls is None or cls is _Model or key not in settings.docs(cls):
        return None
    import typing

    hint = typing.get_type_hints(cls).get(key)
    options = typing.get_args(hint) or (hint,)
    return next((o for o in options if dataclasses.is_dataclass(o) and isinstance(o, type)), None)


class _Model:
    SHORTHAND = "name"


def _opened(node: Node, cls: type | None, other: Node) -> Node:
    short = getattr(cls, "SHORTHAND", None)
    if short is None or node.is_map or node.value is None or not (other.is_map or cls is not _Model):
        return node
    return Node({short: node}, node.origin)


def _under_preset(tree: Node, base: Path, problems: list[Problem]) -> Node:
    asked = tree.value.get("preset")
    if asked is None:
        return tree
    if not isinstance(asked.value, str):
        problems.append(Problem(f"got {asked.value!r}, expected the path of a project file", f"{asked.origin}: preset"))
        return tree
    path = base / asked.value
    if not path.is_file():
        problems.append(
            Problem(f"there is no file {path}", f"{asked.origin}: preset", "Paths are relative to the project file.")
        )
        return tree
    low = _relabelled(read_file(path, problems), f"preset {path.name}")
    low.value.pop("preset", None)
    return _over(low, tree, None)


def _relabelled(node: Node, label: str) -> Node:
    origin = f"{label}:{node.origin.rpartition(':')[2]}" if ":" in node.origin else label
    value = {k: _relabelled(v, label) for k, v in node.value.items()} if node.is_map else node.value
    return Node(value, origin)


def _from_here(layer: Node, base: Path) -> Node:
    """Paths of the command line are relative to where it is typed, those of the file to the file."""
    if base.resolve() == Path.cwd() or "data" not in layer.value:
        return layer
    data = layer.value["data"]
    if isinstance(data.value, str):
        return Node({**layer.value, "data": Node({"path": _here(data)}, data.origin)}, layer.origin)
    if not data.is_map:
        return layer
    moved = {k: _here(n) if k in TABLES and isinstance(n.value, str) else n for k, n in data.value.items()}
    return Node({**layer.value, "data": Node(moved, data.origin)}, layer.origin)


def _here(node: Node) -> Node:
    """The absolute path; a URL stays, but for a relative SQLite file."""
    scheme, sign, rest = str(node.value).partition("://")
    if sign and scheme.isidentifier():
        relative = scheme == "sqlite" and rest.startswith("/") and not rest.startswith(("//", "/~"))
        return Node(f"sqlite:///{Path.cwd() / rest[1:]}", node.origin) if relative else node
    return Node(str(Path.cwd() / Path(node.value).expanduser()), node.origin)


# --- building --------------------------------------------------------------------------------------------------------


@dataclass
class _Flat:
    """A tree as plain values, with the origin of every key and the secrets taken from the environment."""

    problems: list[Problem]
    origins: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def plain(self, node: Node, path: str) -> Any:
        if path:
            self.origins[path] = node.origin
        if node.is_map:
            return {k: self.plain(v, f"{path}.{k}" if path else k) for k, v in node.value.items()}
        return self.leaf(node.value, path)

    def leaf(self, value: Any, path: str) -> Any:
        found = self.resolve(value, path)
        if isinstance(value, str | list) and found != value:
            self.hidden[path] = value
        return found

    def resolve(self, value: Any, path: str) -> Any:
        if isinstance(value, list):
            return [self.resolve(v, path) for v in value]
        if isinstance(value, dict):
            return {k: self.resolve(v, path) for k, v in value.items()}
        if not isinstance(value, str) or "${env:" not in value:
            return value

        def lookup(match: re.Match[str]) -> str:
            found = os.environ.get(match[1])
            if found is None:
                place = f"{self.origins.get(path, '')}: {path}"
                self.problems.append(
                    Problem(f"the environment variable {match[1]} is not set", place, "Set it or write the value.")
                )
                return ""
            self.secrets[found] = match[0]
            return found

        return re.sub(r"\$\{env:([A-Za-z_]\w*)\}", lookup, value)

    def scrub(self, problem: Problem) -> Problem:
        message = problem.message
        for secret, text in self.secrets.items():
            if len(secret) > 2:
                message = message.replace(secret, text)
        return dataclasses.replace(problem, message=message)


def _build(tree: Node, base: Path, file: Path | None, problems: list[Problem]) -> Project:
    flat = _Flat(problems)
    values = {k.replace("_", "-") if k not in TOP else k: v for k, v in flat.plain(tree, "").items()}
    origins = flat.origins
    version = _top(values, "version", int, problems, origins, 1)
    if version is not None and version != 1:
        hint = "It was written for a newer Modelyard." if isinstance(version, int) and version > 1 else ""
        problems.append(Problem(f"got {version!r}, expected 1", _at("version", origins), hint))
    name = _top(values, "name", str, problems, origins, None)
    seed = _top(values, "seed", int, problems, origins, None)
    if seed is not None and not 0 <= seed < 2**31:
        problems.append(Problem(f"got {seed}, expected a whole number from 0 to {2**31 - 1}", _at("seed", origins)))
    task = _task(_top(values, "task", str, problems, origins, None), problems, origins)
    model = RawNode(values.get("model", "auto"), origins.get("model", "default"), origins)
    _check_model(model, problems)
    _check_metrics(values.get("evaluate"), problems, origins)
    parsed = {}
    for key, value in values.items():
        if key in TOP and key != "data":
            continue
        if key not in sections() and "/" not in key:
            known = [*TOP, *sections()]
            message = f"unknown section; expected one of {', '.join(known)}"
            problems.append(Problem(message, _at(key, origins), _near(key, known)))
            continue
        parsed[key] = _section(key, value, seed, problems, origins)
    readable = parsed.get("data") is not None
    data = parsed.pop("data", None) or _section("data", {}, None, problems, origins)
    if problems:
        where = file if file is not None else "the command line"
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        error = ConfigError(f"{count} in {where}:", [flat.scrub(p) for p in problems])
        if readable:
            sections_ = {k: v for k, v in parsed.items() if v is not None}
            error.project = Project(1, "broken", task, seed, data, model, base, file, origins, sections_)
        raise error
    for key, config in {"data": data, **parsed}.items():
        origins.update(
            _defaults(key, settings.plain(config) if key != "data" else _shown(settings.plain(config)), origins)
        )
    origins.update({k: "default" for k in ("version", "name", "task", "seed", "model") if k not in origins})
    return Project(
        version=1, name=name or _name(base, file, data), task=task, seed=seed, data=data, model=model, base=base,
        file=file, origins=origins, sections=parsed, hidden=flat.hidden,
    )  # fmt: skip


def _section(key: str, value: Any, seed: int | None, problems: list[Problem], origins: dict[str, str]) -> Any:
    cls = section_class(key)
    if cls is None:
        problems.append(
            Problem("is no section: no installed package has this verb, or it has no settings", _at(key, origins))
        )
        return None
    short = getattr(cls, "SHORTHAND", None)
    if short and value is not None and not isinstance(value, Mapping):
        origins[f"{key}.{short}"] = origins.get(key, "default")
    if seed is not None and "seed" in {f.name for f in dataclasses.fields(cls)} and "seed" not in (value or {}):
        value = (
            {**value, "seed": seed}
            if isinstance(value, Mapping)
            else {"seed": seed, **({short: value} if short and value is not None else {})}
        )
        origins[f"{key}.seed"] = origins.get("seed", "default")
    return settings.parse(cls, value, key, problems, origins)


def _top(
    values: Mapping[str, Any], key: str, kind: type, problems: list[Problem], origins: Mapping[str, str], default: Any
) -> Any:
    value = values.get(key)
    if value is None:
        return default
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    words = {int: "a whole number", str: "a text"}
    problems.append(Problem(f"got {value!r}, expected {words[kind]}", _at(key, origins), f"{TOP[key]}"))
    return default


def _at(key: str, origins: Mapping[str, str]) -> str:
    return f"{origins[key]}: {key}" if key in origins else key


def _task(task: str | None, problems: list[Problem], origins: Mapping[str, str]) -> str | None:
    if task is None or "/" in task:
        return task
    known = [*registry.names("tasks"), *_aliases()]
    if task not in known:
        message = f"unknown task {task!r}; expected one of {', '.join(known)}, or package/name"
        problems.append(Problem(message, _at("task", origins), _near(task, known)))
        return None
    return task


@cache
def _aliases() -> list[str]:
    """Keys of `ALIASES` in the task files, read as text: importing them costs a second."""
    found = []
    for name in registry.names("tasks"):
        path = registry.ROOT / "tasks" / f"{name.replace('-', '_')}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "ALIASES" for t in targets):
                found += [str(k.value) for k in node.value.keys if isinstance(k, ast.Constant)]
    return found


def _check_model(model: RawNode, problems: list[Problem]) -> None:
    """Names and options that need no data to be judged; what depends on the inputs is the verb's to say."""
    value = model.value
    value = {"name": value} if isinstance(value, str) else value
    if value is None:
        return
    if not isinstance(value, Mapping):
        message = f"got {value!r}, expected auto, a name, or a map"
        problems.append(Problem(message, _at("model", model.origins)))
        return
    name = value.get("name")
    if name is None or "module" in value:
        return
    known = ["auto", *registry.names("estimators"), *registry.names("nets")]
    if not isinstance(name, str) or (name.replace("_", "-") not in known and "/" not in name):
        place = _at("model.name" if "model.name" in model.origins else "model", model.origins)
        message = f"unknown model {name!r}; expected one of {', '.join(known)}, or package/name"
        problems.append(Problem(message, place, _near(str(name), known)))
        return
    options = {k: v for k, v in value.items() if k not in ("name", "fusion")}
    group = next((g for g in ("estimators", "nets") if name.replace("_", "-") in registry.names(g)), None)
    if options and group:
        try:
            settings.parse(registry.load(group, name).Config, options, "model", problems, model.origins)
        except MissingExtra:
            return  # the verb that needs it says so


def _check_metrics(section: Any, problems: list[Problem], origins: Mapping[str, str]) -> None:
    """Names of metrics, which `evaluate` would refuse after the training."""
    asked = section.get("metrics") if isinstance(section, Mapping) else None
    for name in asked if isinstance(asked, list) else []:
        known = registry.names("metrics")
        if isinstance(name, str) and "/" not in name and name.replace("_", "-") not in known:
            message = f"unknown metric {name!r}; expected one of {', '.join(known)}, or package/name"
            problems.append(Problem(message, _at("evaluate.metrics", origins), _near(name, known)))


def _name(base: Path, file: Path | None, data: Any) -> str:
    if file is not None and base.resolve().name:
        return base.resolve().name
    first = data.path if data.path is not None else data.train
    return Path(first).name.split(".")[0] or "run" if isinstance(first, str | Path) else "run"


def _defaults(where: str, value: Any, origins: Mapping[str, str]) -> dict[str, str]:
    """`default` for every key that nobody wrote."""
    if not isinstance(value, Mapping):
        return {} if where in origins else {where: "default"}
    found: dict[str, str] = {}
    for key, item in value.items():
        found |= _defaults(f"{where}.{key}", item, origins)
    return found


def _shown(value: Any, table: bool = False) -> Any:
    """Table objects given in Python as the name of their type (a frame, or a list of rows, is no setting); URLs without passwords."""
    if isinstance(value, dict):
        return {k: _shown(v, k in TABLES) for k, v in value.items()}
    if table and isinstance(value, list):
        return [settings.without_password(str(v)) for v in value] if all(isinstance(v, str | Path) for v in value) else f"<{len(value)} rows>"
    if table and isinstance(value, str):
        return settings.without_password(value)
    return value if isinstance(value, str | int | float | bool | list) or value is None else f"<{type(value).__name__}>"


def _put(tree: Any, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree[keys[-1]] = value
