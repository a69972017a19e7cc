"""Weights by Hugging Face's names, whole: an adapter that was kept alone is merged into its base. `transformers` reads the folder, and so do we."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.store.state import write_arrays

LEFT_OUT = ("model.safetensors", "quantised.safetensors", "adapter/")
"""Files (or folders) of the model that are written anew or have no place beside the merged weights."""


def section(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the weights into `target`; returns the manifest's section of the model."""
    packed = "weights" in model.manifest["model"]
    if model.manifest["model"].get("layout") != "huggingface" and not packed:
        reason = "it has no form in Hugging Face's layout; its own folder is safetensors already, and ONNX runs without torch"
        raise Unsupported(f"{model.name} is no language model or encoder that transformers knows: {reason}", "never")
    from modelyard.runtime.backends.torch import rebuild

    network = rebuild(model.folder, model.manifest, model.pipeline, trust_code=trust_code)
    if packed:  # 8 or 4 bits, whole again: the rounding stays, the size does not
        from modelyard.nets import _packed

        network = _packed.whole(network)
        texts = network.files({c.name: c.state for c in (*model.pipeline.inputs, *model.pipeline.outputs)})  # type: ignore[operator]
        (target / "config.json").write_text(texts["config.json"], encoding="utf-8")
        text = (target / "README.md").read_text(encoding="utf-8")
        (target / "README.md").write_text(text.partition("\n## Weights\n")[0], encoding="utf-8")
    arrays = {k: v.detach().contiguous().numpy() for k, v in network.stored().items()}  # type: ignore[operator]
    write_arrays(target / "model.safetensors", arrays, {"format": "pt"})
    kept = {k: v for k, v in model.manifest["model"].items() if k not in ("adapter", "weights")}
    return {**kept, "layout": "huggingface"}
