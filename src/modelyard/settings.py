"""The schema of every section: frozen keyword-only dataclasses, their docs as string literals under the fields.

`parse` turns plain values (YAML, command line, Python) into a dataclass and collects *all* mistakes;
`json_schema` and `reference` make the editor schema and the reference pages from the same source. Imports nothing heavy.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from modelyard.errors import Problem


@dataclass(frozen=True)
class Between:
    """Bounds of a number, both included."""

    low: float = float("-inf")
    high: float = float("inf")

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low == float("-inf") else f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Seconds:
    """Marks a float that may be written as a duration: `90s`, `5m`, `1h30m`."""


Duration = Annotated[float, Seconds(), Between(0)]
"""Seconds, or a text such as `5m`."""

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class _Bad(Exception):
    """What is allowed, for the message."""


def parse(cls: type, value: Any, where: str, problems: list[Problem], origins: Mapping[str, str] | None = None) -> Any:
    """An instance of the dataclass `cls`, or None if anything was wrong; every mistake is added to `problems`.

    `where` is the dotted key of the section; `origins` maps dotted keys to `file:line` or `command line`. A scalar may
    stand for a map where `cls.SHORTHAND` names the field it sets.
    """
    before = len(problems)
    place = functools.partial(_place, origins=origins or {})
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        short = getattr(cls, "SHORTHAND", None)
        if short is None:
            problems.append(Problem(f"got {_short(value)}, expected a map of {_names(cls)}", place(where)))
            return None
        value = {short: value}
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given = {}
    for key, item in value.items():
        path = f"{where}.{key}" if where else str(key)
        name = str(key).replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            problems.append(Problem(f"unknown key; expected one of {_names(cls)}", place(path), hint))
            continue
        found = _convert(hints[name], item, path, problems, origins)
        if found is not _FAILED:
            given[name] = found
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given and not any(str(k).replace("-", "_") == name for k in value):
            path = f"{where}.{name}" if where else name
            problems.append(Problem(f"is required: {docs(cls).get(name, '')}".strip(": "), place(path)))
    if len(problems) > before:
        return None
    try:
        return cls(**given)
    except ValueError as error:  # a cross-field rule of __post_init__
        problems.append(Problem(str(error), place(where)))
        return None


_FAILED = object()


def _place(path: str, origins: Mapping[str, str]) -> str:
    key = path
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return f"{origins[key]}: {path}" if key else path


def _short(value: Any) -> str:
    """What came, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _convert(hint: Any, value: Any, path: str, problems: list[Problem], origins: Mapping[str, str] | None) -> Any:
    nested = _dataclass_of(hint, value)
    if nested is not None:
        found = parse(nested, value, path, problems, origins)
        return _FAILED if found is None else found
    try:
        return _plain(hint, value)
    except _Bad as allowed:
        problems.append(Problem(f"got {_short(value)}, expected {allowed}", _place(path, origins or {})))
        return _FAILED


def _dataclass_of(hint: Any, value: Any) -> type | None:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [o for o in options if dataclasses.is_dataclass(o) and isinstance(o, type)]
    if not found or (value is None and type(None) in options):
        return None
    others = [o for o in options if o not in found and o is not type(None)]
    if not isinstance(value, Mapping) and others and getattr(found[0], "SHORTHAND", None) is None:
        return None
    return found[0]


