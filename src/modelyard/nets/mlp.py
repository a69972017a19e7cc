"""A multilayer perceptron for tables: embeddings for categories; numbers plain, as periodic features, or as filled bins.

Gorishniy et al. 2022, On Embeddings for Numerical Features in Tabular Deep Learning (arXiv:2203.05556): periodic features with
learned frequencies, or the piecewise-linear encoding, let a small net bend as trees do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import nn

from modelyard.errors import Unsupported
from modelyard.kinds._contract import Part
from modelyard.nets._table import Columns, schedule
from modelyard.settings import Between

ACCEPTS = ("table",)
TRAIN: dict[str, object] = {
    "epochs": 20, "batch": 256, "lr": 2e-3, "optimiser": "adamw", "weight_decay": 1e-2, "schedule": "cosine", "patience": 10,
}  # fmt: skip
STEPS = 1200
"""Steps of training, 7 CPU seconds; in more, noisy labels are learnt by heart before the learning rate has fallen."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    hidden: tuple[Annotated[int, Between(1)], ...] = (256, 256)
    """Widths of the hidden layers."""
    dropout: Annotated[float, Between(0, 0.95)] = 0.1
    """Share of hidden units dropped while training."""
    numbers: Literal["plain", "periodic", "bins"] = "bins"
    """How numbers enter: as they are, with periodic features beside them, or as shares of quantile bins."""
    frequencies: Annotated[int, Between(0)] = 16
    """Periodic features per number."""
    filled: Annotated[int, Between(0)] = 8
    """Width to which a linear layer brings the bins of each column; 0 leaves them as they are. It keeps the net from learning rows
    by heart: on credit defaults the area under the curve rose from 0.781 to 0.786."""
    embedding: Annotated[int, Between(0)] = 0
    """Width of a category's embedding; 0 chooses 1.6 · cardinality^0.56, at most 64 (the fastai rule)."""


def recipe(parts: Mapping[str, Part], rows: int, *, kinds: Sequence[str] = ()) -> tuple[Config, dict[str, object]]:
    """(net, `train` settings) for a table of `rows` training rows; numbers bear twice the learning rate that labels do."""
    return Config(), {**TRAIN, **schedule(rows, STEPS), **({"lr": 4e-3} if set(kinds) == {"number"} else {})}


def encodings(config: Config) -> dict[str, str]:
    """Encoding of each kind of column that these settings ask for."""
    return {"number": "bins"} if config.numbers == "bins" else {}


def narrow(config: Config, weights: Mapping[str, torch.Tensor], share: float, encoder: nn.Module) -> tuple[Config, dict[str, torch.Tensor]]:
    """(settings, changed weights) of the encoder without `share` of the units of each hidden layer but the last, whose units the heads read:
    those go for which the product of the norms of what comes in and what goes out is smallest."""
    if len(config.hidden) < 2:
        raise Unsupported("the net has one hidden layer, and the heads read that; distil it into a smaller one", "use")
    changed = dict(weights)
    widths = list(config.hidden)
    for i, width in enumerate(config.hidden[:-1]):
        here, after = f"body.{3 * i}", f"body.{3 * i + 3}.weight"
        worth_H = changed[f"{here}.weight"].norm(dim=1) * changed[after].norm(dim=0)
        kept = worth_H.topk(max(1, round(width * (1 - share)))).indices.sort().values
        changed |= {f"{here}.{part}": changed[f"{here}.{part}"][kept] for part in ("weight", "bias")} | {after: changed[after][:, kept]}
        widths[i] = len(kept)
    return replace(config, hidden=tuple(widths)), changed


class Encoder(Columns):
    """`numbers` (B, n) float and `categories` (B, m) ids to features (B, D)."""

    def __init__(self, config: Config, parts: Mapping[str, Part], *, cardinalities: Sequence[int] = ()) -> None:
        ways = {"periodic": {"frequencies": config.frequencies}, "bins": {"filled": config.filled}}.get(config.numbers, {})
        super().__init__(parts, cardinalities, embedding=config.embedding, **ways)
        layers: list[nn.Module] = []
        width = self.columns_width
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.width = width

    def from_embedded(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (B, D)."""
        features: torch.Tensor = self.body(self.row(inputs))
        return features

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (B, D)."""
        return self.from_embedded(self.embed(inputs))
