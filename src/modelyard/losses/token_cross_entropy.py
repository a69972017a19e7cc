"""Cross-entropy of every word's tag, each word for itself: −Σ_t log softmax(z_t)[y_t], in nats.

Reads the potentials of a linear chain (`kinds/tags`, B, K + 2 + L, K) and leaves the scores between tags alone: they stay 0, and decoding then
takes the best sequence that the scheme of the tags allows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelyard.losses import cross_entropy


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`output` (B, K + 2 + L, K), `target` int64 (B, L), `mask` (B, L) of the words; those with a target below 0 do not count."""
    known = target >= 0
    mask = known if mask is None else mask.bool() & known
    return cross_entropy.loss(output[:, output.shape[2] + 2 :], torch.where(known, target, 0), mask)
