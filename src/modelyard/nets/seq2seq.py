"""Encoder-decoder Transformer: reads one text and writes another (translation, summaries, answers).

Vaswani et al. 2017, Attention Is All You Need; norms before the layers (Xiong et al. 2020), rotary positions (Su et al. 2021) or the
sinusoids of the first paper, one table for both sides and the last product where the vocabulary is shared (Press & Wolf 2017).

Two graphs write: `read` encodes the source and says what comes first; `step` takes one token and the keys and values of those before
it, which go in and come out. Only real target tokens pass through the vocabulary, block by block (`_vocabulary.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.kinds._contract import Head, Part
from modelyard.nets._dropout import dropout
from modelyard.nets._vocabulary import smoothed_nll
from modelyard.nets.transformer import rotate
from modelyard.settings import Between

ACCEPTS = ("tokens",)
TRAIN: dict[str, object] = {
    "epochs": 40, "batch_tokens": 4096, "lr": 2e-3, "optimiser": "adamw", "weight_decay": 1e-2, "schedule": "cosine", "warmup": 0.1,
    "clip": 1.0, "label_smoothing": 0.1, "ema": 0.999,
}  # fmt: skip

START, END = 0, 2
"""Before the first token of a text, and after its last: ids of `kinds/text/_tokens.py`."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net."""

    width: Annotated[int, Between(8)] = 256
    layers: Annotated[int, Between(1)] = 3
    """Of the encoder."""
    decoder_layers: Annotated[int, Between(1)] | None = None
    """As many as `layers` where it is left out."""
    heads: Annotated[int, Between(1)] = 4
    """Must divide `width` into even sizes."""
    feedforward: Annotated[int, Between(8)] | None = None
    """Hidden width of a layer; 4 x width where it is left out."""
    dropout: Annotated[float, Between(0, 0.9)] = 0.1
    """Of embeddings, hidden layers and what each layer adds."""
    positions: Literal["rope", "sinusoidal"] = "rope"
    """rope turns queries and keys by their places; sinusoidal adds them to the tokens."""
    tied: bool = True
    """The last matrix is the table of the target's embeddings, and that of the source's too where both share a vocabulary."""

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward part."""
        return self.feedforward or 4 * self.width

    @property
    def written(self) -> int:
        """Layers of the decoder."""
        return self.decoder_layers or self.layers

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the heads ({2 * self.heads})")


def recipe(parts: Mapping[str, Part], rows: int) -> tuple[Config, dict[str, object]]:
    """Net and training for so many pairs of texts: few of them are learnt best by narrow nets (Wu et al. 2021, arXiv 2105.14462, table 2:
    on 29,000 pairs a net of width 128 was better by 1 BLEU than one of width 512)."""
    if rows < 3_000:
        return Config(width=64, layers=2, feedforward=256), {**TRAIN, "batch_tokens": 512, "epochs": 30, "lr": 4e-3, "ema": 0.98}
    if rows < 100_000:
        return Config(width=128, layers=4, feedforward=256), {**TRAIN, "lr": 4e-3}
    return Config(), dict(TRAIN)


Turn = tuple[Tensor, Tensor] | None
"""cos and sin of places, `(L, E / 2)`; None with sinusoids."""


class Feedforward(nn.Module):
    """x + down(relu(up(norm(x))))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.norm = nn.LayerNorm(config.width)
        self.up, self.down = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        hidden = dropout(F.relu(self.up(self.norm(x_BLD))), self.dropout, self.training)
        return x_BLD + dropout(self.down(hidden), self.dropout, self.training)


