"""What a search among models holds while it runs: the rows and their folds, the candidates, what each of them left."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.data.folds import Fold, folds
from modelyard.kinds._contract import Array
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline
from modelyard.tasks._binding import Bound

if TYPE_CHECKING:
    from modelyard.data.split import SplitConfig
    from modelyard.verbs.train import _Job

RESERVE = 0.06
"""Share of the budget kept for the choice, saving and loading back."""


@dataclass
class Member:
    """One model that can be saved: the whole of a candidate, or one of its fold models."""

    section: dict[str, Any]
    """Of the manifest."""
    graphs: dict[str, Graph]
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Candidate:
    """One model section and what came of it."""

    label: str
    section: dict[str, Any]
    pipeline: Pipeline | None = None
    members: list[Member] = field(default_factory=list)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Out-of-fold graph outputs (N, size); NaN where a row was never held out."""
    seconds: float = 0.0
    predict_seconds: float = 0.0
    """For a thousand rows."""
    reason: str = ""
    """Why it has no score, where it has none."""
    weight: float = 0.0
    loss: float = math.nan

    @property
    def bytes(self) -> int:
        """Size of what would be saved."""
        return sum(a.nbytes for m in self.members for a in (*m.parameters.values(), *m.arrays.values()))


@dataclass
class Rows:
    """The rows that are learnt from, and how they are held out."""

    bound: Bound
    """`train` holds all of them; `valid` is gone where it was cut from them."""
    folds: list[Fold]
    held: np.ndarray
    """(N,) whether a fold holds the row out."""
    weights: np.ndarray | None


@dataclass
class Search:
    """What is fixed for a whole search."""

    job: _Job
    rows: Rows
    budget: float
    began: float
    encoded: dict[str, tuple[Pipeline, dict[str, Array], dict[str, Array]]] = field(default_factory=dict)
    """By names of the encodings: fitted pipeline, inputs, targets."""
    lots: dict[bytes, tuple[np.ndarray, pl.DataFrame]] = field(default_factory=dict)
    """By the rows of a fold: these rows balanced, see `balanced.fold`."""

    @property
    def left(self) -> float:
        """Seconds for fitting."""
        return (1 - RESERVE) * self.budget - (time.monotonic() - self.began)

    def say(self, text: str) -> None:
        """Tells the progress bar."""
        if self.job.progress is not None:
            self.job.progress(min(int(time.monotonic() - self.began), int(self.budget)), max(1, int(self.budget)), text)


def divide(bound: Bound, split: SplitConfig, k: int, seed: int) -> Rows:
    """All training rows with their folds. Validation rows that were cut from the same table at random are learnt from too, since
    every fold has its own; those that came as a file, a column or the end of a time stay apart and are the only fold."""
    train, valid = bound.splits["train"], bound.splits.get("valid")
    targets = [c.name for c in bound.pipeline.outputs]
    apart = valid is not None and valid.height and ("valid" in bound.source.tables or split.time or split.column)
    splits = {name: frame for name, frame in bound.splits.items() if name not in ("train", "valid")}
    if apart:
        assert valid is not None
        whole = pl.concat([train, valid])
        made = [(np.arange(train.height), np.arange(train.height, whole.height))]
        splits["valid"] = valid
    else:
        bound.source.refuse_folds("this preset, which judges by folds,")
        whole = train if valid is None or not valid.height else pl.concat([train, valid])
        made = folds(whole, split, targets, k, seed=seed)
    held = np.zeros(whole.height, bool)
    for _, out in made:
        held[out] = True
    weights = None if bound.weight is None else whole[bound.weight].cast(pl.Float64).to_numpy().astype(np.float32)
    return Rows(dataclasses.replace(bound, splits={"train": whole, **splits}), made, held, weights)
