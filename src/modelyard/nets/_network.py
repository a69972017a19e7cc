"""A network: one encoder per input, a fusion of their features, one head per output. Dict of tensors in, dict out."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelyard import registry, settings
from modelyard.errors import ArtefactError, Problem, Unsupported, UsageError
from modelyard.kinds._contract import Head, Part
from modelyard.nets._chain import Chain
from modelyard.nets._fusion import FUSIONS

Parts = Mapping[str, Mapping[str, Part]]

CHAINED = "potentials"
"""The part of outputs that speak of every unit of an input (`kinds/tags`): encoders then give features (B, L, D)."""

MEMBERS = ":members"
"""Ends the name of a training output `(B, M, …)` that holds the answers of an ensemble's M members beside their combination."""


class Network(nn.Module):
    """`encoders.<input>`, `fusion`, `heads.<output>`."""

    sees_targets = False
    """True for nets whose training pass reads the targets too (teacher forcing); they are then among the inputs."""

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: nn.Module, heads: Sequence[Head]) -> None:
        super().__init__()
        self.names = module_names(encoders)
        self.encoders = nn.ModuleDict({self.names[name]: module for name, module in encoders.items()})
        self.fusion = fusion
        safe = module_names([h.output for h in heads])
        self.keys = {h.key: safe[h.output] for h in heads}
        self.heads = nn.ModuleDict({safe[h.output]: self._head(h) for h in heads})
        self.outputs = [h.output for h in heads]
        self.layout: Any = None
        """`_layout.Layout` where the parameters are stored under Hugging Face's names."""

    def stored(self) -> dict[str, torch.Tensor]:
        """The parameters as the model folder holds them."""
        state: dict[str, torch.Tensor] = self.state_dict()
        return state if self.layout is None else self.layout.theirs(state)  # type: ignore[no-any-return]

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Puts stored parameters back; `RuntimeError` where they do not fit."""
        self.load_state_dict(dict(weights) if self.layout is None else self.layout.ours(weights), strict=True)

    def files(self, states: Mapping[str, Any]) -> dict[str, str]:
        """Hugging Face's files beside the weights (config.json, the tokenizer's), from the states of the columns by name."""
        if self.layout is None:
            return {}
        from modelyard.kinds.text._pretrained import files

        column = states[next(iter(self.names))]
        return {**self.layout.files(getattr(states[self.outputs[0]], "labels", None), column.size), **files(column)}

    def _head(self, head: Head) -> nn.Module:
        """The fusion's head, or the encoder's own where there is one input and it has one for this kind (the decoder of a language model)."""
        only = next(iter(self.encoders.values())) if len(self.encoders) == 1 else None
        own = only.head(head) if only is not None and hasattr(only, "head") else None  # type: ignore[operator]
        if own is None and not head.size:
            raise Unsupported(f"no net of these has a head for outputs of kind {head.kind}; choose one that has (bert for hidden tokens)", "use")
        if own is not None:
            return own  # type: ignore[no-any-return]
        made: nn.Module = self.fusion.head(head.size)  # type: ignore[operator]
        return Chain(made, head.size) if head.part == CHAINED else made

    def embed(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Discrete parts made continuous, under the same names: where gradients for explaining and attacking are taken."""
        out = dict(inputs)
        for name, module in self._each():
            out |= {f"{name}.{part}": x for part, x in module.embed(_of(inputs, name)).items()}  # type: ignore[operator]
        return out

    def from_embedded(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The rest of the pass."""
        return self._finish([module.from_embedded(_of(inputs, name)) for name, module in self._each()])  # type: ignore[operator]

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`column.part` in, `output.part` out."""
        return self._finish([module(_of(inputs, name)) for name, module in self._each()])

    def _finish(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        fused = self.fusion(features)
        return {key: self.fusion.apply_head(self.heads[name], fused) for key, name in self.keys.items()}  # type: ignore[operator]

    def _each(self) -> list[tuple[str, nn.Module]]:
        return [(name, self.encoders[safe]) for name, safe in self.names.items()]


class UserNetwork(nn.Module):
    """A user's own module in the place of a network.

    With one input and one output it is called with the input's main tensor as float (pixels in [0, 1]) and its answer
    `(B, size)` is the head; otherwise it is called with the dict and answers with a dict of `output.part`.
    """

    sees_targets = False

    def __init__(self, module: nn.Module, parts: Parts, heads: Sequence[Head]) -> None:
        super().__init__()
        self.module = module
        self.head = heads[0].key
        names = [f"{column}.{part}" for column, found in parts.items() for part in found]
        self.single = names[0] if len(parts) == 1 and len(heads) == 1 and len(names) == 1 else None
        self.scale = 255.0 if self.single and self.single.endswith(".pixels") else 1.0

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the class says."""
        if self.single is None:
            return self.module(dict(inputs))  # type: ignore[no-any-return]
        x = inputs[self.single]
        value = self.module(x.float() / self.scale if not x.is_floating_point() else x)
        return {self.head: value.reshape(value.shape[0], -1)}


def build(
    spec: Mapping[str, Any],
    parts: Parts,
    cardinalities: Sequence[int],
    heads: Sequence[Head],
    *,
    seed: int | None = None,
    statistics: Mapping[str, Any] | None = None,
    trust_code: bool = False,
) -> nn.Module:
    """The network that a manifest (or the learner) describes.

    `spec` is `{"nets": {input: {"name", "config"}}, "fusion": {"name", …}}` or `{"user": {"module", "args", "sha256"}}`.
    Weights are drawn from `seed` where one is given.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        if "user" in spec:
            return UserNetwork(user_module(spec["user"], trust_code), parts, heads)
        encoders: dict[str, nn.Module] = {}
        for name, found in parts.items():
            entry = spec["nets"][name]
            module = registry.load("nets", entry["name"])
            config = read_config(module.Config, entry["config"], entry["name"])
            whole = hasattr(module, "Network")
            offered = {"cardinalities": list(cardinalities), "statistics": (statistics or {}).get(name), "heads": heads}
            takes = inspect.signature((module.Network if whole else module.Encoder).__init__).parameters
            options = {k: v for k, v in offered.items() if k in takes}
            if whole:
                if len(parts) > 1:
                    raise Unsupported(f"{entry['name']} is a whole network and reads one input, not {len(parts)}", "never")
                options.pop("heads", None)
                return module.Network(config, found, heads, name, **options)  # type: ignore[no-any-return]
            encoders[name] = module.Encoder(config, found, **options)
        _aligned(parts, heads)
        fusion = dict(spec.get("fusion") or {"name": "concatenate"})
        kind = fusion.pop("name")
        if kind not in FUSIONS:
            raise registry.unknown("fusion", str(kind), list(FUSIONS))
        widths = [int(e.width) for e in encoders.values()]  # type: ignore[arg-type]
        from modelyard.nets import _layout, _pairs

        pairs = any(h.part == "vector" for h in heads)
        if pairs and len(heads) > 1:
            raise Unsupported("text vectors are learnt alone; leave the other outputs out", "not yet")
        network = (_pairs.Pairs if pairs else Network)(encoders, FUSIONS[kind](widths, **fusion), heads)
        network.layout = _layout.of(spec, heads)
        return network


def _aligned(parts: Parts, heads: Sequence[Head]) -> None:
    """Refuses what has no features of every unit: several inputs fused, and answers about the whole beside answers about each unit."""
    if not any(h.part == CHAINED for h in heads):
        return
    if len(parts) > 1:
        raise Unsupported(f"a net that tags reads one input, not {', '.join(parts)}; name it under data.inputs", "not yet")
    if whole := [h.output for h in heads if h.part != CHAINED]:
        raise Unsupported(f"{', '.join(whole)} is about the whole text and the others about its words; train two models", "not yet")


def begin(network: nn.Module, spec: Mapping[str, Any]) -> list[str]:
    """Puts the weights of bases into a new network, for nets that name one; what began anew all the same is told."""
    notes = []
    for name, entry in spec.get("nets", {}).items():
        module = registry.load("nets", entry["name"])
        config = read_config(module.Config, entry["config"], entry["name"])
        if getattr(config, "base", None) is not None and isinstance(network, Network):
            notes += module.start(network.encoders[network.names[name]], dict(network.heads), config.base)
        elif getattr(config, "base", None) is not None and hasattr(network, "begin"):
            notes += network.begin(config.base)  # type: ignore[operator]
    return notes


def without_bases(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as a manifest keeps it: what a net says of where its base lay on this machine is left out."""
    nets = {}
    for name, entry in spec.get("nets", {}).items():
        module = registry.load("nets", entry["name"])
        config = read_config(module.Config, entry["config"], entry["name"])
        nets[name] = {**entry, "config": settings.plain(module.stored(config))} if hasattr(module, "stored") else entry
    return {**spec, "nets": nets} if nets else dict(spec)


def read_config(cls: type, given: Any, name: str) -> Any:
    """The stored settings of a net as its `Config`."""
    if isinstance(given, cls):
        return given
    problems: list[Problem] = []
    found = settings.parse(cls, given, name, problems)
    if problems:
        raise ArtefactError(f"the stored settings of {name} do not fit this version", problems)
    return found


def user_module(spec: Mapping[str, Any], trust_code: bool) -> nn.Module:
    """The user's module from `file.py:Class` or `package.module:Class`, its file checked against the stored hash."""
    where, _, name = str(spec["module"]).rpartition(":")
    if not where or not name:
        raise UsageError(f"model.module is {spec['module']!r}; expected FILE.py:Class or package.module:Class")
    path = Path(where)
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"model.module names {path}, which does not exist")
        if "sha256" in spec:
            if not trust_code:
                raise UsageError(
                    f"this model runs the code in {path}; allow it with --trust-code, or use its ONNX export, which needs none"
                )
            if hashlib.sha256(path.read_bytes()).hexdigest() != spec["sha256"]:
                raise ArtefactError(f"{path} is not the file that this model was trained with (its hash differs)")
        label = f"modelyard_user_{path.stem}"
        found = importlib.util.spec_from_file_location(label, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[label] = module
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    cls = getattr(module, name, None)
    if cls is None:
        raise UsageError(f"{where} has no class {name}")
    return cls(**dict(spec.get("args") or {}))  # type: ignore[no-any-return]


def module_name(column: str) -> str:
    """A column's name as torch allows it for a module: without dots, and no attribute of a module dictionary."""
    name = column.replace(".", "·")
    return f"{name}_" if not name or hasattr(TAKEN, name) else name


TAKEN = nn.ModuleDict()
"""Its attributes cannot be names of modules in it."""


def module_names(columns: Iterable[str]) -> dict[str, str]:
    """`module_name` of each column, made different where two columns would share one (`a.b` and `a·b`)."""
    found: dict[str, str] = {}
    for column in columns:
        name = module_name(column)
        while name in found.values():
            name += "_"
        found[column] = name
    return found


def _of(inputs: Mapping[str, torch.Tensor], column: str) -> dict[str, torch.Tensor]:
    prefix = f"{column}."
    return {k[len(prefix) :]: v for k, v in inputs.items() if k.startswith(prefix)}
