"""A corpus as blocks of equal length, cut anew in every epoch from one flat array of ids: only offsets change, nothing is copied.

The array may be a memory map far larger than memory: a batch reads its own blocks. Which blocks an epoch has, and in which order, is a
function of (seed, epoch), so a resumed run sees the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from modelyard.data.batches import Batch
from modelyard.kinds._contract import Ragged


class Blocks:
    """`<output>.ids` (B, L + 1): L tokens, each predicted from those before it in its block; the first is the last of the block before.

    In training an epoch begins at a random place among the first L, so that blocks do not always begin with the same words; at most 2 L
    tokens of an epoch are left out. Without `shuffle` every token is there once, and the last block is shorter (`<output>.length`).
    """

    def __init__(self, ids: Ragged, output: str, *, length: int, batch: int, seed: int = 0, shuffle: bool = True) -> None:
        self.values, self.output, self.seed, self.shuffle = ids.values, output, seed, shuffle
        self.length = max(1, min(length, len(self.values) - 1))
        spare = len(self.values) - 1
        self.moves = shuffle and spare >= 2 * self.length
        self.rows = (spare - self.length + 1) // self.length if self.moves else max(1, spare // self.length if shuffle else -(-spare // self.length))
        self.batch = min(batch, self.rows)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.rows // self.batch if self.shuffle else -(-self.rows // self.batch)

    def order(self, epoch: int) -> tuple[int, np.ndarray]:
        """(place of the first block, blocks in the order of an epoch)."""
        if not self.shuffle:
            return 0, np.arange(self.rows)
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, epoch]))
        return int(generator.integers(self.length)) if self.moves else 0, generator.permutation(self.rows)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `start` on."""
        first, order = self.order(epoch)
        within = np.arange(self.length + 1)
        for step in range(start, self.steps):
            index = order[step * self.batch : (step + 1) * self.batch]
            where = (first + index * self.length)[:, None] + within
            length_B = np.minimum(len(self.values) - where[:, 0], self.length + 1)
            found = self.values[np.minimum(where, len(self.values) - 1)].astype(np.int64, copy=False)
            targets = {f"{self.output}.ids": torch.from_numpy(found)}
            if length_B.min() <= self.length:
                targets[f"{self.output}.length"] = torch.from_numpy(length_B)
            yield Batch({}, targets, None, index)

    def head(self, rows: int) -> Blocks:
        """The first blocks."""
        some = self.values[: min(len(self.values), rows * self.length + 1)]
        return Blocks(Ragged(some, np.array([0, len(some)])), self.output, length=self.length, batch=self.batch, seed=self.seed)
