"""The `data` section and the source it opens: named tables with everything that was set aside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl

from modelyard.data import artefact, huggingface, parallel
from modelyard.data.conll import ConllConfig
from modelyard.data.images import read_folder, read_zip, with_images
from modelyard.data.mistakes import Mistakes
from modelyard.data.read import Reading, read
from modelyard.data.split import SplitConfig
from modelyard.data.sql import is_url, read_sql
from modelyard.data.table import SetAside, Table
from modelyard.data.texts import read_texts, text_files
from modelyard.data.typing import IMAGE_SUFFIX
from modelyard.errors import DataError, Problem, Unsupported
from modelyard.kinds._missing import Missing
from modelyard.settings import Between

TABLES = ("train", "valid", "test", "unlabelled")
TABLES_OR_PATH = ("path", *TABLES)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """`data`: where the rows are and what the columns mean; a text alone is the path."""

    SHORTHAND: ClassVar[str] = "path"

    path: Any = None
    """File, folder or zip with the rows to learn from (relative to the project file), a database (sqlite:///FILE, postgresql://…), what
    `prepare` made, a list of parallel texts such as [train.en, train.de], or a table object in Python."""
    train: Any = None
    """The same as path, beside valid and test."""
    valid: Any = None
    """File used to stop and to choose."""
    test: Any = None
    """File used for the final judgement only."""
    unlabelled: Any = None
    """File of rows without targets, for methods that use them."""
    env: Any = None
    """An environment to act in (`package/name`), instead of rows."""
    env_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the environment."""
    target: str | list[str] | None = None
    """Column(s) to predict."""
    inputs: dict[str, Any] | list[str] | None = None
    """Columns to learn from: a list, or a map column → kind or {kind, encoding, …}. Without it: all that have no other role."""
    outputs: dict[str, Any] | None = None
    """Columns to predict: a map column → kind or {kind, task, …} with settings of its encoding."""
    ignore: str | list[str] | None = None
    """Columns left out."""
    id: str | list[str] | None = None
    """Columns that name a row; left out of the inputs, checked for duplicates between splits."""
    weight: str | None = None
    """Column with the weight of each row."""
    group: str | None = None
    """Column with the group (series, customer) of each row, for frames that need one."""
    time: str | None = None
    """Column with the time of each row, for frames that need one."""
    frame: dict[str, Any] = field(default_factory=dict)
    """Settings of the task's frame (length, horizon …)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """How rows are divided into train, valid and test."""
    encoding: str | None = None
    """Text encoding of the file; without it UTF-8, else GB18030."""
    separator: str | None = None
    """Field separator of delimited files; without it found out."""
    header: bool = True
    """Whether delimited files begin with column names; without: column_1, column_2 …"""
    missing: list[str] = field(default_factory=list)
    """Further texts that mean missing, in every column."""
    missing_values: Missing = field(default_factory=Missing)
    """What inputs do with missing values, e.g. median or {method: knn, neighbours: 10}; `data.inputs.COLUMN.missing` says otherwise for one.
    Kinds that a method does not suit (text; categories under mean) keep theirs."""
    conll: ConllConfig | None = None
    """How files of tagged sentences (.conll, .bio, .iob) are read; set (`{}` is enough), files of unknown names are read so too."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """column → names of its numbers, from 0 on: labels or tags that a file holds as whole numbers."""
    sheet: str | int | None = None
    """Sheet of a workbook (name, or number from 1), or table of a database; without it the first sheet, the only table."""
    query: str | None = None
    """SELECT whose rows are taken, where path is a database."""
    max_bytes: Annotated[int, Between(1)] | None = None
    """Bytes that a file may unpack to; without it 8 GiB for texts and 1 GiB for workbooks, and nothing that shrinks more than 300-fold."""
    limit: int | None = None
    """Take only this many rows of each table."""
    stream: bool = False
    """Read the training file in pieces, for data larger than memory (nets only): rows are encoded into files and gathered from there."""
    drop_missing_targets: bool = False
    """Set rows without a target aside instead of refusing the data."""

    def __post_init__(self) -> None:
        for name in TABLES_OR_PATH:
            value = getattr(self, name)
            rows = isinstance(value, list) and all(isinstance(v, Mapping) for v in value)
            if isinstance(value, bool | int | float) or (isinstance(value, list) and not rows and not parallel.is_parallel(value)):
                raise ValueError(f"{name} came as {type(value).__name__}; expected one path (a file, a folder or a zip) or parallel texts")


@dataclass
class Source:
    """Named tables, read."""

    tables: dict[str, Table]
    notes: list[str] = field(default_factory=list)
    made: artefact.Made | None = None
    """What `prepare` says of its tables, where they are its."""

    @property
    def set_aside(self) -> list[SetAside]:
        """What no table kept."""
        return [s for t in self.tables.values() for s in t.set_aside]

    def refuse_folds(self, asked: str) -> None:
        """Raises `Unsupported` where folds of the training rows would have copies on both sides."""
        if self.made is not None and self.made.resampled:
            message = f"the training rows were resampled by prepare, and {asked} would learn from copies of the rows that judge"
            raise Unsupported(f"{message}; take the step resample out and set train.balance, which works inside the folds", "use")

    def described(self, config: DataConfig) -> DataConfig:
        """`config` with what a data artefact says of its columns, wherever the project says nothing."""
        roles = dict(self.made.roles) if self.made is not None else {}
        if config.target is not None or config.outputs is not None:
            roles = {k: v for k, v in roles.items() if k not in ("target", "outputs")}
        taken = {*_names(config.target), *(config.outputs or {}), *_names(config.ignore), *_names(config.id), config.weight, config.group}
        if isinstance(roles.get("inputs"), dict):
            roles["inputs"] = {name: kind for name, kind in roles["inputs"].items() if name not in taken}
        elif "inputs" in roles:
            roles["inputs"] = [name for name in roles["inputs"] if name not in taken]
        return replace(config, **{k: v for k, v in roles.items() if getattr(config, k) is None})

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all tables."""
        text = "".join(f"{name}:{t.fingerprint}\n" for name, t in sorted(self.tables.items()))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def open_source(config: DataConfig, base: Path, mistakes: Mistakes | None = None, *, texts: bool = False) -> Source:
    """Read every table that `config` names. Raises `DataError` with what is wrong in each of them.

    With `texts` a .txt file is one text, and a folder of them one each.

    With `mistakes` those go there instead, and what could be read is returned, so that its columns can be judged too.
    """
    first = config.path if config.path is not None else config.train
    if first is None:
        raise DataError("no data is named; write data=PATH (a file, folder or zip) or data: {path: …} in the project file")
    reading = Reading(
        config.encoding, config.separator, config.header, tuple(config.missing), config.limit, config.sheet, config.max_bytes,
        texts, config.conll,
    )  # fmt: skip
    found = Mistakes() if mistakes is None else mistakes
    tables: dict[str, Table] = {}
    with found.gathering():
        if config.query is not None and not is_url(first):
            raise DataError("data.query asks a database; data.path names none (write for example sqlite:///shop.db)")
        tables = _tables(first, base, reading, "train", config.query)
        if "train" not in tables:
            raise DataError(f"{first} holds {', '.join(tables)} but nothing to train on")
    for name in ("valid", "test", "unlabelled"):
        given = getattr(config, name)
        if given is not None:
            with found.gathering():
                tables[name] = next(iter(_tables(given, base, reading, name).values()))
                tables[name].name = name
    for name, table in tables.items():
        with found.gathering():
            _need_rows(name, table)
            table.data = named(table.data, config.names, name)
    if mistakes is None:
        found.raise_if_any("the data cannot be read")
    tables = {name: tables[name] for name in TABLES if name in tables}
    for table in tables.values():
        table.data = parallel.unnested(table.data)
    for name, table in tables.items():
        if config.limit is not None and table.rows > config.limit:
            # a seeded sample: the head of an ordered file would hold one class
            index = np.sort(np.random.default_rng(0).permutation(table.rows)[: config.limit])
            tables[name] = Table(
                name,
                table.data[index],
                table.set_aside,
                [*table.notes, f"{name}: a sample of {config.limit} of {table.rows} rows (data.limit)"],
            )
    made = artefact.made(base / Path(first).expanduser()) if isinstance(first, str | Path) and not is_url(first) else None
    return Source(tables, [note for t in tables.values() for note in t.notes], made)


def _under(base: Path, given: str | Path) -> Path:
    path = Path(given).expanduser()
    return path if path.is_absolute() else base / path


def _names(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def named(frame: pl.DataFrame, names: Mapping[str, Sequence[str]], table: str) -> pl.DataFrame:
    """The table with names in place of whole numbers, in the columns that `names` speaks of. Raises `DataError` for a number without one."""
    problems = []
    for column, known in names.items():
        if column not in frame.columns:
            continue  # a table of rows to predict has no targets
        values = frame[column].to_list()
        flat = [v for row in values for v in (row if isinstance(row, list) else [row]) if v is not None]
        bad = [v for v in flat if not isinstance(v, int) or isinstance(v, bool) or not 0 <= v < len(known)]
        if bad:
            problems.append(Problem(f"holds {bad[0]!r} in {table}; data.names has {len(known)} names, for 0 to {len(known) - 1}", column))
            continue
        said = [[known[v] for v in row] if isinstance(row, list) else None if row is None else known[row] for row in values]
        frame = frame.with_columns(pl.Series(column, said))
    if problems:
        raise DataError(f"data.names does not fit {len(problems)} column(s)", problems)
    return frame


def _need_rows(name: str, table: Table) -> None:
    if table.rows:
        return
    if table.set_aside:
        s = table.set_aside[0]
        raise DataError(f"{name}: every row was set aside; {s.file}:{s.line} {s.column or ''} {s.reason}")
    raise DataError(f"{name} holds no rows, only column names")


def _tables(given: Any, base: Path, reading: Reading, name: str, query: str | None = None) -> dict[str, Table]:
    plain = replace(reading, limit=None)
    if parallel.is_parallel(given):
        return {name: parallel.read_parallel([_under(base, p) for p in given], plain, name)}
    if not isinstance(given, str | Path):
        if huggingface.is_datasets(given):
            return {k: Table(k, frame) for k, frame in huggingface.splits(given).items()}
        if isinstance(given, Mapping) and given and set(given) <= set(TABLES):
            return {k: read(v, plain, k) for k, v in given.items()}
        return {name: read(given, plain, name)}
    if is_url(given):
        return {name: read_sql(str(given), base, name, query=query, table=reading.sheet)}
    path = _under(base, given)
    if reading.texts and (files := text_files(path)):
        return read_texts(path, files, plain, name)
    if path.is_dir():
        if artefact.made(path):
            return artefact.tables(path)
        texts = parallel.in_folder(path)
        return {k: parallel.read_parallel(v, plain, k) for k, v in texts.items()} if texts else read_folder(path, plain)
    if path.suffix.lower() == ".zip" and path.is_file():
        return read_zip(path, plain, name)
    table = read(path, plain, name)
    for column in table.data.columns:
        values = table.data[column].drop_nulls()
        if values.dtype == pl.String and len(values) and values.head(100).str.contains(IMAGE_SUFFIX).all():
            table.data = with_images(table.data, column, path.parent)
    return {name: table}
