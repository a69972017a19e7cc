"""A multilayer perceptron for tables: embeddings for categories, numbers as they are and as periodic features.

Gorishniy et al. 2022, On Embeddings for Numerical Features in Tabular Deep Learning (arXiv:2203.05556): each number x also
enters as ReLU(W [sin 2πcx, cos 2πcx]) with learned frequencies c, which lets a small net bend as trees do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from modelyard.kinds._contract import Part
from modelyard.settings import Between

ACCEPTS = ("table",)
TRAIN: dict[str, object] = {
    "epochs": 60, "batch": 256, "lr": 2e-3, "optimiser": "adamw", "weight_decay": 1e-2, "schedule": "cosine", "patience": 12,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    hidden: tuple[Annotated[int, Between(1)], ...] = (256, 256)
    """Widths of the hidden layers."""
    dropout: Annotated[float, Between(0, 0.95)] = 0.1
    """Share of hidden units dropped while training."""
    frequencies: Annotated[int, Between(0)] = 16
    """Periodic features per number; 0 leaves them out."""
    embedding: Annotated[int, Between(0)] = 0
    """Width of a category's embedding; 0 chooses 1.6 · cardinality^0.56, at most 64 (the fastai rule)."""


class Encoder(nn.Module):
    """`numbers` (B, n) float and `categories` (B, m) ids to features (B, D)."""

    def __init__(self, config: Config, parts: Mapping[str, Part], *, cardinalities: Sequence[int] = ()) -> None:
        super().__init__()
        n = int(parts["numbers"].shape[0] or 0) if "numbers" in parts else 0
        sizes = [config.embedding or min(64, max(2, round(1.6 * c**0.56))) for c in cardinalities]
        self.tables = nn.ModuleList(nn.Embedding(c, d) for c, d in zip(cardinalities, sizes, strict=True))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
        self.periodic = Periodic(n, config.frequencies) if n and config.frequencies else None
        width = n + sum(sizes) + (n * self.periodic.out if self.periodic else 0)
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.width = width

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`categories` as their embeddings side by side, (B, Σd)."""
        if not len(self.tables):
            return dict(inputs)
        ids_Bm = inputs["categories"].long()
        vectors = torch.cat([table(ids_Bm[:, i]) for i, table in enumerate(self.tables)], 1)
        return {**inputs, "categories": vectors}

    def from_embedded(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (B, D)."""
        blocks = []
        if "numbers" in inputs:
            blocks.append(inputs["numbers"])
            if self.periodic is not None:
                blocks.append(self.periodic(inputs["numbers"]))
        if "categories" in inputs:
            blocks.append(inputs["categories"])
        features: torch.Tensor = self.body(torch.cat(blocks, 1))
        return features

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (B, D)."""
        return self.from_embedded(self.embed(inputs))


class Periodic(nn.Module):
    """`(B, n) -> (B, n · out)`: a small linear layer per number on its sines and cosines."""

    out = 8

    def __init__(self, n: int, frequencies: int) -> None:
        super().__init__()
        # deviation 0.1 keeps the functions smooth at the start (the paper tunes 0.01 … 1)
        self.frequency = nn.Parameter(torch.randn(n, frequencies) * 0.1)
        self.weight = nn.Parameter(torch.randn(n, 2 * frequencies, self.out) / math.sqrt(2 * frequencies))
        self.bias = nn.Parameter(torch.zeros(n, self.out))

    def forward(self, numbers_Bn: torch.Tensor) -> torch.Tensor:
        """(B, n · out)."""
        angle_Bnf = 2 * math.pi * self.frequency * numbers_Bn.clamp(-30, 30)[..., None]
        waves = torch.cat([angle_Bnf.sin(), angle_Bnf.cos()], -1)
        return torch.relu(torch.einsum("bnf,nfo->bno", waves, self.weight) + self.bias).flatten(1)
