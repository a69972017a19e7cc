"""Weights by Hugging Face's names, whole: an adapter that was kept alone is merged into its base. `transformers` reads the folder, and so do we."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.store.state import write_arrays

LEFT_OUT = ("model.safetensors", "adapter/")
"""Files (or folders) of the model that are written anew or have no place beside the merged weights."""


def section(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the weights into `target`; returns the manifest's section of the model."""
    if model.manifest["model"].get("layout") != "huggingface":
        reason = "it has no form in Hugging Face's layout; its own folder is safetensors already, and ONNX runs without torch"
        raise Unsupported(f"{model.name} is no language model or encoder that transformers knows: {reason}", "never")
    from modelyard.runtime.backends.torch import rebuild

    network = rebuild(model.folder, model.manifest, model.pipeline, trust_code=trust_code)
    arrays = {k: v.detach().contiguous().numpy() for k, v in network.stored().items()}  # type: ignore[operator]
    write_arrays(target / "model.safetensors", arrays, {"format": "pt"})
    return {k: v for k, v in model.manifest["model"].items() if k != "adapter"}
