"""Prepares data in steps that need many rows at once, and writes a data artefact that `data:` can name: Parquet files and what made them.

modelyard prepare data=customers.csv target=churned prepare=deduplicate
modelyard prepare -f modelyard.yaml        # the steps of its section `prepare`
modelyard train data=prepared/customers-4f1c09ab
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from modelyard import registry, settings
from modelyard.errors import ArtefactError, ConfigError, Problem, Unsupported, UsageError
from modelyard.settings import Between

GROUP = "verbs/prepare"


@dataclass(frozen=True, kw_only=True)
class Config:
    """`prepare`: steps in their order; a list, or one step alone, stands for `steps`."""

    SHORTHAND: ClassVar[str] = "steps"

    steps: Any = None
    """One step or a list of them: the name of a method (`deduplicate`), or a map of its name to its settings (`{resample: {method: smote}}`).
    Methods: deduplicate, label-spreading, out-of-fold, resample, self-training. All but deduplicate split the rows first, as training
    would, and leave validation and test rows alone."""
    out: str | None = None
    """Folder of the artefact; without it `prepared/<name>-<key>`."""
    seed: Annotated[int, Between(0, 2**31)] = 0
    """Of the steps; rows are split by data.split.seed or train.seed, as training does."""

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        parsed(self.steps, problems)
        if problems:
            raise ValueError("; ".join(str(p) for p in problems))


@dataclass
class Prepared:
    """What was written."""

    data: str
    rows: dict[str, int]
    rows_in: int
    steps: list[dict[str, Any]]
    set_aside: list[dict[str, Any]]
    set_aside_count: int
    unchanged: bool = False
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data; at most 100 rows that were set aside."""
        return {**vars(self), "set_aside": self.set_aside[:100]}

    def __str__(self) -> str:
        if self.unchanged:
            return f"nothing changed: {self.data} is there already"
        if not self.data:
            steps = "; ".join(f"{s['step']} ({', '.join(f'{k} {v}' for k, v in s['settings'].items())})" for s in self.steps)
            return f"would do: {steps or 'nothing'}; nothing is written"
        lines = [f"{self.rows_in} rows came, {self.set_aside_count} set aside"]
        for step in self.steps:
            counts = ", ".join(f"{k} {_said(v)}" for k, v in step.items() if k not in ("step", "settings") and v not in ({}, []))
            lines.append(f"{step['step']:<16} {counts}")
        lines += [f"set aside: {s['file']}:{s['line']} {s['column'] or ''} {s['reason']}" for s in self.set_aside[:5]]
        lines += [f"note: {n}" for n in self.notes]
        written = ", ".join(f"{n} {t}" for t, n in self.rows.items())
        return "\n".join([*lines, f"data    {self.data} ({written})", f"next    modelyard train data={self.data}"])


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{k} {v}' for k, v in value.items())})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def parsed(steps: Any, problems: list[Problem]) -> list[tuple[str, Any, Any]]:
    """(name, module, settings) of each step; mistakes go to `problems`."""
    given = [] if steps is None else list(steps) if isinstance(steps, list | tuple) else [steps]
    if isinstance(steps, Mapping):
        given = [{k: v} for k, v in steps.items()]
    found = []
    for number, step in enumerate(given):
        where = f"prepare.steps.{number + 1}"
        if isinstance(step, str):
            step = {step: {}}
        if not isinstance(step, Mapping) or len(step) != 1:
            problems.append(Problem(f"got {str(step)[:60]!r}, expected a method, or one method with its settings", where))
            continue
        name, options = next(iter(step.items()))
        try:
            module = registry.load(GROUP, str(name))
        except UsageError as error:
            problems.append(Problem(error.message, where, error.details[0].hint if error.details else ""))
            continue
        before = len(problems)
        config = settings.parse(module.Config, options, f"{where}.{name}", problems)
        if len(problems) == before:
            found.append((str(name), module, config))
    return found


