"""Cross-entropy over a large vocabulary without its logits ever lying in memory whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE = 2**24
"""Logits (rows x words) up to which they are simply kept: 64 MiB in float32."""


def token_nll(hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor) -> Tensor:
    """-log softmax(hidden · weightᵀ)[ids], (N,) in float32.

    Above `WHOLE` logits, blocks of rows are computed, used and dropped, and computed again in the backward pass: one more product
    with the matrix instead of N x V numbers (Wijmans et al. 2024, Cut Your Losses, without its kernel).
    """
    if hidden_ND.shape[0] * weight_VD.shape[0] <= WHOLE:
        return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), ids_N, reduction="none")
    found: Tensor = _Blocks.apply(hidden_ND, weight_VD, ids_N)  # type: ignore[no-untyped-call]
    return found


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, ids_N)
        rows = max(1, WHOLE // weight_VD.shape[0])
        parts = zip(hidden_ND.split(rows), ids_N.split(rows), strict=True)
        return torch.cat([F.cross_entropy(F.linear(h, weight_VD).float(), i, reduction="none") for h, i in parts])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_ND, weight_VD, ids_N = ctx.saved_tensors
        rows = max(1, WHOLE // weight_VD.shape[0])
        grads, grad_VD = [], torch.zeros_like(weight_VD, dtype=torch.float32)
        for h, i, g in zip(hidden_ND.split(rows), ids_N.split(rows), upstream[0].split(rows), strict=True):
            p_NV = F.linear(h, weight_VD).float().softmax(1)
            p_NV[torch.arange(len(i), device=i.device), i] -= 1
            p_NV = (p_NV * g[:, None]).to(h.dtype)
            grads.append(p_NV @ weight_VD)
            grad_VD.addmm_(p_NV.float().T, h.float())
        return torch.cat(grads), grad_VD.to(weight_VD.dtype), None
