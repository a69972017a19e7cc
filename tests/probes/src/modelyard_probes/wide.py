"""A single linear layer on a table: a net as one file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modelyard.kinds._contract import Part

ACCEPTS = ("table",)
TRAIN = {"epochs": 30, "lr": 1e-2, "batch": 64}


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 16


class Encoder(nn.Module):
    def __init__(self, config: Config, parts: dict[str, Part], cardinalities: list[int] | None = None, **_: object) -> None:
        super().__init__()
        self.width = config.width
        numbers = parts["numbers"].shape[0] if "numbers" in parts else 0
        self.numbers = nn.Linear(int(numbers or 0), config.width) if numbers else None
        self.tables = nn.ModuleList(nn.Embedding(n, config.width) for n in cardinalities or [])

    def embed(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not len(self.tables):
            return inputs
        ids = inputs["categories"].long()
        return inputs | {"categories": torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)}

    def from_embedded(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        out = self.numbers(inputs["numbers"]) if self.numbers is not None else 0.0
        return out + inputs["categories"].sum(1) if len(self.tables) else out

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.from_embedded(self.embed(inputs))
