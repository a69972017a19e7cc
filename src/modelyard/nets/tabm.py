"""TabM for tables: many small nets that share most of their weights, taught one by one and averaged.

Gorishniy, Kotelnikov & Babenko 2024, TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling (arXiv:2410.24210).
Member i of a layer computes s_i ⊙ (W (r_i ⊙ x)) + b_i: one matrix for all, two vectors and a bias of its own (BatchEnsemble, Wen,
Tran & Ba 2020). Only the r of the first layer are drawn at random, the other vectors begin at one; heads are not shared. The
loss is the mean of the members' losses; the answer is the mean of their probabilities (or numbers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn import functional

from modelyard.kinds._contract import Head, Part
from modelyard.nets._network import MEMBERS
from modelyard.nets._table import Columns, schedule
from modelyard.settings import Between

ACCEPTS = ("table",)
TRAIN: dict[str, object] = {
    "epochs": 16, "batch": 256, "lr": 3e-3, "optimiser": "adamw", "weight_decay": 1e-2, "schedule": "cosine", "patience": 8,
}  # fmt: skip
STEPS = 1000
"""Steps of training: about 30 CPU seconds on tables of a dozen columns."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    members: Annotated[int, Between(1, 256)] = 16
    """Nets in the ensemble; the paper has 32, of which the second half brings little and costs as much as the first."""
    hidden: tuple[Annotated[int, Between(1)], ...] = (128, 128)
    """Widths of the hidden layers."""
    dropout: Annotated[float, Between(0, 0.95)] = 0.1
    """Share of hidden units dropped while training."""
    numbers: Literal["plain", "periodic", "bins"] = "bins"
    """How numbers enter: as they are, with periodic features beside them, or as shares of quantile bins."""
    frequencies: Annotated[int, Between(1)] = 16
    """Periodic features per number."""
    filled: Annotated[int, Between(0)] = 16
    """Width to which a linear layer brings the bins of each column before the members see them; 0 leaves them as they are."""
    embedding: Annotated[int, Between(0)] = 0
    """Width of a category's embedding; 0 chooses 1.6 · cardinality^0.56, at most 64 (the fastai rule)."""


def recipe(parts: Mapping[str, Part], rows: int, *, kinds: Sequence[str] = ()) -> tuple[Config, dict[str, object]]:
    """(net, `train` settings) for a table of `rows` training rows; numbers are no noisy labels and bear bolder steps, and more."""
    number = set(kinds) == {"number"}
    return Config(), {**TRAIN, **schedule(rows, 3 * STEPS // 2 if number else STEPS), **({"lr": 8e-3} if number else {})}


def encodings(config: Config) -> dict[str, str]:
    """Encoding of each kind of column that these settings ask for."""
    return {"number": "bins"} if config.numbers == "bins" else {}


class Network(nn.Module):
    """`column.numbers` and `column.categories` to `output.part`; in training also `output.part:members` (B, M, size)."""

    sees_targets = False

    def __init__(
        self, config: Config, parts: Mapping[str, Part], heads: Sequence[Head], column: str, *, cardinalities: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.column, self.outputs = column, [(h.key, h.kind, h.part, h.size) for h in heads]
        ways = {"periodic": {"frequencies": config.frequencies}, "bins": {"filled": config.filled}}.get(config.numbers, {})
        self.columns = Columns(parts, cardinalities, embedding=config.embedding, **ways)
        self.dropout = nn.Dropout(config.dropout)
        widths, chunks = [self.columns.columns_width, *config.hidden], self.columns.chunks
        self.layers = nn.ModuleList(Shared(config.members, a, b) for a, b in pairwise(widths))
        with torch.no_grad():  # the members differ by column, not by each of its features (section 3.3)
            drawn = torch.randn(config.members, len(chunks))
            self.layers[0].scale_in.copy_(drawn.repeat_interleave(torch.tensor(chunks), 1).flatten())  # type: ignore[operator]
        self.heads = nn.ModuleList(Apart(config.members, widths[-1], size) for *_, size in self.outputs)

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Ids as embeddings, under the same names."""
        prefix = f"{self.column}."
        mine = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
        return {**inputs, **{prefix + k: v for k, v in self.columns.embed(mine).items()}}

    def from_embedded(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of embedded inputs."""
        prefix = f"{self.column}."
        x = self.columns.row({k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)})
        for layer in self.layers:
            x = self.dropout(torch.relu(layer(x)))
        out: dict[str, torch.Tensor] = {}
        for (key, kind, part, _), head in zip(self.outputs, self.heads, strict=True):
            members_BMK = head(x)
            out[key] = combined(members_BMK, kind if part == "logits" else part)
            if self.training:
                out[f"{key}{MEMBERS}"] = members_BMK
        return out

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`column.part` in, `output.part` out."""
        return self.from_embedded(self.embed(inputs))


class Shared(nn.Module):
    """A layer of all members: (B, D) or (B, M, D) to (B, M, H)."""

    def __init__(self, members: int, width: int, hidden: int) -> None:
        super().__init__()
        self.members = members
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(width, hidden).uniform_(-bound, bound))
        # flat, because the optimiser decays everything of two axes: these are no matrices
        self.scale_in = nn.Parameter(torch.ones(members * width))
        self.scale_out = nn.Parameter(torch.ones(members * hidden))
        self.bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound).repeat(members))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, H)."""
        scale_in, scale_out, bias = (v.view(self.members, -1) for v in (self.scale_in, self.scale_out, self.bias))
        if x.dim() == 2:  # all members see one x: scaling the matrix is cheaper than M copies of the batch
            whole = (scale_in.t()[:, :, None] * self.weight[:, None]).flatten(1)
            return (x @ whole).unflatten(1, (self.members, -1)) * scale_out + bias
        return ((x * scale_in) @ self.weight) * scale_out + bias


class Apart(nn.Module):
    """A head for each member: (B, M, D) to (B, M, K)."""

    def __init__(self, members: int, width: int, size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(members, width, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members * size).uniform_(-bound, bound))

    def forward(self, x_BMD: torch.Tensor) -> torch.Tensor:
        """(B, M, K)."""
        return torch.einsum("bmd,mdk->bmk", x_BMD, self.weight) + self.bias.view(len(self.weight), -1)


def combined(members_BMK: torch.Tensor, kind: str) -> torch.Tensor:
    """One answer (B, K): logits of the mean probability (softmax for categories, a sigmoid each for label sets), or the mean."""
    count = math.log(members_BMK.shape[1])
    if kind == "category":
        return torch.logsumexp(functional.log_softmax(members_BMK, -1), 1) - count
    if kind == "label-set":
        yes, no = torch.logsumexp(functional.logsigmoid(members_BMK), 1), torch.logsumexp(functional.logsigmoid(-members_BMK), 1)
        return yes - no
    return members_BMK.mean(1)
