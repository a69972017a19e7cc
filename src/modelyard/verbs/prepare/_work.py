"""The tables that steps work on: raw rows with their numbers, split exactly as training would split them once a step needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.data.artefact import Made
from modelyard.data.source import DataConfig, Source
from modelyard.data.table import SetAside, Table
from modelyard.errors import Unsupported
from modelyard.tasks._binding import Bound, bind

ROW = "(row)"
"""Column with the number of a row in its table, from 1; null where a step made the row."""


@dataclass
class Work:
    """What a step gets and changes."""

    data: DataConfig
    task: str | None
    base: Path
    tables: dict[str, pl.DataFrame]
    train_seed: int
    """Seed of the split, as training has it."""
    model: Any = "auto"
    """The model section, for steps that train."""
    train: Any = None
    """The train section, for steps that train."""
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    roles: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    """Of inputs and outputs, once the rows are split."""
    targets: list[str] = field(default_factory=list)
    given: Made | None = None
    """What an artefact that the rows come from says of their split."""
    split: bool = False
    resampled: bool = False
    say: Callable[[str], None] = lambda text: None

    def cut(self) -> None:
        """Splits the rows as training would, with `data.split` and the seed of training; canonical values, bad rows set aside."""
        if self.split:
            return
        bound = self._bind()
        if bound.frame["name"] != "rows":
            raise Unsupported(f"prepare changes rows, and the examples of this task are made of several ({bound.frame['name']})", "not yet")
        for gone in bound.set_aside:
            row = self.tables[gone.file][ROW][int(gone.line or 1) - 1]
            self.set_aside.append(dataclasses.replace(gone, line=row))
        before = self.tables
        columns = [*bound.pipeline.inputs, *bound.pipeline.outputs]
        self.tables = {}
        for name, checked in bound.splits.items():
            whole = before[name if name in before else "train"]
            place = dict(zip(whole[ROW].to_list(), range(whole.height), strict=True))
            raw = whole[[place[r] for r in checked[ROW].to_list()]]
            self.tables[name] = raw.with_columns(checked[c.name] for c in columns if c.name in checked.columns)
        self.kinds = {c.name: c.kind for c in columns}
        self.targets = [c.name for c in bound.pipeline.outputs if bound.tasks[c.name].supervised]
        given = self.data.inputs if isinstance(self.data.inputs, dict) else {}
        self.roles = {
            "inputs": {c.name: given.get(c.name, c.kind) for c in bound.pipeline.inputs},
            "outputs": {c: (self.data.outputs or {}).get(c, self.kinds[c]) for c in self.targets},
            **{k: getattr(self.data, k) for k in ("id", "weight", "group", "time") if getattr(self.data, k) is not None},
        }
        self.notes += [n for n in bound.notes if n not in self.notes]
        self.split = True

    def _bind(self) -> Bound:
        """Rows are carried by their number in the role of a group, which rows have no other use for."""
        d = self.data
        ignore = [d.ignore] if isinstance(d.ignore, str) else list(d.ignore or [])
        named = [*(d.inputs or []), *ignore]
        if d.group and d.group not in named and d.group in self.tables["train"].columns:
            ignore.append(d.group)
        config = dataclasses.replace(d, group=ROW, ignore=ignore or None, limit=None)
        source = Source({name: Table(name, frame) for name, frame in self.tables.items()}, made=self.given)
        return bind(config, self.task, self.base, seed=self.train_seed, source=source)

    def labels_of(self, what: str) -> str:
        """The only target, which must be of labels."""
        if len(self.targets) != 1 or self.kinds[self.targets[0]] != "category":
            came = ", ".join(f"{t} ({self.kinds[t]})" for t in self.targets) or "none"
            raise Unsupported(f"{what} needs one target of labels; the targets are: {came}", "never")
        return self.targets[0]

    def unlabelled(self, what: str) -> pl.DataFrame:
        """The rows without a target."""
        if "unlabelled" not in self.tables:
            raise Unsupported(f"{what} fills the targets of rows without one; name them with data.unlabelled", "needs")
        return self.tables["unlabelled"]

    def label(self, target: str, picked: pl.Series, labels: pl.Series, confidence: pl.Series) -> None:
        """Moves rows (mask `picked`) of `unlabelled` to `train` with their labels; the weight of a row is its confidence."""
        weight = self.roles.setdefault("weight", "confidence")
        rows = self.unlabelled("labelling")
        filled = rows.with_columns(labels.cast(pl.String).alias(target), confidence.alias("confidence")).filter(picked)
        own = pl.col(weight).cast(pl.Float64, strict=False).fill_null(1.0) if weight in filled.columns else pl.lit(1.0)
        filled = filled.with_columns((pl.col("confidence") if weight == "confidence" else own * pl.col("confidence")).alias(weight))
        train = self.tables["train"]
        if weight not in train.columns:
            train = train.with_columns(pl.lit(1.0).alias(weight))
        train = train.with_columns(pl.col(weight).cast(pl.Float64))
        lacking = [c for c in train.columns if c not in filled.columns]
        filled = filled.with_columns(pl.lit(None).alias(c) for c in lacking).select(pl.col(c).cast(train[c].dtype) for c in train.columns)
        self.tables["train"] = pl.concat([train, filled.with_columns(pl.lit(None, dtype=pl.Int64).alias(ROW))])
        self.tables["unlabelled"] = rows.filter(~picked)

    def fitted(self, tables: dict[str, pl.DataFrame], split: bool, seed: int, runs: Path) -> Any:
        """The model that training makes of `tables`, loaded; nothing of it stays. `split`: the tables are all there is."""
        from modelyard.runtime.model import Model
        from modelyard.verbs.train import train

        config = dataclasses.replace(self.train, seed=seed)
        made = Made("", {}, split=True) if split else None
        source = Source({name: Table(name, frame.drop(ROW)) for name, frame in tables.items() if frame.height}, made=made)
        data = dataclasses.replace(
            self.data, inputs=self.roles["inputs"], outputs=self.roles["outputs"], target=None, id=None, ignore=None,
            weight=self.roles.get("weight"), limit=None,
        )  # fmt: skip
        found = train(data, self.task, self.model, config, name="prepare", base=self.base, runs=runs, source=source)
        return Model.load(found.model)
