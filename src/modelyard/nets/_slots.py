"""Keys and values of many texts in numbered slots: a causal network as `runtime/decoder.Decoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from modelyard.nets.causal import Attention, Network

END = 2
"""The id that ends a text in the tokenizers trained here (`kinds/text`); a network whose base has others names them as `ends`."""


class Slots:
    """Each layer's keys and values as (slots, heads, places, width); a text's next token is one pass over what its slot holds."""

    def __init__(self, network: Network, device: str = "cpu") -> None:
        self.network, self.device = network.to(device).eval(), device
        self.vocabulary, self.context = network.lm_head.out_features, network.config.context
        self.column, self.output = network.column, network.output
        self.ends: tuple[int, ...] = tuple(getattr(network, "ends", (END,)))
        self.row = network.config.row
        """Tokens of a row in training."""
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def reserve(self, slots: int, length: int) -> None:
        """As in `Decoder`; there is one place more than `length`, which takes what is written for padding."""
        config = self.network.config
        weight = self.network.lm_head.weight
        shape = (slots, config.keys, min(length, self.context) + 1, config.each)
        self.keys = [torch.zeros(shape, dtype=weight.dtype, device=self.device) for _ in range(config.layers)]
        self.values = [torch.zeros_like(k) for k in self.keys]

    def swap(self, a: int, b: int) -> None:
        """As in `Decoder`."""
        for cache in (*self.keys, *self.values):
            kept = cache[a].clone()
            cache[a] = cache[b]
            cache[b] = kept

    def fresh(self) -> Slots:
        """As in `Decoder`."""
        return Slots(self.network, self.device)

    def memory(self) -> int:
        """Bytes of the cache."""
        return sum(2 * k.numel() * k.element_size() for k in self.keys)

    @torch.inference_mode()
    def feed(self, tokens_BT: np.ndarray, length_B: np.ndarray, slot_B: np.ndarray, start_B: np.ndarray) -> np.ndarray:
        """As in `Decoder`."""
        length, start, slot = (torch.from_numpy(np.asarray(x, np.int64)).to(self.device) for x in (length_B, start_B, slot_B))
        tokens = torch.from_numpy(np.asarray(tokens_BT, np.int64)).to(self.device)
        scratch = self.keys[0].shape[2] - 1
        step_T = torch.arange(tokens.shape[1], device=self.device)
        real_BT = step_T < length[:, None]
        place_BT = torch.where(real_BT, start[:, None] + step_T, scratch)
        reach = int(np.max(np.asarray(start_B) + np.asarray(length_B)))
        if reach > scratch:
            raise ValueError(f"a text of {reach} tokens was fed to slots of {scratch}")
        mask_B1TL = (torch.arange(reach, device=self.device) <= place_BT[:, :, None])[:, None]
        where = _span(np.asarray(slot_B))
        x_BTD, turn = self.network.model.begin(tokens, place_BT.clamp(max=self.context - 1))
        for i, layer in enumerate(self.network.model.layers):
            attention: Attention = layer.self_attn  # type: ignore[assignment]
            q, k, v = attention.project(layer.input_layernorm(x_BTD), turn)  # type: ignore[operator]
            self.keys[i][slot[:, None], :, place_BT] = k.transpose(1, 2)
            self.values[i][slot[:, None], :, place_BT] = v.transpose(1, 2)
            seen = (self.keys[i][where][:, :, :reach], self.values[i][where][:, :, :reach]) if where is not None else (
                self.keys[i][:, :, :reach][slot], self.values[i][:, :, :reach][slot])  # fmt: skip
            x_BTD = layer.rest(x_BTD + attention.look_back(q, *seen, mask_B1TL))  # type: ignore[operator]
        last_BD = x_BTD[torch.arange(len(tokens), device=self.device), length - 1]
        logits: np.ndarray = self.network.lm_head(self.network.model.norm(last_BD)).float().cpu().numpy()
        return logits


def _span(slot_B: np.ndarray) -> slice | None:
    """Slots that stand side by side, in order, as a view: gathering others copies their keys and values once per layer and step."""
    first = int(slot_B[0])
    return slice(first, first + len(slot_B)) if np.array_equal(slot_B, np.arange(first, first + len(slot_B))) else None
