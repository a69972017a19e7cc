"""Losses: pure torch functions, one file each, `loss(output, target, mask=None, **options) -> (value_B, weight_B)`.

`value_B` is the sum over an example's units (labels, tokens, pixels) and `weight_B` their number, so that the batch
loss
Σ w·value / Σ w·weight is right for any mixture of lengths, masks and micro-batches. `mask` is True where a unit counts.
Everything is computed in float32 or wider, whatever comes in, and stays finite for logits of ±1e4.
"""
