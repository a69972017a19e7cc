"""Focal loss: cross-entropy times (1 − p)^γ, so that easy examples count less (Lin et al. 2017, arXiv 1708.02002,
eq. 4).

Ids are scored by softmax, multi-hot targets by a sigmoid per label. The paper divides by the number of foreground
anchors;
here the weight is the number of units, as everywhere. `alpha` weighs the positive side of each label, or the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modelyard.losses._units import sum_units, wide


def loss(
    output: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """`output` logits (B, K); `target` int64 ids (B,) with `alpha` (K,), or multi-hot (B, K) with a number `alpha`."""
    output = wide(output)
    if target.is_floating_point():
        sign = target.to(output.dtype) * 2 - 1
        log_p, log_rest = functional.logsigmoid(sign * output), functional.logsigmoid(-sign * output)
        scale = None if alpha is None else torch.where(sign > 0, torch.as_tensor(alpha), 1 - torch.as_tensor(alpha))
    else:
        target = torch.where(mask.bool(), target, 0) if mask is not None else target
        log_all = functional.log_softmax(output, dim=-1)
        log_p = log_all.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        others = output.scatter(-1, target.unsqueeze(-1), -torch.inf)
        # log(1 − p) from the other logits: 1 − exp(log p) has no digits left where p is close to 1.
        log_rest = torch.logsumexp(others, -1) - torch.logsumexp(output, -1)
        scale = None if alpha is None else torch.as_tensor(alpha).to(output)[target]
    value = -(torch.exp(gamma * log_rest)) * log_p
    return sum_units(value if scale is None else value * scale.to(value), mask)
