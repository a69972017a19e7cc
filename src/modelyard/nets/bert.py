"""BERT and RoBERTa encoders, from nothing or from a base in Hugging Face's layout, whose tensors keep their names.

Devlin et al. 2018 (arXiv 1810.04805); Liu et al. 2019 (RoBERTa, arXiv 1907.11692). Post-norm blocks, learned positions, exact GELU. What is
saved loads unchanged in `transformers` (`AutoModelForSequenceClassification`, `…ForTokenClassification`, `…ForMaskedLM`, `AutoModel`), because
the modules carry the same names: `embeddings`, `encoder.layer.N`, `pooler`; only the prefixes differ (`prefixes`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.errors import ArtefactError, Unsupported
from modelyard.kinds._contract import Head, Part
from modelyard.settings import Between

ACCEPTS = ("pretrained",)

TRAIN: dict[str, object] = {
    "optimiser": "adamw", "lr": 5e-4, "weight_decay": 1e-2, "batch": 32, "epochs": 10, "schedule": "one-cycle", "warmup": 0.1, "clip": 1.0,
}  # fmt: skip
TUNED: dict[str, object] = {**TRAIN, "lr": 5e-5, "epochs": 4}
"""With a base: small steps, a few passes (Devlin et al. 2018, A.3)."""

FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
"""`model_type` of config.json → whose names and positions it has."""
ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "silu": F.silu}
SEQUENCE = ("tags", "fill")
"""Kinds of output that lie along the text: the head reads every position, not one vector."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape of the net; with `base` all but `pooling` and the dropouts comes from its config.json."""

    base: str | None = None
    """Folder, run, or a hub's name (`bert-base-uncased`, `modelscope:org/name`) to start from: its weights and its tokenizer."""
    family: Literal["bert", "roberta"] = "bert"
    """Names of the tensors, and where positions begin to count."""
    pooling: Literal["auto", "pooler", "cls", "mean"] = "auto"
    """How a text becomes one vector: the first token through a layer and tanh (`pooler`), the first token as it is, or the mean of all. auto:
    pooler for labels and numbers, mean for text vectors."""
    width: Annotated[int, Between(2, 65536)] = 128
    layers: Annotated[int, Between(1, 1024)] = 2
    heads: Annotated[int, Between(1, 1024)] = 4
    """Must divide `width`."""
    feedforward: Annotated[int, Between(1, 262144)] = 512
    """Width of the hidden layer of a block."""
    positions: Annotated[int, Between(3, 2**20)] = 512
    """Longest text, in tokens."""
    types: Annotated[int, Between(1, 1024)] = 2
    """Segments (a text alone is segment 0)."""
    vocabulary: Annotated[int, Between(0, 2**24)] = 0
    """Rows of the embedding table; 0 takes the number of ids of the tokenizer."""
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    dropout: Annotated[float, Between(0, 0.95)] = 0.1
    attention_dropout: Annotated[float, Between(0, 0.95)] = 0.1
    norm_eps: Annotated[float, Between(0, 1)] = 1e-12
    pad: Annotated[int, Between(0)] = 0
    """Id of padding; RoBERTa's positions begin behind it."""
    tied: bool = True
    """Whether the decoder of a masked language model is the embedding table (Press & Wolf 2017)."""
    rest: dict[str, Any] = field(default_factory=dict)
    """Everything else in the base's config.json, kept as it came."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of the heads ({self.heads})")


THEIRS = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "feedforward": "intermediate_size",
    "positions": "max_position_embeddings", "types": "type_vocab_size", "vocabulary": "vocab_size", "activation": "hidden_act",
    "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob", "norm_eps": "layer_norm_eps", "pad": "pad_token_id",
    "tied": "tie_word_embeddings",
}  # fmt: skip
"""Our settings and the keys of config.json."""


def settled(config: Config) -> Config:
    """The config with what a base's config.json says; raises `ArtefactError` or `Unsupported` where it cannot be this net."""
    if config.base is None:
        return config
    from modelyard import settings
    from modelyard.errors import Problem
    from modelyard.nets._layout import read_settings
    from modelyard.store import hub

    folder = hub.locate(config.base)
    raw = read_settings(folder)
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise Unsupported(f"{config.base} is of the type {kind!r}; the net bert reads {', '.join(FAMILIES)}", "use")
    for key, allowed in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        if raw.get(key, allowed) not in (allowed, None):
            raise Unsupported(f"{config.base} has {key}: {raw[key]!r}; the net bert knows {allowed!r} only", "not yet")
    defaults = Config()
    found = {ours: raw[key] for ours, key in THEIRS.items() if raw.get(key) is not None}
    found |= {k: getattr(config, k) for k in ("dropout", "attention_dropout") if getattr(config, k) != getattr(defaults, k)}
    dropped = {*THEIRS.values(), "architectures", "id2label", "label2id", "problem_type", "torch_dtype", "dtype", "_name_or_path", "num_labels"}
    rest = {k: v for k, v in raw.items() if k not in dropped}
    problems: list[Problem] = []
    family = FAMILIES[str(kind)]
    made = settings.parse(Config, {**found, "base": str(folder), "family": family, "pooling": config.pooling, "rest": rest}, "config.json", problems)
    if problems:
        raise ArtefactError(f"{folder / 'config.json'} describes no net that can be built", problems)
    return made  # type: ignore[no-any-return]


