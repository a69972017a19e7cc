"""Weights and settings in Hugging Face's layout: what `from_pretrained` of other programs reads is the root of our model folder.

A net that has such a form defines, beside its `Config` and `Encoder`:

    PREFIXES(config, head) -> [(ours, theirs)]   names of tensors: `encoder.` is the encoder's own, `head.` that of the one output
    settings(config, head, labels, size)         the content of config.json
    TIED(config, head) -> {ours: ours}           parameters that are another one and are not stored

It applies where a network has one input read by that net and one output, and nothing between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from modelyard import registry
from modelyard.errors import ArtefactError, Problem
from modelyard.kinds._contract import Head
from modelyard.nets._network import _config, module_name
from modelyard.store import hub
from modelyard.store.state import read_arrays

METADATA = {"format": "pt"}
"""What readers of the layout want to find in a safetensors file."""


def layout(spec: Mapping[str, Any], heads: Sequence[Head]) -> tuple[ModuleType, Any, str, Head] | None:
    """(net, its config, column, head) of a network that has the layout; None where it keeps our names."""
    nets, fusion = spec.get("nets", {}), spec.get("fusion") or {}
    if len(nets) != 1 or len(heads) != 1 or fusion.get("name", "concatenate") != "concatenate" or fusion.get("own"):
        return None
    column, entry = next(iter(nets.items()))
    module = registry.load("nets", entry["name"])
    if not hasattr(module, "PREFIXES"):
        return None
    config = _config(module.Config, entry["config"], entry["name"])
    return (module, config, column, heads[0]) if module.PREFIXES(config, heads[0]) else None


def _pairs(module: ModuleType, config: Any, column: str, head: Head) -> list[tuple[str, str]]:
    """(our prefix, theirs), the longest of ours first."""
    full = {"encoder.": f"encoders.{module_name(column)}.", "head.": f"heads.{module_name(head.output)}."}
    found = [(full[a[: a.index(".") + 1]] + a[a.index(".") + 1 :], b) for a, b in module.PREFIXES(config, head)]
    return sorted(found, key=lambda pair: -len(pair[0]))


def theirs(spec: Mapping[str, Any], heads: Sequence[Head], state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a network under Hugging Face's names."""
    found = layout(spec, heads)
    assert found is not None
    module, config, column, head = found
    pairs = _pairs(*found)
    tied = {_full(k, column, head) for k in module.TIED(config, head)}
    out = {}
    for name, array in state.items():
        if name not in tied:
            ours, other = next((p for p in pairs if name.startswith(p[0])))
            out[other + name[len(ours) :]] = array
    return out


def ours(spec: Mapping[str, Any], heads: Sequence[Head], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The other way round; a tensor without a place of ours is an error of the folder."""
    found = layout(spec, heads)
    assert found is not None
    module, config, column, head = found
    pairs = sorted(_pairs(*found), key=lambda pair: -len(pair[1]))
    out, stray = {}, []
    for name, array in tensors.items():
        pair = next((p for p in pairs if name.startswith(p[1])), None)
        if pair is None:
            stray.append(name)
        else:
            out[pair[0] + name[len(pair[1]) :]] = array
    if stray:
        raise ArtefactError(f"the folder holds {len(stray)} tensor(s) that the network has not: {', '.join(stray[:5])}")
    for copy, source in module.TIED(config, head).items():
        if _full(source, column, head) in out:
            out[_full(copy, column, head)] = out[_full(source, column, head)]
    return out


def _full(name: str, column: str, head: Head) -> str:
    side, _, rest = name.partition(".")
    return f"encoders.{module_name(column)}.{rest}" if side == "encoder" else f"heads.{module_name(head.output)}.{rest}"


def files(spec: Mapping[str, Any], heads: Sequence[Head], labels: Sequence[str] | None, size: int) -> dict[str, str]:
    """config.json as text; `size` is the number of ids of the tokenizer."""
    found = layout(spec, heads)
    assert found is not None
    module, config, _, head = found
    body = module.settings(config, head, labels, size)
    return {"config.json": json.dumps(body, ensure_ascii=False, indent=2) + "\n"}


def read_config(folder: Path) -> dict[str, Any]:
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
