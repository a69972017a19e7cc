"""Cross-entropy of every real position of a sequence."""

from __future__ import annotations

import torch
from torch.nn import functional


def loss(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """`output` (B, L, K), `target` (B, L), `mask` (B, L) → the sum over positions and their number, (B,) each."""
    value_BL = functional.cross_entropy(output.transpose(1, 2), target.long().clamp_min(0), reduction="none")
    real_BL = torch.ones_like(value_BL) if mask is None else mask.to(value_BL)
    return (value_BL * real_BL).sum(1), real_BL.sum(1)