def training(config: Config) -> dict[str, object]:
    """Training defaults: those of fine-tuning where there is a base."""
    return TRAIN if config.base is None else TUNED


def encoding(config: Config, given: Any) -> Any:
    """The settings of the text column's encoding: the base's tokenizer, and no text longer than there are positions."""
    offset = config.pad + 1 if config.family == "roberta" else 0
    longest = config.positions - offset
    return dataclasses.replace(given, base=config.base or given.base, max_length=min(given.max_length, longest))


def stored(config: Config) -> Config:
    """The config as a manifest keeps it: without the place where the base lay on this machine."""
    return dataclasses.replace(config, base=None)


def pooling(config: Config, heads: Sequence[Head]) -> str:
    """`sequence` for heads along the text, else how it becomes one vector."""
    along = {h.kind for h in heads} & set(SEQUENCE)
    if along and len(along) < len({h.kind for h in heads}):
        raise Unsupported(f"one net cannot answer along the text ({', '.join(sorted(along))}) and about it as a whole", "not yet")
    if along:
        return "sequence"
    if config.pooling != "auto":
        return config.pooling
    return "mean" if {h.kind for h in heads} == {"vector"} else "pooler"


class Embeddings(nn.Module):
    """Sum of word, position and segment vectors, normalised."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(config.types, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.first = config.pad + 1 if config.family == "roberta" else 0

    def forward(self, words_BLD: Tensor) -> Tensor:
        """(B, L, D) word vectors → (B, L, D)."""
        at_L = torch.arange(words_BLD.shape[1], device=words_BLD.device) + self.first
        x_BLD = words_BLD + self.position_embeddings(at_L) + self.token_type_embeddings.weight[0]
        out: Tensor = self.dropout(self.LayerNorm(x_BLD))
        return out


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads, and their attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query, self.key, self.value = (nn.Linear(config.width, config.width) for _ in range(3))

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
        """softmax(QKᵀ/√d) V over the positions that the mask allows."""
        q, k, v = (part(x_BLD).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v, mask_B11L, self.dropout if self.training else 0.0)
        return seen.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """norm(x + dropout(dense(y)))."""

    def __init__(self, config: Config, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """`y` is what a sub-layer made of `x`."""
        out: Tensor = self.LayerNorm(x + self.dropout(self.dense(y)))
        return out


class Attention(nn.Module):
    """Self-attention with its residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Residual(config, config.width)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        out: Tensor = self.output(self.self(x_BLD, mask_B11L), x_BLD)
        return out


class Intermediate(nn.Module):
    """The hidden layer of a block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense, self.activation = nn.Linear(config.width, config.feedforward), config.activation

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, feedforward)."""
        return ACTIVATIONS[self.activation](self.dense(x))


