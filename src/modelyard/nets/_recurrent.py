"""Recurrent layers over padded batches that answer as if nothing were padded, and export to ONNX with any batch and length.

Packed sequences do not export. Padding stands at the back, so the forward direction never meets it before the last real unit; for the
backward direction every example is turned round by a gather of its own, so that it begins with its own last unit.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Cell = Literal["lstm", "gru", "rnn"]

CELLS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Recurrent(nn.Module):
    """(B, L, D) and lengths (B,) to states (B, L, hidden · directions), in which padding is zero; dropout between layers."""

    def __init__(self, cell: Cell, width: int, hidden: int, layers: int, directions: int, dropout: float) -> None:
        super().__init__()
        self.directions, self.width = directions, hidden * directions
        self.layers = nn.ModuleList(
            nn.ModuleList(CELLS[cell](width if i == 0 else self.width, hidden, batch_first=True) for _ in range(directions))
            for i in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, length_B: Tensor) -> Tensor:
        """States of the last layer."""
        position = torch.arange(x_BLD.shape[1], device=x_BLD.device)[None]
        length = length_B[:, None]
        turned_BL = torch.where(position < length, length - 1 - position, position)
        real_BL1 = (position < length).to(x_BLD.dtype)[:, :, None]
        for i, layer in enumerate(self.layers):
            x_BLD = x_BLD if i == 0 else self.dropout(x_BLD)
            found = [run(layer[0], x_BLD)]  # type: ignore[index]
            if self.directions == 2:
                found.append(turn(run(layer[1], turn(x_BLD, turned_BL)), turned_BL))  # type: ignore[index]
            x_BLD = torch.cat(found, 2) * real_BL1
        return x_BLD


def turn(x_BLD: Tensor, places_BL: Tensor) -> Tensor:
    """Units of each example in the order of `places_BL`."""
    return x_BLD.gather(1, places_BL[:, :, None].expand(-1, -1, x_BLD.shape[2]))


def run(cell: nn.RNNBase, x_BLD: Tensor) -> Tensor:
    """States of one direction. For the exporter the ONNX operator itself: torch 2.13 takes a recurrent layer apart step by step, which fixes
    the length that it was traced with."""
    if torch.onnx.is_in_onnx_export():
        return _operator(cell, x_BLD)
    states: Tensor = cell(x_BLD)[0]
    return states


GATES: dict[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,)}
"""Places of torch's gates in the order of ONNX: input, output, forget, cell; update, reset, hidden."""


def _operator(cell: nn.RNNBase, x_BLD: Tensor) -> Tensor:
    order = GATES[cell.mode]

    def sorted_gates(weight: Tensor) -> Tensor:
        size = cell.hidden_size
        return torch.cat([weight[i * size : (i + 1) * size] for i in order])

    x_LBD = x_BLD.transpose(0, 1)
    bias = torch.cat([sorted_gates(cell.bias_ih_l0), sorted_gates(cell.bias_hh_l0)])  # type: ignore[arg-type]
    weights = [sorted_gates(cell.weight_ih_l0)[None], sorted_gates(cell.weight_hh_l0)[None], bias[None]]  # type: ignore[arg-type]
    attributes: dict[str, Any] = {"hidden_size": cell.hidden_size} | ({"linear_before_reset": 1} if cell.mode == "GRU" else {})
    states: Tensor = torch.onnx.ops.symbolic_multi_out(
        cell.mode.split("_")[0], (x_LBD, *weights), attributes, dtypes=(x_BLD.dtype,),
        shapes=((x_LBD.shape[0], 1, x_LBD.shape[1], cell.hidden_size),), version=14,
    )[0]  # fmt: skip
    return states.squeeze(1).transpose(0, 1)


Pooling = Literal["max", "mean", "last", "attention"]


class Pool(nn.Module):
    """States (B, L, D) of real units to one vector (B, D): the largest, the mean, the last state of each direction, or weighted by attention
    (a learned query over tanh projections: Yang et al. 2016, Hierarchical Attention Networks, eq. 5–7). Nothing to pool gives zeros."""

    def __init__(self, how: Pooling, width: int, directions: int) -> None:
        super().__init__()
        self.how, self.directions = how, directions
        if how == "attention":
            self.project, self.query = nn.Linear(width, width), nn.Parameter(torch.randn(width) / width**0.5)

    def forward(self, states_BLD: Tensor, length_B: Tensor) -> Tensor:
        """As the class says."""
        position = torch.arange(states_BLD.shape[1], device=states_BLD.device)[None]
        real_BL1 = (position < length_B[:, None])[:, :, None]
        some_B1 = (length_B > 0)[:, None].to(states_BLD.dtype)
        if self.how == "max":
            return torch.where(real_BL1, states_BLD, -1e4).amax(1) * some_B1
        if self.how == "mean":
            return states_BLD.sum(1) / length_B.clamp_min(1)[:, None].to(states_BLD.dtype)
        if self.how == "last":
            each = states_BLD.shape[2] // self.directions
            end = (length_B - 1).clamp_min(0)[:, None, None].expand(-1, 1, each)
            found = [states_BLD[:, :, :each].gather(1, end).squeeze(1)]
            found += [states_BLD[:, 0, each:]] if self.directions == 2 else []
            return torch.cat(found, 1) * some_B1
        scores_BL1 = (torch.tanh(self.project(states_BLD)) @ self.query)[:, :, None]
        weights_BL1 = torch.where(real_BL1, scores_BL1, -1e4).softmax(1)
        pooled: Tensor = (weights_BL1 * states_BLD).sum(1)
        return pooled
