"""A tagger that sees a word and its neighbours: embedding and one convolution of width three."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modelyard.kinds._contract import Part

ACCEPTS = ("word_ids",)
TRAIN = {"epochs": 8, "lr": 1e-2, "batch": 32, "optimiser": "adamw"}


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 32


class Encoder(nn.Module):
    def __init__(self, config: Config, parts: dict[str, Part], **_: object) -> None:
        super().__init__()
        self.width = config.width
        self.table = nn.Embedding(parts["ids"].cardinality or 2, config.width)
        self.mix = nn.Conv1d(config.width, config.width, 3, padding=1)

    def embed(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        real = torch.arange(inputs["ids"].shape[1])[None, :] < inputs["length"][:, None]
        return inputs | {"ids": self.table(inputs["ids"].long()) * real[..., None]}

    def from_embedded(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        words_BLD = inputs["ids"]
        return words_BLD + torch.relu(self.mix(words_BLD.transpose(1, 2)).transpose(1, 2))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.from_embedded(self.embed(inputs))