class Layer(nn.Module):
    """One block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config, config.feedforward)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        x_BLD = self.attention(x_BLD, mask_B11L)
        out: Tensor = self.output(self.intermediate(x_BLD), x_BLD)
        return out


class Stack(nn.Module):
    """The blocks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Pooler(nn.Module):
    """tanh of a layer over the first token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)

    def forward(self, first_BD: Tensor) -> Tensor:
        """(B, D) → (B, D)."""
        return torch.tanh(self.dense(first_BD))


class Encoder(nn.Module):
    """`tokens` (B, L) ids and `length` (B,) to features: (B, width), or (B, L, width) for heads along the text.

    With `places` (B, M) only those positions come out: (B, M, width), so that a vocabulary of logits is made where it is asked for.
    """

    def __init__(self, config: Config, parts: dict[str, Part], heads: Sequence[Head] = ()) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        ids = parts["tokens"].cardinality or 1
        self.vocabulary = max(config.vocabulary, ids)
        if 0 < config.vocabulary < ids:
            raise ArtefactError(f"the tokenizer has {ids} ids and the base's table {config.vocabulary} rows; they do not belong together")
        self.pooling = pooling(config, heads)
        self.embeddings = Embeddings(config, self.vocabulary)
        self.encoder = Stack(config)
        self.pooler = Pooler(config) if self.pooling == "pooler" else None
        # a masked language model's head reads the last block as it is; other heads read it through dropout
        self.dropout = nn.Dropout(0.0 if any(h.kind == "fill" for h in heads) else config.dropout)
        self.apply(self._draw)

    @staticmethod
    def _draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def ordered(self) -> list[list[nn.Module]]:
        """Modules from the text upwards, for methods that go by depth."""
        top = [[self.pooler]] if self.pooler is not None else []
        return [[self.embeddings], *([layer] for layer in self.encoder.layer), *top]  # type: ignore[list-item]

    def head(self, head: Head) -> nn.Module | None:
        """The decoder of a masked language model; None leaves other heads to the fusion."""
        return MaskedHead(self.config, self.embeddings.word_embeddings) if head.kind == "fill" else None

    def embed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`tokens` (B, L) → their word vectors (B, L, width)."""
        return {**inputs, "tokens": self.embeddings.word_embeddings(inputs["tokens"].long())}

    def from_embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features of word vectors."""
        x_BLD, length_B = inputs["tokens"], inputs["length"]
        at_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        mask_BL = at_L[None] < length_B.clamp(min=1)[:, None]
        x_BLD = self.embeddings(x_BLD)
        for layer in self.encoder.layer:
            x_BLD = layer(x_BLD, mask_BL[:, None, None])
        if "places" in inputs:
            x_BLD = x_BLD.gather(1, inputs["places"].long()[:, :, None].expand(-1, -1, x_BLD.shape[2]))
        out: Tensor = self.dropout(self._pool(x_BLD, mask_BL))
        return out

    def _pool(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        if self.pooling == "sequence":
            return x_BLD
        if self.pooling == "mean":
            share_BL = mask_BL / mask_BL.sum(1, keepdim=True)
            return torch.bmm(share_BL[:, None].to(x_BLD.dtype), x_BLD)[:, 0]
        first_BD = x_BLD[:, 0]
        if self.pooler is None:
            return first_BD
        pooled: Tensor = self.pooler(self.dropout(first_BD) if self.config.family == "roberta" else first_BD)
        return pooled

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features."""
        return self.from_embedded(self.embed(inputs))


