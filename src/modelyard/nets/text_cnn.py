"""Convolutions over sub-words or characters, strongest answer of each filter.

Kim 2014, Convolutional Neural Networks for Sentence Classification, EMNLP (CNN-rand), with "same" padding so that a text
shorter than a filter is read too, and with token dropout on the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.kinds._contract import Part

ACCEPTS = ("tokens", "chars")

TRAIN: dict[str, object] = {
    "optimiser": "adamw",
    "lr": 2e-3,
    "weight_decay": 1e-2,
    "batch": 64,
    "epochs": 15,
    "schedule": "one-cycle",
    "label_smoothing": 0.05,
}

UNSEEN = 1
"""Id that the encodings give to what training did not hold; dropped tokens become it, so it is trained too."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    embedding: int = 128
    filters: int = 128
    """Filters of each size."""
    sizes: tuple[int, ...] = (1, 3, 5)
    """Tokens that a filter spans."""
    dropout: float = 0.5
    token_dropout: float = 0.1
    """Share of training tokens replaced by the unseen one."""


class Encoder(nn.Module):
    """`tokens` (B, L) ids and `length` (B,) to features (B, filters x sizes)."""

    def __init__(self, config: Config, parts: dict[str, Part]) -> None:
        super().__init__()
        self.token_dropout = config.token_dropout
        self.table = nn.Embedding(parts["tokens"].cardinality or UNSEEN + 1, config.embedding)
        nn.init.normal_(self.table.weight, std=0.3)
        self.sizes = config.sizes
        self.convolutions = nn.ModuleList(nn.Conv1d(config.embedding, config.filters, k) for k in config.sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.width = config.filters * len(config.sizes)

    def embed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`tokens` (B, L) → their embeddings (B, L, E)."""
        return {**inputs, "tokens": self.table(drop_tokens(inputs["tokens"], self.token_dropout, self.training))}

    def from_embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features of embedded tokens; an empty text gives zeros."""
        mask_BL = real(inputs["tokens"], inputs["length"])
        x_BEL = (inputs["tokens"] * mask_BL[:, :, None]).transpose(1, 2)
        found = []
        for size, convolution in zip(self.sizes, self.convolutions, strict=True):
            padded = F.pad(x_BEL, (size // 2, size - 1 - size // 2))
            # After ReLU nothing is below 0, so zeroed padding never wins the maximum.
            found.append((F.relu(convolution(padded)) * mask_BL[:, None]).amax(dim=2))
        features: Tensor = self.dropout(torch.cat(found, dim=1))
        return features

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features (B, width)."""
        return self.from_embedded(self.embed(inputs))


def drop_tokens(tokens_BL: Tensor, share: float, training: bool) -> Tensor:
    """Ids as int64, in training some replaced by the unseen one (Iyyer et al. 2015, word dropout)."""
    ids = tokens_BL.long()
    if not training or not share:
        return ids
    return torch.where(torch.rand(ids.shape, device=ids.device) < share, UNSEEN, ids)


def real(embedded_BLE: Tensor, length_B: Tensor) -> Tensor:
    """1.0 where a position holds a token, 0.0 in the padding: (B, L)."""
    position = torch.arange(embedded_BLE.shape[1], device=embedded_BLE.device)
    return (position[None] < length_B[:, None]).to(embedded_BLE.dtype)
