"""Negative log-likelihood of a linear-chain conditional random field: log Z(x) − score(x, y), in nats a sentence.

Lafferty, McCallum & Pereira 2001, Conditional Random Fields, ICML; the forward recursion in log space as in Sutton & McCallum 2012, An
Introduction to Conditional Random Fields, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelyard.losses._units import wide


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(value_B, words_B): `output` (B, K + 2 + L, K) are scores of beginning and ending with a tag, of stepping from row to column, and of the
    words' tags; `target` int64 (B, L); `mask` (B, L) of the words, all at the front. Sentences with an unknown tag (below 0) do not count.
    """
    output = wide(output)
    size = output.shape[2]
    first_BK, last_BK, step_BKK, words_BLK = output[:, 0], output[:, 1], output[:, 2 : size + 2], output[:, size + 2 :]
    mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask.bool()
    known_B = ((target >= 0) | ~mask).all(1) & mask.any(1)
    target = torch.where(mask, target, 0).clamp_min(0)
    value_B = partition(first_BK, last_BK, step_BKK, words_BLK, mask) - _score(first_BK, last_BK, step_BKK, words_BLK, target, mask)
    count_B = mask.sum(1).to(value_B.dtype)
    zero = value_B.new_zeros(())
    return torch.where(known_B, value_B, zero), torch.where(known_B, count_B, zero)


def partition(first_BK: Tensor, last_BK: Tensor, step_BKK: Tensor, words_BLK: Tensor, mask_BL: Tensor) -> Tensor:
    """log Z (B,): the log of the summed exponentials of the scores of all sequences."""
    alpha_BK = first_BK + words_BLK[:, 0]
    for at in range(1, words_BLK.shape[1]):
        after_BK = torch.logsumexp(alpha_BK[:, :, None] + step_BKK, 1) + words_BLK[:, at]
        alpha_BK = torch.where(mask_BL[:, at, None], after_BK, alpha_BK)
    return torch.logsumexp(alpha_BK + last_BK, 1)


def _score(first_BK: Tensor, last_BK: Tensor, step_BKK: Tensor, words_BLK: Tensor, target_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Score (B,) of the true sequences."""
    real = mask_BL.to(words_BLK.dtype)
    every = torch.arange(len(target_BL), device=target_BL.device)
    words_B = (words_BLK.gather(2, target_BL[:, :, None]).squeeze(2) * real).sum(1)
    steps_BL = step_BKK[every[:, None], target_BL[:, :-1], target_BL[:, 1:]] * real[:, 1:]
    end_B = target_BL.gather(1, (mask_BL.sum(1) - 1).clamp_min(0)[:, None]).squeeze(1)
    return words_B + steps_BL.sum(1) + first_BK[every, target_BL[:, 0]] + last_BK[every, end_B]
