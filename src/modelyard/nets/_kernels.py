"""Backward passes by hand for training on a CPU, where torch composes them of many kernels or has a slow one.

Each function is torch's own elsewhere: on accelerators, under `torch.compile`, and where no gradient is asked for. Times are milliseconds
forwards and backwards for 24 x 128 tokens of width 192 on one core of an EPYC with AVX-512.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelyard.nets._dropout import STEPS, kept

SQUARE = 512
"""Longest row whose scores are kept whole: above it torch's kernel, which never has them, is as fast and needs no memory for them."""


def by_hand(x: Tensor) -> bool:
    """Whether the functions here are used for `x`."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def bfloat16_asked() -> bool:
    """Whether matrices are multiplied in bfloat16 on the CPU at the moment."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def rounded(x: Tensor) -> Tensor:
    """`x` in the precision of the matrices that read it: one cast forwards and one backwards, where each matrix would make its own."""
    return x.to(torch.bfloat16) if by_hand(x) and bfloat16_asked() else x


def root_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / root mean square of its last axis · weight (Zhang & Sennrich 2019), in the precision of the weight: 1.4 ms instead of 3.7."""
    x = x.to(weight.dtype)
    if not by_hand(x):
        return F.rms_norm(x, weight.shape, weight, eps)
    found: Tensor = _RootNorm.apply(x, weight, eps)
    return found


class _RootNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, weight_D, scale)
        return normed * weight_D

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,), (normed, weight_D, scale) = upstream, ctx.saved_tensors
        width = weight_D.shape[0]
        both_ND = (g * normed).reshape(-1, width)
        along = (both_ND @ weight_D).view(scale.shape).div_(width)
        return (g * weight_D).addcmul_(normed, along, value=-1).mul_(scale), both_ND.sum(0), None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + E/2) of the last axis by the angle whose cosine and sine are given (…, E/2): 1.7 ms instead of 3.5."""
    if by_hand(x) and x.dtype == cos.dtype:
        found: Tensor = _Rotate.apply(x, cos, sin)
        return found
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(upstream[0], cos, sin, -1.0), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out, half = torch.empty_like(x), x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)
    return out


def attention(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """Softmax(q · kᵀ / √E) · v, (B, H, L, E); causal without a mask; `share` of the weights is dropped.

    torch's CPU kernel takes 46 ms in bfloat16 (6 heads), 20 in float32 and more than 60 with dropout; by hand 11, 22 and 29.
    """
    if not by_hand(q_BHLE):
        return _whole(q_BHLE, k_BHLE, v_BHLE, mask, share)
    dtype = torch.bfloat16 if bfloat16_asked() else torch.float32
    with torch.autocast("cpu", enabled=False):
        q, k, v = (t.to(dtype) for t in (q_BHLE, k_BHLE, v_BHLE))
        if mask is not None or q.shape[2] > SQUARE or (dtype == torch.float32 and not share):
            return _whole(q.float(), k.float(), v.float(), mask, share)
        found: Tensor = _Attention.apply(q, k, v, round(share * STEPS))
        return found


def _whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, share: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, share, is_causal=mask is None)


@lru_cache(maxsize=8)
def _causal(length: int, dtype: torch.dtype) -> Tensor:
    """(L, L): 0 where a position is seen, -infinity where it comes later."""
    return torch.full((length, length), -torch.inf, dtype=dtype).triu_(1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, cut: int) -> Tensor:
        shape = q_BHLE.shape
        q, k, v = (t.reshape(-1, *shape[2:]) for t in (q_BHLE, k_BHLE, v_BHLE))
        p = torch.softmax(torch.baddbmm(_causal(shape[2], q.dtype), q, k.transpose(1, 2), alpha=shape[3] ** -0.5), -1)
        keep = kept(p, cut) if cut else None
        ctx.save_for_backward(q, k, v, p, keep)
        return torch.bmm(p if keep is None else p * keep, v).view(shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, p, keep = ctx.saved_tensors
        shape, scale = upstream[0].shape, q.shape[-1] ** -0.5
        g = upstream[0].reshape(q.shape).to(q.dtype)
        dv = torch.bmm((p if keep is None else p * keep).transpose(1, 2), g)
        dp = torch.bmm(g, v.transpose(1, 2))
        ds = torch._softmax_backward_data(dp if keep is None else dp.mul_(keep), p, -1, p.dtype).mul_(scale)
        return torch.bmm(ds, k).view(shape), torch.bmm(ds.transpose(1, 2), q).view(shape), dv.view(shape), None
