"""Adapters in training (`train.lora`): put beside the layers of a base, learnt, and made into what a model folder holds.

The folder holds the merged weights, which serve as any others, and `adapter/` in PEFT's layout. With `merge: false` it holds the adapter
alone: the base is named and known again by the fingerprint of its weights, and a base with another one is refused at load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from modelyard.errors import ArtefactError, ConfigError, Unsupported
from modelyard.nets import _adapters
from modelyard.store import hub
from modelyard.store.state import arrays_bytes
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.methods import LoraConfig

FOLDER = "adapter"
"""In the model folder."""
TRAIN: dict[str, object] = {"lr": 2e-4, "weight_decay": 0.0}
"""Adapters learn best at some ten times the rate of whole weights (Schulman et al. 2025, "LoRA without regret"); bases take 5e-5."""


@dataclass(frozen=True)
class Adapter:
    """What has to be known of the base to save what was learnt beside it."""

    config: LoraConfig
    where: Mapping[str, _adapters.Place]
    base: str
    """As the net's settings name it: a folder here."""
    own: str
    """Fingerprint of the base's weights."""
    whole: bool
    """Whether nothing learns but the adapter."""


def prepare(network: nn.Module, spec: Mapping[str, Any], train: TrainConfig) -> Adapter | None:
    """Freezes the net and puts adapters beside its layers, where the settings ask for it."""
    config = train.lora
    if config is None:
        return None
    bases = [e["config"]["base"] for e in spec.get("nets", {}).values() if e["config"].get("base")]
    if len(bases) != 1 or len(spec["nets"]) != 1:
        raise Unsupported("train.lora learns beside the weights of one base: name it as model.base, or leave train.lora out", "use")
    clash = [f"train.{n}" for n in ("freeze", "unfreeze", "layer_decay") if getattr(train, n) is not None]
    if clash:
        raise ConfigError(f"train.lora freezes the base itself; leave {', '.join(clash)} out")
    where, own = _adapters.places(network), _adapters.fingerprint(network)
    if config.adapter is not None:
        _adapters.load(network, _folder(config.adapter), own=own, base=config.base)
    else:
        targets = None if config.targets is None else tuple(config.targets)
        shape = _adapters.Shape(
            rank=config.rank, alpha=config.alpha, dropout=config.dropout, rslora=config.rslora, dora=config.dora, targets=targets, base=config.base,
        )  # fmt: skip
        _adapters.attach(network, shape, seed=train.seed)
    whole = all(".lora_" in n or n.endswith(".magnitude") for n, p in network.named_parameters() if p.requires_grad)
    if not config.merge and not whole:
        raise Unsupported("train.lora.merge: false keeps an adapter alone, and this net learns a head beside it; leave merge out", "not yet")
    return Adapter(config, where, str(bases[0]), own, whole)


def _folder(given: str) -> Path:
    """An adapter's folder: itself, or that within a model folder."""
    for place in (Path(given), Path(given) / FOLDER, Path(given) / "model" / FOLDER):
        if (place / _adapters.CONFIG).is_file():
            return place
    raise ArtefactError(f"train.lora.adapter is {given}, which holds no {_adapters.CONFIG}; name a folder in PEFT's layout or a model folder with one")


def finish(network: nn.Module, adapter: Adapter) -> dict[str, str | bytes]:
    """Merges what was learnt; returns the files of the adapter by their place in the model folder.

    A net whose weights have no names in Hugging Face's layout has no adapter in PEFT's: its merged weights are all there is.
    """
    files: dict[str, str | bytes] = {}
    if getattr(network, "layout", None) is not None or hasattr(network, "lm_head"):
        told = hub.told(Path(adapter.base))["name"]
        config, tensors = _adapters.to_peft(network, adapter.where, told)
        arrays = {k: v.numpy() for k, v in tensors.items()}
        files = {
            f"{FOLDER}/{_adapters.CONFIG}": json.dumps(config, indent=2) + "\n",
            f"{FOLDER}/{_adapters.WEIGHTS}": arrays_bytes(arrays, {"format": "pt", _adapters.BASE: adapter.own}),
        }
    _adapters.merge(network)
    return files


def told(adapter: Adapter, target: Path) -> dict[str, Any]:
    """What the manifest says of an adapter without its base's weights: where they are (seen from the model folder, or by the hub's name)
    and how they are known."""
    base = Path(adapter.base)
    parts = base.resolve().parts
    name = next((p.removeprefix("models--").replace("--", "/") for p in parts if p.startswith("models--")), None)
    where = name if name is not None else Path(os.path.relpath(base.resolve(), target.resolve())).as_posix()
    return {"base": where, "sha256": adapter.own, "kept": adapter.config.base}
