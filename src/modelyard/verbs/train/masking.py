"""Hides tokens of training texts anew in every epoch, for masked language models (Devlin et al. 2018, section 3.1, task 1).

Each token but the special ones is chosen with probability `train.mask`, one of a text at least; 80 % of the chosen are replaced by the mask,
10 % by a random token, 10 % stay. What is drawn is a function of (seed, epoch, example, position): another batch size or a resumed run
hides the same. Logits are asked for at the chosen places only (`<text>.places`), which at 15 % saves 85 % of the decoder's work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from modelyard.data.batches import Batch
from modelyard.runtime.pipeline import Pipeline
from modelyard.runtime.programs import fill
from modelyard.verbs.train.augment import Draws
from modelyard.verbs.train.config import TrainConfig

FIXED = 2**32 - 1
"""The epoch whose draws judge: the same for every validation."""
HIDDEN, REPLACED = 0.8, 0.9
"""Below the first a chosen token is hidden, below the second replaced, above it stays."""


@dataclass
class Masking:
    """Made by `make`; called with a batch and its epoch (None: the fixed draws of a validation)."""

    text: str
    output: str
    mask: int
    special: np.ndarray
    """Ids that are never chosen."""
    others: np.ndarray
    """Ids that a token may be replaced by."""
    share: float
    seed: int

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        """The batch with hidden tokens, the places of the chosen ones, and what stood there as targets."""
        tokens_BL, length_B = batch.inputs[f"{self.text}.tokens"], batch.inputs[f"{self.text}.length"]
        hidden, places_BM, count_B, truth_BM = self.hide(tokens_BL.numpy(), length_B.numpy(), batch.index, epoch)
        inputs = {**batch.inputs, f"{self.text}.tokens": torch.from_numpy(hidden), f"{self.text}.places": torch.from_numpy(places_BM)}
        targets = {**batch.targets, f"{self.output}.ids": torch.from_numpy(truth_BM), f"{self.output}.length": torch.from_numpy(count_B)}
        return Batch(inputs, targets, batch.weights_B, batch.index)

    def hide(
        self, tokens_BL: np.ndarray, length_B: np.ndarray, ids_B: np.ndarray, epoch: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(tokens with the chosen ones hidden, their places (B, M), how many (B,), what stood there (B, M))."""
        length = tokens_BL.shape[1]
        draws = Draws(self.seed, FIXED if epoch is None else epoch, ids_B, self.text)
        chance_BL, how_BL, which_BL = (draws.uniform(purpose, length).numpy() for purpose in ("choose", "how", "which"))
        free_BL = (np.arange(length) < length_B[:, None]) & ~np.isin(tokens_BL, self.special)
        chance_BL = np.where(free_BL, chance_BL, np.float32(2))
        chosen_BL = chance_BL < self.share
        least_B = chance_BL.argmin(1)
        chosen_BL[np.arange(len(chosen_BL)), least_B] |= free_BL.any(1)
        random_BL = self.others[np.minimum((which_BL * len(self.others)).astype(np.int64), len(self.others) - 1)]
        new_BL = np.where(how_BL < HIDDEN, self.mask, np.where(how_BL < REPLACED, random_BL, tokens_BL))
        places_BM, count_B = fill.positions(chosen_BL)
        truth_BM = np.take_along_axis(tokens_BL, places_BM, 1).astype(np.int64)
        return np.where(chosen_BL, new_BL, tokens_BL).astype(tokens_BL.dtype), places_BM, count_B, truth_BM


def make(config: TrainConfig, pipeline: Pipeline, output: str) -> Masking:
    """The masking of one output's text; raises `ArtefactError` where its tokenizer has no mask."""
    facts = fill.facts(pipeline)
    special = np.array(facts["special"])
    others = np.setdiff1d(np.arange(facts["vocabulary"]), special)
    return Masking(facts["text"], output, facts["mask"], special, others, config.mask, config.seed)