class MaskedHead(nn.Module):
    """What stands at a position: norm(act(W h)) times the word vectors, plus a bias for each token."""

    def __init__(self, config: Config, table: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Module()
        self.transform.dense = nn.Linear(config.width, config.width)
        self.transform.LayerNorm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.activation = config.activation if config.family == "bert" else "gelu"
        self.decoder = nn.Linear(config.width, table.num_embeddings, bias=not config.tied)
        # transformers has the bias under two names; an untied decoder stores both, and what was under `decoder.bias` counts
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings)) if config.tied else self.decoder.bias
        nn.init.normal_(self.transform.dense.weight, std=0.02)
        nn.init.zeros_(self.transform.dense.bias)
        if config.tied:
            self.decoder.weight = table.weight
        else:
            nn.init.normal_(self.decoder.weight, std=0.02)
            nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) → logits (B, M, ids)."""
        hidden = self.transform.LayerNorm(ACTIVATIONS[self.activation](self.transform.dense(x)))  # type: ignore[operator]
        return F.linear(hidden, self.decoder.weight, self.bias)


# -- Hugging Face's layout ------------------------------------------------------------------------------------------------


def prefixes(config: Config, head: Head) -> list[tuple[str, str]]:
    """(our prefix, theirs) for the one output `head`; empty where `transformers` has no such model."""
    bert = config.family == "bert"
    root = "bert." if bert else "roberta."
    if head.kind == "vector":
        return [("encoder.", "")]
    if head.kind == "tags":
        return [("encoder.", root), ("head.", "classifier.")]
    if head.kind == "fill":
        top = "cls.predictions." if bert else "lm_head."
        inner = [] if bert else [("head.transform.dense.", "lm_head.dense."), ("head.transform.LayerNorm.", "lm_head.layer_norm.")]
        return [("encoder.", root), ("head.", top), *inner]
    if config.pooling not in ("auto", "pooler"):
        return []
    if bert:
        return [("encoder.", root), ("head.", "classifier.")]
    return [("encoder.", root), ("encoder.pooler.dense.", "classifier.dense."), ("head.", "classifier.out_proj.")]


def ties(config: Config, head: Head) -> dict[str, str]:
    """Parameters that are another one."""
    return {"head.decoder.weight": "encoder.embeddings.word_embeddings.weight"} if head.kind == "fill" and config.tied else {}


ARCHITECTURES = {"vector": "Model", "tags": "ForTokenClassification", "fill": "ForMaskedLM"}
PROBLEMS = {"category": "single_label_classification", "label-set": "multi_label_classification", "number": "regression"}


def settings(config: Config, head: Head, labels: Sequence[str] | None, size: int) -> dict[str, Any]:
    """config.json; `labels` are the names of the head's classes, `size` the number of ids of the tokenizer."""
    kind = str(config.rest.get("model_type", config.family))
    name = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}[kind]
    names = list(labels) if labels else [f"LABEL_{i}" for i in range(head.size)]
    body = {
        **config.rest, **{key: getattr(config, own) for own, key in THEIRS.items()}, "model_type": kind, "vocab_size": max(config.vocabulary, size),
        "architectures": [name + ARCHITECTURES.get(head.kind, "ForSequenceClassification")], "dtype": "float32",
    }  # fmt: skip
    if head.kind not in ("vector", "fill"):
        body |= {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    return body | ({"problem_type": PROBLEMS[head.kind]} if head.kind in PROBLEMS else {})


def start(encoder: Encoder, heads: dict[str, nn.Module], base: str) -> list[str]:
    """Puts the base's weights into a new encoder, and into the decoder of a masked language model; what was begun anew is told."""
    from modelyard.nets._layout import must_have, read_tensors

    folder = Path(base)
    root = f"{encoder.config.family}."
    tensors = {}
    for name, array in read_tensors(folder).items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")  # as saved by BERT's first port
        tensors[name.removeprefix(root)] = array
    notes = []
    state = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    if encoder.config.family == "roberta" and "classifier.dense.weight" in tensors:
        tensors |= {f"pooler.dense.{p}": tensors[f"classifier.dense.{p}"] for p in ("weight", "bias")}
    fresh = {k for k in state if k.startswith("pooler.") and k not in tensors}
    must_have(folder, tensors, {k: s for k, s in state.items() if k not in fresh})
    _load(encoder, {k: tensors[k] for k in state if k not in fresh})
    notes += [f"{base} has no pooler: it begins anew"] if fresh else []
    for name, head in heads.items():
        if isinstance(head, MaskedHead):
            notes += _load_masked(head, name, tensors, encoder.config)
    return notes


def _load_masked(head: MaskedHead, name: str, tensors: dict[str, np.ndarray], config: Config) -> list[str]:
    theirs = [pair for pair in prefixes(config, Head("", "fill", "logits", 0)) if pair[0].startswith("head.")]
    found = {}
    for own in head.state_dict():
        before, after = max((p for p in theirs if f"head.{own}".startswith(p[0])), key=lambda p: len(p[0]))
        key = after + f"head.{own}"[len(before) :]
        if key in tensors:
            found[own] = tensors[key]
    if not {"bias", "decoder.bias"} & found.keys():
        return [f"{name}: the base has no decoder of masked tokens: it begins anew"]
    _load(head, found)
    return []


def _load(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    missing = module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, strict=False)
    assert not missing.unexpected_keys
