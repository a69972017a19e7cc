"""How the features of several inputs become one: concatenated, gated, attended, or fused at the decision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Concatenate(nn.Module):
    """Features side by side: `[(B, D_i)] -> (B, ΣD_i)`. One input passes unchanged, of any rank.

    `own` are the widths of hidden layers that every output has for itself: without any, outputs share all but their last layer (hard
    parameter sharing, Caruana 1997).
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0, own: Sequence[int] = ()) -> None:
        super().__init__()
        self.width = sum(widths)
        self.own = list(own)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Fused features."""
        fused: torch.Tensor = self.dropout(features[0] if len(features) == 1 else torch.cat(features, 1))
        return fused

    def head(self, size: int) -> nn.Module:
        """A linear head on the fused features, behind the output's own hidden layers."""
        layers: list[nn.Module] = []
        width = self.width
        for hidden in self.own:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        last = nn.Linear(width, size)
        return nn.Sequential(*layers, last) if layers else last

    def apply_head(self, head: nn.Module, fused: torch.Tensor) -> torch.Tensor:
        """The head's output."""
        out: torch.Tensor = head(fused)
        return out


class Gated(Concatenate):
    """Each input is projected to one width and weighted by a gate that sees them all (Arevalo et al. 2017, arXiv:1702.01992).

    h_i = tanh(W_i x_i), z = softmax over inputs of V [x_1 … x_n] per feature, fused = Σ z_i · h_i.
    """

    def __init__(self, widths: Sequence[int], width: int = 128, dropout: float = 0.0, own: Sequence[int] = ()) -> None:
        super().__init__(widths, dropout, own)
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.gate = nn.Linear(sum(widths), width * len(widths))
        self.width = width

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(B, width)."""
        hidden_BND = torch.stack([torch.tanh(p(x)) for p, x in zip(self.project, features, strict=True)], 1)
        gates_BND = self.gate(torch.cat(features, 1)).reshape(hidden_BND.shape).softmax(1)
        fused: torch.Tensor = self.dropout((gates_BND * hidden_BND).sum(1))
        return fused


class Attention(Concatenate):
    """A learned query attends over the projected inputs: softmax(q·k_i/√D) weights their values (Vaswani et al. 2017)."""

    def __init__(self, widths: Sequence[int], width: int = 128, dropout: float = 0.0, own: Sequence[int] = ()) -> None:
        super().__init__(widths, dropout, own)
        self.keys = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.values = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.query = nn.Parameter(torch.randn(width) / width**0.5)
        self.width = width

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(B, width)."""
        keys_BND = torch.stack([k(x) for k, x in zip(self.keys, features, strict=True)], 1)
        values_BND = torch.stack([v(x) for v, x in zip(self.values, features, strict=True)], 1)
        weights_BN = (keys_BND @ self.query / self.width**0.5).softmax(1)
        fused: torch.Tensor = self.dropout((weights_BN[..., None] * values_BND).sum(1))
        return fused


class Late(nn.Module):
    """Decision-level fusion: every input has heads of its own, whose outputs are averaged with learned weights."""

    def __init__(self, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.widths = list(widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The features as they are."""
        return [self.dropout(x) for x in features]

    def head(self, size: int) -> nn.Module:
        """One linear head per input and their weights."""
        return _LateHead(self.widths, size)

    def apply_head(self, head: nn.Module, fused: list[torch.Tensor]) -> torch.Tensor:
        """The weighted decision."""
        out: torch.Tensor = head(fused)
        return out


class _LateHead(nn.Module):
    def __init__(self, widths: Sequence[int], size: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(w, size) for w in widths)
        self.weight = nn.Parameter(torch.zeros(len(widths)))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        decisions_BNK = torch.stack([h(x) for h, x in zip(self.each, features, strict=True)], 1)
        fused: torch.Tensor = (self.weight.softmax(0)[:, None] * decisions_BNK).sum(1)
        return fused


FUSIONS: dict[str, type[nn.Module]] = {"concatenate": Concatenate, "gated": Gated, "attention": Attention, "late": Late}
