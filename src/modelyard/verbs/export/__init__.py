"""Writes a model in a form that runs elsewhere, and refuses if it answers the stored examples differently.

A form is a file beside this one: `section(model, folder)` writes a model folder's files and gives its section of the manifest, `make(model,
folder)` writes files for other programs and gives what is to be told of them. A model that a form cannot hold is refused with the reason;
none is written in another form instead.

modelyard export runs/churn-0001
modelyard export runs/churn-0001 export.format=docker
modelyard export runs/assistant-0001 export.format=gguf
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from modelyard import registry
from modelyard.errors import Unsupported
from modelyard.runtime.answers import Graph
from modelyard.runtime.model import Model
from modelyard.store import atomic, sealed
from modelyard.store import folder as store

__all__ = ["Config", "Exported", "export"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """`export`: the form."""

    SHORTHAND: ClassVar[str] = "format"

    format: Literal[
        "onnx", "openvino", "executorch", "litert", "torch-export", "triton", "docker", "kubernetes", "safetensors", "adapter", "gguf"
    ] = "onnx"
    """onnx: a folder with ONNX graphs that the core serves without torch; openvino and executorch: the same with those runtimes (extras of
    those names). torch-export: `.pt2` files without pickle. triton: a model repository with the ONNX graphs. docker: Dockerfile, compose
    file and all that the image holds; kubernetes: that, and the manifests that run it. Of language models: safetensors (whole weights in
    Hugging Face's layout), adapter (in PEFT's layout, without its base), gguf (one file for llama.cpp)."""
    image: str | None = None
    """Of docker and kubernetes: the image's name and tag; without it the model's name and version."""


@dataclass
class Exported:
    """Files that were written and how they compare."""

    folder: str
    files: list[str]
    parity: dict[str, Any]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """`files`, `parity`, and the folder."""
        return dict(vars(self))

    def __str__(self) -> str:
        p = self.parity
        if "rows" not in p:
            return f"{self.folder}: {self.bytes / 1e6:.2f} MB, " + ", ".join(f"{k} {v}" for k, v in p.items())
        return f"{self.folder}: {self.bytes / 1e6:.2f} MB, {p['rows']} examples replayed, largest difference {p['max_difference']:.2g}, {p['ties']} ties"


def export(folder: Path, form: str = "onnx", *, trust_code: bool = False, image: str | None = None, into: Path | None = None) -> Exported:
    """Make `exports/<form>` beside the model folder (or the folder `into`); it holds everything that predicting needs.

    Raises `ParityError` (and leaves nothing) where a stored example is answered differently, alone or in a batch.
    """
    model = Model.load(folder, trust_code=trust_code)
    sealed.forbid_copy(model.opened, folder)
    target = into or folder.parent / "exports" / form
    if into is None and target.exists():
        number = 2
        while (again := target.with_name(f"{form}-{number}")).exists():
            number += 1
        target = again
    module = registry.load("verbs/export", form)
    if hasattr(module, "make"):
        given = {"trust_code": trust_code, "image": image}
        with atomic.whole(target) as aside:
            made = module.make(model, aside, **{k: v for k, v in given.items() if k in getattr(module, "TAKES", ())})
        return _listed(model, target, form, made if "parity" in made else {"parity": made, "milliseconds": None})
    return _listed(model, target, form, written(model, target, form, trust_code))


def written(model: Model, target: Path, form: str, trust_code: bool = False) -> dict[str, Any]:
    """Makes the model folder of a form and replays it: `parity`, and `milliseconds` of one row. Leaves nothing where that fails."""
    store.write(target, *_form(model, form, trust_code))
    try:
        return prove(Model.load(target))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def light(model: Model, target: Path, trust_code: bool = False) -> dict[str, Any]:
    """The model folder that an image holds: ONNX, or what predicts with the core alone as it is. Raises `Unsupported` where there is none."""
    refusal: Unsupported | None = None
    if model.backend != "onnx":
        try:
            return written(model, target, "onnx", trust_code)
        except Unsupported as error:
            refusal = error
    if any(m.backend not in ("numpy", "onnx", "composite") for m in (model, *getattr(model, "parts", []))):
        assert refusal is not None
        raise Unsupported(f"an image holds what the core predicts with, without torch, and {refusal.message}", refusal.why)
    shutil.copytree(model.folder, target)
    return prove(Model.load(target))


def replayed(model: Model, graphs: Mapping[str, Graph], backend: str) -> Model:
    """The model with other graphs, its stored examples answered: what a form is that is no model folder. To be proven by `prove`."""
    from dataclasses import replace

    exported = replace(model, graphs=dict(graphs), backend=backend, parity=None)
    exported.parity = exported.replay()
    return exported


def _listed(model: Model, target: Path, form: str, found: dict[str, Any]) -> Exported:
    """Tells the list of exports of one that is whole."""
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    entry = {"format": form, "bytes": size, "parity": found["parity"], "milliseconds": found["milliseconds"], "core": model.version}
    listing = target.parent / "exports.json"
    before = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}
    atomic.replace_file(listing, json.dumps({**before, target.name: entry}, indent=1).encode("utf-8"))
    return Exported(str(target), sorted(str(p) for p in target.iterdir()), found["parity"], size)


def _form(model: Model, form: str, trust_code: bool) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """(manifest, what fills the folder) of a model, or of a composite whose parts are each exported; a part that has no graph but needs
    the core alone stays as it is."""
    from modelyard.runtime.composite import Composite

    module = registry.load("verbs/export", form)
    kept = {k: v for k, v in model.manifest.items() if k not in ("format", "files")}
    manifest = {**kept, "parents": [*kept.get("parents", []), {"version": model.version, "relation": f"export {form}"}]}
    numpy = model.manifest["model"]["backend"] == "numpy"
    leave = ("model.safetensors", "arrays.safetensors") if numpy else module.LEFT_OUT

    def fill(aside: Path) -> None:
        for name in model.manifest["files"]:
            if not name.startswith(leave) and not (isinstance(model, Composite) and name.startswith("parts/")):
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.folder / name, aside / name)
        if isinstance(model, Composite):
            (aside / "parts").mkdir()
            refused = [_part(part, aside / "parts" / part.folder.name, form, trust_code) for part in model.parts]
            if all(refused):  # a copy is no export
                raise refused[0]  # type: ignore[misc]
            return
        manifest["model"] = module.section(model, aside, trust_code=trust_code)

    return manifest, fill


def _part(part: Model, target: Path, form: str, trust_code: bool) -> Unsupported | None:
    """Exports a part, or leaves it as it is and says why."""
    try:
        store.write(target, *_form(part, form, trust_code))
    except Unsupported as error:
        shutil.copytree(part.folder, target)
        return error
    return None


def prove(exported: Model) -> dict[str, Any]:
    """Stored examples in a batch and row by row: a graph that froze the batch size must not pass. Raises `ParityError`."""
    rows = exported.examples
    whole = exported.predict(rows)
    from modelyard.runtime.answers import compare

    times = []
    if exported.by_row:
        for i in range(len(rows)):
            start = time.perf_counter()
            alone = exported.predict([rows[i]])
            times.append(time.perf_counter() - start)
            same = compare(_one(whole, i), alone, exported.pipeline.scales())
            if not same.ok:
                from modelyard.errors import ParityError, Problem

                detail = Problem(f"in the batch {whole.to_json()[i]!r}; alone {alone.to_json()[0]!r}"[:400], f"example {i}")
                raise ParityError("an example is answered differently alone than in a batch", [detail], same)
    return {"parity": exported.parity.to_json() if exported.parity else {}, "milliseconds": 1e3 * sorted(times)[len(times) // 2] if times else None}


def _one(answers: Any, i: int) -> Any:
    from dataclasses import replace

    errors = [replace(e, row=0) for e in answers.errors if e.row == i]
    return replace(answers, columns=answers.columns[i : i + 1], errors=errors, rows=1)


def run(project: Any, *, model: str | None = None, options: Any) -> Exported:
    """The verb."""
    from modelyard.store.run import model_folder

    config: Config = project.section("export")
    return export(model_folder(model, project.base / "runs"), config.format, trust_code=options.trust_code, image=config.image)
