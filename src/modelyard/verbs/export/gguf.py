"""GGUF for llama.cpp and its kin: one file with the weights (float32), the shape and the tokenizer of a causal language model.

Names and metadata are those of llama.cpp's own converter (github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py): Llama's queries and keys
lie interleaved there, GPT-2's matrices the other way round, a tied last matrix is left out. Smaller numbers are made by `llama-quantize`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ArtefactError, MissingExtra, Unsupported
from modelyard.runtime.model import Model

if TYPE_CHECKING:
    from gguf import GGUFWriter

NAME = "model.gguf"
ARCHITECTURES = {"qwen3": "qwen3", "qwen2": "qwen2", "llama": "llama", "mistral": "llama", "gpt2": "gpt2"}
"""Ours to GGUF's: Mistral's layers are Llama's."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {GPT2: "gpt-2", _MODERN % "": "qwen2", _MODERN % "{1,3}": "llama-bpe"}
"""Patterns that cut a text before BPE, and llama.cpp's names for them."""
CONVERTER = "the exported safetensors folder is Hugging Face's layout: try llama.cpp's convert_hf_to_gguf.py on it"


def make(model: Model, target: Path) -> dict[str, Any]:
    """Writes `model.gguf` into `target` and reads it back. Raises `Unsupported` with the reason where GGUF has no such model."""
    network = _network(model)
    try:
        import gguf
    except ModuleNotFoundError:
        raise MissingExtra("gguf", "gguf") from None
    state = model.pipeline.outputs[0].state
    tokenizer = json.loads(state.tokenizer)
    split = split_of(tokenizer)
    kind = ARCHITECTURES[network.config.architecture]
    writer = gguf.GGUFWriter(target / NAME, kind)
    _shape(writer, network.config, model)
    _tokenizer(writer, tokenizer, state, split, network.lm_head.out_features)
    arrays = tensors(network, kind)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _read_back(target / NAME, arrays)
    return {"tensors": len(arrays), "architecture": kind}


def _network(model: Model) -> Any:
    from modelyard.runtime.backends.torch import rebuild

    if "decoder" not in model.graphs:
        raise Unsupported(f"GGUF is for causal language models (task text-generation), and {model.name} is none; use export.format: onnx", "never")
    network = rebuild(model.folder, model.manifest, model.pipeline)
    if "weights" in model.manifest["model"]:
        from modelyard.nets import _packed

        return _packed.whole(network)
    return network


def tensors(network: Any, kind: str) -> dict[str, np.ndarray]:
    """GGUF's name → float32 array, in the row order of NumPy, of every tensor of a causal net."""
    import gguf

    config = network.config
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == kind), config.layers)
    out = {}
    for theirs, tensor in network.stored().items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ArtefactError(f"GGUF has no name for the tensor {theirs} of a {kind} model")
        array = tensor.detach().float().numpy()
        if kind == "gpt2" and array.ndim == 2 and (".attn." in theirs or ".mlp." in theirs):
            array = array.T
        elif kind == "llama" and theirs.endswith(("q_proj.weight", "k_proj.weight")):
            array = interleaved(array, config.heads if "q_proj" in theirs else config.keys)
        out[name] = np.ascontiguousarray(array)
    return out


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows (i, i + E/2) of each head side by side: llama.cpp turns neighbours where `transformers` turns halves."""
    rows, width = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _shape(writer: GGUFWriter, config: Any, model: Model) -> None:
    writer.add_name(model.name)
    writer.add_file_type(0)  # all float32
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    if config.architecture == "gpt2":
        writer.add_layer_norm_eps(config.eps)
        return
    writer.add_head_count_kv(config.keys)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_key_length(config.each)
    writer.add_value_length(config.each)
    writer.add_rope_dimension_count(config.each)


def split_of(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a byte-level BPE cuts texts. Raises `Unsupported` for tokenizers that it does not know as such."""
    kind = tokenizer["model"].get("type")
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    bytewise = next((s for s in steps if s.get("type") == "ByteLevel"), None)
    if kind != "BPE" or bytewise is None:
        ours = "; train with model.tokenizer: bytes" if kind in ("WordLevel", "Unigram") else ""
        raise Unsupported(f"GGUF is written for byte-level BPE, and this tokenizer is {kind}{ours}; {CONVERTER}", "not yet")
    if bytewise.get("add_prefix_space"):
        raise Unsupported(f"this tokenizer puts a blank before every text, which is not written here; {CONVERTER}", "not yet")
    patterns = [s["pattern"].get("Regex", "") for s in steps if s.get("type") == "Split"] or [GPT2 if bytewise.get("use_regex", True) else ""]
    if len(patterns) != 1 or patterns[0] not in SPLITS:
        known = ", ".join(SPLITS.values())
        raise Unsupported(f"GGUF names ways to cut texts before BPE, and that of this tokenizer is none of {known}; {CONVERTER}", "not yet")
    return SPLITS[patterns[0]]


def _tokenizer(writer: GGUFWriter, tokenizer: Mapping[str, Any], state: Any, split: str, size: int) -> None:
    import gguf

    from modelyard.kinds.text._language import names, roles

    added = {t["id"]: t for t in tokenizer.get("added_tokens", [])}
    known = {i: t for t, i in tokenizer["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    tokens = [known.get(i, f"[PAD{i}]") for i in range(size)]
    types = [gguf.TokenType.UNUSED if i not in known else kinds[added[i]["special"]] if i in added else gguf.TokenType.NORMAL for i in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    ids = names(state)
    ends = list(state.ends)
    add = {"bos_token_id": writer.add_bos_token_id, "eos_token_id": writer.add_eos_token_id, "pad_token_id": writer.add_pad_token_id}
    for role, put in add.items():
        if (value := ids.get(role)) is not None:
            put(value)
    if len(ends) > 1:
        writer.add_eot_token_id(next((i for i in ends if i != ids["eos_token_id"]), ends[0]))
    writer.add_add_bos_token("bos_token" in roles(state.settings) and bool(json.loads(state.settings).get("add_bos_token")))
    writer.add_chat_template(state.template)


def _read_back(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from gguf import GGUFReader

    found = {t.name: t.data for t in GGUFReader(path).tensors}
    if bad := [n for n, a in arrays.items() if n not in found or not np.array_equal(np.asarray(found[n]).reshape(a.shape), a)]:
        raise ArtefactError(f"{path.name} was read back with other values of {', '.join(bad[:3])}; it is not usable")
