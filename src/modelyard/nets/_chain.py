"""The head of a tagger: scores of every word's tags with those of stepping from one tag to another."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Chain(nn.Module):
    """Puts the K + 2 rows of the chain before the words' scores: (B, L, D) → (B, K + 2 + L, K).

    Row 0 is the score of beginning with a tag, row 1 of ending with it, the others of stepping from a tag (row) to another (column). They are
    part of the output so that a loss and a decoder (`kinds/tags/_chain.py`) see one array, whoever computed it. They begin at 0, where every
    word is decided for itself.
    """

    def __init__(self, words: nn.Module, size: int) -> None:
        super().__init__()
        self.words = words
        self.steps = nn.Parameter(torch.zeros(size + 2, size))

    def forward(self, features_BLD: Tensor) -> Tensor:
        """As the class says."""
        words_BLK = self.words(features_BLD)
        return torch.cat([self.steps.expand(words_BLK.shape[0], -1, -1), words_BLK], 1)
