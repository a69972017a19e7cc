"""In-memory batches: the encoded arrays stay where they are and a batch is one gather each. No per-sample Python.

Texts are sorted by length within spans of `BUCKET` batches, so that little is padded. With `tokens` a batch is as many texts as have
about so many tokens (Ott et al. 2018): the shares are cut at equal sums of tokens, so that every epoch has as many steps.

The order is a pure function of (seed, epoch), so a resumed run sees the same examples as one that never stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from modelyard.kinds._contract import Array, Ragged, pad, take

BUCKET = 50
"""Batches that are sorted by length together: long enough to save padding, short enough to stay random."""


WIDE_BUCKET = 200
"""The same for batches by tokens, which are sorted by the lengths on both sides."""


@dataclass
class Batch:
    """Padded tensors by graph name; `index` are the example numbers."""

    inputs: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]
    weights_B: torch.Tensor | None
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


class Batches:
    """Shuffled (or ordered) batches over encoded arrays."""

    def __init__(
        self,
        arrays: Mapping[str, Array],
        targets: Mapping[str, Array],
        *,
        batch: int,
        seed: int = 0,
        weights: np.ndarray | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        tokens: int | None = None,
    ) -> None:
        """`arrays` and `targets` have the example axis first; `weights` (B,) are example weights; `tokens` replaces `batch` where
        examples vary in length."""
        self.inputs = {k: _stored(v) for k, v in arrays.items()}
        self.targets = {k: _stored(v) for k, v in targets.items()}
        self.weights = None if weights is None else torch.from_numpy(np.ascontiguousarray(weights, np.float32))
        self.rows = len(next(iter(arrays.values())))
        self.batch, self.seed, self.shuffle = min(batch, max(1, self.rows)), seed, shuffle
        # a last batch of one example would break batch normalisation and adds noise: it is dropped when shuffling
        self.drop_last = drop_last and self.rows > self.batch
        ragged = {k.rsplit(".", 1)[0]: v.lengths_B for k, v in {**self.inputs, **self.targets}.items() if isinstance(v, Ragged)}
        self.lengths = next((v.lengths_B for v in self.inputs.values() if isinstance(v, Ragged)), None)
        self.cost: np.ndarray | None = sum(ragged.values()) if tokens and ragged else None  # type: ignore[assignment]
        if tokens and self.cost is not None:
            self.batch, self.drop_last = max(1, round(self.rows * tokens / max(1, int(self.cost.sum())))), False
            self.keys = [*ragged.values()][::-1]  # the last one sorts first

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        if self.cost is not None:
            return -(-self.rows // self.batch)
        return self.rows // self.batch if self.drop_last else -(-self.rows // self.batch)

    def order(self, epoch: int) -> np.ndarray:
        """Example numbers in the order of `epoch`."""
        if not self.shuffle:
            return np.arange(self.rows)
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, epoch]))
        order = generator.permutation(self.rows)
        if self.lengths is None:
            return order
        span = self.batch * BUCKET
        sorted_spans = [s[np.argsort(self.lengths[s], kind="stable")] for s in (order[i : i + span] for i in range(0, len(order), span))]
        whole = np.concatenate(sorted_spans)
        full = len(whole) // self.batch
        blocks = generator.permutation(full)
        return np.concatenate([*(whole[b * self.batch : (b + 1) * self.batch] for b in blocks), whole[full * self.batch :]])

    def shares(self, epoch: int) -> list[np.ndarray]:
        """Example numbers of each batch of an epoch, cut at equal sums of tokens."""
        assert self.cost is not None
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, epoch]))
        order = generator.permutation(self.rows) if self.shuffle else np.arange(self.rows)
        span = self.batch * WIDE_BUCKET
        sorted_spans = [s[np.lexsort([k[s] for k in self.keys])] for s in (order[i : i + span] for i in range(0, self.rows, span))]
        # every other span falls, so that a batch across two of them holds like lengths too
        order = np.concatenate([s[::-1] if i % 2 else s for i, s in enumerate(sorted_spans)])
        sums = np.cumsum(self.cost[order])
        ends = np.searchsorted(sums, np.arange(1, self.steps) * (sums[-1] / self.steps))
        blocks = np.split(order, np.clip(ends + 1, 0, self.rows))
        return [blocks[i] for i in generator.permutation(len(blocks))] if self.shuffle else blocks

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `start` on."""
        if self.cost is not None:
            for share in self.shares(epoch)[start:]:
                yield self.gather(torch.from_numpy(share))
            return
        order = torch.from_numpy(self.order(epoch)) if self.shuffle else None
        for step in range(start, self.steps):
            low, high = step * self.batch, min((step + 1) * self.batch, self.rows)
            yield self.gather(order[low:high]) if order is not None else self.slice(low, high)

    def head(self, rows: int) -> Batches:
        """The first examples, in batches of the same size."""
        some = np.arange(min(self.rows, rows))
        pick = lambda group: {k: take(v.numpy() if isinstance(v, torch.Tensor) else v, some) for k, v in group.items()}  # noqa: E731
        return Batches(pick(self.inputs), pick(self.targets), batch=self.batch, seed=self.seed)

    def gather(self, index_B: torch.Tensor) -> Batch:
        """The examples named by `index_B`."""
        where = index_B.numpy()
        return Batch(
            _dense(self.inputs, where), _dense(self.targets, where),
            None if self.weights is None else torch.from_numpy(self.weights.numpy()[where]), where,
        )  # fmt: skip

    def slice(self, low: int, high: int) -> Batch:
        """Examples `low` to `high` without a gather."""
        if any(isinstance(v, Ragged) for v in (*self.inputs.values(), *self.targets.values())):
            return self.gather(torch.arange(low, high))
        cut = lambda arrays: {k: v[low:high] for k, v in arrays.items()}  # noqa: E731
        weights = None if self.weights is None else self.weights[low:high]
        return Batch(cut(self.inputs), cut(self.targets), weights, np.arange(low, high))


def _stored(array: Array) -> torch.Tensor | Ragged:
    if isinstance(array, Ragged):
        return array
    with warnings.catch_warnings():  # a memory map opened for reading is only read
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.ascontiguousarray(array))


def _dense(arrays: Mapping[str, torch.Tensor | Ragged], where: np.ndarray) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        if isinstance(array, Ragged):
            padded, lengths = pad(array.take(where))
            out[name], out[f"{name.rsplit('.', 1)[0]}.length"] = torch.from_numpy(padded), torch.from_numpy(lengths)
        else:
            # NumPy copies rows in this thread. torch would share 128 rows out among its threads and wait for the last one:
            # with other work on the machine that took 8 ms a batch instead of 0.06 (two cores, 784 float32).
            # `clip` skips a second buffer; numbers of examples are in range by construction
            out[name] = torch.from_numpy(array.numpy().take(where, 0, mode="clip"))
    return out
