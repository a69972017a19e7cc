"""A teacher's answer as the target: α T² KL(softmax(t/T) ‖ softmax(z/T)) + (1 − α) cross-entropy with the row's own label, in nats.

Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network (arXiv:1503.02531), section 2: T² keeps the size of the soft gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modelyard.losses._units import sum_units, wide


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None, *, temperature: float = 2.0, alpha: float = 0.7) -> tuple[Tensor, Tensor]:
    """`output` logits (B, K); `target` float32 (B, K + 1): the teacher's logits and the id of the row's own label, -1 where it has none."""
    output = wide(output)
    teacher_BK, own_B = target[:, :-1].to(output.dtype), target[:, -1].long()
    log_BK = functional.log_softmax(output / temperature, 1)
    soft_B = functional.kl_div(log_BK, functional.log_softmax(teacher_BK / temperature, 1), reduction="none", log_target=True).sum(1)
    hard_B = functional.cross_entropy(output, own_B.clamp_min(0), reduction="none")
    share_B = torch.where(own_B < 0, 1.0, alpha).to(output.dtype)
    return sum_units(share_B * temperature**2 * soft_B + (1 - share_B) * hard_B, mask, None)
