"""Low-rank adapters beside frozen linear layers, in any net of `nn.Linear`, and PEFT's files for them.

LoRA: Hu et al. 2021 (arXiv 2106.09685), W + s·BA with s = alpha / rank, or alpha / √rank (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
DoRA: Liu et al. 2024 (arXiv 2402.09353), m·(W + sBA) / ‖W + sBA‖ row by row, the norm without gradient (section 4.3).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.errors import ArtefactError, Problem, Unsupported
from modelyard.nets._quantised import Quantised
from modelyard.store import hub
from modelyard.store.state import read_arrays

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's file names."""
BASE = "base_sha256"
"""Key of the safetensors header under which the fingerprint of the base stands."""
PREFIX = "base_model.model."
"""Before every name in PEFT's files."""
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the matrices of their layers themselves, past any adapter."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What adapters look like; the settings of `train.lora`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] | None = None
    base: str = "float32"

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Adapted(nn.Module):
    """A frozen linear layer with its adapter; `on` is False while the base is asked alone."""

    def __init__(self, base: nn.Linear | Quantised, shape: Shape) -> None:
        super().__init__()
        self.base, self.shape, self.on = base, shape, True
        self.in_features, self.out_features = base.in_features, base.out_features
        like: dict[str, Any] = {"device": next(base.parameters()).device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(shape.rank, self.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, shape.rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.magnitude = nn.Parameter(base.weight.detach().float().norm(dim=1)) if shape.dora else None
        for p in base.parameters():
            p.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        said = self.base(x)
        if not self.on:
            return said  # type: ignore[no-any-return]
        p = self.shape.dropout
        read = F.dropout(x, p, self.training) if p else x
        small = F.linear(F.linear(read, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.shape.scale
        if self.magnitude is None:
            return said + small  # type: ignore[no-any-return]
        share = (self.magnitude / self.norm()).to(x.dtype)
        if p and self.training:  # the direction learns from the inputs that were kept (PEFT does the same)
            return said + (share - 1) * F.linear(read, self.base.weight.to(x.dtype)) + share * small  # type: ignore[no-any-return]
        plain = said if self.base.bias is None else said - self.base.bias
        return said + (share - 1) * plain + share * small  # type: ignore[no-any-return]

    def norm(self) -> Tensor:
        """‖W + sBA‖ of each row, without a gradient."""
        with torch.no_grad():
            return (self.base.weight + self.shape.scale * self.lora_B @ self.lora_A).norm(dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer that says the same."""
        weight = self.base.weight.float() + self.shape.scale * self.lora_B @ self.lora_A
        if self.magnitude is not None:
            weight = weight * (self.magnitude / weight.norm(dim=1))[:, None]
        layer = nn.Linear(self.in_features, self.out_features, bias=self.base.bias is not None, device=weight.device)
        layer.weight.copy_(weight)
        if self.base.bias is not None:
            layer.bias.copy_(self.base.bias)
        return layer


def linears(network: nn.Module, targets: tuple[str, ...] | None) -> list[str]:
    """Names of the layers that get adapters: those whose name ends as one of `targets`, else all within repeated layers."""
    opaque = [name for name, module in network.named_modules() if isinstance(module, OPAQUE)]
    every = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and not any(n.startswith(f"{o}.") for o in opaque)]
    if targets is None:
        found = [n for n in every if any(part.isdigit() for part in n.split("."))]
        if not found:
            raise Unsupported("this net has no attention or feed-forward layers of its own that could be adapted; leave train.lora out", "use")
        return found
    found = [n for n in every if any(n == t or n.endswith(f".{t}") for t in targets)]
    if stray := [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in every)]:
        ends = ", ".join(sorted({n.rpartition(".")[2] for n in every}))
        raise Unsupported(f"no linear layer's name ends as {', '.join(stray)}", "use", [Problem(f"expected some of {ends}", "train.lora.targets")])
    if any(n.rpartition(".")[2] == "lm_head" for n in found):
        raise Unsupported("the last matrix is read as a table and takes no adapter; leave lm_head out of train.lora.targets", "not yet")
    return found


def attach(network: nn.Module, shape: Shape, *, seed: int = 0) -> list[str]:
    """Freezes the net, puts adapters beside its layers and returns their names; new heads go on learning.

    `network.moving` then names the entries of the state that training changes.
    """
    names = linears(network, shape.targets)
    # what stands on the base and began anew learns whole: heads, the fusion, and the layer through which a text's vector passes
    learning = [m for m in (getattr(network, "heads", None), getattr(network, "fusion", None)) if isinstance(m, nn.Module)]
    learning += [m for n, m in network.named_modules() if n.rpartition(".")[2] == "pooler"]
    for p in network.parameters():
        p.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            layer = network.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            _put(network, name, Adapted(layer if shape.base == "float32" else Quantised(layer, shape.base), shape))
    for module in learning:
        for p in module.parameters():
            p.requires_grad_(True)
    moving = {n for n, p in network.named_parameters() if p.requires_grad}
    kept = {n for n, m in network.named_modules() if isinstance(m, Quantised)}
    running = {n for n, _ in network.named_buffers() if n in network.state_dict() and n.rpartition(".")[0] not in kept}
    network.moving = frozenset(moving | running)  # type: ignore[assignment]
    return names


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


def adapted(network: nn.Module) -> dict[str, Adapted]:
    """Adapted layers by name."""
    return {n: m for n, m in network.named_modules() if isinstance(m, Adapted)}


@contextlib.contextmanager
def off(network: nn.Module) -> Iterator[None]:
    """The base alone: the reference of preference methods."""
    layers = adapted(network).values()
    for layer in layers:
        layer.on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.on = True


def merge(network: nn.Module) -> None:
    """Puts plain layers in the place of adapted ones; the net says the same, and its state has the names it had before."""
    for name, layer in adapted(network).items():
        _put(network, name, layer.merged())
    if hasattr(network, "moving"):
        del network.moving


def fingerprint(network: nn.Module) -> str:
    """sha256 over names and float32 values of a net without adapters, as it is stored."""
    stored = network.stored() if hasattr(network, "stored") else network.state_dict()  # type: ignore[operator]
    found = hashlib.sha256()
    for name in sorted(stored):
        found.update(name.encode("utf-8"))
        found.update(np.ascontiguousarray(stored[name].detach().cpu().float().numpy()).tobytes())
    return found.hexdigest()


# -- PEFT's layout --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where an adapted layer stands in Hugging Face's layout; `part` of `parts` where several of ours are one matrix there."""

    name: str
    part: int = 0
    parts: int = 1


def places(network: nn.Module) -> dict[str, Place]:
    """Module of Hugging Face's layout for each linear layer of a net without adapters: found by the memory of its matrix."""
    stored = network.stored() if hasattr(network, "stored") else network.state_dict()  # type: ignore[operator]
    where = {v.data_ptr(): k.rpartition(".")[0] for k, v in stored.items() if k.endswith(".weight")}
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            if layer.weight.data_ptr() in where:
                found[name] = Place(where[layer.weight.data_ptr()])
            elif (known := _gpt2(name, stored)) is not None:
                found[name] = known
    return found


def _gpt2(name: str, stored: Mapping[str, Tensor]) -> Place | None:
    """GPT-2 lays its matrices transposed, and queries, keys and values in one."""
    from modelyard.nets._huggingface import GPT2

    theirs = f"{name}."
    for mine, other in GPT2.items():
        theirs = theirs.replace(mine, other)
    theirs = theirs[:-1]
    for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if theirs.endswith(f".self_attn.{part}"):
            return Place(theirs.replace(f".self_attn.{part}", ".attn.c_attn"), i, 3)
    return Place(theirs) if f"{theirs}.weight" in stored else None


def to_peft(network: nn.Module, where: Mapping[str, Place], base: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(content of adapter_config.json, tensors) of the adapters; `where` are the `places` of the net before it was adapted.

    Three adapters of one matrix become one of three times the rank, whose B is block-diagonal: the sum says the same.
    """
    layers = adapted(network)
    if missing := [n for n in layers if n not in where]:
        raise Unsupported(f"{missing[0]} has no name in Hugging Face's layout, and so no adapter in PEFT's; use the merged weights", "use")
    groups: dict[str, list[tuple[Place, Adapted]]] = {}
    for name, layer in layers.items():
        groups.setdefault(where[name].name, []).append((where[name], layer))
    shape = next(iter(layers.values())).shape
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, members in groups.items():
        parts = members[0][0].parts
        if parts > 1:
            ranks[name] = parts * shape.rank
            alphas[name] = shape.alpha * (math.sqrt(parts) if shape.rslora else parts)
            tensors |= _joined(f"{PREFIX}{name}", dict((p.part, layer) for p, layer in members), parts, shape)
            continue
        tensors |= _tensors(f"{PREFIX}{name}", members[0][1].lora_A, members[0][1].lora_B, members[0][1].magnitude)
    saved = _whole(network)
    tensors |= {f"{PREFIX}{n}": v.detach().cpu().contiguous().clone() for n, v in saved.items()}
    every = {p.name for p in where.values()}
    ends = sorted({g.rpartition(".")[2] for g in groups})
    targets = ends if {e for e in every if e.rpartition(".")[2] in ends} == set(groups) else sorted(groups)
    transposed = any(".attn.c_" in g or ".mlp.c_" in g for g in groups)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM" if hasattr(network, "lm_head") else None, "base_model_name_or_path": base or None,
        "r": shape.rank, "lora_alpha": shape.alpha, "lora_dropout": shape.dropout, "use_rslora": shape.rslora, "use_dora": shape.dora,
        "target_modules": targets, "fan_in_fan_out": transposed, "bias": "none", "inference_mode": True, "init_lora_weights": True,
        "rank_pattern": ranks, "alpha_pattern": alphas, "modules_to_save": sorted({_module(n) for n in saved}) or None,
    }  # fmt: skip
    return config, tensors


def _whole(network: nn.Module) -> dict[str, Tensor]:
    """What learns whole beside the adapters, by Hugging Face's names."""
    layout = getattr(network, "layout", None)
    if layout is None:
        return {}
    small = {f"{n}.{k}" for n, m in adapted(network).items() for k, _ in m.named_parameters()}
    learnt = {n: p for n, p in network.named_parameters() if p.requires_grad and n not in small}
    return layout.theirs(learnt)  # type: ignore[no-any-return]


def _module(name: str) -> str:
    """The module of Hugging Face's that PEFT saves whole: `bert.pooler.dense.weight` is of `pooler`, `classifier.weight` of `classifier`."""
    parts = name.split(".")[:-1]
    return next((p for p in parts if p in ("pooler", "classifier", "cls", "lm_head")), parts[-1])


def _tensors(name: str, a: Tensor, b: Tensor, magnitude: Tensor | None) -> dict[str, Tensor]:
    found = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    found |= {} if magnitude is None else {f"{name}.lora_magnitude_vector": magnitude}
    return {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}


def _joined(name: str, members: Mapping[int, Adapted], parts: int, shape: Shape) -> dict[str, Tensor]:
    some = next(iter(members.values()))
    if len(members) < parts and shape.dora:
        raise Unsupported("DoRA of only some of queries, keys and values has no form in PEFT's layout of GPT-2; name all three", "never")
    rank, out = shape.rank, some.out_features
    a, b = torch.zeros(parts * rank, some.in_features), torch.zeros(parts * out, parts * rank)
    for i, layer in members.items():
        a[i * rank : (i + 1) * rank] = layer.lora_A.detach()
        b[i * out : (i + 1) * out, i * rank : (i + 1) * rank] = layer.lora_B.detach()
    lengths = [members[i].magnitude for i in sorted(members)]
    return _tensors(name, a, b, None if lengths[0] is None else torch.cat([x for x in lengths if x is not None]))


def read_shape(folder: Path) -> tuple[Shape, dict[str, Any]]:
    """(shape, adapter_config.json) of an adapter in PEFT's layout; forms that are not computed here are refused by name."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < 2**24 else None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        kind = found.get("peft_type") if isinstance(found, dict) else None
        raise ArtefactError(f"{path} describes an adapter of type {kind!r}; read here: LORA (with DoRA and rsLoRA)")
    plain: dict[str, tuple[Any, ...]] = {
        "bias": ("none",), "modules_to_save": (None, []), "layers_to_transform": (None, []), "trainable_token_indices": (None, []),
        "target_parameters": (None, []), "lora_bias": (False, None),
    }  # fmt: skip
    if odd := [f"{k}: {found[k]!r}" for k, v in plain.items() if found.get(k, v[0]) not in v]:
        raise ArtefactError(f"{path} has {', '.join(odd)}, which is not computed here")
    try:
        shape = Shape(
            rank=int(found["r"]), alpha=float(found["lora_alpha"]), dropout=float(found.get("lora_dropout") or 0.0),
            rslora=bool(found.get("use_rslora")), dora=bool(found.get("use_dora")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} lacks {error}") from None
    return shape, found


def load(network: nn.Module, folder: Path, *, own: str | None = None, base: str = "float32") -> list[str]:
    """Attaches an adapter of PEFT's layout; returns the names of the adapted layers.

    `own` is the `fingerprint` of this net: an adapter that was saved here for another base is refused. PEFT's own files say nothing of
    their base's weights; there only shapes and names can be checked.
    """
    shape, config = read_shape(folder)
    if not (folder / WEIGHTS).is_file():
        raise ArtefactError(f"{folder} has no {WEIGHTS}; save the adapter with safetensors (a .bin file can run code and is not read)")
    tensors = {k: torch.from_numpy(v.copy()).float() for k, v in read_arrays(folder / WEIGHTS).items()}
    meant = header(folder / WEIGHTS).get(BASE)
    if own is not None and meant is not None and meant != own:
        message = f"the adapter in {folder} was trained on another base (its fingerprint is {meant[:12]}…, this base has {own[:12]}…)"
        raise ArtefactError(f"{message}; name the base it belongs to")
    where = places(network)
    theirs = {k.removeprefix(PREFIX).split(".lora_")[0] for k in tensors}
    names = [n for n, p in where.items() if p.name in theirs]
    if stray := theirs - {where[n].name for n in names}:
        raise ArtefactError(f"the adapter in {folder} is for layers that this net has not: {', '.join(sorted(stray)[:4])}")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    attach(network, replace(shape, targets=tuple(names), base=base))
    for name, layer in adapted(network).items():
        place = where[name]
        key = f"{PREFIX}{place.name}"
        try:
            a, b = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
            length = tensors[f"{key}.lora_magnitude_vector"] if shape.dora else None
        except KeyError as error:
            raise ArtefactError(f"{folder / WEIGHTS} lacks {error}") from None
        alpha = next((float(v) for k, v in alphas.items() if place.name == k or place.name.endswith(f".{k}")), shape.alpha)
        rank = next((int(v) for k, v in ranks.items() if place.name == k or place.name.endswith(f".{k}")), shape.rank)
        b = b.chunk(place.parts)[place.part]
        if a.shape != (rank, layer.in_features) or b.shape != (layer.out_features, rank):
            raise ArtefactError(f"the adapter of {place.name} has the shapes {tuple(a.shape)} and {tuple(b.shape)}, which do not fit this base")
        layer.shape = replace(layer.shape, rank=rank, alpha=alpha)
        layer.lora_A, layer.lora_B = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        if length is not None:
            layer.magnitude = nn.Parameter(length.chunk(place.parts)[place.part].clone())
    return names


def on_base(network: nn.Module, folder: Path, told: Mapping[str, Any]) -> None:
    """Makes a new network what a model folder without weights of its own says: its base (`told["base"]`, seen from the folder or a hub's
    name) with the adapter merged in. Raises `ArtefactError` where the base is not there or is another one."""
    place = folder / str(told["base"])
    base = place if place.is_dir() else hub.locate(str(told["base"]))
    network.begin(str(base))  # type: ignore[operator]
    own = fingerprint(network)
    if own != told["sha256"]:
        found = f"the base in {base} has the fingerprint {own[:12]}…, and {folder} belongs to {str(told['sha256'])[:12]}…"
        raise ArtefactError(f"{found}; put the base back as it was, or train with train.lora.merge: true to be free of it")
    load(network, folder / "adapter", own=own, base=str(told["kept"]))
    merge(network)


def header(path: Path) -> dict[str, str]:
    """The free texts of a safetensors header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 100 * 2**20:
            raise ArtefactError(f"{path} has a header of {size} bytes")
        found = json.loads(file.read(size))
    return dict(found.get("__metadata__") or {})
