"""Names and settings of `transformers` for the causal language models: what is saved loads there unchanged, and the other way round."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modelyard.errors import ArtefactError, Unsupported
from modelyard.kinds.text import _language
from modelyard.store import hub
from modelyard.store.state import read_arrays

if TYPE_CHECKING:
    from modelyard.nets.causal import Config

CLASSES = {
    "qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}  # fmt: skip
"""By `model_type`."""

GPT2 = {
    "model.embed_tokens.": "transformer.wte.", "model.embed_positions.": "transformer.wpe.", "model.norm.": "transformer.ln_f.",
    "model.layers.": "transformer.h.", ".input_layernorm.": ".ln_1.", ".post_attention_layernorm.": ".ln_2.",
    ".self_attn.o_proj.": ".attn.c_proj.", ".mlp.up_proj.": ".mlp.c_fc.", ".mlp.down_proj.": ".mlp.c_proj.",
}  # fmt: skip
"""Ours to GPT-2's; queries, keys and values are one matrix there, and all its matrices lie transposed."""


def to_huggingface(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Our state dict by `transformers`' names; a tied last matrix is not stored twice."""
    own = {k: v for k, v in state.items() if not (config.tied and k == "lm_head.weight")}
    if config.architecture != "gpt2":
        return own
    found: dict[str, Tensor] = {}
    for name, value in own.items():
        for ours, theirs in GPT2.items():
            name = name.replace(ours, theirs)
        found[name] = value.T.contiguous() if value.ndim == 2 and (".attn." in name or ".mlp." in name) else value
    for i in range(config.layers):
        for kind in ("weight", "bias"):
            parts = [own[f"model.layers.{i}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            for x in "qkv":
                del found[f"transformer.h.{i}.self_attn.{x}_proj.{kind}"]
            found[f"transformer.h.{i}.attn.c_attn.{kind}"] = torch.cat(parts).T.contiguous() if kind == "weight" else torch.cat(parts)
    return found


def from_huggingface(weights: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """`transformers`' weights by our names; the buffers that old GPT-2 files hold (`attn.bias`) are left out."""
    if config.architecture == "gpt2":
        weights = _from_gpt2(weights)
    found = {k: v for k, v in weights.items() if not k.endswith("rotary_emb.inv_freq")}
    if config.tied:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def _from_gpt2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"  # the oldest files have no prefix
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        for ours, theirs in GPT2.items():
            name = name.replace(theirs, ours)
        matrix = value.ndim == 2 and (".self_attn." in name or ".mlp." in name or ".c_attn." in name)
        value = value.T.contiguous() if matrix else value
        if ".attn.c_attn." in name:
            for x, part in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(".attn.c_attn.", f".self_attn.{x}_proj.")] = part.contiguous()
        else:
            found[name] = value
    return found


def to_settings(config: Config, vocabulary: int, ids: Mapping[str, int | None]) -> dict[str, Any]:
    """The content of `config.json`; `ids` are `bos_token_id`, `eos_token_id`, `pad_token_id`."""
    shared = {
        "architectures": [CLASSES[config.architecture]], "model_type": config.architecture, "vocab_size": vocabulary,
        "tie_word_embeddings": config.tied, "torch_dtype": "float32", **ids,
    }  # fmt: skip
    if config.architecture == "gpt2":
        return shared | {
            "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads, "n_inner": config.hidden, "n_positions": config.context,
            "layer_norm_epsilon": config.eps, "activation_function": "gelu_new", "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout, "attn_pdrop": config.dropout,
        }  # fmt: skip
    return shared | {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.keys, "head_dim": config.each, "intermediate_size": config.hidden,
        "max_position_embeddings": config.context, "rms_norm_eps": config.eps, "hidden_act": "silu",
        "rope_theta": config.rope_theta, "attention_bias": False, "sliding_window": None, "use_sliding_window": False,
    }  # fmt: skip


def from_settings(found: Mapping[str, Any], base: str | None = None, **changes: Any) -> Config:
    """The shape that a `config.json` describes; what this implementation does not compute is refused by name."""
    from modelyard.nets.causal import Config

    kind = str(found.get("model_type"))
    if kind not in CLASSES:
        raise Unsupported(f"the base is a {kind!r} model; expected one of {', '.join(CLASSES)}", "use")
    if kind == "gpt2":
        _plain(found, {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_by_inverse_layer_idx": (False, None)})
        shape: dict[str, Any] = {
            "width": found["n_embd"], "layers": found["n_layer"], "heads": found["n_head"], "feedforward": found.get("n_inner"),
            "context": found["n_positions"], "eps": found.get("layer_norm_epsilon", 1e-5), "tied": found.get("tie_word_embeddings", True),
        }  # fmt: skip
        return _checked(Config(architecture="gpt2", **shape, base=base), changes)
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    _plain(found, {"hidden_act": ("silu", "swish"), "use_sliding_window": (False, None), "attention_bias": (kind == "qwen2", False, None),
                   "mlp_bias": (False, None)})  # fmt: skip
    _plain(rope, {"rope_type": ("default", None), "type": ("default", None)})
    if kind == "mistral" and found.get("sliding_window") is not None:
        raise Unsupported("the base attends in a sliding window, which is not computed here; set sliding_window to null to use it whole", "use")
    heads = found["num_attention_heads"]
    shape = {
        "width": found["hidden_size"], "layers": found["num_hidden_layers"], "heads": heads,
        "kv_heads": found.get("num_key_value_heads") or heads, "head_width": found.get("head_dim") or found["hidden_size"] // heads,
        "feedforward": found["intermediate_size"], "context": found["max_position_embeddings"], "eps": found.get("rms_norm_eps", 1e-6),
        "rope_theta": float(found.get("rope_theta") or rope.get("rope_theta") or 10_000.0), "tied": found.get("tie_word_embeddings", False),
    }  # fmt: skip
    return _checked(Config(architecture=kind, **shape, base=base), changes)  # type: ignore[arg-type]


def _checked(config: Config, changes: Mapping[str, Any]) -> Config:
    return dataclasses.replace(config, **changes)


def _plain(found: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in allowed.items():
        if found.get(key, values[0]) not in values:
            raise ArtefactError(f"the base's config.json has {key}: {found[key]!r}; computed here: {values[0]!r}")


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json of a base."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < 2**24 else None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ArtefactError(f"{path} is no map of settings")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a base, shards joined, as float32; a pickle is refused."""
    found: dict[str, Tensor] = {}
    for path in hub.weights(folder):
        found |= {k: torch.from_numpy(v.copy()).float() for k, v in read_arrays(path).items() if v.dtype.kind == "f"}
    return found


def texts_beside(config: Config, vocabulary: int, state: _language.LanguageState) -> dict[str, str]:
    """config.json, generation_config.json and the tokenizer's files."""
    ids = _language.names(state)
    settings, writing = to_settings(config, vocabulary, ids), {**ids, "eos_token_id": state.ends}
    texts = {"config.json": settings, "generation_config.json": {k: v for k, v in writing.items() if v is not None}}
    return {k: json.dumps(v, ensure_ascii=False, indent=2) + "\n" for k, v in texts.items()} | _language.files(state)
