"""ONNX graphs with named inputs and outputs and a dynamic batch (and length) axis, run by ONNX Runtime with the core alone."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard import registry
from modelyard.errors import ArtefactError, MissingExtra, Unsupported
from modelyard.runtime.backends.onnx import AGAIN
from modelyard.runtime.model import Model
from modelyard.store.state import read_arrays, restore

if TYPE_CHECKING:
    import torch

OPSET = 18
PLACES = "places"
"""The part that asks about some positions of a text: its second axis has a length of its own."""


LEFT_OUT = ("model.safetensors", "adapter/")
"""Files (or folders) of the model that graphs take the place of."""


def section(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the graphs into `target`; returns the manifest's section of the model."""
    found = {**model.manifest["model"], "backend": "onnx", "onnx": write(model, target, trust_code=trust_code)}
    return {k: v for k, v in found.items() if k not in ("state", "adapter")}


def write(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, str]:
    """Write every graph of `model` into `target`; returns file names by graph.

    Raises `Unsupported` where an estimator has no graph, `ArtefactError` where torch cannot express the network in ONNX.
    """
    _no_decoder(model, "ONNX")
    recorded = record(model)
    if model.manifest["model"]["backend"] == "numpy":
        return _estimator(model, target, recorded["main"])
    return _network(model, target, recorded, trust_code)


def record(model: Model) -> dict[str, dict[str, np.ndarray]]:
    """The inputs that each graph sees when the stored examples are predicted: what an exporter traces with."""
    seen: dict[str, dict[str, np.ndarray]] = {}

    def spy(name: str) -> Any:
        graph = model.graphs[name]

        def call(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            kept = seen.get(name)
            if kept is None or sum(a.size for a in inputs.values()) > sum(a.size for a in kept.values()):
                seen[name] = inputs
            return graph(inputs)

        return call

    watched = Model(model.folder, model.manifest, model.pipeline, {n: spy(n) for n in model.graphs}, model.backend, model.version)
    watched.predict(model.examples)
    if missing := model.graphs.keys() - seen.keys():
        raise ArtefactError(f"the stored examples never reach the graph(s) {', '.join(sorted(missing))}")
    return seen


def _estimator(model: Model, target: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, str]:
    name = model.manifest["model"]["estimator"]
    module = registry.load("estimators", name)
    arrays: dict[str, np.ndarray] = {}
    for file in ("states.safetensors", "arrays.safetensors"):
        if (model.folder / file).is_file():
            arrays |= read_arrays(model.folder / file)
    state = restore(module.State, model.manifest["model"]["state"], arrays)
    flat = {f"{i}.{p}": part for i, parts in model.pipeline.parts().items() for p, part in parts.items()}
    try:
        proto = module.graph(state, flat)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "onnx", "train") from None
    if proto is None:
        raise Unsupported(f"the estimator {name} has no ONNX graph; serve it with the NumPy backend, which needs the core only", "use")
    (target / "model.onnx").write_bytes(proto.SerializeToString())
    return {"main": "model.onnx"}


def _no_decoder(model: Model, form: str) -> None:
    if "decoder" in model.graphs:
        reason = "it keeps the keys and values of many texts at once, which a graph would copy at every token"
        raise Unsupported(f"a causal language model is not exported to {form}: {reason}; use export.format: gguf or safetensors", "never")


def modules_of(model: Model, form: str, *, trust_code: bool = False) -> dict[str, torch.nn.Module]:
    """The torch modules of a model by graph. Raises `Unsupported` where it has none: estimators, models of models, language models."""
    _no_decoder(model, form)
    backend = model.manifest["model"]["backend"]
    if backend != "torch":
        what = {"numpy": "an estimator, which computes in NumPy", "composite": "a model made of models; export its parts"}.get(backend, "an export")
        raise Unsupported(f"{form} is made from a torch network, and {model.name} is {what}; export.format: onnx takes it", "use")
    from modelyard.runtime.backends.torch import rebuild

    network = rebuild(model.folder, model.manifest, model.pipeline, trust_code=trust_code)
    return network.graphs() if hasattr(network, "graphs") else {"main": network}  # type: ignore[operator, no-any-return]


