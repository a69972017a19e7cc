"""Hugging Face's layout for encoders with a head: what `from_pretrained` of other programs reads is the root of our model folder.

A net that has such a form defines, beside its `Config` and `Encoder`:

    prefixes(config, head) -> [(ours, theirs)]   names of tensors: `encoder.` is the encoder's own, `head.` that of the one output
    ties(config, head) -> {ours: ours}           parameters that are another one and are not stored
    settings(config, head, labels, size)         the content of config.json

It applies where a network has one input, read by that net, one output, and nothing between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from modelyard import registry
from modelyard.errors import ArtefactError, Problem
from modelyard.kinds._contract import Head
from modelyard.nets._network import module_name, read_config
from modelyard.store import hub
from modelyard.store.state import read_arrays

METADATA = {"format": "pt"}
"""What readers of the layout want to find in a safetensors file."""


@dataclass(frozen=True)
class Layout:
    """Made by `of`."""

    net: str
    config: Any
    column: str
    head: Head

    @property
    def module(self) -> ModuleType:
        """The net's file."""
        return registry.load("nets", self.net)

    def theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of a network under Hugging Face's names."""
        pairs = self._pairs()
        tied = {self._full(k) for k in self.module.ties(self.config, self.head)}
        out = {}
        for name, value in state.items():
            if name not in tied:
                ours, other = next(p for p in pairs if name.startswith(p[0]))
                out[other + name[len(ours) :]] = value
        return out

    def ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The other way round. Raises `ArtefactError` for tensors that the network has not."""
        pairs = sorted(self._pairs(), key=lambda pair: -len(pair[1]))
        out, stray = {}, []
        for name, value in tensors.items():
            pair = next((p for p in pairs if name.startswith(p[1])), None)
            if pair is None:
                stray.append(name)
            else:
                out[pair[0] + name[len(pair[1]) :]] = value
        if stray:
            raise ArtefactError(f"the folder holds {len(stray)} tensor(s) that the network has not: {', '.join(stray[:5])}")
        for copy, source in self.module.ties(self.config, self.head).items():
            if self._full(source) in out:
                out[self._full(copy)] = out[self._full(source)]
        return out

    def files(self, labels: Sequence[str] | None, size: int) -> dict[str, str]:
        """config.json as text; `labels` are the names of the classes, `size` the number of ids of the tokenizer."""
        body = self.module.settings(self.config, self.head, labels, size)
        return {"config.json": json.dumps(body, ensure_ascii=False, indent=2) + "\n"}

    def _pairs(self) -> list[tuple[str, str]]:
        """(our prefix, theirs), the longest of ours first."""
        found = [(self._full(a), b) for a, b in self.module.prefixes(self.config, self.head)]
        return sorted(found, key=lambda pair: -len(pair[0]))

    def _full(self, name: str) -> str:
        side, _, rest = name.partition(".")
        return f"encoders.{module_name(self.column)}.{rest}" if side == "encoder" else f"heads.{module_name(self.head.output)}.{rest}"


def of(spec: Mapping[str, Any], heads: Sequence[Head]) -> Layout | None:
    """The layout of a network; None where it keeps our names."""
    nets, fusion = spec.get("nets", {}), spec.get("fusion") or {}
    if len(nets) != 1 or len(heads) != 1 or fusion.get("name", "concatenate") != "concatenate" or fusion.get("own"):
        return None
    column, entry = next(iter(nets.items()))
    module = registry.load("nets", entry["name"])
    if not hasattr(module, "prefixes"):
        return None
    config = read_config(module.Config, entry["config"], entry["name"])
    return Layout(entry["name"], config, column, heads[0]) if module.prefixes(config, heads[0]) else None


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


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a base, shards joined, as float32 where they were halves; a pickle is refused."""
    out: dict[str, np.ndarray] = {}
    for path in hub.weights(folder):
        out |= read_arrays(path)
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in out.items()}


def must_have(folder: Path, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ArtefactError` naming every tensor of `wanted` that is absent or of another shape."""
    problems = [Problem("is missing", n) for n in wanted if n not in tensors]
    problems += [
        Problem(f"has the shape {tensors[n].shape}, and config.json says {tuple(shape)}", n)
        for n, shape in wanted.items()
        if n in tensors and tensors[n].shape != tuple(shape)
    ]
    if problems:
        raise ArtefactError(f"the weights in {folder} do not fit its config.json ({len(problems)} tensor(s))", problems[:20])
