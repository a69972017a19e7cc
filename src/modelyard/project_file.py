"""YAML 1.2 with the place of every value; safe by construction: nodes are read, no object is ever built from a tag.

A file becomes a tree of `Node`s (maps of nodes, or plain leaves), so that trees of the command line, the file and a
preset can be laid over each other while each value remembers where it was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.errors import ConfigError, Problem

LARGEST = 2**20
"""Bytes of a project file; real ones have under 5 kB."""

MOST_NODES = 50_000
"""Values after aliases are followed: ten lines of nested aliases can stand for 10^9 ("billion laughs")."""

DEEPEST = 60
"""Nested levels; the composer recurses, and nothing here needs more than five."""


@dataclass(frozen=True)
class Node:
    """A value and where it was written. `value` is a dict of nodes, or a plain leaf (scalar, list, any object)."""

    value: Any
    origin: str

    @property
    def is_map(self) -> bool:
        """Whether keys can be laid over it."""
        return isinstance(self.value, dict)


class _Reader:
    def __init__(self, where: str, problems: list[Problem], lines: bool = True) -> None:
        self.where, self.problems, self.lines, self.count = where, problems, lines, 0

    def place(self, node: Any) -> str:
        return f"{self.where}:{node.start_mark.line + 1}" if self.lines else self.where

    def bad(self, node: Any, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, self.place(node), hint))

    def read(self, node: Any, parents: tuple[int, ...] = ()) -> Node:
        self.count += 1
        place = self.place(node)
        if self.count > MOST_NODES:
            raise ConfigError(f"{place}: aliases expand to more than {MOST_NODES} values; write them out or use fewer")
        if id(node) in parents:
            self.bad(node, "an alias contains itself")
            return Node(None, place)
        tag = str(node.tag or "")
        if not re.fullmatch(r"tag:yaml\.org,2002:(str|int|float|bool|null|map|seq|timestamp|merge)", tag):
            self.bad(node, f"the tag {tag.replace('tag:yaml.org,2002:', '!!')} is not allowed", "Write a plain value.")
            return Node(None, place)
        inner = (*parents, id(node))
        if node.id == "scalar":
            return Node(scalar(node.value, tag.rpartition(":")[2]), place)
        if node.id == "sequence":
            return Node([bare(self.read(item, inner)) for item in node.value], place)
        return Node(self.pairs(node, inner), place)

    def pairs(self, node: Any, parents: tuple[int, ...]) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, item in node.value:
            if key.id != "scalar":
                self.bad(key, "a key must be a plain word, not a list or a map")
                continue
            name = str(key.value)
            if name == "<<":
                self.bad(key, "merge keys (<<) are not part of YAML 1.2", "Write the keys out, or use preset: FILE.")
            elif name in found:
                self.bad(key, f"{name}: is written twice (first at {found[name].origin})", "Keep one of them.")
            else:
                value = self.read(item, parents)
                # the line of the key: a block value begins a line later, where no one looks for it
                found[name] = Node(value.value, self.place(key))
        return found


def scalar(text: str, tag: str) -> Any:
    """A YAML 1.2 core-schema scalar; what does not convert stays text (dates are text: columns decide about those)."""
    try:
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "int":
            return int(text.replace("_", ""), 8 if "0o" in text else 16 if "0x" in text else 2 if "0b" in text else 10)
        if tag == "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    return text


def bare(node: Node) -> Any:
    """The plain value of a node, origins dropped."""
    return {k: bare(v) for k, v in node.value.items()} if node.is_map else node.value


def as_node(value: Any, origin: str) -> Node:
    """A node from Python values; maps are opened so that they can be laid over."""
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return Node({k: as_node(v, origin) for k, v in value.items()}, origin)
    return Node(value, origin)


def read_file(path: Path, problems: list[Problem]) -> Node:
    """The tree of a project file. Raises `ConfigError` where it cannot be read; lesser mistakes go to `problems`."""
    try:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; write one with: modelyard init")
        size = path.stat().st_size
        if size > LARGEST:
            raise ConfigError(
                f"{path}: has {size} bytes, at most {LARGEST} are allowed; is it the data? Then write data={path}"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path.name}:{line}: is not UTF-8 (byte {raw[error.start]:#04x}); save it as UTF-8"
        ) from None
    node = read_text(text, path.name, problems)
    if node is None:
        return Node({}, path.name)
    if not node.is_map:
        raise ConfigError(f"{node.origin}: expected keys such as `data: customers.csv`, got {_say(node.value)}")
    return node


def read_text(text: str, where: str, problems: list[Problem], lines: bool = True) -> Node | None:
    """The tree of a YAML text, None where it is empty. Raises `ConfigError` with the line of a syntax error."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    _check_depth(text, where)
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = "1.2"
        documents = list(yaml.compose_all(text)) if hasattr(yaml, "compose_all") else [yaml.compose(text)]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None and lines else ""
        raise ConfigError(f"{where}{line}: is not YAML: {_syntax(error, text, mark)}") from None
    except (YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}: is not YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply (at most {DEEPEST} levels)") from None
    if not documents or documents[0] is None:
        return None
    reader = _Reader(where, problems, lines)
    if len(documents) > 1:
        reader.bad(documents[1], "a project file is one document; remove the line `---`")
    return reader.read(documents[0])


def _check_depth(text: str, where: str) -> None:
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        depth += sum((c in "[{") - (c in "]}") for c in line)
        if depth > DEEPEST or len(line) - len(line.lstrip(" ")) > 40 * DEEPEST:
            raise ConfigError(f"{where}:{number}: is nested too deeply (at most {DEEPEST} levels)")


def _syntax(error: Any, text: str, mark: Any) -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem):
        return "a tab stands in the indentation; use spaces"
    reason = " ".join(p for p in (error.context, error.problem) if p)
    return f"{' '.join(reason.split())}; check indentation, colons, quotes and brackets here and in the line above"


def _say(value: Any) -> str:
    return "a list" if isinstance(value, list) else "nothing" if value is None else f"{str(value)[:60]!r}"


def read_value(text: str, origin: str) -> Node:
    """The value of `key=value`: a YAML scalar or flow list/map; all else (`>= 0.8`, `*.csv`, `C:\\x`) is text."""
    opened = text.lstrip()[:1] in ("[", "{", '"', "'")
    problems: list[Problem] = []
    try:
        node = read_text(text, origin, problems, lines=False) if text.strip() else Node(None, origin)
    except ConfigError:
        if opened:
            raise
        return Node(text, origin)
    if node is None or problems or (not opened and (isinstance(node.value, str) or not _is_scalar(node.value))):
        return Node(text, origin)  # also `|` and `a #b`, which YAML would take for an empty block and a comment
    return as_node(bare(node), origin)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
