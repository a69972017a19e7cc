"""Frozen matrices in 4 or 8 bits, made whole again where they are used.

nf4: Dettmers, Pagnoni, Holtzman & Zettlemoyer 2023, "QLoRA" (arXiv 2305.14314): quantiles of the normal distribution, scaled by the
largest value of each block of 64; these scales are kept in 8 bits themselves, in blocks of 256 around their mean (here 8-bit integers,
there 8-bit floats). 4.127 bits a weight. int8: one scale for each row (output channel).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Appendix E of the paper."""
BLOCK = 64
"""Weights that share a scale."""
SCALES = 256
"""Scales that share a scale."""


class Quantised(nn.Module):
    """A frozen linear layer `(…, in) → (…, out)`; no gradient reaches its weights, and none are kept whole for the backward pass.

    What it holds are parameters without gradient, not buffers: the loop's guard copies buffers at every step.
    """

    def __init__(self, linear: nn.Linear, form: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.form = linear.in_features, linear.out_features, form
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        parts = to_nf4(linear.weight.detach()) if form == "nf4" else to_int8(linear.weight.detach())
        self.names = tuple(parts)
        for name, value in parts.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    @property
    def weight(self) -> Tensor:
        """(out, in) in float32."""
        parts = [getattr(self, n) for n in self.names]
        if self.form == "nf4":
            return from_nf4(*parts, shape=(self.out_features, self.in_features))
        return from_int8(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return _Product.apply(x, self.bias, self)  # type: ignore[no-any-return]

    def bytes(self) -> int:
        """Of the matrix as it is kept."""
        return sum(getattr(self, n).numel() * getattr(self, n).element_size() for n in self.names)


class _Product(torch.autograd.Function):
    """x · Wᵀ + b, whose backward pass makes W whole again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Quantised) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] @ ctx.layer.weight.to(upstream[0].dtype), None, None


def to_nf4(weight: Tensor) -> dict[str, Tensor]:
    """`codes` (two a byte), `scales` (int8), `spread` (of each 256 scales) and `middle` of the scales; padded with zeros to whole blocks."""
    flat = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    largest = flat.abs().amax(1)
    middle = largest.mean()
    groups = F.pad(largest - middle, (0, -len(largest) % SCALES)).view(-1, SCALES)
    spread = groups.abs().amax(1).clamp_min(1e-12) / 127
    scales = (groups / spread[:, None]).round().to(torch.int8)
    # codes are chosen against the scale that will be used, not the one that was rounded away
    used = _scales(scales, spread, middle)[: len(flat), None]
    table = torch.tensor(NF4, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(torch.where(used > 0, flat / used, 0.0), between).to(torch.uint8).flatten()
    return {"codes": codes[0::2] * 16 + codes[1::2], "scales": scales.flatten(), "spread": spread, "middle": middle}


def from_nf4(codes: Tensor, scales: Tensor, spread: Tensor, middle: Tensor, *, shape: tuple[int, int]) -> Tensor:
    """The matrix in float32; what was padded to whole blocks is left out."""
    table = torch.tensor(NF4, device=codes.device)
    pairs = torch.cartesian_prod(table, table)
    flat = pairs[codes.int()].view(-1, BLOCK)
    blocks = flat * _scales(scales.view(-1, SCALES), spread, middle)[: len(flat), None]
    return blocks.flatten()[: shape[0] * shape[1]].view(shape)


def _scales(scales: Tensor, spread: Tensor, middle: Tensor) -> Tensor:
    return (scales.float() * spread[:, None] + middle).flatten().clamp_min(0)


def to_int8(weight: Tensor) -> dict[str, Tensor]:
    """`codes` (out, in) and `scale` (out, 1)."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return {"codes": (weight.float() / scale).round().to(torch.int8), "scale": scale}


def from_int8(codes: Tensor, scale: Tensor) -> Tensor:
    """(out, in) in float32."""
    return codes.float() * scale
