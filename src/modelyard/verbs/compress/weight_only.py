"""Matrices of a language model in 8 or 4 bits (`nets/_packed.py`), its activations whole: a smaller folder with the same program.

Dettmers et al. 2023, QLoRA (arXiv:2305.14314) for nf4; int8 and int4 are GGUF's Q8_0 and Q4_0, value for value. Round to nearest: no row is looked at, so
that nothing is fitted to a few texts; the judgement of the stage says what that costs in perplexity. The folder holds `quantised.safetensors` in place of
`model.safetensors`, and its config.json says so: what loads Hugging Face's layout finds no weights there and stops. `export.format: safetensors` writes
them whole again, and `gguf` for llama.cpp.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.store import folder as store
from modelyard.store.state import write_arrays

if TYPE_CHECKING:
    import torch

    from modelyard.verbs.compress._work import Work


@dataclass(frozen=True, kw_only=True)
class Config:
    """`weight_only`."""

    SHORTHAND: ClassVar[str] = "form"

    form: Literal["int8", "int4", "nf4"] = "int8"
    """Of the layers' matrices: 8.5, 4.5 and 4.1 bits a weight. int4 also answers faster where matrices are large; int8 and nf4 are whole in memory."""
    embeddings: Literal["int8", "float32"] = "int8"
    """Of the table of embeddings and the last matrix, which 4 bits would harm most."""


def apply(work: Work, model: Model, config: Config, target: Path) -> Path:
    """The folder of the model with packed weights."""
    if "decoder" not in model.graphs:
        raise Unsupported("weights alone are made small in language models, whose matrices are read for every token; use quantise", "use")
    section = model.manifest["model"]
    if section["backend"] != "torch" or "weights" in section:
        raise Unsupported("its weights are packed already; begin from the model that it came from", "use")
    if "adapter" in section:
        raise Unsupported("its adapter lies beside a base; merge it first with export.format: safetensors, and compress that", "use")
    from modelyard.runtime.backends.torch import rebuild

    return packed(model, rebuild(model.folder, model.manifest, model.pipeline), config, target)


def packed(model: Model, network: torch.nn.Module, config: Config, target: Path) -> Path:
    """Writes the folder; the stored examples are answered by what was packed, read back."""
    from modelyard.nets import _packed
    from modelyard.runtime.backends.torch import graphs, rebuild
    from modelyard.verbs.train.card import card
    from modelyard.verbs.train.save import answered, write_examples

    arrays: dict[str, np.ndarray] = {}
    named = matrices(network, config)
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight" and getattr(network.config, "tied", False):
            continue
        array = tensor.detach().float().numpy()
        parts = _packed.pack(array, named[name]) if name in named else {"": array}
        arrays |= {f"{name}.{p}" if p else name: np.ascontiguousarray(a) for p, a in parts.items()}
    told = {"form": config.form, "embeddings": config.embeddings, "matrices": named}
    section = {**{k: v for k, v in model.manifest["model"].items() if k != "layout"}, "weights": told}
    kept = {k: v for k, v in model.manifest.items() if k not in ("format", "files")}
    parents = [*kept.get("parents", []), {"version": model.version, "relation": f"weight-only {config.form}"}]
    manifest = {**kept, "model": section, "parents": parents}
    stored = json.loads((model.folder / "examples.json").read_text(encoding="utf-8"))

    def fill(aside: Path) -> None:
        for name in model.manifest["files"]:
            if name not in ("model.safetensors", "examples.json", "README.md") and not name.startswith("adapter/"):
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.folder / name, aside / name)
        write_arrays(aside / _packed.FILE, arrays)
        if (aside / "config.json").is_file():
            settings = json.loads((aside / "config.json").read_text(encoding="utf-8"))
            settings["quantization_config"] = {"quant_method": f"modelyard-{config.form}", "weights": _packed.FILE, "read_with": READ}
            (aside / "config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        read = rebuild(aside, manifest, model.pipeline)
        fitted = replace(model, folder=target, manifest=manifest, graphs=graphs(read), version="unsaved", parity=None)
        write_examples(aside, answered(fitted, stored["rows"], stored["params"]))
        text = card(manifest, fitted.signature) + f"\n## Weights\n`{_packed.FILE}`: matrices in {config.form}, embeddings in {config.embeddings}. {READ}\n"
        (aside / "README.md").write_text(text, encoding="utf-8")

    return store.write(target, manifest, fill)


READ = "Modelyard alone reads this form; for others: modelyard export FOLDER export.format=safetensors (or gguf)."


def matrices(network: torch.nn.Module, config: Config) -> dict[str, str]:
    """Form of each matrix that is packed, by the name of its parameter; a tied last matrix is the table of embeddings."""
    import torch

    found: dict[str, str] = {f"{n}.weight": config.form for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    if config.embeddings != "float32":
        found["model.embed_tokens.weight"] = config.embeddings
        if not getattr(network.config, "tied", False):
            found["lm_head.weight"] = config.embeddings
    return found
