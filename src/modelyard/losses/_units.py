"""Shared by the losses: sums over an example's units under a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """At least float32: sums of bf16 and float16 lose digits that matter."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def sum_units(value_BU: Tensor, mask: Tensor | None, weight_BU: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(sum of values, sum of weights) of each example; `value_BU` is (B,) or (B, …), `mask` (B,), or of its shape.

    Masked units do not count and pass no gradient, even where their value is not finite.
    """
    weight_BU = torch.ones_like(value_BU) if weight_BU is None else weight_BU.expand_as(value_BU)
    if mask is not None:
        mask = mask.bool()
        mask = mask.reshape(*mask.shape, *[1] * (value_BU.dim() - mask.dim())).expand_as(value_BU)
        value_BU = torch.where(mask, value_BU, value_BU.new_zeros(()))
        weight_BU = torch.where(mask, weight_BU, weight_BU.new_zeros(()))
    value_BU = value_BU * weight_BU
    return value_BU.flatten(1).sum(1) if value_BU.dim() > 1 else value_BU, (
        weight_BU.flatten(1).sum(1) if weight_BU.dim() > 1 else weight_BU
    )