def lengths(model: Model, module: torch.nn.Module) -> set[str]:
    """Inputs of a graph whose second axis has a length of its own."""
    return _ragged(model) | getattr(module, "ragged", frozenset())


def _network(model: Model, target: Path, recorded: Mapping[str, Mapping[str, np.ndarray]], trust_code: bool) -> dict[str, str]:
    files = {}
    for name, module in modules_of(model, "ONNX", trust_code=trust_code).items():
        files[name] = "model.onnx" if name == "main" else f"{name}.onnx"
        (target / files[name]).write_bytes(export_module(module, recorded[name], lengths(model, module)))
    return files


def _ragged(model: Model) -> set[str]:
    parts = model.pipeline.parts()
    return {f"{i}.{p}" for i, found in parts.items() for p, part in found.items() if part.ragged} | {f"{i}.{PLACES}" for i in parts}


@dataclass
class Trace:
    """What an exporter needs of a module that maps a dict of tensors to another."""

    module: torch.nn.Module
    """The same with positional inputs and outputs."""
    tensors: tuple[torch.Tensor, ...]
    inputs: list[str]
    outputs: list[str]
    shapes: dict[str, Any]
    """Dynamic axes, as `torch.export` wants them: the batch, and the lengths of texts."""


def trace(module: torch.nn.Module, inputs: Mapping[str, np.ndarray], ragged: set[str], most: int = 2**20) -> Trace:
    """`inputs` are an example of what the module sees; `most` bounds the dynamic axes."""
    import torch

    names = sorted(inputs)
    # the exporter takes a size of 0 or 1 as a constant: trace with at least two examples and two positions
    tensors = tuple(torch.from_numpy(_at_least_two(inputs[n], n in ragged)) for n in names)
    with torch.inference_mode():
        produced = sorted(module(dict(zip(names, tensors, strict=True))))

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = self.inner(dict(zip(names, values, strict=True)))
            return tuple(out[k] for k in produced)

    batch = torch.export.Dim("batch", min=1, max=most)
    length: dict[str, Any] = {}
    shapes = []
    for n in names:
        axes: dict[int, Any] = {0: batch}
        if n in ragged:
            column = n if n.endswith(f".{PLACES}") else n.rsplit(".", 1)[0]
            axes[1] = length.setdefault(column, torch.export.Dim(f"length_{len(length)}", min=1, max=most))
        shapes.append(axes)
    return Trace(Positional().eval(), tensors, names, produced, {"values": tuple(shapes)})


def traced(module: torch.nn.Module, inputs: Mapping[str, np.ndarray], ragged: set[str]) -> tuple[Any, list[str], list[str]]:
    """(`torch.export.ExportedProgram`, names of its inputs, of its outputs)."""
    import torch

    found = trace(module, inputs, ragged)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(found.module, found.tensors, dynamic_shapes=found.shapes)
    except Exception as error:  # torch raises many classes, all meaning: this module cannot be traced
        reason = str(error).strip().partition("\n")[0][:300]
        raise Unsupported(f"torch.export cannot trace the network: {reason}; export.format: onnx may take it", "never") from error
    return program, found.inputs, found.outputs


def export_module(module: torch.nn.Module, inputs: Mapping[str, np.ndarray], ragged: set[str]) -> bytes:
    """ONNX bytes of a module that maps a dict of tensors to a dict of tensors, traced with `inputs` (at least 2 examples)."""
    import torch

    found = trace(module, inputs, ragged)
    outputs = [f"{p}{AGAIN}" if p in found.inputs else p for p in found.outputs]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                found.module, found.tensors, None, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=found.inputs, output_names=outputs, dynamic_shapes=found.shapes, optimize=True,
            )  # fmt: skip
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "onnxscript", "train") from None
    except Exception as error:  # the exporter raises many classes, all meaning: this module cannot be expressed
        raise ArtefactError(f"torch cannot export the network to ONNX: {str(error)[:500]}") from error
    assert program is not None
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without warnings in the log: the exporter tells of four operators of a package that is not there, each time."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _at_least_two(array: np.ndarray, ragged: bool) -> np.ndarray:
    if len(array) < 2:
        array = np.concatenate([array, array])
    if ragged and array.shape[1] < 2:
        array = np.concatenate([array, array], axis=1)
    return np.ascontiguousarray(array)
