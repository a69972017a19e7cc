"""Smaller learning rates for lower layers: each level learns at `train.layer_decay` times the rate of the one above it.

Discriminative fine-tuning of Howard & Ruder 2018 (arXiv 1801.06146, section 3.2: a factor of 1/2.6), layer-wise decay of Clark et al. 2020
(ELECTRA, arXiv 2003.10555). The heads learn at the full rate. The factor stands in the optimiser's groups as `scale`, which the loop
multiplies with the rate of the step; so every schedule keeps its shape.
"""

from __future__ import annotations

from torch import nn

from modelyard.verbs.train.depth import levels


def scales(network: nn.Module, decay: float) -> dict[int, float]:
    """id of each parameter → factor of its rate: decay to the power of its distance from the heads."""
    found = levels(network, "layer_decay")
    return {id(p): decay ** (len(found) - 1 - i) for i, level in enumerate(found) for p in level.parameters.values()}