def _plain(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`, or `_Bad` with what is allowed."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(args[0], args[1:], value)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        raise _Bad("one of " + ", ".join(map(str, args)) + (f"; did you mean {near[0]!r}?" if near else ""))
    if origin in (Union, types.UnionType):
        allowed = []
        for option in args:
            try:
                return _plain(option, value)
            except _Bad as error:
                allowed.append(str(error))
        raise _Bad(" or ".join(dict.fromkeys(a for a in allowed if a != "nothing")))
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise _Bad(f"a list, each item {_say(args[0])}")
        try:
            items = [_plain(args[0], v) for v in value]
        except _Bad as allowed:
            raise _Bad(f"a list, each item {allowed}") from None
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise _Bad("a map")
        return {str(k): _plain(args[1], v) for k, v in value.items()} if args else dict(value)
    return _scalar(hint, value)


def _annotated(hint: Any, marks: tuple[Any, ...], value: Any) -> Any:
    if any(isinstance(m, Seconds) for m in marks):
        value = _seconds(value)
    bounds = next((m for m in marks if isinstance(m, Between)), None)
    found = _plain(hint, value)
    if bounds and found is not None and not isinstance(found, str) and not bounds.low <= found <= bounds.high:
        raise _Bad(f"a number {bounds}")
    return found


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", value)
        if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*([smhd])\s*", "", value).strip():
            raise _Bad("a duration such as 90s, 5m or 1h")
        return sum(float(n) * UNITS[u] for n, u in parts)
    return value


def _scalar(hint: Any, value: Any) -> Any:
    if hint is Any:
        return value
    if hint is type(None):
        if value is None:
            return None
        raise _Bad("nothing")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise _Bad("true or false")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint not in (float, int, str, Path) and isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _Bad(_say(hint))


def _say(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is Annotated:
        marks = get_args(hint)
        bounds = next((m for m in marks[1:] if isinstance(m, Between)), None)
        return _say(marks[0]) + (f" {bounds}" if bounds else "")
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_say(a) for a in get_args(hint) if a is not type(None))
    if get_origin(hint) in (list, tuple):
        return f"a list of {_say(get_args(hint)[0])}"
    return "a map" if get_origin(hint) is dict or hint is dict else getattr(hint, "__name__", str(hint))


def _names(cls: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls)) or "nothing"


@functools.cache
def docs(cls: type) -> dict[str, str]:
    """The string literal under each field, read from the source; fields of base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        found |= field_docs(tree)
    return found


def field_docs(tree: ast.AST) -> dict[str, str]:
    """Docs of the fields of a class that was parsed but not imported."""
    found = {}
    body = getattr(tree, "body", [])
    for item, after in itertools.pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(after, ast.Expr):
            text = getattr(after.value, "value", None)
            if isinstance(text, str):
                found[item.target.id] = " ".join(text.split())
    return found


def plain(value: Any) -> Any:
    """A config back as JSON/YAML values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.as_posix() if isinstance(value, Path) else value


def json_schema(cls: type) -> dict[str, Any]:
    """JSON Schema (2020-12) of a section, for editors."""
    hints = typing.get_type_hints(cls, include_extras=True)
    properties = {}
    for field in dataclasses.fields(cls):
        entry = _schema(hints[field.name])
        if text := docs(cls).get(field.name):
            entry = {**entry, "description": text}
        if field.default not in (dataclasses.MISSING, None):
            entry = {**entry, "default": plain(field.default)}
        properties[field.name] = entry
    body: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    short = getattr(cls, "SHORTHAND", None)
    return {"anyOf": [body, properties[short]]} if short else body


def _schema(hint: Any) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        entry = dict(_schema(args[0]))
        for mark in args[1:]:
            if isinstance(mark, Seconds):
                return {"type": ["number", "string"]}
            if isinstance(mark, Between):
                entry |= {k: v for k, v in (("minimum", mark.low), ("maximum", mark.high)) if abs(v) != float("inf")}
        return entry
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(a) for a in args]}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(args[0])}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return json_schema(hint)
    names = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "string", type(None): "null"}
    return {"type": names[hint]} if hint in names else {}


def reference(cls: type, title: str) -> str:
    """A Markdown table of a section: key, type, default, meaning."""
    hints = typing.get_type_hints(cls, include_extras=True)
    lines = [f"### `{title}`", "", "| key | value | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        default = (
            "required" if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING else ""
        )
        if field.default not in (dataclasses.MISSING, None):
            default = f"`{plain(field.default)}`"
        meaning = docs(cls).get(field.name, "").replace("|", "\\|")
        lines.append(f"| `{field.name}` | {_say(hints[field.name])} | {default} | {meaning} |".replace(" | None", ""))
    return "\n".join([*lines, ""])


HIDDEN = "***"
"""Stands for the password of a URL wherever settings are shown or kept."""


def without_password(path: str) -> str:
    """A database URL with `***`: what is kept in a run is read by many. `${env:NAME}` stays, and can be read again."""
    hidden = re.sub(r"(://[^:/@\s]*):[^@/]*@", rf"\1:{HIDDEN}@", path)
    return re.sub(r"([?&](?:ssl)?password=)[^&\s]*", rf"\1{HIDDEN}", hidden) if "://" in hidden else hidden
