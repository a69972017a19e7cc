"""Weighted bag of n-grams: one embedding a gram, summed by TF-IDF weight, then optional hidden layers.

Joulin, Grave, Bojanowski & Mikolov 2017, Bag of Tricks for Efficient Text Classification (fastText), with TF-IDF weights
instead of a plain mean and character n-grams instead of hashed word bigrams alone. Tables are hashed to `buckets` rows
(Weinberger et al. 2009, Feature Hashing), since an Adam step over a dense 300,000 x 128 table costs more than the net itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.kinds._contract import Part

ACCEPTS = ("bag",)

TRAIN: dict[str, object] = {
    "optimiser": "adamw",
    "lr": 5e-3,  # few grams of a batch are shared, so most rows move rarely and want long steps
    "weight_decay": 0.0,  # decoupled decay would shrink rows that a batch does not hold; gram dropout regularises instead
    "batch": 128,
    "epochs": 12,
    "schedule": "one-cycle",
    "label_smoothing": 0.05,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    width: int = 64
    """Numbers per gram, and of the features when there are no hidden layers."""
    buckets: int = 32_768  # 5 ms a step on 2 cores; 65,536 x 128 took 26 ms, nearly all of it Adam and clearing gradients
    """Rows of the table; grams above it share rows. Ids follow the hash of the gram, so `id mod buckets` spreads evenly."""
    hidden: tuple[int, ...] = ()
    """Widths of hidden layers after the sum."""
    gram_dropout: float = 0.3
    """Share of grams left out of a training text, so that no single gram decides (the rest is scaled up)."""
    dropout: float = 0.2
    """Dropout of the features."""


class Encoder(nn.Module):
    """`grams` (B, L) ids and `weights` (B, L), 0 in the padding, to features (B, width)."""

    def __init__(self, config: Config, parts: dict[str, Part]) -> None:
        super().__init__()
        cardinality = parts["grams"].cardinality or 1
        self.rows = min(config.buckets, cardinality)
        self.gram_dropout = config.gram_dropout
        self.table = nn.Embedding(self.rows, config.width)
        # Weights have norm 1, so the sum has the variance of one entry: 0.1 keeps first logits small but not dead.
        nn.init.normal_(self.table.weight, std=0.1)
        layers: list[nn.Module] = []
        width = config.width
        for size in config.hidden:
            layers += [nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, size)]
            width = size
        self.layers = nn.Sequential(*layers, nn.Dropout(config.dropout))
        self.width = width

    def embed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`grams` (B, L) → their embeddings (B, L, width)."""
        return {**inputs, "grams": self.table(inputs["grams"].long() % self.rows)}

    def from_embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features (B, width) of embedded grams."""
        weights_BL = self._thin(inputs["weights"])
        return self._rest(torch.bmm(weights_BL[:, None], inputs["grams"])[:, 0])

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features (B, width)."""
        if torch.compiler.is_exporting() or not self.training:
            return self.from_embedded(self.embed(inputs))
        # The fused sum never holds (B, L, width): 3x faster in training.
        ids = inputs["grams"].long() % self.rows
        weights_BL = self._thin(inputs["weights"])
        return self._rest(F.embedding_bag(ids, self.table.weight, per_sample_weights=weights_BL, mode="sum"))

    def _thin(self, weights_BL: Tensor) -> Tensor:
        return F.dropout(weights_BL, self.gram_dropout, self.training)

    def _rest(self, summed_BD: Tensor) -> Tensor:
        features: Tensor = self.layers(summed_BD)
        return features
