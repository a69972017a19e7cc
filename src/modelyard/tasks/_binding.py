"""Binds a project's data to its tasks: which columns are inputs and outputs, of which kind, and which examples go where.

Shared by every verb that reads data (check, plan, train, evaluate); it lives beside the tasks because it needs them and
the runtime's pipeline, and nothing above.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard import registry, settings
from modelyard.data import stream as streaming
from modelyard.data import typing as guessing
from modelyard.data.mistakes import Mistakes
from modelyard.data.read import Reading
from modelyard.data.source import DataConfig, Source, open_source
from modelyard.data.split import split
from modelyard.data.stream import Stream
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError, Problem, Unsupported
from modelyard.kinds._contract import RowError
from modelyard.kinds._missing import Missing
from modelyard.runtime import imputation
from modelyard.runtime.answers import kind_of
from modelyard.runtime.pipeline import Column, Pipeline
from modelyard.tasks._contract import Task

SHOWN = 3
"""Row errors of one column that a message spells out."""


@dataclass
class Bound:
    """Columns and checked examples, split; nothing fitted yet."""

    pipeline: Pipeline
    tasks: dict[str, Task]
    """By output."""
    source: Source
    splits: dict[str, pl.DataFrame]
    """Checked inputs, targets and carried columns (weight, group, time) of `train`, `valid`, `test`, …"""
    frame: dict[str, Any]
    set_aside: list[SetAside]
    notes: list[str]
    carried: tuple[str, ...] = ()
    weight: str | None = None
    """Carried column with the weight of each example."""
    environment: Any = None
    """The world, where the source is one."""
    stream: Stream | None = None
    """All training examples, on disk; `splits["train"]` is then a sample of them."""

    @property
    def rows(self) -> dict[str, int]:
        """Examples by split."""
        held = {name: frame.height for name, frame in self.splits.items()}
        return held if self.stream is None else {**held, "train": self.stream.rows}


def task_named(name: str) -> tuple[Task, tuple[str, ...] | None]:
    """The task and, for an alias such as `text-classification`, the kinds of input it allows."""
    for general in registry.names("tasks"):
        if name == general:
            break
        aliases = getattr(registry.load("tasks", general), "ALIASES", {})
        if name in aliases:
            return registry.load("tasks", general).TASK, aliases[name]
    return registry.load("tasks", name).TASK, None


def task_for(kind: str | None) -> Task:
    """The task that predicts a kind of column; None (no target) is the task without one."""
    for name in registry.names("tasks"):
        task: Task = registry.load("tasks", name).TASK
        if not task.guessed:
            continue
        if (kind is None and not task.supervised) or (task.supervised and kind in task.kinds):
            return task
    raise Unsupported(f"no task predicts columns of kind {kind!r}", "not yet")


def bind(
    config: DataConfig,
    task: str | None,
    base: Path,
    *,
    seed: int = 0,
    source: Source | None = None,
    like: Pipeline | None = None,
    tasks: Mapping[str, str] | None = None,
    whole: bool = False,
) -> Bound:
    """Read, type, check and split the data of a project.

    `like` and `tasks` are those of a saved model: used instead of guesses (evaluate, compare). `whole` takes all rows as
    `test` without splitting.
    Raises `DataError` with everything that keeps this data from training.
    """
    if config.env:
        return _bind_environment(config, task)
    if config.stream:
        return _bind_stream(config, task, base, seed, like, tasks or {})
    mistakes = Mistakes()
    source = open_source(config, base, mistakes, texts=of_texts(task, tasks)) if source is None else source
    config = source.described(config)
    framed: dict[str, tuple[pl.DataFrame, np.ndarray]] = {}
    kinds: Mapping[str, str] = {}
    with mistakes.gathering():
        frame = _frame(config, task, tasks)
        module = registry.load("data/frames", frame["name"])
        options = module.Config(**frame["config"])
        kinds = getattr(module, "KINDS", {})
        framed = {name: module.examples(table.frame(), options, training=True) for name, table in source.tables.items() if table.rows}
    if not framed:
        _refuse(mistakes, source.set_aside)
    first = next(iter(framed.values()))[0]
    if kinds:  # the frame has chosen the columns by their roles
        config = replace(config, target=None, outputs=None, inputs=_kept(config.inputs, kinds), split=module.split(config.split, first))
    inputs, outputs, chosen, notes = columns(config, task, first, mistakes, kinds) if like is None else _as_before(like, tasks or {})
    pipeline = Pipeline(inputs, outputs)
    if hasattr(module, "settle"):
        sides = ({c.name: c.kind for c in side} for side in (inputs, outputs))
        with mistakes.gathering():
            frame = {**frame, "config": module.settle(frame["config"], *sides)}
    roles = dict.fromkeys(c for c in (config.weight, config.group, config.time, *_split_columns(config)) if c)
    if like is None:
        _roles(config, list(roles), framed, source, mistakes)
    set_aside = list(source.set_aside)
    tables: dict[str, pl.DataFrame] = {}
    for name, (examples, origin) in framed.items():
        carried = tuple(c for c in dict.fromkeys((*roles, *getattr(module, "CARRIED", ()))) if c in examples.columns)
        judging = {c.name for c in outputs if not chosen[c.name].supervised}
        checked, _, gone = _check(pipeline, examples, origin, carried, name, config, mistakes.problems, judging)
        set_aside += gone
        if checked is not None:
            tables[name] = checked
    splits: dict[str, pl.DataFrame] = {}
    if whole:
        _refuse(mistakes, set_aside)
        splits = {"train": tables["train"], "test": tables["train"]}
    elif "train" in tables and tables["train"].height:
        with mistakes.gathering():
            given = (*tables, "valid", "test") if source.made is not None and source.made.split else tuple(tables)
            splits = _split(tables, config, given, [c.name for c in outputs], seed)
    if like is None and splits:
        _trainable(splits, outputs, chosen, mistakes.problems)
    _refuse(mistakes, set_aside)
    if like is None:
        for column in pipeline.inputs:
            column.summary = column.rules.summary(splits["train"][column.name])
    carried = tuple(c for c in roles if c in splits["train"].columns)
    return Bound(pipeline, chosen, source, splits, frame, set_aside, [*source.notes, *notes], carried, config.weight)


def of_texts(task: str | None, tasks: Mapping[str, str] | None = None) -> bool:
    """Whether the files of a project are texts: a .txt file is then one of them, and no table."""
    named = list((tasks or {}).values()) or ([task] if task else [])
    return any(getattr(registry.load("data/frames", task_named(n)[0].frame), "TEXTS", False) for n in named)


def _kept(inputs: Any, kinds: Mapping[str, str]) -> dict[str, Any] | None:
    """Settings of the inputs that a frame makes, where the project has some."""
    return {c: v for c, v in inputs.items() if c in kinds} or None if isinstance(inputs, dict) else None


def _refuse(mistakes: Mistakes, set_aside: list[SetAside]) -> None:
    """Raises everything found; rows that were set aside are named beside it, since they may be part of what is wrong."""
    if not mistakes:
        return
    groups: dict[tuple[str, str | None, str], list[SetAside]] = {}
    for s in set_aside:
        groups.setdefault((s.file, s.column, s.reason), []).append(s)
    for (file, column, reason), rows in groups.items():
        lines = ", ".join(str(s.line) for s in rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        mistakes.problems.append(Problem(f"{len(rows)} row(s) set aside: {f'{column} ' if column else ''}{reason} (line {lines})", file))
    mistakes.raise_if_any("the data cannot be used as it is")


def _roles(
    config: DataConfig, roles: list[str], framed: Mapping[str, tuple[pl.DataFrame, np.ndarray]], source: Source, mistakes: Mistakes
) -> None:
    """Columns named for a role must be there, weights must be weights, and ids must name one row each."""
    name, (examples, origin) = next(iter(framed.items()))
    for role in roles:
        if role not in examples.columns:
            mistakes.problems.append(
                Problem(f"is not a column of the data; it has: {', '.join(examples.columns)}", role, _nearest(role, examples.columns))
            )
    if config.weight in examples.columns:
        weights, errors = registry.load("kinds", "number").KIND.check(examples[config.weight].alias(config.weight))
        reason = "is no weight; write a number of at least 0"
        found = {e.row: e.value for e in errors} | {
            int(r): str(weights[int(r)]) for r in np.flatnonzero((weights < 0).fill_null(False).to_numpy())
        }
        found |= {int(r): "" for r in np.flatnonzero(weights.is_null().to_numpy()) if int(r) not in found}
        if found:
            bad = [RowError(row, config.weight, reason, value) for row, value in sorted(found.items())]
            mistakes.problems.append(_row_problem(name, config.weight, bad, origin))
    tables = {n: t.data for n, t in source.tables.items() if t.rows}
    for column in _listed(config.id):
        lacking = [n for n, data in tables.items() if column not in data.columns]
        for n in lacking:
            came = ", ".join(tables[n].columns)
            mistakes.problems.append(
                Problem(f"the table {n} lacks the id column; it has: {came}", column, _nearest(column, tables[n].columns))
            )
    ids = [c for c in _listed(config.id) if all(c in data.columns for data in tables.values())]
    if ids and len(ids) == len(_listed(config.id)):
        _unique_ids(ids, tables, mistakes)


def _unique_ids(ids: list[str], tables: Mapping[str, pl.DataFrame], mistakes: Mistakes) -> None:
    """The same id twice is a row counted twice, or a test row that was learnt from."""
    parts = [
        d.select(*(pl.col(c).cast(pl.String) for c in ids), pl.lit(n).alias("\0table"), pl.int_range(1, pl.len() + 1).alias("\0row"))
        for n, d in tables.items()
    ]
    every = pl.concat(parts).drop_nulls(ids)
    double = every.group_by(ids, maintain_order=True).agg("\0table", "\0row").filter(pl.col("\0row").list.len() > 1)
    if not double.height:
        return
    shown = "; ".join(
        f"{' '.join(map(str, row[: len(ids)]))} ("
        + ", ".join(f"{t} row {r}" for t, r in zip(row[-2][:SHOWN], row[-1][:SHOWN], strict=True))
        + ")"
        for row in double.head(SHOWN).iter_rows()
    )
    more = f" and {double.height - SHOWN} more" if double.height > SHOWN else ""
    hint = "Remove the copies, or take the column out of data.id if it names no single row (data.split.by keeps groups together)."
    mistakes.problems.append(Problem(f"{double.height} id(s) name more than one row: {shown}{more}", ", ".join(ids), hint))


def columns(
    config: DataConfig, task: str | None, frame: pl.DataFrame, mistakes: Mistakes, kinds: Mapping[str, str] | None = None
) -> tuple[list[Column], list[Column], dict[str, Task], list[str]]:
    """Inputs, outputs, the task of each output and notes on what was guessed; what is wrong goes to `mistakes`.

    `kinds` are those of inputs that a frame has made: they are not guessed, and others are none.
    """
    targets = [config.target] if isinstance(config.target, str) else list(config.target or [])
    wanted: dict[str, dict[str, Any]] = {t: {} for t in targets} | {k: _options(v) for k, v in (config.outputs or {}).items()}
    chosen_inputs = config.inputs or {}
    given = {k: _options(v) for k, v in (chosen_inputs.items() if isinstance(chosen_inputs, dict) else ((c, {}) for c in chosen_inputs))}
    if kinds:
        given = {c: {"kind": k, **given.get(c, {})} for c, k in kinds.items() if c in frame.columns}
        own = task_named(task)[0].output if task else ""
        wanted = wanted or ({own: {}} if own in frame.columns else {})
    came = ", ".join(frame.columns)
    for c in dict.fromkeys([*wanted, *given, *_listed(config.ignore)]):
        if c not in frame.columns:
            mistakes.problems.append(Problem(f"is not a column of the data; it has: {came}", c, _nearest(c, frame.columns)))
    notes: list[str] = []
    outputs: list[Column] = []
    tasks: dict[str, Task] = {}
    allowed: tuple[str, ...] | None = None
    if not wanted:
        chosen, allowed = task_named(task) if task else (task_for(None), None)
        if chosen.supervised:
            hint = f"Name the column to predict with target=NAME; the data has: {came}."
            mistakes.errors.append(
                DataError(f"the task {chosen.name} needs a target column", [Problem("is not given", "data.target", hint)])
            )
        else:
            outputs.append(_output(chosen.output, chosen.kinds[0], chosen))
            tasks[chosen.output] = chosen
    for name in (n for n in wanted if n in frame.columns):
        with mistakes.gathering():
            column, chosen, allowed = _wanted(name, wanted[name], frame[name], task, notes)
            outputs.append(column)
            tasks[name] = chosen
    roles = {config.weight, config.group, config.time, *_split_columns(config), *_listed(config.id), *_listed(config.ignore)}
    made = {c.name for c in outputs}
    names = list(given) or [c for c in frame.columns if c not in wanted and c not in roles and c not in made]
    guesses = guessing.infer(frame.select([n for n in names if n in frame.columns]))
    inputs = []
    for name in (n for n in names if n in frame.columns):
        guess = guesses[name]
        options = given.get(name, {})
        if not given and guess.role_hint in ("id", "constant"):
            notes.append(f"{name}: left out, it looks like {guess.role_hint} ({guess.why}); name it under data.inputs to keep it")
            continue
        with mistakes.gathering():
            inputs.append(input_column(name, options.get("kind") or _meant(frame[name], guess.kind, tasks), options, config.missing_values))
    if not inputs and not mistakes:
        mistakes.errors.append(DataError("no input column is left", [Problem("name at least one under data.inputs", "data.inputs")]))
    if allowed is not None and (wrong := [c for c in inputs if c.kind not in allowed]):
        general = next(iter(tasks.values())).name
        details = [Problem(f"is of kind {c.kind}", c.name) for c in wrong]
        message = f"{task} allows inputs of kind {', '.join(allowed)}; for other inputs write task: {general}"
        mistakes.errors.append(DataError(message, details))
    for column in outputs:
        if tasks[column.name].aligned and inputs:
            column.of = next((c.name for c in inputs if c.rules.sequence), inputs[0].name)
    return inputs, outputs, tasks, notes


def _wanted(
    name: str, options: Mapping[str, Any], values: pl.Series, task: str | None, notes: list[str]
) -> tuple[Column, Task, tuple[str, ...] | None]:
    """The column of a target, its task, and the input kinds that an alias of the task allows."""
    named = options.get("task") or task
    chosen, allowed = task_named(named) if named else (None, None)
    kind = options.get("kind") or _target_kind(values, chosen, guessing.target_kind(values).kind)
    if chosen is None:
        chosen = task_for(kind)
        notes.append(f"{name}: taken as {kind}, so the task is {chosen.name} ({guessing.target_kind(values).why})")
    return _output(name, kind, chosen, {k: v for k, v in options.items() if k not in ("kind", "task")}), chosen, allowed


def _meant(values: pl.Series, guess: str, tasks: Mapping[str, Task]) -> str:
    """The kind of an input: what the tasks are about where the column could be that, else the guess."""
    wanted = next((t.reads[0] for t in tasks.values() if t.reads and guess not in t.reads), None)
    return wanted if wanted is not None and kind_of(wanted).fits(values) >= 0.5 else guess


def _as_before(like: Pipeline, named: Mapping[str, str]) -> tuple[list[Column], list[Column], dict[str, Task], list[str]]:
    tasks = {column.name: registry.load("tasks", named[column.name]).TASK for column in like.outputs}
    return like.inputs, like.outputs, tasks, []


def input_column(name: str, kind: str, options: Mapping[str, Any], missing: Missing | None = None, where: str | None = None) -> Column:
    """The column of an input; `missing` is what columns do that say nothing of their own, `where` the setting that mistakes are told of."""
    where = where or f"data.inputs.{name}"
    known_kinds = [*registry.names("kinds"), *registry.plugins("kinds")]
    if kind not in known_kinds:
        message = f"unknown kind {kind!r}; expected one of {', '.join(known_kinds)}"
        raise DataError(f"{where}: {message}", [Problem(message, where, _nearest(str(kind), known_kinds))])
    encodings = list(registry.load("kinds", kind).KIND.encodings)
    encoding = options.get("encoding") or next(iter(encodings), "")
    if encoding not in encodings:
        message = f"the kind {kind} has no encoding {encoding!r}; expected one of {', '.join(encodings) or 'nothing (it is no input)'}"
        raise DataError(f"{where}: {message}", [Problem(message, where, _nearest(str(encoding), encodings))])
    column = Column(name, kind, encoding)
    problems: list[Problem] = []
    own = ("kind", "encoding", "missing", "monotone")
    config = settings.parse(column.coder.Config, {k: v for k, v in options.items() if k not in own}, where, problems)
    column.missing = _missing(column, options.get("missing"), missing or Missing(), where, problems)
    column.monotone = _monotone(column, options.get("monotone", 0), f"{where}.monotone", problems)
    if problems:
        raise DataError(f"{where}: {len(problems)} setting(s) of {encoding} cannot be used", problems)
    column.config = config
    return column


def _missing(column: Column, given: Any, general: Missing, where: str, problems: list[Problem]) -> Missing:
    """What the column does with missing values; a general rule that does not suit its kind leaves it as it is."""
    allowed, place = imputation.methods(column.kind), f"{where}.missing"
    chosen = general if given is None else settings.parse(Missing, given, place, problems)
    if chosen is None:
        return Missing()
    fault = "" if chosen.method in allowed else f"{chosen.method} does not suit the kind {column.kind}; expected one of {', '.join(allowed)}"
    if not fault and chosen.method == "constant":
        clean, bad = column.rules.check(column.rules.from_json([chosen.value]))
        fault = f"the value {chosen.value!r} {bad[0].reason}" if bad else "" if clean.null_count() == 0 else "the value itself is missing"
    if not fault and chosen.indicator and not column.rules.scalar:
        fault = f"an indicator stands beside numbers and labels, not beside the kind {column.kind}"
    if fault and given is not None:
        problems.append(Problem(fault, place))
    return Missing() if fault else chosen


def _monotone(column: Column, given: Any, where: str, problems: list[Problem]) -> int:
    signs = {"increasing": 1, "decreasing": -1, 1: 1, -1: -1, 0: 0}
    if given not in signs or isinstance(given, bool):
        problems.append(Problem(f"got {given!r}, expected increasing or decreasing", where))
        return 0
    if signs[given] and column.kind != "number":
        problems.append(Problem(f"only numbers rise and fall; {column.name} is of kind {column.kind}", where))
    return signs[given]


def _output(name: str, kind: str, task: Task, options: Mapping[str, Any] | None = None) -> Column:
    """The column of an output; `options` are settings of its encoding."""
    rules = registry.load("kinds", kind).KIND
    if kind not in task.kinds or rules.target_encoding is None:
        message = f"{name}: the task {task.name} predicts {' or '.join(task.kinds)}, not {kind}"
        raise DataError(message, [Problem(message, name)])
    column = Column(name, kind, task.encoding or rules.target_encoding)
    if "target" in column.config.__dataclass_fields__:
        column.config = column.coder.Config(target=True)
    if options:
        problems: list[Problem] = []
        where = f"data.outputs.{name}"
        column.config = settings.parse(column.coder.Config, dict(options), where, problems)
        if problems:
            raise DataError(f"{where}: {len(problems)} setting(s) of {column.encoding} cannot be used", problems)
    return column


def _target_kind(column: pl.Series, task: Task | None, guess: str) -> str:
    if task is None:
        return guess if any(guess in registry.load("tasks", t).TASK.kinds for t in registry.names("tasks")) else "category"
    if len(task.kinds) == 1:
        return task.kinds[0]
    return guess if guess in task.kinds else task.kinds[0]


def _frame(config: DataConfig, task: str | None, before: Mapping[str, str] | None) -> dict[str, Any]:
    """The frame of the task; outputs whose tasks have different frames cannot share a model."""
    written = [task, *(_options(v).get("task") for v in (config.outputs or {}).values())]
    tasks = [registry.load("tasks", n).TASK for n in before.values()] if before else [task_named(n)[0] for n in written if n]
    frames = {(t.frame, tuple(sorted(t.frame_config(config).items()))) for t in tasks} or {("rows", ())}
    if len(frames) > 1:
        raise Unsupported("outputs with different frames in one model: " + ", ".join(sorted(f for f, _ in frames)), "never")
    name, chosen = frames.pop()
    asked = config.frame.get("name")
    if name == "rows" and config.frame:
        if asked is None:
            raise DataError("data.frame has settings but no name", [Problem("name it, e.g. name: slices", "data.frame.name")])
        name, chosen = asked, tuple((k, v) for k, v in config.frame.items() if k != "name")
    elif asked is not None and asked != name:
        raise Unsupported(f"the examples of this task are {name}; data.frame.name cannot be {asked}", "never")
    own = {k: v for k, v in chosen if k != "name"}
    problems: list[Problem] = []
    settings.parse(registry.load("data/frames", name).Config, own, "data.frame", problems)
    if problems:
        raise DataError(f"data.frame has {len(problems)} mistake(s)", problems)
    return {"name": name, "config": own}


def _bind_stream(
    config: DataConfig, task: str | None, base: Path, seed: int, like: Pipeline | None, before: Mapping[str, str]
) -> Bound:
    """Check a file piece by piece: training rows go to disk, judging rows and a sample stay in memory.

    Rows are divided at random by their number (a text by position, where its frame says so); the shares of valid and test are cut so
    that each fits in memory.
    """
    s = config.split
    if not isinstance(config.path, str | Path) or config.valid is not None or config.test is not None or s.by or s.time or s.column:
        raise Unsupported("data.stream takes one file and a random split", "not yet")
    if config.limit is not None:
        raise Unsupported("data.stream reads every row; leave data.limit out", "never")
    path = base / config.path
    if not path.is_file():
        raise DataError(f"{path} does not exist or is a folder; data.stream takes one file")
    reading = Reading(config.encoding, config.separator, config.header, tuple(config.missing))
    frame = _frame(config, task, before or None)
    module = registry.load("data/frames", frame["name"])
    if frame["name"] != "rows" and not hasattr(module, "pieces"):
        raise Unsupported(f"data.stream knows examples of one row, not {frame['name']}", "not yet")
    options = module.Config(**frame["config"])
    read = (lambda: module.pieces(path, reading, options)) if hasattr(module, "pieces") else lambda: streaming.chunks(path, reading)
    total, most = sum(f.height for f, _ in read()), getattr(module, "HELD", streaming.HELD)
    mistakes = Mistakes()
    pipeline: Pipeline | None = None
    stream = streaming.Stream()
    held: dict[str, list[pl.DataFrame]] = {"train": [], "valid": [], "test": []}
    set_aside: list[SetAside] = []
    notes: list[str] = []
    cut = [min(share, most / max(1, total)) for share in (s.test, s.valid, 1.0)]
    start = 0
    for number, (rows, gone) in enumerate(read()):
        set_aside += gone
        if pipeline is None:
            kinds = getattr(module, "KINDS", {})
            if kinds:  # the frame has chosen the columns by their roles
                config = replace(config, target=None, outputs=None, inputs=_kept(config.inputs, kinds))
            found = columns(config, task, rows, mistakes, kinds) if like is None else _as_before(like, before)
            inputs, outputs, chosen, notes = found
            pipeline = Pipeline(inputs, outputs)
        origin = np.arange(start, start + rows.height)
        start += rows.height
        carried = (config.weight,) if config.weight and config.weight in rows.columns else ()
        checked, kept, bad = _check(pipeline, rows, origin, carried, "train", config, mistakes.problems)
        set_aside += bad
        _refuse(mistakes, set_aside)
        if checked is None or not checked.height:
            continue
        bits = np.random.Philox(key=seed if s.seed is None else s.seed, counter=[0, 0, 0, number])
        chance = np.random.Generator(bits).random((rows.height, 2))[kept]
        part = module.PART if getattr(module, "PART", None) in rows.columns else None
        test, valid = chance[:, 0] < cut[0], (chance[:, 0] >= cut[0]) & (chance[:, 0] < cut[0] + cut[1])
        if part is not None:
            test, valid = ((rows[part] == name).to_numpy()[kept] for name in ("test", "valid"))
        for name, mask in (("test", test), ("valid", valid), ("train", ~test & ~valid & (chance[:, 1] < cut[2]))):
            if mask.any():
                held[name].append(checked.filter(pl.Series(mask)))
        if (~test & ~valid).any():
            stream.add(checked.filter(pl.Series(~test & ~valid)))
    splits = {name: pl.concat(parts) for name, parts in held.items() if parts}
    if pipeline is None or "train" not in splits:
        raise DataError(f"{path} leaves no row to train on")
    if like is None:
        _trainable(splits, outputs, chosen, mistakes.problems)
        _refuse(mistakes, set_aside)
        for column in pipeline.inputs:
            column.summary = column.rules.summary(splits["train"][column.name])
    table = Table("train", splits["train"])
    table.__dict__["fingerprint"] = streaming.fingerprint(path)
    notes = [*notes, f"read in pieces: {stream.rows} training rows on disk, {splits['train'].height} of them as a sample in memory"]
    source = Source({"train": table})
    return Bound(pipeline, chosen, source, splits, frame, set_aside, notes, carried, config.weight, stream=stream)


def _bind_environment(config: DataConfig, task: str | None) -> Bound:
    """Columns of a world; its states stand for the training rows, and nothing is split."""
    from modelyard.data.environment import make

    world = make(str(config.env), dict(config.env_settings))
    if task is None:
        raise DataError("data.env needs a task that acts, e.g. task: package/name")
    chosen, _ = task_named(task)
    inputs = [input_column(n, kind, {}) for n, kind in world.inputs.items()]
    outputs = [_output(n, kind, chosen) for n, kind in world.outputs.items()]
    pipeline = Pipeline(inputs, outputs)
    states, _ = pipeline.check(world.states())
    actions, _ = pipeline.check(world.actions(), columns=outputs)
    for column in outputs:
        column.state = column.coder.fit(actions[column.name], column.config)
    for column in inputs:
        column.summary = column.rules.summary(states[column.name])
    frame = {"name": "rows", "config": {}}
    return Bound(pipeline, {c.name: chosen for c in outputs}, Source({}), {"train": states}, frame, [], [], environment=world)


def _check(
    pipeline: Pipeline,
    examples: pl.DataFrame,
    origin: np.ndarray,
    carried: tuple[str, ...],
    table: str,
    config: DataConfig,
    problems: list[Problem],
    judging: Collection[str] = (),
) -> tuple[pl.DataFrame | None, np.ndarray, list[SetAside]]:
    """(checked kept examples, their positions, what was set aside). Bad inputs leave; bad targets are problems.

    The examples are None where the table lacks an input column: what it has is checked all the same. `judging` are outputs whose
    columns are truths that nothing is learnt from: they may be missing.
    """
    came = ", ".join(examples.columns)
    present = [c for c in pipeline.inputs if c.name in examples.columns]
    whole = len(present) == len(pipeline.inputs)
    problems += [Problem(f"the table {table} lacks the input column; it has: {came}", c.name) for c in pipeline.inputs if c not in present]
    inputs, errors = pipeline.check(examples, columns=present)
    targets = [c for c in pipeline.outputs if c.name in examples.columns]
    needed = [] if table == "unlabelled" else [c for c in pipeline.outputs if c.name in _asked(config)]
    problems += [Problem(f"the table {table} lacks the target column; it has: {came}", c.name) for c in needed if c not in targets]
    if table == "unlabelled":  # the column may be there, and empty
        problems += [_labelled(table, c.name, examples[c.name], origin) for c in targets if examples[c.name].null_count() < examples.height]
        targets = []
    labels, wrong = pipeline.check(examples, columns=targets)
    for column in targets:
        bad = [e for e in wrong if e.column == column.name]
        if column.of in inputs.columns:
            bad += column.rules.misaligned(labels[column.name], inputs[column.of])
        if bad:
            problems.append(_row_problem(table, column.name, bad, origin))
        absent = np.flatnonzero(labels[column.name].is_null().to_numpy())
        absent = np.setdiff1d(absent, [e.row for e in bad])
        if column.name in judging:
            continue
        if len(absent) and not config.drop_missing_targets:
            missing = [RowError(int(r), column.name, "has no target") for r in absent]
            hint = "Fill them, or set data.drop_missing_targets=true to set those rows aside."
            problems.append(_row_problem(table, column.name, missing, origin, hint))
        elif len(absent):
            errors += [RowError(int(r), column.name, "has no target") for r in absent]
    gone = {e.row: e for e in reversed(errors)}
    aside = [SetAside(table, int(origin[e.row]) + 1, e.column, e.reason, e.value) for e in gone.values()]
    kept = np.array([i for i in range(examples.height) if i not in gone], np.int64)
    extra = [examples[c] for c in carried]
    clean = pl.DataFrame(
        [
            *inputs.get_columns(),
            *(s for s in labels.get_columns()),
            *(s for s in extra if s.name not in inputs.columns and s.name not in labels.columns),
        ]
    )
    if examples.height and not len(kept) and aside:
        problems.append(Problem(f"all {examples.height} rows of {table} are unusable: {aside[0].reason}", aside[0].column or ""))
    if not whole:
        return None, kept, aside
    return (clean if len(kept) == examples.height else clean[kept]), kept, aside


def _asked(config: DataConfig) -> set[str]:
    """Names of the columns to predict."""
    return {*_listed(config.target), *(config.outputs or {})}


def _labelled(table: str, column: str, values: pl.Series, origin: np.ndarray) -> Problem:
    rows = [RowError(int(r), column, "has a target already") for r in np.flatnonzero(values.is_not_null().to_numpy())]
    return _row_problem(table, column, rows, origin, "Move them to the training table, or leave the column out.")


def _row_problem(table: str, column: str, errors: list[RowError], origin: np.ndarray, hint: str = "") -> Problem:
    shown = ", ".join(f"row {int(origin[e.row]) + 1}{f' ({e.value})' if e.value else ''}" for e in errors[:SHOWN])
    more = f" and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return Problem(f"{len(errors)} row(s) of {table}: {errors[0].reason}: {shown}{more}.", column, hint)


def _split(
    tables: dict[str, pl.DataFrame], config: DataConfig, given: tuple[str, ...], targets: list[str], seed: int
) -> dict[str, pl.DataFrame]:
    out = dict(tables)
    whole = out.pop("train")
    for name, index in split(whole, config.split, targets, given=given, seed=seed).items():
        out[name] = whole[index]
    return out


def _trainable(splits: Mapping[str, pl.DataFrame], outputs: list[Column], tasks: Mapping[str, Task], problems: list[Problem]) -> None:
    train = splits["train"]
    if train.height < 2:
        problems.append(Problem(f"only {train.height} row(s) are left to train on", "train"))
    for column in outputs:
        if not tasks[column.name].supervised or column.name not in train.columns:
            continue
        values = train[column.name]
        flat = values.explode(empty_as_null=False) if values.dtype.is_nested() else values
        distinct = flat.drop_nulls().n_unique()
        enough = values.dtype.is_nested() or column.encoding == "language"  # rewards need no true text, and one is learnt by heart
        if distinct < 2 and not (enough and distinct == 1):
            only = repr(flat.drop_nulls().first() if distinct else None)[:80]
            problems.append(Problem(f"has only one value in the training rows ({only}); there is nothing to learn", column.name))


def _options(value: Any) -> dict[str, Any]:
    return {"kind": value} if isinstance(value, str) else dict(value or {})


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _split_columns(config: DataConfig) -> list[str]:
    s = config.split
    return [c for c in (*_listed(getattr(s, "by", None)), getattr(s, "time", None), getattr(s, "column", None)) if c]


def _nearest(name: str, names: list[str]) -> str:
    import difflib

    found = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {found[0]!r}?" if found else ""
