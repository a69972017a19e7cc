"""A task is a value that names its parts, not a base class. Verbs read the parts; none of them asks for the task's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from modelyard.runtime.answers import Answers, Param


@dataclass(frozen=True)
class Loss:
    """How a graph output is compared with its target when a net is trained."""

    name: str
    """A file of `losses/` (or `package/name`)."""
    target: str
    """The part of the encoded target: `index`, `multi_hot`, `value`."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Losses that `train.loss` may choose instead: its word → a file of `losses/`."""


@dataclass(frozen=True)
class Toy:
    """A small learnable data set: used by the conformance kit and by `init`'s dry examples, never as evidence of quality."""

    tables: dict[str, pl.DataFrame]
    """`train` at least."""
    target: str | None
    kinds: dict[str, str] = field(default_factory=dict)
    """Kinds that guessing could not know."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keys of the `data` section."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One output column and how it is learnt."""

    name: str
    kinds: tuple[str, ...]
    """Kinds of output it predicts; where several, the column decides."""
    losses: Mapping[str, Loss]
    """By kind of output; empty where only estimators can learn it."""
    toy: Callable[[int, int], Toy]
    """`toy(n, seed)`."""
    supervised: bool = True
    """False where nothing is learnt from a target column: the output is called `output`, or as the column of truths that is for judging."""
    encoding: str | None = None
    """Encoding of the output; None: that of its kind."""
    guessed: bool = True
    """False where the task must be named: data alone never suggests it."""
    output: str = "y"
    frame: str = "rows"
    frame_config: Callable[[Any], Mapping[str, Any]] = lambda data: {}
    """Config of the frame from the `data` section (group, time …)."""
    program: str = "once"
    params: tuple[Param, ...] = ()
    default: str | None = None
    """The model that `auto` means for this task where the inputs do not decide."""
    metrics: tuple[str, ...] | None = None
    """None: those of the output's kind."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """Further metrics of its own, each with the part of the answers that it needs: `win_rate` where they have `<output>.wins`."""
    reads: tuple[str, ...] = ()
    """Kinds of input that it is about: columns that could be of the first are taken as such, whatever else was guessed."""
    rewrites: str | None = None
    """A file of `verbs/train/` whose `make(config, pipeline, output)` gives what changes every batch (inputs and targets) before a step."""
    examine: Callable[[Any, pl.DataFrame, str], tuple[Answers, pl.Series]] | None = None
    """`(model, rows, output) -> (answers, truths)` for tasks whose truth is no column: how they are judged."""
    shown: Mapping[str, Any] | None = None
    """Params under which the stored examples are answered, where the defaults would show nothing."""
    aligned: bool = False
    """True where an answer lies along an input (tags of a text): the output's `of` names it."""
