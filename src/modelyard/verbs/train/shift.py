"""Texts that are filled up with padding stand somewhere else in every step of training (`side: random` of the encoding `tokens`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelyard.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    import numpy as np
    import torch

    from modelyard.verbs.train.loop import Augment

PAD = 0


def make(pipeline: Pipeline) -> Augment | None:
    """The change of a batch; None where no input asks for it."""
    columns = [c.name for c in pipeline.inputs if getattr(c.state, "fill", 0) and getattr(c.state, "side", "") == "random"]
    if not columns:
        return None

    def move(inputs: dict[str, torch.Tensor], index: np.ndarray, epoch: int) -> tuple[dict[str, torch.Tensor], Any]:
        return shifted(inputs, columns), None

    return move


def shifted(inputs: dict[str, torch.Tensor], columns: Sequence[str]) -> dict[str, torch.Tensor]:
    """Each text of `<column>.tokens` (B, L), padded behind, begins at a place drawn evenly from those where it fits whole."""
    import torch

    out = dict(inputs)
    for column in columns:
        tokens_BL = inputs[f"{column}.tokens"]
        width = tokens_BL.shape[1]
        real_B = width - (tokens_BL.flip(1) != PAD).long().cumsum(1).eq(0).sum(1)
        start_B = (torch.rand(len(tokens_BL), device=tokens_BL.device) * (width - real_B + 1)).long()
        place_BL = torch.arange(width, device=tokens_BL.device) - start_B[:, None]
        out[f"{column}.tokens"] = tokens_BL.gather(1, place_BL % width)
    return out
