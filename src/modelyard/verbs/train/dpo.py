"""Direct preference optimisation: of two answers to a prompt the chosen one becomes likelier than the rejected one, against a reference.

Rafailov et al. 2023 (arXiv 2305.18290, eq. 7); IPO: Azar et al. 2023 (arXiv 2310.12036, eq. 17, over mean log-probabilities as its authors
do); hinge: Zhao et al. 2023 (arXiv 2305.10425); label smoothing: Mitchell 2023 (cDPO). The reference is the net before training (with
adapters: without them); what it says is computed once and kept as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.data.batches import Batches
from modelyard.kinds._contract import Array
from modelyard.verbs.train import align
from modelyard.verbs.train.methods import DpoConfig

COLUMNS = ("rejected",)
LAYOUT = ("prompt (or messages)", "chosen", "rejected")
TRAIN: dict[str, object] = {"epochs": 1, "lr": 5e-6, "batch": 16}
"""A tenth of what supervised fine-tuning takes: the answers are only to change places."""


def loss(
    chosen_B: Tensor, rejected_B: Tensor, settings: DpoConfig, chosen_tokens_B: Tensor | None = None, rejected_tokens_B: Tensor | None = None
) -> Tensor:
    """(B,) of the log-ratios to the reference of both answers, log π / π_ref; ipo divides them by the answers' tokens."""
    if settings.loss == "ipo":
        assert chosen_tokens_B is not None and rejected_tokens_B is not None
        gap_B = chosen_B / chosen_tokens_B - rejected_B / rejected_tokens_B
        return (gap_B - 1 / (2 * settings.beta)) ** 2
    gap_B = settings.beta * (chosen_B - rejected_B)
    if settings.loss == "hinge":
        return F.relu(1 - gap_B)
    return -(1 - settings.label_smoothing) * F.logsigmoid(gap_B) - settings.label_smoothing * F.logsigmoid(-gap_B)


def objective(settings: DpoConfig, output: str) -> align.Objective:
    """Both answers go through the net in one pass."""

    def call(network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens = align.side_by_side(inputs[f"{output}.ids"], inputs["rejected.ids"]).long()
        counted = align.side_by_side(inputs[f"{output}.mask"], inputs["rejected.mask"]) > 0
        sums = network.sums(tokens, counted)  # type: ignore[operator]
        nll, many = sums[:, 0], sums[:, 1].clamp_min(1)
        chosen, rejected = (-nll - inputs[f"{output}.reference"].T.flatten()).chunk(2)
        value_B = loss(chosen, rejected, settings, *many.chunk(2))
        return torch.stack([value_B, torch.ones_like(value_B)], 1)

    return call


def arrange(network: nn.Module, asked: align.Asked) -> align.Arranged:
    """Pairs as batches, with what the reference says of them."""
    assert asked.config.dpo is not None and asked.rows is not None
    output, most, notes = asked.output, int(network.config.row) + 1, []  # type: ignore[union-attr,arg-type]

    def batches(frame: pl.DataFrame, teach: bool) -> Batches:
        pair = [align.sequences(asked.pipeline, frame, most, c) for c in (None, frame["rejected"])]
        known = np.stack([align.reference(network, r, asked.device) for r in pair], 1)
        if cut := sum(r.cut for r in pair):
            notes.append(f"{cut} answers were cut to {most} tokens: what is read loses its beginning first")
        inputs: dict[str, Array] = {
            f"{output}.mask": pair[0].mask, "rejected.ids": pair[1].ids, "rejected.mask": pair[1].mask, f"{output}.reference": known,
        }  # fmt: skip
        return asked.batches(inputs, pair[0].ids, teach=teach)

    train, valid = batches(asked.rows["train"], True), asked.rows.get("valid")
    checks = batches(valid, False) if valid is not None and valid.height else None
    return align.Arranged(objective(asked.config.dpo, output), train, checks, notes)
