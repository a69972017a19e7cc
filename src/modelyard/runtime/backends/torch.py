"""Graphs run by PyTorch: the network as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ArtefactError
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline
from modelyard.store.state import read_arrays

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"


def load(
    folder: Path, manifest: Mapping[str, Any], pipeline: Pipeline, arrays: dict[str, np.ndarray], options: Mapping[str, Any]
) -> dict[str, Graph]:
    """The network rebuilt from its config, with the stored weights."""
    network = rebuild(folder, manifest, pipeline, trust_code=bool(options.get("trust_code")))
    return graphs(network, str(options.get("device") or "cpu"))


def rebuild(folder: Path, manifest: Mapping[str, Any], pipeline: Pipeline, *, trust_code: bool = False) -> torch.nn.Module:
    """The `torch.nn.Module` of a model folder, in evaluation mode."""
    builder = _network()
    import torch

    shapes = (pipeline.parts(), pipeline.cardinalities(), pipeline.heads())
    network = builder.build(manifest["model"]["net"], *shapes, trust_code=trust_code)
    if "adapter" in manifest["model"]:
        from modelyard.nets import _adapters

        _adapters.on_base(network, folder, manifest["model"]["adapter"])
        return network.eval()  # type: ignore[no-any-return]
    if "weights" in manifest["model"]:  # packed in 8 or 4 bits
        from modelyard.nets import _packed

        _packed.restore(network, read_arrays(folder / _packed.FILE), manifest["model"]["weights"])
        return network.eval()  # type: ignore[no-any-return]
    weights = {name: torch.from_numpy(array.copy()) for name, array in read_arrays(folder / WEIGHTS).items()}
    try:
        network.restore(weights) if hasattr(network, "restore") else network.load_state_dict(weights, strict=True)  # type: ignore[operator]
    except RuntimeError as error:
        raise ArtefactError(f"the weights do not fit the network that {folder} describes: {str(error)[:300]}") from None
    return network.eval()  # type: ignore[no-any-return]


def _network() -> Any:
    """`nets/_network.py`, with the sentence for a missing torch."""
    from modelyard.errors import MissingExtra

    try:
        from modelyard.nets import _network
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    return _network


def graphs(network: torch.nn.Module, device: str = "cpu") -> dict[str, Graph]:
    """NumPy-in, NumPy-out callables of a network; one named `main` unless it defines `graphs()` itself.

    A network with a `decoder` writes: that graph, `decoder`, is a `runtime/decoder.Decoder` with a memory of its own.
    """
    import torch

    network.to(device).eval()
    modules: dict[str, torch.nn.Module] = network.graphs() if hasattr(network, "graphs") else {"main": network}  # type: ignore[operator]
    decoder = {"decoder": network.decoder(device)} if hasattr(network, "decoder") else {}  # type: ignore[operator]

    def graph_of(module: torch.nn.Module) -> Graph:
        def graph(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in inputs.items()}
                return {k: v.float().cpu().numpy() if v.is_floating_point() else v.cpu().numpy() for k, v in module(tensors).items()}

        return graph

    return {name: graph_of(module) for name, module in modules.items()} | decoder
