"""`torch.export`'s `.pt2`, one file a graph, without a pickle: weights lie there as bytes, the sample inputs (which torch would pickle) are left out.

    program = torch.export.load("model.pt2")
    scores = program.module()(*tensors)             # in the order of names.json
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ArtefactError, Unsupported
from modelyard.runtime.answers import Graph
from modelyard.runtime.model import Model
from modelyard.verbs.export import onnx, prove, replayed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NAMES = "names.json"
TAKES = ("trust_code",)


def make(model: Model, target: Path, *, trust_code: bool = False) -> dict[str, Any]:
    """Writes the graphs and `names.json` (graph → file, inputs, outputs), loads them back and replays the examples."""
    modules = onnx.modules_of(model, "a .pt2 file", trust_code=trust_code)
    recorded = onnx.record(model)
    named: dict[str, dict[str, Any]] = {}
    for name, module in modules.items():
        program, inputs, outputs = onnx.traced(module, recorded[name], onnx.lengths(model, module))
        file = f"{'model' if name == 'main' else name}.pt2"
        write(program, target / file)
        named[name] = {"file": file, "inputs": inputs, "outputs": outputs}
    (target / NAMES).write_text(json.dumps(named, indent=1), encoding="utf-8")
    return prove(opened(model, target))


def opened(model: Model, folder: Path) -> Model:
    """The model with the graphs of `folder`, replayed. Raises `ArtefactError` where torch would unpickle anything."""
    named = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    return replayed(model, {name: graph(folder / said["file"], said["inputs"], said["outputs"]) for name, said in named.items()}, "torch-export")


def write(program: ExportedProgram, file: Path) -> None:
    """Saves without sample inputs, and looks into the file for what torch would unpickle. Raises `Unsupported` where it holds a pickle."""
    import torch

    program.example_inputs = None
    torch.export.save(program, file)
    if found := pickled(file):
        file.unlink()
        raise Unsupported(f"this torch ({torch.__version__}) pickles {', '.join(found)} into a .pt2, and Modelyard writes no pickle; use onnx", "use")


def pickled(file: Path) -> list[str]:
    """Entries of a `.pt2` that torch would unpickle: nested archives, and weights and constants that their lists call pickled."""
    found = []
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".pt") and archive.getinfo(name).file_size:
                found.append(name)
            elif name.endswith("_config.json"):
                config = json.loads(archive.read(name))["config"]
                found += [k for k, v in config.items() if v.get("use_pickle")]
    return found


def graph(file: Path, inputs: list[str], outputs: list[str]) -> Graph:
    """A graph over a `.pt2` file, which is looked through before it is loaded."""
    import torch

    if found := pickled(file):
        raise ArtefactError(f"{file} is not loaded: torch would unpickle {', '.join(found)}")
    module: Any = torch.export.load(file).module()

    def call(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(np.ascontiguousarray(given[name])) for name in inputs))
        return {name: tensor.numpy() for name, tensor in zip(outputs, found, strict=True)}

    return call
