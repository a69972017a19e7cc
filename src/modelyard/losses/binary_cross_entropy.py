"""Binary cross-entropy of logits against multi-hot targets: Σ over labels of log(1 + e^z) − t z.

`pos_weight` multiplies the positive term, as in `torch.nn.functional.binary_cross_entropy_with_logits`. The units
are the labels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from modelyard.losses._units import sum_units, wide


def loss(
    output: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`output` logits (B, K), `target` 0 … 1 (B, K), `mask` (B,) or (B, K), `pos_weight` (K,)."""
    output = wide(output)
    target = target.to(output.dtype)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / 2
    pos_weight = None if pos_weight is None else pos_weight.to(output)
    value_BK = functional.binary_cross_entropy_with_logits(output, target, reduction="none", pos_weight=pos_weight)
    return sum_units(value_BK, mask)
