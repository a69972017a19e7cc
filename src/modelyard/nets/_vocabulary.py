"""Cross-entropy over a large vocabulary without its logits ever lying in memory whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**21
"""Logits (rows x words) of one block: 8 MiB in float32 stay in the cache of a CPU, where 256 rows of 8,000 words ran fastest."""
WIDE = 2**26
"""The same on an accelerator, which wants large products."""


def token_nll(hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor) -> Tensor:
    """-log softmax(hidden · weightᵀ)[ids], (N,) in float32."""
    return log_normaliser(hidden_ND, weight_VD) - (hidden_ND.float() * F.embedding(ids_N, weight_VD).float()).sum(1)


def smoothed_nll(hidden_ND: Tensor, weight_VD: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """(`token_nll`, the mean of -log p over all words), (N,) each: label smoothing is a mixture of both.

    The mean of the logits is the hidden state times the mean of the matrix, so that it costs nothing.
    """
    total_N = log_normaliser(hidden_ND, weight_VD)
    own_N = (hidden_ND.float() * F.embedding(ids_N, weight_VD).float()).sum(1)
    return total_N - own_N, total_N - hidden_ND.float() @ weight_VD.float().mean(0)


def log_normaliser(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """log Σ_v exp(hidden · weight_v), (N,) in float32, block of rows by block.

    With gradients, those of Σ_n are made at once, while a block's probabilities are in the cache, and kept in place of N x V numbers
    (the idea of Hsu et al. 2024, Liger Kernel); they serve any backward pass that weighs all rows alike. Others compute the blocks
    again (Wijmans et al. 2024, Cut Your Losses, without its kernel).
    """
    found: Tensor = _apply(hidden_ND, weight_VD, torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad))
    return found


def _rows(hidden_ND: Tensor, weight_VD: Tensor) -> int:
    return max(1, (BLOCK if hidden_ND.device.type == "cpu" else WIDE) // weight_VD.shape[0])


class _Normaliser(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, teaches: bool) -> Tensor:
        rows = _rows(hidden_ND, weight_VD)
        grads, sums = [], []
        moves = teaches and ctx.needs_input_grad[1]  # a frozen matrix (adapters) needs no product
        grad_VD = torch.zeros_like(weight_VD if moves else weight_VD[:0], dtype=torch.float32)
        for h in hidden_ND.split(rows):
            z_NV = F.linear(h, weight_VD.to(h.dtype)).float()
            top_N1 = z_NV.amax(1, keepdim=True)
            total_N1 = z_NV.sub_(top_N1).exp_().sum(1, keepdim=True)
            sums.append((top_N1 + total_N1.log())[:, 0])
            if teaches:
                p_NV = z_NV.div_(total_N1)
                grads.append(p_NV.to(h.dtype) @ weight_VD.to(h.dtype))
                if moves:
                    grad_VD.addmm_(p_NV.T, h.float())
        if teaches:
            ctx.save_for_backward(hidden_ND, weight_VD, torch.cat(grads), grad_VD)
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_ND, weight_VD, grad_ND, grad_VD = ctx.saved_tensors
        g_N = upstream[0]
        mine_ND = (grad_ND * g_N[:, None]).to(hidden_ND.dtype)
        if not ctx.needs_input_grad[1]:
            return mine_ND, None, None
        if bool((g_N == g_N[:1]).all()):
            return mine_ND, (grad_VD * g_N[:1].sum()).to(weight_VD.dtype), None
        rows = _rows(hidden_ND, weight_VD)
        again_VD = torch.zeros_like(grad_VD)
        for h, g in zip(hidden_ND.split(rows), g_N.split(rows), strict=True):
            again_VD.addmm_((F.linear(h, weight_VD.to(h.dtype)).float().softmax(1) * g[:, None]).T, h.float())
        return mine_ND, again_VD.to(weight_VD.dtype), None


_apply = _Normaliser.apply


def leave_out() -> None:
    """Keeps this out of graphs that are compiled from now on: its backward pass looks at a value, which they cannot.

    Not said where it is defined, since the compiler takes three seconds to import.
    """
    global _apply
    _apply = torch.compiler.disable(_Normaliser.apply)
