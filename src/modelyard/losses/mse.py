"""Squared error (ŷ − y)² of each unit."""

from __future__ import annotations

from torch import Tensor

from modelyard.losses._units import sum_units, wide


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`output` (B, …) and `target` of its shape, or (B,) for an output (B, 1); `mask` (B,) or of the target's shape."""
    output = wide(output)
    difference = output - target.reshape(output.shape).to(output.dtype)
    return sum_units(difference.square(), mask)
