"""Adds the answers of a model as columns, for training rows by models that did not learn from them: the input of stacking.

Wolpert 1992, "Stacked generalization". The training rows are cut into folds as `data.split` says (by group, by time); each fold is answered by
a model of the others, the rows of all other tables by one model of all training rows. Rows that no fold holds out (the first block in
time) have missing answers.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl

from modelyard.data.folds import folds
from modelyard.errors import Unsupported
from modelyard.settings import Between
from modelyard.verbs.prepare._work import ROW, Work

TRAIN_ONLY = True
TRAINS = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of out-of-fold answers."""

    folds: Annotated[int, Between(2, 100)] = 5
    """Models of which each answers the rows that it did not learn from."""
    name: str = "fold"
    """What the new columns begin with: `fold.churned.yes`, or `fold.price` for a number."""


def run(work: Work, config: Config, seed: int) -> dict[str, Any]:
    """New number columns in all tables."""
    if work.resampled:
        raise Unsupported("the training rows were resampled, and folds would share copies; put out-of-fold before resample", "use")
    train = work.tables["train"]
    parts: list[pl.DataFrame] = []
    rows: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        for number, (learnt, held) in enumerate(folds(train, work.data.split, work.targets, config.folds, seed=seed)):
            work.say(f"out-of-fold: model {number + 1} of {config.folds}")
            model = work.fitted({"train": train[learnt], "test": train[held]}, False, seed, Path(folder))
            parts.append(_answers(work, model, train[held], config.name))
            rows.append(held)
        whole = work.fitted({k: t for k, t in work.tables.items() if k != "unlabelled"}, True, seed, Path(folder))
        for name in [n for n in work.tables if n != "train"]:
            work.tables[name] = work.tables[name].hstack(_answers(work, whole, work.tables[name], config.name))
    # a fold whose model never saw a rare label has no column for it: its score is then zero
    known = list(dict.fromkeys(c for p in parts for c in p.columns))
    found = pl.concat([p.with_columns(pl.lit(0.0).alias(c) for c in known if c not in p.columns).select(known) for p in parts])
    place = pl.DataFrame({"(place)": np.concatenate(rows)}).hstack(found)
    order = pl.DataFrame({"(place)": np.arange(train.height)}).join(place, on="(place)", how="left", maintain_order="left").drop("(place)")
    work.tables["train"] = train.hstack(order)
    for name, table in work.tables.items():
        work.tables[name] = table.with_columns(pl.lit(0.0).alias(c) for c in known if c not in table.columns)
    work.roles["inputs"] = {**work.roles["inputs"], **dict.fromkeys(known, "number")}
    work.kinds |= dict.fromkeys(known, "number")
    return {"columns": known, "answered": int(sum(len(r) for r in rows)), "models": config.folds + 1}


def _answers(work: Work, model: Any, rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """Scores by label and numbers as columns."""
    answers = model.predict(rows.drop(ROW).select(list(work.roles["inputs"]))).columns
    found: list[pl.Series] = []
    for target in work.targets:
        if f"{target}.scores" in answers.columns:
            scores = answers[f"{target}.scores"].struct.unnest()
            found += [scores[label].cast(pl.Float64).alias(f"{name}.{target}.{label}") for label in scores.columns]
        elif answers[target].dtype.is_numeric():
            found.append(answers[target].cast(pl.Float64).alias(f"{name}.{target}"))
        else:
            raise Unsupported(f"{target}: answers of kind {work.kinds[target]} are no numbers and become no columns", "not yet")
    return pl.DataFrame(found)
