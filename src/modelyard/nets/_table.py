"""What the nets for tables share: embeddings of categories, and the ways in which numbers enter.

Numbers come `plain`, or as periodic features with learned frequencies (Gorishniy et al. 2022, arXiv:2203.05556: a number x also
enters as ReLU(W [sin 2πcx, cos 2πcx])), or as `bins`, the piecewise-linear encoding of the same paper, which the columns bring
along (`kinds/_bins.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from modelyard.kinds._contract import Part


def schedule(rows: int, steps: int) -> dict[str, object]:
    """`epochs` and `batch` for some number of steps: rows in the hundreds want small batches, since an epoch of two steps is none."""
    batch = 32 if rows < 1000 else 64 if rows < 3000 else 128 if rows < 10_000 else 256 if rows < 200_000 else 1024
    return {"epochs": min(80, max(8, round(steps * batch / max(1, rows)))), "batch": batch}


class Columns(nn.Module):
    """`numbers` (B, n) and `categories` (B, m) ids to one row of continuous features (B, width).

    `chunks` are the widths of the columns' features in that row, in order.
    """

    def __init__(
        self, parts: Mapping[str, Part], cardinalities: Sequence[int], *, frequencies: int = 0, filled: int = 0, embedding: int = 0
    ) -> None:
        """`frequencies` of periodic features a number, 0 for none; `filled` is the width to which the bins of a column are brought, 0
        leaves them; `embedding` 0 gives a category 1.6 · cardinality^0.56 numbers, 2 to 64 (the fastai rule).
        """
        super().__init__()
        n = int(parts["numbers"].shape[0] or 0) if "numbers" in parts else 0
        groups = (parts["numbers"].groups or (1,) * n) if n else ()
        self.filled = Filled(groups, filled) if filled and max(groups, default=1) > 1 else None
        sizes = [embedding or min(64, max(2, round(1.6 * c**0.56))) for c in cardinalities]
        self.tables = nn.ModuleList(nn.Embedding(c, d) for c, d in zip(cardinalities, sizes, strict=True))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
            reserve(table)  # type: ignore[arg-type]
        self.periodic = Periodic(n, frequencies) if n and frequencies else None
        self.chunks = (self.filled.chunks if self.filled else list(groups)) + ([self.periodic.out] * n if self.periodic else []) + sizes
        self.columns_width = sum(self.chunks)

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`categories` as their embeddings side by side, (B, Σd)."""
        if not len(self.tables):
            return dict(inputs)
        ids_Bm = inputs["categories"].long()
        vectors = torch.cat([table(ids_Bm[:, i]) for i, table in enumerate(self.tables)], 1)
        return {**inputs, "categories": vectors}

    def row(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, width) of embedded inputs."""
        blocks = []
        if "numbers" in inputs:
            blocks.append(squash(inputs["numbers"]) if self.filled is None else self.filled(inputs["numbers"]))
            if self.periodic is not None:
                blocks.append(self.periodic(inputs["numbers"]))
        if "categories" in inputs:
            blocks.append(inputs["categories"])
        return torch.cat(blocks, 1)


def reserve(table: nn.Embedding) -> None:
    """Missing (0) and unseen (1) begin at zero: where training has none of them they stay the middle of all values, not a random one."""
    with torch.no_grad():
        table.weight[:2] = 0.0


def squash(numbers: torch.Tensor) -> torch.Tensor:
    """x up to 3 deviations, then its logarithm: a value 10,000 deviations out must not drown the others (it becomes 11)."""
    size = numbers.abs()
    return torch.where(size <= 3, numbers, numbers.sign() * (3 + torch.log(size.clamp_min(3) / 3)))


class Filled(nn.Module):
    """`(B, n) -> (B, Σ chunks)`: a linear layer for each group of values (the bins of a column); single values pass."""

    where: torch.Tensor
    alone: torch.Tensor

    def __init__(self, groups: Sequence[int], width: int) -> None:
        super().__init__()
        starts = [sum(groups[:i]) for i in range(len(groups))]
        wide, most, n = [i for i, g in enumerate(groups) if g > 1], max(groups), sum(groups)
        # groups of one size, filled up with a value that is always zero
        places = [[starts[i] + t if t < groups[i] else n for t in range(most)] for i in wide]
        self.register_buffer("where", torch.tensor(places).flatten(), persistent=False)
        self.register_buffer("alone", torch.tensor([starts[i] for i, g in enumerate(groups) if g == 1], dtype=torch.int64), persistent=False)
        bound = torch.tensor([1 / math.sqrt(groups[i]) for i in wide])[:, None, None]
        self.weight = nn.Parameter((torch.rand(len(wide), most, width) * 2 - 1) * bound)
        self.bias = nn.Parameter(((torch.rand(len(wide), width) * 2 - 1) * bound[..., 0]).flatten())
        self.chunks = [width] * len(wide) + [1] * len(self.alone)

    def forward(self, numbers_Bn: torch.Tensor) -> torch.Tensor:
        """(B, Σ chunks): the groups, then the single values."""
        full = functional.pad(numbers_Bn, (0, 1))
        shares_BGT = full[:, self.where].unflatten(1, self.weight.shape[:2])
        out = torch.einsum("bgt,gtd->bgd", shares_BGT, self.weight).flatten(1) + self.bias
        return torch.cat([out, squash(numbers_Bn[:, self.alone])], 1)


class Periodic(nn.Module):
    """`(B, n) -> (B, n · out)`: a small linear layer per number on its sines and cosines."""

    out = 8

    def __init__(self, n: int, frequencies: int) -> None:
        super().__init__()
        # deviation 0.1 keeps the functions smooth at the start (the paper tunes 0.01 … 1)
        self.frequency = nn.Parameter(torch.randn(n, frequencies) * 0.1)
        self.weight = nn.Parameter(torch.randn(n, 2 * frequencies, self.out) / math.sqrt(2 * frequencies))
        self.bias = nn.Parameter(torch.zeros(n, self.out))

    def forward(self, numbers_Bn: torch.Tensor) -> torch.Tensor:
        """(B, n · out)."""
        angle_Bnf = 2 * math.pi * self.frequency * numbers_Bn.clamp(-30, 30)[..., None]
        waves = torch.cat([angle_Bnf.sin(), angle_Bnf.cos()], -1)
        return torch.relu(torch.einsum("bnf,nfo->bno", waves, self.weight) + self.bias).flatten(1)
