"""Writes a modelyard.yaml from a data file (guesses the task, says why) or from an example. Never overwrites.

    modelyard init --from customers.csv --target churned
    modelyard init iris                 # copies the example `iris` into the folder iris/
    modelyard init                      # lists the examples

Keys: from=FILE (data to look at), target=COLUMN (what to predict; without it rows are grouped), out=FILE or FOLDER.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelyard import registry
from modelyard.errors import Problem, UsageError
from modelyard.options import Options

NEEDS_PROJECT = False
KEYS = ("from", "target", "out")
SHOWN_KINDS = 12
"""Input columns whose kind is written out; wider tables get a count, so that the file stays readable."""


@dataclass
class Written:
    """What `init` did."""

    files: list[str] = field(default_factory=list)
    task: str | None = None
    why: str = ""
    """How the task was guessed."""
    examples: dict[str, str] = field(default_factory=dict)
    """Name → first comment line, where nothing was asked for."""
    next: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """For people."""
        if self.examples:
            width = max(map(len, self.examples))
            listed = [f"  {name:<{width}}  {text}" for name, text in self.examples.items()]
            return "\n".join(["examples (modelyard init NAME):", *listed])
        lines = [*(f"wrote {name}" for name in self.files), *([f"task: {self.task} ({self.why})"] if self.task else [])]
        return "\n".join([*lines, "next:", *(f"  {command}" for command in self.next)])


def run(project: None, *, model: str | None, options: Options) -> Written:
    """Raises `UsageError` where a file is in the way, a key is unknown or the data has no such column."""
    values = dict(options.values)
    unknown = [k for k in values if k not in KEYS]
    if unknown:
        raise UsageError(f"init has no key {', '.join(unknown)}; expected {', '.join(KEYS)}")
    for key, value in values.items():
        if not isinstance(value, str) and not (key == "target" and isinstance(value, list)):
            values[key] = str(value)
    if model is None and "from" not in values:
        if "target" in values:
            raise UsageError("init target=… needs the data too: modelyard init --from FILE --target COLUMN")
        return Written(examples={p.name: _first_comment(p / "modelyard.yaml") for p in examples()})
    if model is not None and "from" in values:
        raise UsageError(f"init takes an example ({model}) or from=FILE, not both")
    if model is not None:
        return _example(model, Path(values.get("out", model)), options)
    return _from_data(Path(values["from"]), values.get("target"), Path(values.get("out", "modelyard.yaml")), options)


def examples() -> list[Path]:
    """Folders of the examples: those shipped in the package, else those of the repository."""
    places = (registry.ROOT / "_examples", registry.ROOT.parent.parent / "examples")
    for place in places:
        found = sorted(p.parent for p in place.glob("*/modelyard.yaml"))
        if found:
            return found
    return []


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")


def _example(name: str, out: Path, options: Options) -> Written:
    known = {p.name: p for p in examples()}
    if name not in known:
        raise registry.unknown("example", name, list(known))
    if out.exists():
        raise UsageError(f"{out} exists already and is left as it is; write out=ANOTHER_FOLDER")
    files = [
        p.relative_to(known[name]) for p in sorted(known[name].rglob("*")) if _shipped(p.relative_to(known[name]), p)
    ]
    if not options.dry_run:
        for file in files:
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(known[name] / file, out / file)
    return Written([(out / f).as_posix() for f in files], next=[f"cd {out.as_posix()}", "modelyard train"])


def _shipped(inner: Path, path: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") or part in ("runs", "__pycache__") for part in inner.parts)


def _from_data(path: Path, target: str | list[str] | None, out: Path, options: Options) -> Written:
    from modelyard.data.source import DataConfig, open_source
    from modelyard.data.typing import infer, target_kind
    from modelyard.tasks._binding import task_for

    out = out / "modelyard.yaml" if out.is_dir() else out
    if out.exists():
        raise UsageError(f"{out} exists already and is left as it is; write out=ANOTHER_FILE")
    source = open_source(DataConfig(path=str(path)), Path())
    for note in source.notes:
        options.notice(note)
    data = next(iter(source.tables.values())).data
    targets = [target] if isinstance(target, str) else list(target or [])
    guesses = infer(data)
    missing = [_no_column(t, data.columns) for t in targets if t not in data.columns]
    if missing:
        raise UsageError(f"{path} has no such column:", missing)
    if targets:
        found = [target_kind(data[t]) for t in targets]
        tasks = [task_for(g.kind).name for g in found]
        why = "; ".join(f"{t}: {g.why}" for t, g in zip(targets, found, strict=True))
    else:
        tasks, why = [task_for(None).name], "no target is given, so rows are grouped"
    ids = [name for name, g in guesses.items() if g.role_hint == "id" and name not in targets]
    constant = [name for name, g in guesses.items() if g.role_hint == "constant" and name not in targets]
    inputs = {n: g.kind for n, g in guesses.items() if n not in (*targets, *ids, *constant)}
    task = tasks[0] if len(set(tasks)) == 1 else None
    text = _yaml(path, out, targets, task, why, ids, constant, inputs, data.height)
    if not options.dry_run:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    flag = "" if out.name == "modelyard.yaml" and out.parent == Path() else f" -f {out.as_posix()}"
    return Written(
        [out.as_posix()], task or ", ".join(tasks), why, next=[f"modelyard {v}{flag}" for v in ("check", "train")]
    )


def _no_column(came: str, columns: list[str]) -> Problem:
    import difflib

    near = difflib.get_close_matches(came, columns, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    return Problem(f"got {came!r}, expected one of {', '.join(columns[:30])}", "target", hint)


def _yaml(
    path: Path, out: Path, targets: list[str], task: str | None, why: str, ids: list[str], constant: list[str],
    inputs: dict[str, str], rows: int,
) -> str:  # fmt: skip
    import os

    relative = (
        Path(os.path.relpath(path.resolve(), out.parent.resolve())).as_posix()
        if not path.is_absolute()
        else path.as_posix()
    )
    name = path.name.split(".")[0] or "project"
    lines = [
        "# Written by `modelyard init`; every key is explained by `modelyard train --help`.",
        "version: 1",
        f"name: {_text(name)}",
        *(
            [f"task: {task}  # guessed: {' '.join(why.split())}"]
            if task
            else [f"# tasks, by column: {' '.join(why.split())}"]
        ),
        "data:",
        f"  path: {_text(relative)}  # {rows} rows",
    ]
    if targets:
        lines.append(f"  target: {_text(targets[0]) if len(targets) == 1 else _list(targets)}")
    if ids:
        lines.append(f"  id: {_list(ids)}  # these name rows: no inputs")
    if constant:
        lines.append(f"  ignore: {_list(constant)}  # always the same value")
    if len(inputs) <= SHOWN_KINDS:
        kinds = ", ".join(f"{_text(n)}: {k}" for n, k in inputs.items())
        lines.append(f"  inputs: {{{kinds}}}  # guessed from the values")
    else:
        counts = {k: list(inputs.values()).count(k) for k in dict.fromkeys(inputs.values())}
        lines.append(f"  # inputs: all other columns ({', '.join(f'{n} {k}' for k, n in counts.items())})")
    if targets:
        lines.append("  split: {test: 0.2}  # share of rows kept for the final judgement")
    lines += ["model: auto  # the family that suits the inputs; or a name", "train: {budget: 2m}"]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A YAML scalar; quoted (JSON strings are YAML) unless it is a plain word that reads back as itself."""
    import re

    plain = re.fullmatch(r"[^\W\d][\w./-]*", value) and value.lower() not in (
        "true",
        "false",
        "null",
        "yes",
        "no",
        "on",
        "off",
    )
    return value if plain else json.dumps(value, ensure_ascii=False)


def _list(values: list[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"