class SelfAttention(nn.Module):
    """x + out(attention of norm(x) over itself); queries, keys and values by one product."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(config.width)
        self.qkv, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)

    def forward(self, x_BLD: Tensor, turn: Turn, mask_B11L: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, L, D) → (B, L, D); the mask is True where a key may be looked at, `causal` lets a token see earlier ones."""
        q, k, v = self.qkv(self.norm(x_BLD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        return self.add(x_BLD, F.scaled_dot_product_attention(q, k, v, mask_B11L, is_causal=causal))

    def add(self, x_BLD: Tensor, seen_BHLE: Tensor) -> Tensor:
        """What attention saw, added."""
        return x_BLD + dropout(self.out(seen_BHLE.transpose(1, 2).flatten(2)), self.dropout, self.training)

    def project(self, x_B1D: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """(q (B, H, 1, E), keys and values (B, 1, 2·D) as they are remembered) of one token."""
        q, k, v = self.qkv(self.norm(x_B1D)).unflatten(2, (3, self.heads, -1)).unbind(2)
        if turn is not None:
            q, k = (rotate(t.transpose(1, 2), *turn).transpose(1, 2) for t in (q, k))
        return q.transpose(1, 2), torch.cat([k, v], 2).flatten(2)


class CrossAttention(nn.Module):
    """x + out(attention of norm(x) over what was read)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(config.width)
        self.q, self.kv = nn.Linear(config.width, config.width), nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, memory_BSF: Tensor, mask_B11S: Tensor | None) -> Tensor:
        """(B, T, D) → (B, T, D); `memory_BSF` are the keys and values (B, S, 2·D) that `kv` made of what was read."""
        q = self.q(self.norm(x_BTD)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = remembered(memory_BSF, self.heads)
        seen = F.scaled_dot_product_attention(q, k, v, mask_B11S)
        return x_BTD + dropout(self.out(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention, self.feedforward = SelfAttention(config), Feedforward(config)

    def forward(self, x_BSD: Tensor, turn: Turn, mask_B11S: Tensor | None) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        return self.feedforward(self.attention(x_BSD, turn, mask_B11S))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention over what was written, over what was read, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention, self.reading, self.feedforward = SelfAttention(config), CrossAttention(config), Feedforward(config)

    def forward(self, x_BTD: Tensor, turn: Turn, memory_BSF: Tensor, mask_B11S: Tensor | None) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        # padding lies behind the real tokens, which look back only: no mask but the causal one
        x_BTD = self.attention(x_BTD, turn, causal=True)
        return self.feedforward(self.reading(x_BTD, memory_BSF, mask_B11S))  # type: ignore[no-any-return]

    def step(self, x_B1D: Tensor, turn: Turn, past_BTF: Tensor | None, memory_BSF: Tensor, mask_B11S: Tensor) -> tuple[Tensor, Tensor]:
        """(x (B, 1, D), keys and values (B, T + 1, 2·D)) of one more token."""
        q, new_B1F = self.attention.project(x_B1D, turn)
        past = new_B1F if past_BTF is None else torch.cat([past_BTF, new_B1F], 1)
        x_B1D = self.attention.add(x_B1D, F.scaled_dot_product_attention(q, *remembered(past, self.attention.heads)))
        return self.feedforward(self.reading(x_B1D, memory_BSF, mask_B11S)), past


class Network(nn.Module):
    """`<column>.tokens` and `<output>.ids` to Σ -log p, the number of tokens and Σ of the mean -log p: `losses/token_nll.py`."""

    sees_targets = True
    frequency: Tensor

    def __init__(self, config: Config, parts: Mapping[str, Part], heads: Sequence[Head], column: str) -> None:
        super().__init__()
        self.config, self.column, self.output, self.key = config, column, heads[0].output, heads[0].key
        read, width = parts["tokens"], config.width
        self.target = table(heads[0].size, width)
        self.own_source = None if config.tied and read.shared else table(read.cardinality or 1, width)
        self.reader = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.writer = nn.ModuleList(DecoderLayer(config) for _ in range(config.written))
        self.read_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.own_last = None if config.tied else table(heads[0].size, width)
        turned = width // config.heads if config.positions == "rope" else width
        half = turned // 2
        self.register_buffer("frequency", 10_000.0 ** (-torch.arange(half) / half), persistent=False)
        self._draw()

    def _draw(self) -> None:
        deep = (2 * (self.config.layers + self.config.written)) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=deep if name.endswith((".out", ".down")) else 1.0)
                nn.init.zeros_(module.bias)

    @property
    def source(self) -> nn.Embedding:
        """Embeddings of what is read."""
        return self.target if self.own_source is None else self.own_source

    @property
    def last(self) -> nn.Embedding:
        """The last matrix (V, D)."""
        return self.target if self.own_last is None else self.own_last

    # -- training -------------------------------------------------------------------------------------------------------

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`{output.tokens: (B, 3)}`."""
        length_B, ids_BT, ids_B = inputs[f"{self.column}.length"], inputs[f"{self.output}.ids"], inputs[f"{self.output}.length"]
        memory, mask = self.encode(inputs[f"{self.column}.tokens"], length_B)
        before_BT = F.pad(ids_BT[:, :-1], (1, 0), value=START)
        hidden_BTD = self.decode(before_BT, memory, mask)
        real_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device) < ids_B[:, None]
        nll_N, mean_N = smoothed_nll(hidden_BTD[real_BT], self.last.weight, ids_BT[real_BT])
        row_N = torch.repeat_interleave(torch.arange(len(ids_B), device=ids_B.device), ids_B)
        sums = nll_N.new_zeros(len(ids_B), 3).index_add(0, row_N, torch.stack([nll_N, torch.ones_like(nll_N), mean_N], 1))
        return {self.key: sums}

    def encode(self, tokens_BS: Tensor, length_B: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """(keys and values (B, S, 2·D) for each layer of the decoder, mask (B, 1, 1, S) or None where nothing is padded)."""
        x_BSD, turn = self._begin(self.source, tokens_BS, 0)
        mask = None
        # no look at the numbers where a graph is traced: it has to hold for other batches
        if not self.training or int(length_B.min()) < tokens_BS.shape[1]:
            # of an empty text the first place is looked at, or softmax would divide by zero
            mask = (torch.arange(tokens_BS.shape[1], device=x_BSD.device) < length_B.clamp(min=1)[:, None])[:, None, None]
        for layer in self.reader:
            x_BSD = layer(x_BSD, turn, mask)
        read_BSD = self.read_norm(x_BSD)
        return [layer.reading.kv(read_BSD) for layer in self.writer], mask  # type: ignore[operator, union-attr]

    def decode(self, tokens_BT: Tensor, memory: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """Hidden states (B, T, D) of what was written."""
        x_BTD, turn = self._begin(self.target, tokens_BT, 0)
        for layer, own in zip(self.writer, memory, strict=True):
            x_BTD = layer(x_BTD, turn, own, mask)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, T, V) of each target token: for checks and small inputs."""
        memory, mask = self.encode(inputs[f"{self.column}.tokens"], inputs[f"{self.column}.length"])
        before_BT = F.pad(inputs[f"{self.output}.ids"][:, :-1], (1, 0), value=START)
        return F.linear(self.decode(before_BT, memory, mask), self.last.weight)

    def _begin(self, table_VD: nn.Embedding, tokens_BL: Tensor, first: int) -> tuple[Tensor, Turn]:
        """(embedded tokens, turn of their places from `first` on)."""
        x_BLD = table_VD(tokens_BL) * self.config.width**0.5
        place = torch.arange(first, first + tokens_BL.shape[1], device=tokens_BL.device)
        angle = place[:, None].to(x_BLD.dtype) * self.frequency
        cos, sin = angle.cos(), angle.sin()
        if self.config.positions == "rope":
            return dropout(x_BLD, self.config.dropout, self.training), (cos, sin)
        return dropout(x_BLD + torch.cat([sin, cos], 1), self.config.dropout, self.training), None

    # -- writing --------------------------------------------------------------------------------------------------------

    def graphs(self) -> dict[str, nn.Module]:
        """`read` and `step`, as `runtime/programs/generate.py` calls them."""
        return {"read": Read(self), "step": Step(self)}

    def next(self, token_B: Tensor, past_BTF: Tensor | None, memory_BSF: Tensor, mask_B11S: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (B, V), keys and values (B, T + 1, layers·2·D)) after one more token."""
        x_B1D, turn = self._begin(self.target, token_B[:, None], 0 if past_BTF is None else past_BTF.shape[1])
        each = 2 * self.config.width
        kept = []
        for i, layer in enumerate(self.writer):
            own = slice(i * each, (i + 1) * each)
            past = None if past_BTF is None else past_BTF[:, :, own]
            x_B1D, past = layer.step(x_B1D, turn, past, memory_BSF[:, :, own], mask_B11S)  # type: ignore[operator]
            kept.append(past)
        return F.linear(self.norm(x_B1D)[:, 0], self.last.weight), torch.cat(kept, 2)


class Read(nn.Module):
    """`<column>.tokens`, `<column>.length` → logits of the first token, `past`, and what does not change: `memory`, `reach`, `end`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See the class."""
        network = self.network
        length_B = inputs[f"{network.column}.length"]
        memory, mask = network.encode(inputs[f"{network.column}.tokens"], length_B)
        assert mask is not None
        memory_BSF = torch.cat(memory, 2)
        logits_BV, past = network.next(torch.full_like(length_B, START), None, memory_BSF, mask)
        reach_B = length_B.clamp(min=1)
        return {f"{network.output}.logits": logits_BV, "past": past, "memory": memory_BSF, "reach": reach_B, "end": torch.full_like(length_B, END)}


class Step(nn.Module):
    """`token` (B,) and what `read` gave → logits of the next one and `past`, one token longer."""

    ragged = frozenset({"past", "memory"})
    """Inputs whose second axis varies."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See the class."""
        memory = inputs["memory"]
        mask = (torch.arange(memory.shape[1], device=memory.device) < inputs["reach"][:, None])[:, None, None]
        logits_BV, past = self.network.next(inputs["token"], inputs["past"], memory, mask)
        return {f"{self.network.output}.logits": logits_BV, "past": past}


def table(size: int, width: int) -> nn.Embedding:
    """Embeddings of variance 1/width: times √width they have variance 1, and products with a normed state have too."""
    made = nn.Embedding(size, width)
    nn.init.normal_(made.weight, std=width**-0.5)
    return made


def remembered(kept_BLF: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values (B, H, L, E) of (B, L, 2·D)."""
    k, v = kept_BLF.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return k, v
