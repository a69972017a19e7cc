"""Negative log-likelihood of tokens, summed in the net: logits of padding and of whole batches never exist.

The net answers with Σ -log p of each example's counted tokens, their number and, where it can smooth labels, Σ over the tokens of the
mean of -log p over the vocabulary. Label smoothing (Szegedy et al. 2016, arXiv 1512.00567) mixes the first and the third.
"""

from __future__ import annotations

from torch import Tensor

from modelyard.errors import Unsupported


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """`output` (B, 2) or (B, 3) → (Σ of an example, its tokens); the target was seen by the net already."""
    value_B = output[:, 0]
    if label_smoothing:
        if output.shape[1] < 3:
            raise Unsupported("this net does not smooth labels; leave train.label_smoothing out", "use")
        value_B = (1 - label_smoothing) * value_B + label_smoothing * output[:, 2]
    return value_B, output[:, 1]
