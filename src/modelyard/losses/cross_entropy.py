"""Cross-entropy of class logits against ids or soft targets: −Σ_k t_k log softmax(z)_k, in nats.

Label smoothing (Szegedy et al. 2016, arXiv 1512.00567) mixes the target with the uniform distribution. Class
weights multiply both
value and weight by Σ_k t_k c_k, so that the batch loss stays a weighted mean. For ids without smoothing this is
`torch.nn.functional.cross_entropy(weight=…)`; with smoothing or soft targets torch weighs each class term and
divides by the batch size instead, which is no mean.
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
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`output` logits (B, …, K); `target` int64 ids (B, …) or probabilities (B, …, K); `mask` (B,) or (B, …).

    Masked positions may hold any id (−1, −100).
    """
    output = wide(output)
    soft = target.is_floating_point()
    if not soft:
        target = torch.where(mask.bool(), target, 0) if mask is not None else target
        if class_weights is None and mask is None and output.dim() == 2 and target.dim() == 1:
            # The fused kernel: the common case of every step of training.
            value_B = functional.cross_entropy(output, target, reduction="none", label_smoothing=label_smoothing)
            return value_B, torch.ones_like(value_B)
    log_BK = functional.log_softmax(output, dim=-1)
    if soft:
        value_B = -(target.to(log_BK.dtype) * log_BK).sum(-1)
    else:
        value_B = -log_BK.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        value_B = (1 - label_smoothing) * value_B - label_smoothing * log_BK.mean(-1)
    weight_B = None
    if class_weights is not None:
        class_weights = class_weights.to(log_BK)
        weight_B = (target.to(log_BK.dtype) * class_weights).sum(-1) if soft else class_weights[target]
    return sum_units(value_B, mask, weight_B)


def total(output: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Σ_B of `loss` for logits (B, K) and ids (B,), in one kernel."""
    return functional.cross_entropy(wide(output), target, reduction="sum", label_smoothing=label_smoothing)
