"""Matrices of a language model in 8 or 4 bits on disk, whose activations stay whole: packed, unpacked, and multiplied by ONNX Runtime where they are int4.

int8 and int4 share a float16 scale between 32 neighbours of a row and are, value for value, GGUF's Q8_0 and Q4_0 (github.com/ggml-org/llama.cpp,
ggml-quants.c): 8.5 and 4.5 bits a weight. nf4 is QLoRA's (`_quantised.py`): 4.127 bits. int4 stays packed in memory, and MatMulNBits of ONNX Runtime
multiplies it in float32: for one row at 2,048 x 2,048 in a third of the time of whole weights, for small matrices in the same. int8 and nf4 are made
whole when the model is loaded: for these ONNX Runtime unpacks at every call (13 times the time of whole weights) or has no operator, and torch's packed
products round activations to bfloat16, which moves answers by far more than parity allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.errors import ArtefactError
from modelyard.nets import _quantised

BLOCK = 32
"""Neighbours of a row that share a scale."""
FILE = "quantised.safetensors"
"""Where the weights lie: a name of its own, since no other program reads this form."""
PARTS = {"int8": ("codes", "scales"), "int4": ("codes", "scales"), "nf4": ("codes", "scales", "spread", "middle")}
"""Arrays of each form."""
BITS = {"int8": 8.5, "int4": 4.5, "nf4": 4.127, "float32": 32.0}
"""Of a weight, its share of the scales with it."""


def pack(matrix_NK: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """Arrays of a float32 matrix (N, K). int8: codes int8 (N, B, 32), int4: codes uint8 (N, B, 16), even places in the low half; scales float16 (N, B).
    Rows are padded with zeros to whole blocks."""
    if form == "nf4":
        return {k: v.numpy() for k, v in _quantised.to_nf4(torch.from_numpy(np.ascontiguousarray(matrix_NK))).items()}
    rows, columns = matrix_NK.shape
    blocks = np.pad(matrix_NK.astype(np.float32), ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
    if form == "int8":
        scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
        steps = blocks * _inverse(scale)
        codes = (np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5))).astype(np.int8)  # halves away from zero
        return {"codes": codes, "scales": scale[..., 0].astype(np.float16)}
    # the value of largest magnitude takes the end of the range that has one step more: 16 codes, none of them idle
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scale = extreme / np.float32(-8)
    codes = np.trunc(blocks.astype(np.float64) * _inverse(scale).astype(np.float64) + 8.5).clip(0, 15).astype(np.uint8)
    return {"codes": codes[..., 0::2] | codes[..., 1::2] << 4, "scales": scale[..., 0].astype(np.float16)}


def unpack(parts: Mapping[str, np.ndarray], form: str, shape: tuple[int, int]) -> np.ndarray:
    """The matrix (N, K) in float32. Raises `ArtefactError` where the arrays are not those of such a matrix."""
    rows, columns = shape
    try:
        if form == "nf4":
            tensors = {k: torch.from_numpy(np.array(parts[k])) for k in PARTS[form]}
            return _quantised.from_nf4(**tensors, shape=shape).numpy()
        codes = parts["codes"]
        if form == "int4":
            codes = np.stack([codes & 15, codes >> 4], -1).reshape(rows, -1, BLOCK).astype(np.int8) - np.int8(8)
        whole = codes.astype(np.float32) * parts["scales"].astype(np.float32)[..., None]
        return np.ascontiguousarray(whole.reshape(rows, -1)[:, :columns])
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise ArtefactError(f"the packed weights are not those of a {form} matrix {rows} x {columns} ({str(error)[:200]})") from None


def _inverse(scale: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


class Packed(nn.Module):
    """A frozen linear layer `(…, K) → (…, N)` over int4 blocks."""

    codes: Tensor
    scales: Tensor

    def __init__(self, parts: Mapping[str, np.ndarray], shape: tuple[int, int], bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        for name in PARTS["int4"]:
            self.register_buffer(name, torch.from_numpy(np.array(parts[name])))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.session: Any = None

    @property
    def weight(self) -> Tensor:
        """(N, K) in float32."""
        parts = {name: getattr(self, name).cpu().numpy() for name in PARTS["int4"]}
        return torch.from_numpy(unpack(parts, "int4", (self.out_features, self.in_features))).to(self.codes.device)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`; what needs a gradient, or lies on another device, meets the whole matrix."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, self.weight.to(x.dtype), self.bias)
        if self.session is None:
            self.session = product({n: getattr(self, n).numpy() for n in PARTS["int4"]}, self.out_features, self.in_features)
        flat = x.reshape(-1, self.in_features).contiguous()
        out = torch.from_numpy(self.session.run(None, {"x": flat.numpy()})[0]).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def product(parts: Mapping[str, np.ndarray], rows: int, columns: int) -> Any:
    """An ONNX Runtime session of `y = x · Wᵀ` over int4 blocks, computed in float32 (accuracy_level 1)."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    options: dict[str, Any] = {"K": columns, "N": rows, "bits": 4, "block_size": BLOCK, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **options)
    held = [numpy_helper.from_array(parts["codes"], "codes"), numpy_helper.from_array(parts["scales"].astype(np.float32).reshape(rows, -1), "scales")]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])] for name, width in (("x", columns), ("y", rows))]
    graph = helper.make_graph([node], "product", ends[0], ends[1], held)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    given = ort.SessionOptions()
    given.intra_op_num_threads = torch.get_num_threads()
    return ort.InferenceSession(made.SerializeToString(), given, providers=["CPUExecutionProvider"])


def restore(network: nn.Module, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> None:
    """Puts the weights of `FILE` into a fresh network; `told` is the manifest's word: `{form, embeddings, matrices: {name: form}}`.

    Raises `ArtefactError` where they do not fit it.
    """
    state = dict(network.state_dict())
    whole = {k: torch.from_numpy(v.copy()).float() for k, v in arrays.items() if k in state}
    named = dict(told["matrices"])
    if stray := sorted(set(named) - set(state)):
        raise ArtefactError(f"the manifest names packed matrices that the network has not: {', '.join(stray[:5])}")
    kept = {}
    for name, form in named.items():
        parts = {p: arrays[f"{name}.{p}"] for p in PARTS[form] if f"{name}.{p}" in arrays}
        shape = tuple(state[name].shape)
        if form == "int4" and name != "model.embed_tokens.weight":
            kept[name] = parts
        whole[name] = torch.from_numpy(unpack(parts, form, shape))  # type: ignore[arg-type]
    if "lm_head.weight" not in whole and "lm_head.weight" in state:
        whole["lm_head.weight"] = whole["model.embed_tokens.weight"]
    try:
        network.load_state_dict(whole, strict=True)
    except RuntimeError as error:
        raise ArtefactError(f"the packed weights do not fit the network: {' '.join(str(error).split())[:300]}") from None
    for name, parts in kept.items():
        owner, _, last = name.removesuffix(".weight").rpartition(".")
        linear: Any = network.get_submodule(f"{owner}.{last}")
        bias = linear.bias.detach() if linear.bias is not None else None
        setattr(network.get_submodule(owner), last, Packed(parts, (linear.out_features, linear.in_features), bias))


def whole(network: Any) -> Any:
    """The network (`nn.Module`) with plain layers in place of packed ones: what exports read."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Packed):
            layer = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            with torch.no_grad():
                layer.weight.copy_(module.weight)
                if module.bias is not None:
                    layer.bias.copy_(module.bias)
            owner, _, last = name.rpartition(".")
            setattr(network.get_submodule(owner), last, layer)
    return network
