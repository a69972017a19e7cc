"""Names to modules: the folder listing is the registry.

`modelyard/<group>/<name>.py` (or a package folder) is the thing called `<name>` in `<group>`; underscores in file names
are written as hyphens by users (`text_cnn.py` is `text-cnn`), and files that begin with `_` are not listed.
Outsiders register entry points in the group `modelyard.<group>` and are always addressed as `package/name`.
Nothing is imported before it is chosen; descriptions are read from the source text.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from modelyard.errors import MissingExtra, Problem, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ROOT = Path(__file__).parent

EXTRAS = {
    "torch": "train", "lightgbm": "train", "sklearn": "train", "onnx": "train", "onnxscript": "train", "scipy": "train",
    "gguf": "gguf", "pyarrow": "tables", "pandas": "tables", "optuna": "tune", "ray": "ray",
}  # fmt: skip
"""Which extra brings an importable package; the message of a failed import is made from it."""


@cache
def names(group: str) -> tuple[str, ...]:
    """The built-in names of a group (`nets`, `tasks`, `verbs/train` …), sorted."""
    folder = ROOT / group
    if not folder.is_dir():
        return ()
    found = [p.stem for p in folder.glob("*.py")] + [p.parent.name for p in folder.glob("*/__init__.py")]
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """Entry points of outsiders, keyed `package/name`."""
    from importlib import metadata  # 20 ms, and most commands need no plug-in

    points = metadata.entry_points(group=f"modelyard.{group.replace('/', '.')}")
    return {f"{p.dist.name if p.dist else p.module.split('.')[0]}/{p.name}": p for p in points}


def load(group: str, name: str) -> ModuleType:
    """Import the module called `name` in `group`.

    Raises `UsageError` naming the nearest name when there is none, `MissingExtra` when it needs a package that is absent.
    """
    try:
        if "/" in name:
            points = plugins(group)
            if name in points:
                loaded = points[name].load()
                return loaded  # type: ignore[no-any-return]
        elif name.replace("_", "-") in names(group):
            return importlib.import_module(f"modelyard.{group.replace('/', '.')}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in EXTRAS:
            raise MissingExtra(package, EXTRAS[package]) from None
        raise
    known = [*names(group), *plugins(group)]
    raise unknown(f"{group.split('/')[-1]} name", name, known)


def unknown(what: str, came: str, known: list[str]) -> UsageError:
    """The error for a name that is not in a list: what came, what is allowed, the nearest one."""
    near = difflib.get_close_matches(came, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    message = f"unknown {what} {came!r}; expected one of {', '.join(sorted(known)) or 'nothing (none exist)'}"
    return UsageError(message, [Problem(message, hint=hint)] if hint else [])


def describe(group: str, name: str) -> str:
    """First sentence of the module's docstring, read as text (no import)."""
    base = ROOT / group / name.replace("-", "_")
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n\n")[0].replace("\n", " ").strip()
