"""FT-Transformer for tables: every column is a token, and attention mixes the columns of a row.

Gorishniy, Rubachev, Khrulkov & Babenko 2021, Revisiting Deep Learning Models for Tabular Data (arXiv:2106.11959). A number x becomes
b + x · w with vectors of its own, a category its embedding plus b; a learned token is read at the end. Blocks normalise first,
without the first normalisation of the first block, and their hidden layers are gated by a ReLU (ReGLU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelyard.kinds._contract import Part
from modelyard.nets._table import reserve, schedule, squash
from modelyard.settings import Between

ACCEPTS = ("table",)
TRAIN: dict[str, object] = {
    "epochs": 20, "batch": 256, "lr": 1e-3, "optimiser": "adamw", "weight_decay": 1e-2, "schedule": "cosine", "patience": 6,
}  # fmt: skip
STEPS = 1200
"""Steps of training: one to two CPU minutes on tables of a dozen columns."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    width: Annotated[int, Between(2)] = 64
    """Numbers per token; a multiple of `heads`."""
    layers: Annotated[int, Between(1)] = 3
    """Blocks of attention and hidden layer."""
    heads: Annotated[int, Between(1)] = 8
    """Attention heads."""
    feedforward: Annotated[float, Between(0.1, 16)] = 4 / 3
    """Width of a block's hidden layer, as a multiple of `width`."""
    attention_dropout: Annotated[float, Between(0, 0.95)] = 0.2
    """Share of attention weights dropped while training."""
    dropout: Annotated[float, Between(0, 0.95)] = 0.1
    """Share of hidden units dropped while training."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of the heads ({self.heads})")


def recipe(parts: Mapping[str, Part], rows: int) -> tuple[Config, dict[str, object]]:
    """(net, `train` settings) for a table of `rows` training rows."""
    return Config(), {**TRAIN, **schedule(rows, STEPS)}


class Encoder(nn.Module):
    """`numbers` (B, n) float and `categories` (B, m) ids to features (B, width)."""

    def __init__(self, config: Config, parts: Mapping[str, Part], *, cardinalities: Sequence[int] = ()) -> None:
        super().__init__()
        self.width = width = config.width
        n = int(parts["numbers"].shape[0] or 0) if "numbers" in parts else 0
        bound = 1 / math.sqrt(width)
        draw = lambda *shape: nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))  # noqa: E731
        self.slope = draw(n, width) if n else None
        self.tables = nn.ModuleList(nn.Embedding(c, width) for c in cardinalities)
        for table in self.tables:
            nn.init.uniform_(table.weight, -bound, bound)  # type: ignore[arg-type]
            reserve(table)  # type: ignore[arg-type]
        self.bias = draw(n + len(self.tables), width)
        self.reader = draw(1, width)
        self.blocks = nn.ModuleList(Block(config, first=i == 0) for i in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def embed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`categories` as their embeddings (B, m, width)."""
        if not len(self.tables):
            return dict(inputs)
        ids_Bm = inputs["categories"].long()
        return {**inputs, "categories": torch.stack([table(ids_Bm[:, i]) for i, table in enumerate(self.tables)], 1)}

    def from_embedded(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (B, width): the token that reads, after the last block."""
        tokens = [squash(inputs["numbers"])[..., None] * self.slope] if self.slope is not None else []
        tokens += [inputs["categories"]] if len(self.tables) else []
        columns_BFD = torch.cat(tokens, 1) + self.bias
        x_BFD = torch.cat([columns_BFD, self.reader.expand(columns_BFD.shape[0], 1, -1)], 1)
        for i, block in enumerate(self.blocks):
            x_BFD = block(x_BFD, alone=i == len(self.blocks) - 1)
        return torch.relu(self.norm(x_BFD[:, -1]))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features (B, width)."""
        return self.from_embedded(self.embed(inputs))


class Block(nn.Module):
    """x + attention(norm(x)), then x + hidden(norm(x)); no order among the columns, so no positions."""

    def __init__(self, config: Config, *, first: bool) -> None:
        super().__init__()
        width, hidden = config.width, max(1, round(config.feedforward * config.width))
        self.heads, self.share, self.dropout = config.heads, config.attention_dropout, config.dropout
        self.before = nn.Identity() if first else nn.LayerNorm(width)
        self.between = nn.LayerNorm(width)
        self.query, self.rest, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.gated, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x_BFD: Tensor, alone: bool) -> Tensor:
        """(B, F, D); `alone`, only the reading token is worked out, (B, 1, D)."""
        normal = self.before(x_BFD)
        mine = normal[:, -1:] if alone else normal
        q = self.query(mine).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.rest(normal).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.share if self.training else 0.0)
        x = (x_BFD[:, -1:] if alone else x_BFD) + self.out(seen.transpose(1, 2).flatten(2))
        value, gate = self.gated(self.between(x)).chunk(2, -1)
        return x + self.down(functional.dropout(value * torch.relu(gate), self.dropout, self.training))
