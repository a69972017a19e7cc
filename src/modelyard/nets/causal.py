"""Causal language models that Hugging Face's loaders read: Qwen3, Qwen2, Llama, Mistral and GPT-2 shapes, one implementation.

Vaswani et al. 2017; GPT-2: Radford et al. 2019; Llama: Touvron et al. 2023 (RMS norm, Zhang & Sennrich 2019; SwiGLU, Shazeer 2020;
rotary positions, Su et al. 2021, in the half-split order of `transformers`; grouped queries, Ainslie et al. 2023); Qwen3 adds a norm
on each head's queries and keys. `_huggingface.py` maps names and settings; what is saved is Hugging Face's own layout.

A training example is the tokens of the input followed by the ids of the output; only counted positions pass through the vocabulary,
and never all of them at once (`_vocabulary.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modelyard.errors import ArtefactError
from modelyard.kinds._contract import Head, Part
from modelyard.nets._dropout import dropout
from modelyard.nets._kernels import attention, root_norm, rotate, rounded
from modelyard.nets._slots import Slots
from modelyard.nets._vocabulary import token_nll
from modelyard.settings import Between

ACCEPTS = ("language",)
TRAIN: dict[str, object] = {
    "epochs": 3, "batch": 16, "lr": 1e-3, "optimiser": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.05, "clip": 1.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net; with `base` its config.json decides and the rest is ignored."""

    architecture: Literal["qwen3", "qwen2", "llama", "mistral", "gpt2"] = "qwen3"
    """Whose layers: decides norms, positions and names."""
    width: Annotated[int, Between(8)] = 256
    """Of the residual stream."""
    layers: Annotated[int, Between(1)] = 4
    heads: Annotated[int, Between(1)] = 4
    """Query heads of a layer."""
    kv_heads: Annotated[int, Between(1)] | None = None
    """Key and value heads, a divisor of `heads`; all of them where it is left out."""
    head_width: Annotated[int, Between(2)] | None = None
    """Even; width / heads where it is left out."""
    feedforward: Annotated[int, Between(8)] | None = None
    """Hidden width of a layer; 4 x width for GPT-2, 8/3 x width rounded up to 32 for the gated ones."""
    context: Annotated[int, Between(8)] = 512
    """Tokens it may look back on, its own answer included."""
    rope_theta: Annotated[float, Between(1)] = 10_000.0
    eps: Annotated[float, Between(0, 1)] = 1e-5
    """Added to variances."""
    tied: bool = True
    """Whether the last matrix is the table of embeddings."""
    dropout: Annotated[float, Between(0, 0.9)] = 0.0
    checkpointing: bool = False
    """Activations are computed again in the backward pass: a third more time, memory of one layer."""
    base: str | None = None
    """A folder in Hugging Face layout, or a hub name: its shape, weights and tokenizer are the start."""
    length: Annotated[int, Between(8)] | None = None
    """Tokens of a row in training; the context, and 1,024 at most, where it is left out."""
    tokenizer: Literal["bytes", "unigram", "characters"] = "bytes"
    """How texts become tokens where there is no base: byte-level BPE, a unigram model, or one id for each character."""
    vocabulary: Annotated[int, Between(16)] = 8_000
    """Ids of a tokenizer that is trained here, at most."""
    template: str | None = None
    """Chat template in place of the base's (of ChatML where there is none)."""

    @property
    def row(self) -> int:
        """Tokens of a row in training."""
        return min(self.length or 1024, self.context)

    @property
    def keys(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def each(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward part."""
        if self.feedforward:
            return self.feedforward
        return 4 * self.width if self.architecture == "gpt2" else -(-8 * self.width // 3 // 32) * 32

    def __post_init__(self) -> None:
        if self.heads % self.keys:
            raise ValueError(f"kv_heads {self.keys} must divide heads {self.heads}")
        if self.each % 2 or (self.head_width is None and self.width % self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}, or name head_width")


FILLS_BUDGET = True
"""With a time budget and no number of epochs, training goes on as long as the budget lasts."""


def settled(config: Config) -> Config:
    """The config with the shape of its base, found or fetched. Raises `ArtefactError` where there is none."""
    if config.base is None:
        return config
    from modelyard.nets._huggingface import from_settings, read_settings
    from modelyard.store import hub

    folder = hub.locate(config.base)
    kept = {k: getattr(config, k) for k in ("dropout", "checkpointing", "length", "template", "tokenizer", "vocabulary")}
    return from_settings(read_settings(folder), str(folder), **kept)


def encoding(config: Config, column: Any) -> Any:
    """How the net's column is read: by the base's tokenizer, or one of the kind that the config names."""
    plain = column == type(column)()
    asked = {"model": config.tokenizer, "vocabulary": config.vocabulary} if plain else {}
    return replace(column, **asked, base=config.base or column.base, template=config.template or column.template)


def stored(config: Config) -> Config:
    """What a manifest keeps: not where the base lay."""
    return replace(config, base=None)


def training(config: Config) -> dict[str, object]:
    """Training settings that suit it: a base is moved less."""
    return {**TRAIN, "lr": 5e-5, "weight_decay": 0.0} if config.base else dict(TRAIN)


class Attention(nn.Module):
    """Causal attention with grouped queries; over a whole sequence, or over a cache of earlier keys and values."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.keys, self.each, self.dropout = config.heads, config.keys, config.each, config.dropout
        bias, out_bias = config.architecture in ("qwen2", "gpt2"), config.architecture == "gpt2"
        self.q_proj = nn.Linear(config.width, self.heads * self.each, bias=bias)
        self.k_proj = nn.Linear(config.width, self.keys * self.each, bias=bias)
        self.v_proj = nn.Linear(config.width, self.keys * self.each, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.each, config.width, bias=out_bias)
        normed = config.architecture == "qwen3"
        self.q_norm = RootNorm(self.each, eps=config.eps) if normed else nn.Identity()
        self.k_norm = RootNorm(self.each, eps=config.eps) if normed else nn.Identity()

    def project(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, L, E), k and v (B, K, L, E), turned by their positions."""
        q = self.q_norm(self.q_proj(x_BLD).unflatten(-1, (self.heads, self.each))).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BLD).unflatten(-1, (self.keys, self.each))).transpose(1, 2)
        v = self.v_proj(x_BLD).unflatten(-1, (self.keys, self.each)).transpose(1, 2)
        return (q, k, v) if turn is None else (rotate(q, *turn), rotate(k, *turn), v)

    def forward(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """(B, L, D) → (B, L, D); without `mask` every position sees all earlier ones and itself."""
        q, k, v = self.project(x_BLD, turn)
        if self.keys != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.keys, 1) for t in (k, v))
        seen = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.o_proj(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def look_back(self, q_BHTE: Tensor, k_BKLE: Tensor, v_BKLE: Tensor, mask_B1TL: Tensor) -> Tensor:
        """(B, T, D) of new queries over cached keys: a group's queries stand one after the other, so that no key is copied."""
        group, steps = self.heads // self.keys, q_BHTE.shape[2]
        q = q_BHTE.unflatten(1, (self.keys, group)).flatten(2, 3)
        mask = mask_B1TL if group == 1 else mask_B1TL.repeat(1, 1, group, 1)
        seen = F.scaled_dot_product_attention(q, k_BKLE, v_BKLE, mask)
        seen = seen.unflatten(2, (group, steps)).flatten(1, 2)
        return self.o_proj(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Plain(nn.Module):
    """GPT-2's feed-forward part: down(gelu(up(x))), GELU by its tanh formula."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.width, config.hidden)
        self.down_proj = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.input_layernorm, self.post_attention_layernorm = norm(config), norm(config)
        self.self_attn = Attention(config)
        self.mlp = Plain(config) if config.architecture == "gpt2" else Gated(config)

    def forward(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        x_BLD = x_BLD + self._drop(self.self_attn(rounded(self.input_layernorm(x_BLD)), turn, mask))
        return self.rest(x_BLD)

    def rest(self, x_BLD: Tensor) -> Tensor:
        """The feed-forward half."""
        return x_BLD + self._drop(self.mlp(rounded(self.post_attention_layernorm(x_BLD))))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Decoder(nn.Module):
    """Embeddings, layers and the last norm: tokens to hidden states."""

    frequency: Tensor

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(vocabulary, config.width)
        self.embed_positions = nn.Embedding(config.context, config.width) if config.architecture == "gpt2" else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = norm(config)
        half = torch.arange(config.each // 2, dtype=torch.float32)
        self.register_buffer("frequency", config.rope_theta ** (-half * 2 / config.each), persistent=False)

    def begin(self, tokens_BL: Tensor, place_BL: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """(embedded tokens, cos and sin of their places): GPT-2 adds a vector to a token for its place instead of turning heads."""
        x_BLD = self.embed_tokens(tokens_BL)
        if self.embed_positions is not None:
            return dropout(x_BLD + self.embed_positions(place_BL), self.config.dropout, self.training), None
        angle = place_BL[:, None, :, None].float() * self.frequency
        return dropout(x_BLD, self.config.dropout, self.training), (angle.cos(), angle.sin())

    def forward(self, tokens_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D). `segments_BL` numbers texts packed one after the other in a row: none sees another, and the
        places of each count from 0."""
        length = tokens_BL.shape[1]
        place = torch.arange(length, device=tokens_BL.device)
        mask = None
        if segments_BL is None:
            place_BL = place[None]
        else:
            same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
            mask = (same_BLL & (place[:, None] >= place[None, :]))[:, None]
            first_BL = torch.where(F.pad(segments_BL[:, 1:] != segments_BL[:, :-1], (1, 0), value=True), place, 0)
            place_BL = place - first_BL.cummax(1).values
        x_BLD, turn = self.begin(tokens_BL, place_BL)
        for layer in self.layers:
            if self.config.checkpointing and self.training:
                x_BLD = checkpoint(layer, x_BLD, turn, mask, use_reentrant=False)  # type: ignore[assignment]
            else:
                x_BLD = layer(x_BLD, turn, mask)
        return self.norm(x_BLD)  # type: ignore[no-any-return]


class Network(nn.Module):
    """`<column>.tokens` and `<output>.ids` to Σ -log p and its number of tokens for each example; `decoder` writes.

    The counted tokens are those of the output, and those of the input where `<column>.mask` is 1 (earlier answers of a conversation).
    """

    sees_targets = True

    def __init__(self, config: Config, parts: Mapping[str, Part], heads: Sequence[Head], column: str) -> None:
        super().__init__()
        self.config, self.column, self.output, self.key = config, column, heads[0].output, heads[0].key
        self.ends = heads[0].ends or (2,)
        self.bfloat16_on_cpu = config.width >= NATIVE
        self.model = Decoder(config, heads[0].size)
        self.lm_head = nn.Linear(config.width, heads[0].size, bias=False)
        deep = (2 * config.layers) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # GPT-2 draws what is added to the residual stream smaller, by the root of how often that happens
                nn.init.normal_(module.weight, std=0.02 * (deep if name.endswith(("o_proj", "down_proj")) else 1.0))
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`{output.part: (B, 2)}`: Σ -log p of the counted tokens of each example, and how many they are."""
        tokens_BL, counted_BL, segments_BL = joined(inputs, self.column, self.output)
        return {self.key: self.sums(tokens_BL, counted_BL, segments_BL)}

    def sums(self, tokens_BL: Tensor, counted_BL: Tensor | None, segments_BL: Tensor | None = None) -> Tensor:
        """(B, 2): Σ -log p of the counted tokens (None: all) given those before them, and their number."""
        if counted_BL is None:
            hidden_BLD = self.model(tokens_BL[:, :-1], None if segments_BL is None else segments_BL[:, :-1])
            nll_BL = token_nll(hidden_BLD.flatten(0, 1), self.lm_head.weight, tokens_BL[:, 1:].flatten()).view(hidden_BLD.shape[:2])
            total_B = nll_BL.sum(1)
            return torch.stack([total_B, torch.full_like(total_B, nll_BL.shape[1])], 1)
        nll_N, row_N = self.each(tokens_BL, counted_BL, segments_BL=segments_BL)
        total_B = torch.zeros(len(tokens_BL), device=nll_N.device, dtype=nll_N.dtype).index_add(0, row_N, nll_N)
        return torch.stack([total_B, counted_BL[:, 1:].sum(1).to(total_B.dtype)], 1)

    def each(
        self, tokens_BL: Tensor, counted_BL: Tensor, temperature: float = 1.0, segments_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(-log p (N,) of each counted token given those before it, its row (N,)), row by row; logits are divided by `temperature`."""
        hidden_BLD = self.model(tokens_BL[:, :-1], None if segments_BL is None else segments_BL[:, :-1])
        counted_BL = counted_BL[:, 1:]
        hidden_ND = hidden_BLD[counted_BL] if temperature == 1 else hidden_BLD[counted_BL] / temperature
        nll_N = token_nll(hidden_ND, self.lm_head.weight, tokens_BL[:, 1:][counted_BL])
        return nll_N, torch.arange(len(tokens_BL), device=tokens_BL.device)[:, None].expand_as(counted_BL)[counted_BL]

    def logits(self, tokens_BL: Tensor) -> Tensor:
        """(B, L, V): for parity checks and small inputs."""
        return self.lm_head(self.model(tokens_BL))  # type: ignore[no-any-return]

    def decoder(self, device: str = "cpu") -> Slots:
        """What writes, with these weights."""
        return Slots(self, device)

    def graphs(self) -> dict[str, nn.Module]:
        """`score`: how likely given texts are."""
        return {"score": Score(self)}

    def begin(self, base: str) -> list[str]:
        """Takes the weights of a base. Raises `ArtefactError` naming what does not fit."""
        from modelyard.nets._huggingface import read_weights

        weights = read_weights(Path(base))
        try:
            self.restore(weights)
        except RuntimeError as error:
            raise ArtefactError(f"the weights in {base} do not fit its config.json: {' '.join(str(error).split())[:400]}") from None
        return [f"begins with {len(weights)} tensors of {Path(base).name}"]

    def files(self, states: Mapping[str, Any]) -> dict[str, str]:
        """What lies beside the weights in Hugging Face's layout, by name; `states` are those of the columns' encodings."""
        from modelyard.nets._huggingface import texts_beside

        return texts_beside(self.config, self.lm_head.out_features, states[self.output])

    def stored(self) -> dict[str, Tensor]:
        """Weights by Hugging Face's names."""
        from modelyard.nets._huggingface import to_huggingface

        return to_huggingface(self.state_dict(), self.config)

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Takes weights by Hugging Face's names; raises `RuntimeError` naming what lacks or is too much."""
        from modelyard.nets._huggingface import from_huggingface

        self.load_state_dict(from_huggingface(weights, self.config), strict=True)


class Score(nn.Module):
    """`tokens` (B, L) to `nll` and `hit` (B, L - 1): -log p of each token given those before it, and whether it was the likeliest."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the class says; logits exist for `SCORED` numbers at a time."""
        tokens_BL, weight = inputs["tokens"].long(), self.network.lm_head.weight
        hidden_ND, ids_N = self.network.model(tokens_BL[:, :-1]).flatten(0, 1), tokens_BL[:, 1:].flatten()
        rows = max(1, SCORED // weight.shape[0])
        nll, hit = [], []
        for h, i in zip(hidden_ND.split(rows), ids_N.split(rows), strict=True):
            logits_NV = F.linear(h, weight).float()
            nll.append(F.cross_entropy(logits_NV, i, reduction="none"))
            hit.append(logits_NV.argmax(1) == i)
        shape = (len(tokens_BL), tokens_BL.shape[1] - 1)
        return {"nll": torch.cat(nll).view(shape), "hit": torch.cat(hit).view(shape)}


NATIVE = 128
"""Width from which on a CPU that multiplies in bfloat16 is faster in it: 1.7 times at 192 x 4 layers, not at all at 64."""
SCORED = 2**24
"""Logits of one piece of a scored batch: 64 MiB in float32."""


def joined(inputs: Mapping[str, Tensor], column: str, output: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(tokens_BL, counted_BL, segments_BL) of input and output one after the other, without a gap, padded at the back with 0.

    Rows that were joined before (`verbs/train/texts.py`) bring `<output>.mask`, what counts, and `<output>.segments` where several texts
    were packed into one; blocks of a corpus bring neither, nor a length: all of them counts (None).
    """
    ids_BT, ids_B = inputs[f"{output}.ids"].long(), inputs.get(f"{output}.length")
    segments_BT, mask_BT = inputs.get(f"{output}.segments"), inputs.get(f"{output}.mask")
    if mask_BT is not None or ids_B is None:
        return ids_BT, None if mask_BT is None else mask_BT > 0, segments_BT
    prompt_BL, prompt_B = inputs.get(f"{column}.tokens"), inputs.get(f"{column}.length")
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    if prompt_BL is None or prompt_B is None or segments_BT is not None or int(prompt_B.max()) == 0:
        counted_BT = place_T < ids_B[:, None]
        return ids_BT, counted_BT, segments_BT
    width = int((prompt_B + ids_B).max())
    tokens_BL, counted_BL = ids_BT.new_zeros(len(ids_BT), width), torch.zeros(len(ids_BT), width, dtype=torch.bool, device=ids_BT.device)
    place_L = torch.arange(prompt_BL.shape[1], device=ids_BT.device)
    here_BL, there_BT = place_L < prompt_B[:, None], place_T < ids_B[:, None]
    rows = torch.arange(len(ids_BT), device=ids_BT.device)[:, None]
    tokens_BL[rows.expand_as(here_BL)[here_BL], place_L.expand_as(here_BL)[here_BL]] = prompt_BL[here_BL].long()
    if (mask_BL := inputs.get(f"{column}.mask")) is not None:
        counted_BL[rows.expand_as(here_BL)[here_BL], place_L.expand_as(here_BL)[here_BL]] = mask_BL[here_BL] > 0
    at_BT = (place_T + prompt_B[:, None])[there_BT]
    tokens_BL[rows.expand_as(there_BT)[there_BT], at_BT] = ids_BT[there_BT]
    counted_BL[rows.expand_as(there_BT)[there_BT], at_BT] = True
    return tokens_BL, counted_BL, None


class RootNorm(nn.RMSNorm):
    """The root-mean-square norm in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return root_norm(x, self.weight, float(self.eps or 0.0))


def norm(config: Config) -> nn.Module:
    """Layer norm for GPT-2, else the root-mean-square norm."""
    return nn.LayerNorm(config.width, eps=config.eps) if config.architecture == "gpt2" else RootNorm(config.width, eps=config.eps)
