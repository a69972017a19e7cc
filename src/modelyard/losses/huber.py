"""Huber loss: (ŷ − y)²/2 up to `delta`, then delta · (|ŷ − y| − delta/2) (Huber 1964, Ann. Math. Stat. 35:73)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from modelyard.losses._units import sum_units, wide


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None, *, delta: float = 1.0) -> tuple[Tensor, Tensor]:
    """`output` (B, …) and `target` of its shape, or (B,) for an output (B, 1); `delta` in the target's (scaled)
    unit."""
    output = wide(output)
    value = functional.huber_loss(output, target.reshape(output.shape).to(output.dtype), reduction="none", delta=delta)
    return sum_units(value, mask)
