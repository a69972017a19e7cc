"""An adapter alone, in PEFT's layout: what `train.lora` learnt, without the base it stands on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.store.state import read_arrays

FILES = ("adapter_config.json", "adapter_model.safetensors")


def make(model: Model, target: Path) -> dict[str, Any]:
    """Copies the adapter's files into `target`; returns what is to be told of them."""
    source = model.folder / "adapter"
    if not (source / FILES[0]).is_file():
        raise Unsupported(f"{model.name} was trained without train.lora and has no adapter; export.format: safetensors writes its weights", "never")
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    bases = model.manifest["model"].get("bases", {})
    return {"tensors": len(read_arrays(target / FILES[1])), "base": next((b["name"] for b in bases.values()), "")}
