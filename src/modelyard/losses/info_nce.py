"""InfoNCE with in-batch negatives: −log softmax_j(cos(a_i, c_j)/τ) at the own positive, over all companions of the batch.

van den Oord et al. 2018 (arXiv 1807.03748, eq. 4); with a text as its own positive it is SimCSE (Gao et al. 2021, arXiv 2104.08821, eq. 1),
with hard negatives its eq. 5; "multiple negatives ranking" of Henderson et al. 2017 (arXiv 1705.00652). It couples the examples of a
batch: a batch cut into parts would be another loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modelyard.losses._units import sum_units, wide

couples = "batch"


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None, *, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """`output` (B, C, D) unit vectors: anchor, positive and perhaps a negative; `target` (B,) how much each pair counts."""
    output = wide(output)
    if output.dim() != 3 or output.shape[1] < 2:
        raise ValueError(f"expected anchors with companions (B, C, D), got {tuple(output.shape)}")
    anchors_BD, others_CD = output[:, 0], output[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives, then all negatives
    logits_BC = anchors_BD @ others_CD.T / temperature
    value_B = functional.cross_entropy(logits_BC, torch.arange(len(anchors_BD), device=output.device), reduction="none")
    return sum_units(value_B, mask, target.to(value_B))
