"""Transformer encoder over sub-words or characters: pre-norm, rotary positions, masked pooling.

Vaswani et al. 2017, Attention Is All You Need; pre-norm of Xiong et al. 2020; rotary positions of Su et al. 2021 (RoFormer,
eq. 34), which need no table, so any length runs; attention pooling of Lin et al. 2017 with one learned query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.kinds._contract import Part
from modelyard.nets.text_cnn import UNSEEN, drop_tokens, real

ACCEPTS = ("tokens", "chars")

TRAIN: dict[str, object] = {
    "optimiser": "adamw",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "batch": 64,
    "epochs": 20,
    "schedule": "one-cycle",
    "clip": 1.0,
    "label_smoothing": 0.05,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    """Must divide `width` into even sizes (rotary positions turn pairs of numbers)."""
    feedforward: int = 4
    """Width of the hidden layer of a block, as a multiple of `width`."""
    dropout: float = 0.1
    token_dropout: float = 0.1
    """Share of training tokens replaced by the unseen one."""
    pooling: Literal["mean", "attention"] = "attention"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = config.feedforward * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, width))

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """(B, L, D) → (B, L, D); the mask is True where a key may be looked at."""
        q, k, v = self.qkv(self.norm1(x_BLD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        p = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(rotate(q, *turn), rotate(k, *turn), v, mask_B11L, p)
        x_BLD = x_BLD + F.dropout(self.out(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x_BLD + F.dropout(self.mlp(self.norm2(x_BLD)), self.dropout, self.training)


class Encoder(nn.Module):
    """`tokens` (B, L) ids and `length` (B,) to features (B, width)."""

    frequency: Tensor

    def __init__(self, config: Config, parts: dict[str, Part]) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.table = nn.Embedding(parts["tokens"].cardinality or UNSEEN + 1, config.width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.norm0 = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, 1, bias=False) if config.pooling == "attention" else None
        self.dropout = nn.Dropout(config.dropout)
        half = config.width // config.heads // 2
        self.register_buffer("frequency", 10_000.0 ** (-torch.arange(half) / half), persistent=False)

    def embed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`tokens` (B, L) → their embeddings (B, L, width)."""
        ids = drop_tokens(inputs["tokens"], self.config.token_dropout, self.training)
        return {**inputs, "tokens": self.table(ids)}

    def from_embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features of embedded tokens; an empty text gives zeros."""
        x_BLD, length_B = inputs["tokens"], inputs["length"]
        mask_BL = real(x_BLD, length_B)
        position = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        # Of an empty text the first position is looked at, or softmax would divide by zero; its pooled value is dropped below.
        keys_B11L = (position[None] < length_B.clamp(min=1)[:, None])[:, None, None]
        angle_LH = position[:, None].to(x_BLD.dtype) * self.frequency
        turn = angle_LH.cos(), angle_LH.sin()
        x_BLD = self.dropout(self.norm0(x_BLD))
        for block in self.blocks:
            x_BLD = block(x_BLD, keys_B11L, turn)
        features: Tensor = self.dropout(self._pool(self.norm(x_BLD), mask_BL))
        return features

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features (B, width)."""
        return self.from_embedded(self.embed(inputs))

    def _pool(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        if self.query is None:
            share_BL = mask_BL / mask_BL.sum(1, keepdim=True).clamp(min=1.0)
        else:
            score_BL = self.query(x_BLD)[:, :, 0].masked_fill(mask_BL == 0, -1e9)
            share_BL = score_BL.softmax(dim=1) * mask_BL
        return torch.bmm(share_BL[:, None], x_BLD)[:, 0]


def rotate(x_BHLD: Tensor, cos_LH: Tensor, sin_LH: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of a head by its position times its frequency."""
    a, b = x_BHLD.chunk(2, dim=-1)
    return torch.cat([a * cos_LH - b * sin_LH, a * sin_LH + b * cos_LH], dim=-1)
