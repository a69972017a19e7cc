"""A network whose output is the features themselves, of length one; in training it reads the companions of each example too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from modelyard.kinds._contract import Head
from modelyard.kinds.vector import one_input
from modelyard.nets._network import Network

COMPANIONS = ("positive", "negative")


class Direction(nn.Module):
    """x / |x|."""

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B, D) → (B, D); zeros stay zeros."""
        return F.normalize(x_BD, dim=-1)


class Pairs(Network):
    """Answers `(B, D)`; with companions among the inputs (`<output>.positive.<part>`) `(B, C, D)`: the anchor's vector, then theirs.

    Every text goes through the same encoder by itself, so that dropout differs between a text and itself (SimCSE).
    """

    sees_targets = True

    def _head(self, head: Head) -> nn.Module:
        one_input(list(self.names))
        return Direction()

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`column.part` in, `output.vector` out."""
        (key,) = self.keys
        (column,) = self.names
        output = key.rpartition(".")[0]
        found = [super().forward(inputs)[key]]
        for role in COMPANIONS:
            prefix = f"{output}.{role}."
            mine = {f"{column}.{k[len(prefix) :]}": v for k, v in inputs.items() if k.startswith(prefix)}
            if mine:
                found.append(super().forward(mine)[key])
        return {key: found[0] if len(found) == 1 else torch.stack(found, 1)}
