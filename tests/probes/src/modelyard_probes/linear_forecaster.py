"""A linear map of the history: autoregression with one output a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modelyard.kinds._contract import Part

ACCEPTS = ("levels",)
TRAIN = {"epochs": 60, "lr": 2e-2, "batch": 32, "schedule": "cosine"}


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 32


class Encoder(nn.Module):
    def __init__(self, config: Config, parts: dict[str, Part], **_: object) -> None:
        super().__init__()
        self.width = config.width
        self.body = nn.Linear(int(parts["values"].shape[0] or 1), config.width)

    def embed(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(inputs)

    def from_embedded(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.relu(self.body(inputs["values"]))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.from_embedded(inputs)
