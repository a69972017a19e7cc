"""What the methods that learn from preferences and rewards share: the net with a method's objective, and what a reference says.

A method is a file with `COLUMNS` that its rows must have, `TRAIN` (its settings of training) and `arrange(network, asked)` → `Arranged`.
Its objective answers, for each example, a value and its share of the mean, under the net's own key: the one loop trains it as any other net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard import registry
from modelyard.data.batches import Batches
from modelyard.errors import DataError, Problem, Unsupported
from modelyard.kinds._contract import Array, Ragged, pad
from modelyard.runtime.pipeline import Pipeline
from modelyard.verbs.train import texts
from modelyard.verbs.train.config import TrainConfig

METHODS = ("dpo", "kto", "grpo")
SCORED = 2**14
"""Tokens of a batch whose log-probabilities are computed once."""

Objective = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""(net, batch) → (B, 2): value and units of each example."""


class Aligned(nn.Module):
    """A causal net that is trained by a method; the net itself is `network`."""

    sees_targets = True

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective
        if hasattr(network, "moving"):
            self.moving = frozenset(f"network.{n}" for n in network.moving)  # type: ignore[union-attr]

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`{output.tokens: (B, 2)}`."""
        return {str(self.network.key): self.objective(self.network, inputs)}


@dataclass
class Arranged:
    """What the loop trains on."""

    objective: Objective
    batches: Any
    checks: Any = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What a method is arranged from."""

    spec: Mapping[str, Any]
    pipeline: Pipeline
    rows: Mapping[str, pl.DataFrame] | None
    """By split."""
    config: TrainConfig
    device: str = "cpu"
    weights: np.ndarray | None = None
    events: Callable[[dict[str, Any]], None] = lambda event: None

    @property
    def output(self) -> str:
        """The column that is written."""
        return self.pipeline.outputs[0].name

    def batches(self, inputs: dict[str, Array], ids: Ragged, *, teach: bool) -> Batches:
        """Batches of rows whose own answers are `ids`."""
        size = int(self.config.batch or 1)
        return Batches(
            inputs, {f"{self.output}.ids": ids}, batch=size, seed=self.config.seed, weights=self.weights if teach else None, shuffle=teach,
            drop_last=teach and len(ids) > 2 * size,
        )  # fmt: skip


def chosen(config: TrainConfig) -> str | None:
    """The method that the settings ask for; two exclude each other."""
    found = [m for m in METHODS if getattr(config, m) is not None]
    if len(found) > 1:
        raise Unsupported(f"train.{' and train.'.join(found)} minimise different things; set one of them", "never")
    return found[0] if found else None


def defaults(config: TrainConfig) -> list[dict[str, object]]:
    """Training settings of the methods, before those of the net; with adapters the rate is ten times that of whole weights."""
    name, own = chosen(config), []
    if name is not None:
        own = [dict(registry.load("verbs/train", name).TRAIN)]
    if config.lora is not None:
        own = [{**own[0], "lr": 10 * own[0]["lr"]}] if own else [dict(registry.load("verbs/train", "lora").TRAIN)]
    return own


def arrange(network: nn.Module, asked: Asked) -> Arranged | None:
    """What the method of the settings makes of the rows; None where none is set."""
    name = chosen(asked.config)
    if name is None:
        return None
    if not (hasattr(network, "sums") and hasattr(network, "decoder")):
        raise Unsupported(f"train.{name} is for causal language models (task text-generation, model causal)", "never")
    if not any(e["config"].get("base") for e in asked.spec.get("nets", {}).values()):
        raise Unsupported(f"train.{name} goes on from a model that can write already: name it as model.base (a folder, a run, a hub's name)", "use")
    if asked.rows is None:
        raise Unsupported(f"train.{name} needs its rows in memory and one fit: leave data.stream, train.folds and searches out", "not yet")
    clash = {
        "train.pack": asked.config.pack, "train.batch_tokens": asked.config.batch_tokens, "train.label_smoothing": asked.config.label_smoothing,
        "train.layer_decay": asked.config.layer_decay,
    }  # fmt: skip
    if found := [k for k, v in clash.items() if v]:
        raise Unsupported(f"train.{name} compares whole answers with those of a reference; leave {', '.join(found)} out", "never")
    module = registry.load("verbs/train", name)
    if lacking := [c for c in module.COLUMNS if c not in asked.rows["train"].columns]:
        wanted = ", ".join(module.LAYOUT)
        details = [Problem(f"is not in the data; train.{name} learns from the columns {wanted}", c) for c in lacking]
        raise DataError(f"the data has no column {', '.join(lacking)}", details)
    made: Arranged = module.arrange(network, asked)
    return made


def encoded(pipeline: Pipeline, rows: pl.DataFrame, completions: pl.Series | None = None) -> tuple[Ragged, Ragged]:
    """(prompts, answers) as tokens; `completions` are answers in place of the rows' own."""
    column, output = pipeline.inputs[0].name, pipeline.outputs[0].name
    found = pipeline.encode(rows.select(column))
    if completions is not None:
        rows = rows.with_columns(completions.alias(output))
    prompts, ids = found.arrays[f"{column}.tokens"], pipeline.targets(rows, found.contexts)[f"{output}.ids"]
    assert isinstance(prompts, Ragged) and isinstance(ids, Ragged)
    return prompts, ids


def sequences(pipeline: Pipeline, rows: pl.DataFrame, most: int, completions: pl.Series | None = None) -> texts.Rows:
    """Prompt and answer of each row in one run of `most` tokens at most; only the answer counts."""
    prompts, ids = encoded(pipeline, rows, completions)
    return texts.joined(prompts, ids, None, most)


@torch.no_grad()
def reference(network: nn.Module, rows: texts.Rows, device: str = "cpu") -> np.ndarray:
    """Σ log p (B,) of the counted tokens by the net as it is: before training it is its own reference."""
    out = np.zeros(len(rows.ids), np.float32)
    network.to(device)
    was = network.training
    network.eval()
    order = np.argsort(rows.ids.lengths_B, kind="stable")
    many = max(1, SCORED // max(1, int(rows.ids.lengths_B.max(initial=1))))
    for some in (order[i : i + many] for i in range(0, len(order), many)):
        tokens, counted = (torch.from_numpy(pad(x.take(some))[0]).to(device) for x in (rows.ids, rows.mask))
        out[some] = -network.sums(tokens.long(), counted > 0)[:, 0].float().cpu().numpy()  # type: ignore[operator]
    network.train(was)
    return out


def side_by_side(*tokens: Tensor) -> Tensor:
    """Batches of rows under each other, padded with 0 to one width."""
    width = max(t.shape[1] for t in tokens)
    return torch.cat([F.pad(t, (0, width - t.shape[1])) for t in tokens])
