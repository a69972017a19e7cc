"""Mean squared error over the horizon, one unit a step."""

from __future__ import annotations

import torch


def loss(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """`output` and `target` (B, H) → (Σ squares, H)."""
    return ((output - target) ** 2).sum(1), torch.full((len(output),), float(output.shape[1]))
