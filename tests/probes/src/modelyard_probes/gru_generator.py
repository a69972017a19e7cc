"""A recurrent reader and writer: two graphs, `read` and `step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from modelyard.kinds._contract import Head, Part

ACCEPTS = ("chars",)
TRAIN = {"epochs": 40, "lr": 1e-2, "batch": 32, "optimiser": "adamw", "schedule": "constant"}


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 48


class Network(nn.Module):
    sees_targets = True

    def __init__(self, config: Config, parts: Mapping[str, Part], heads: Sequence[Head], column: str) -> None:
        super().__init__()
        self.column, self.output = column, heads[0].output
        self.prompt = nn.Embedding((parts["tokens"].cardinality or 1), config.width)
        self.reader = nn.GRUCell(config.width, config.width)
        self.written = nn.Embedding(heads[0].size + 1, config.width)
        self.writer = nn.GRUCell(config.width, config.width)
        self.head = nn.Linear(config.width, heads[0].size)
        self.start = heads[0].size

    def read(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """The sum over real prompt characters of their vectors, each turned by its place from the end."""
        place = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)[None, :] - length_B[:, None]
        vectors = self.prompt(tokens_BL.long()) * (place < 0)[..., None] * (1.0 / place.clamp(max=-1).abs().float())[..., None]
        return torch.tanh(vectors.sum(1))

    def step(self, token_B: torch.Tensor, state_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state_BD = self.writer(self.written(token_B.long()), state_BD)
        return self.head(state_BD), state_BD

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = self.read(inputs[f"{self.column}.tokens"], inputs[f"{self.column}.length"])
        target_BT = inputs[f"{self.output}.ids"]
        token = torch.full_like(target_BT[:, 0], self.start)
        logits = []
        for t in range(target_BT.shape[1]):
            out, state = self.step(token, state)
            logits.append(out)
            token = target_BT[:, t]
        return {f"{self.output}.logits": torch.stack(logits, 1)}

    def graphs(self) -> dict[str, nn.Module]:
        return {"read": _Read(self), "step": _Step(self)}


class _Read(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = self.network.column
        state = self.network.read(inputs[f"{name}.tokens"], inputs[f"{name}.length"])
        return {"state": state, "start": torch.full_like(inputs[f"{name}.length"], self.network.start)}


class _Step(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits, state = self.network.step(inputs["token"], inputs["state"])
        return {"logits": logits, "state": state}