def prepare(
    data: Any,
    steps: Any,
    task: str | None = None,
    model: Any = "auto",
    train: Any = None,
    *,
    name: str = "data",
    base: Path | None = None,
    out: str | None = None,
    seed: int = 0,
    say: Any = None,
) -> Prepared:
    """Reads `data` (a `DataConfig`), applies the steps and writes the artefact, or finds it written already.

    `train` is the train section: its seed splits the rows, and steps that train use all of it. Paths are relative to `base`.
    """
    from modelyard.data import artefact
    from modelyard.data.source import open_source
    from modelyard.verbs.prepare._work import ROW, Work
    from modelyard.verbs.train.config import TrainConfig

    base, train = Path(base or "."), train or TrainConfig()
    if data.env:
        raise Unsupported("an environment has no rows to prepare", "never")
    if data.stream:
        raise Unsupported("prepare needs the rows in memory; take out data.stream", "use")
    problems: list[Problem] = []
    asked = parsed(steps, problems)
    if problems or not asked:
        known = ", ".join(registry.names(GROUP))
        message = f"{len(problems)} step(s) of prepare cannot be used" if problems else f"no steps are named; write prepare=NAME, one of {known}"
        raise ConfigError(message, problems)
    source = open_source(data, base)
    trains = any(getattr(module, "TRAINS", False) for _, module, _ in asked)
    key = _key(data, asked, source.fingerprint, seed, task, train, model if trains else None)
    folder = base / (out or Path("prepared") / f"{name}-{key[:8]}")
    before = artefact.made(folder)
    if before is not None and before.key == key:
        artefact.tables(folder)
        rows = {n: int(e["rows"]) for n, e in before.tables.items()}
        return Prepared(_shown(folder, base), rows, before.rows_in, before.steps, before.set_aside, before.set_aside_count, unchanged=True)
    if folder.exists():
        raise ArtefactError(f"{folder} holds other data and nothing is ever overwritten; choose another prepare.out")
    tables = {n: t.frame().with_row_index(ROW, offset=1).with_columns(_whole(ROW)) for n, t in source.tables.items()}
    work = Work(
        source.described(data), task, base, tables, train.seed, model, train, set_aside=list(source.set_aside), notes=list(source.notes),
        given=None if source.made is None else artefact.Made("", {}, split=source.made.split),
        resampled=bool(source.made and source.made.resampled), say=say or (lambda text: None),
    )  # fmt: skip
    counts = []
    for number, (step, module, config) in enumerate(asked):
        if module.TRAIN_ONLY:
            work.cut()
        counts.append({"step": step, "settings": settings.plain(config), **module.run(work, config, seed + number)})
    frames = {n: t.drop(ROW) for n, t in work.tables.items() if t.height}
    aside = [dataclasses.asdict(s) for s in work.set_aside]
    facts = artefact.Made(
        key=key, tables={}, roles=work.roles or _roles(data), split=work.split or bool(source.made and source.made.split), resampled=work.resampled,
        columns={c: work.kinds.get(c, str(d)) for f in frames.values() for c, d in f.schema.items()},
        parents=[_parent(data, n, t) for n, t in source.tables.items()], steps=counts,
        rows_in=sum(t.rows_read for t in source.tables.values()), set_aside=aside[:100_000], set_aside_count=len(aside), seed=seed,
        versions=_versions(),
    )  # fmt: skip
    artefact.write(folder, frames, facts)
    heights = {n: f.height for n, f in frames.items()}
    return Prepared(_shown(folder, base), heights, facts.rows_in, counts, aside, len(aside), notes=work.notes)


def _whole(name: str) -> Any:
    import polars as pl

    return pl.col(name).cast(pl.Int64)


def _roles(data: Any) -> dict[str, Any]:
    """What the project says of the columns, where no step asked for more."""
    keys = ("target", "inputs", "outputs", "id", "weight", "group", "time", "ignore")
    return {k: settings.plain(getattr(data, k)) for k in keys if getattr(data, k) is not None}


def _key(data: Any, asked: list[tuple[str, Any, Any]], fingerprint: str, seed: int, task: str | None, train: Any, model: Any) -> str:
    """sha256 of everything that decides the rows; names of files do not, their content does."""
    described = {k: v for k, v in settings.plain(data).items() if k not in ("path", "train", "valid", "test", "unlabelled")}
    steps = [(name, settings.plain(config)) for name, _, config in asked]
    how = settings.plain(train) if model is not None else train.seed
    parts = [described, steps, fingerprint, seed, task, how, model, _versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def _versions() -> dict[str, str]:
    from modelyard.store.run import versions

    return {k: v for k, v in versions().items() if k in ("modelyard", "numpy", "polars")}


def _parent(data: Any, name: str, table: Any) -> dict[str, Any]:
    from modelyard.settings import without_password

    given = getattr(data, name) if getattr(data, name) is not None else data.path
    place = without_password(str(given)) if isinstance(given, str | Path) else f"<{type(given).__name__}>"
    return {"table": name, "from": place, "rows_read": table.rows_read, "fingerprint": table.fingerprint}


def _shown(folder: Path, base: Path) -> str:
    """As it would be typed: relative to here where the project is here."""
    try:
        return folder.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(folder)


def run(project: Any, *, model: str | None = None, options: Any) -> Prepared:
    """The verb."""
    config: Config = project.section("prepare")
    train = project.section("train")
    if project.seed is not None and project.origins.get("train.seed", "default") == "default":
        train = dataclasses.replace(train, seed=project.seed)
    if options.dry_run:
        problems: list[Problem] = []
        steps = [{"step": name, "settings": settings.plain(c)} for name, _, c in parsed(config.steps, problems)]
        return Prepared("", {}, 0, steps, [], 0)
    return prepare(
        project.data, config.steps, project.task, project.model.value, train, name=project.name, base=project.base, out=config.out,
        seed=config.seed, say=options.notice,
    )  # fmt: skip
