"""Recurrent net over words with their spelling, or over sub-words and characters: tags every unit, or reads the text as a whole.

Words: an embedding, a convolution over their characters (Ma & Hovy 2016, End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF, ACL,
section 2.1), embeddings of marks and features of their form, then LSTM, GRU or plain RNN in one or two directions (Schuster & Paliwal 1997).
A tagger's head sees the state of each word beside what went in; a classifier pools the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.kinds._contract import Head, Part
from modelyard.nets._recurrent import Cell, Pool, Pooling, Recurrent
from modelyard.nets.text_cnn import UNSEEN, drop_tokens
from modelyard.settings import Between

ACCEPTS = ("spelled", "tokens", "chars")

TRAIN: dict[str, object] = {
    "optimiser": "adamw",
    "lr": 2e-3,
    "weight_decay": 1e-2,
    "batch": 32,
    "epochs": 30,
    "schedule": "one-cycle",
    "clip": 5.0,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    cell: Cell = "lstm"
    """lstm and gru remember farther than the plain rnn."""
    directions: Literal[1, 2] = 2
    """2 reads from both ends."""
    layers: Annotated[int, Between(1, 8)] = 1
    hidden: Annotated[int, Between(1)] = 128
    """Width of a state, each direction."""
    pooling: Pooling = "max"
    """How states become one vector where the whole text is classified: the largest of each feature, their mean, the last state, or attention."""
    embedding: Annotated[int, Between(1)] = 100
    """Width of a word's (token's) embedding."""
    characters: Annotated[int, Between(0)] = 50
    """Filters over the characters of a word; 0 leaves them out."""
    marks: Annotated[int, Between(0)] = 32
    """Width of the embeddings of a word's marks (shape, ends, neighbours), which are added up; 0 leaves them out."""
    dropout: Annotated[float, Between(0, 0.95)] = 0.5
    """Of what goes into the recurrent layers and what comes out."""
    token_dropout: Annotated[float, Between(0, 0.95)] = 0.1
    """Share of training words (tokens) replaced by the unseen one, and of marks left out."""


class Encoder(nn.Module):
    """Features of the whole (B, D), or of every unit (B, L, D) for outputs that are aligned."""

    def __init__(self, config: Config, parts: dict[str, Part], heads: Sequence[Head] = ()) -> None:
        super().__init__()
        self.config = config
        self.main = "words" if "words" in parts else "tokens"
        self.each = any(h.part == "potentials" for h in heads)
        self.table = nn.Embedding(parts[self.main].cardinality or UNSEEN + 1, config.embedding)
        nn.init.normal_(self.table.weight, std=0.3)
        width = config.embedding + self._spelling(config, parts)
        self.recurrent = Recurrent(config.cell, width, config.hidden, config.layers, config.directions, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.width = self.recurrent.width
        if self.each:
            self.beside = nn.Linear(width, config.hidden)
            self.width += config.hidden
        else:
            self.pool = Pool(config.pooling, self.recurrent.width, config.directions)

    def _spelling(self, config: Config, parts: dict[str, Part]) -> int:
        """Makes what reads the spelling of words; its width."""
        self.reads: list[str] = []
        if self.main != "words":
            return 0
        width = int(parts["features"].shape[1] or 0)
        if config.characters:
            self.letters = nn.Embedding(parts["characters"].cardinality or UNSEEN + 1, 25, padding_idx=0)
            self.filters = nn.Conv1d(25, config.characters, 3, padding=1)
            self.reads.append("characters")
            width += config.characters
        if config.marks:
            self.signs = nn.Embedding(parts["marks"].cardinality or UNSEEN + 1, config.marks, padding_idx=0)
            nn.init.normal_(self.signs.weight[1:], std=0.1)
            self.mix = nn.Parameter(torch.ones(int(parts["marks"].shape[1] or 1), config.marks))
            self.reads.append("marks")
            width += config.marks
        return width

    def embed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ids → embeddings: words (B, L, E), characters (B, L, C, 25), marks (B, L, M, E)."""
        share = self.config.token_dropout
        out = {**inputs, self.main: self.table(drop_tokens(inputs[self.main], share, self.training))}
        if "characters" in self.reads:
            out["characters"] = self.letters(inputs["characters"].long())
        if "marks" in self.reads:
            ids_BLM = inputs["marks"].long()
            if self.training and share:  # a mark that is left out has no embedding; the unseen one would then stand for everything
                ids_BLM = torch.where(torch.rand(ids_BLM.shape, device=ids_BLM.device) < share, 0, ids_BLM)
            out["marks"] = self.signs(ids_BLM)
        return out

    def from_embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features of embedded units."""
        length_B = inputs["length"]
        found = [inputs[self.main]]
        if "characters" in self.reads:
            x_BLCE = inputs["characters"]
            letters = self.filters(x_BLCE.flatten(0, 1).transpose(1, 2))
            found.append(F.relu(letters).amax(2).unflatten(0, x_BLCE.shape[:2]))
        if "marks" in self.reads:
            found.append((inputs["marks"] * self.mix).sum(2))
        if self.main == "words":
            found.append(inputs["features"])
        x_BLD = self.dropout(torch.cat(found, 2))
        states_BLD = self.recurrent(x_BLD, length_B)
        if not self.each:
            pooled: Tensor = self.dropout(self.pool(states_BLD, length_B))
            return pooled
        return torch.cat([self.dropout(states_BLD), self.dropout(torch.tanh(self.beside(x_BLD)))], 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features (B, width) or (B, L, width)."""
        return self.from_embedded(self.embed(inputs))


