"""The matrix: every task with every verb, on small data. A cell works or refuses with its reason; working cells may only grow.

`pytest tests/test_verbs.py --refresh` writes `docs/matrix.md` and `tests/matrix_expected.json`.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelyard import registry
from modelyard.errors import GateFailed, ModelyardError, Unsupported
from modelyard.runtime.model import Model
from modelyard.testing import toy_data

HERE = Path(__file__).parent
EXPECTED = HERE / "matrix_expected.json"
MATRIX = HERE.parent / "docs" / "matrix.md"
VERBS = ("check", "prepare", "plan", "train", "tune", "predict", "evaluate", "threshold", "report", "export", "benchmark", "serve")
FORMS = ("torch-export", "litert", "triton", "docker", "safetensors", "gguf")
"""Columns behind them: forms of export that need no extra, as `benchmark` lists them. The Kubernetes form is docker's files with manifests."""

STAGES = {
    "prune": {"epochs": 1}, "low-rank": {}, "quantise": {}, "qat": {"epochs": 1}, "weight-only": {"form": "int4"}, "distil": {"to": {}, "epochs": 1},
}  # fmt: skip
"""Columns behind those: stages of `compress`, one after the other, and how they are asked for. Each one that runs has its examples replayed by what it made."""
STAGED = ("classification · table · trees", "classification · table · mlp", "text generation · causal", "anomaly detection · table · detectors")
"""Rows whose stages run every time; those of the others take five minutes and run with `--refresh`."""
STUDENTS = {"text": "bag", "image": "cnn"}
"""What is taught by input; tables teach an mlp."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # torch's exporter


def digits() -> dict[str, Any]:
    """Images: scikit-learn's digits as PNG files in memory."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    images = []
    for pixels in found.images[:300]:
        buffer = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return {"image": images, "digit": [f"d{t}" for t in found.target[:300]]}


def sentences(seed: int = 0) -> dict[str, Any]:
    """Texts whose topic is in their words."""
    random = np.random.default_rng(seed)
    words = {"food": ["rice", "soup", "bread", "apple"], "travel": ["train", "plane", "ticket", "hotel"]}
    topics = random.choice(list(words), 200)
    texts = [" ".join(random.choice([*words[t], "the", "a", "very"], 8)) for t in topics]
    return {"text": texts, "topic": topics.tolist()}


def tags(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(300, 3))
    labels = [[n for n, v in zip(("red", "big", "old"), row, strict=True) if v > 0] for row in x]
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "labels": labels}


def mixed(seed: int = 0) -> dict[str, Any]:
    found = sentences(seed)
    random = np.random.default_rng(seed)
    lift = np.array([t == "food" for t in found["topic"]])
    return {**found, "size": random.normal(size=200), "price": lift * 5.0 + random.normal(size=200)}


ROWS: dict[str, dict[str, Any]] = {
    "classification · table · trees": {"task": "classification"},
    "classification · table · linear": {"task": "classification", "model": "linear"},
    "classification · table · mlp": {"task": "classification", "model": "mlp", "train.epochs": 3},
    "classification · table · forest": {"task": "classification", "model": "forest"},
    "classification · table · tabm": {"task": "classification", "model": "tabm", "train.epochs": 3},
    "classification · label set": {"data": tags, "target": "labels", "task": "classification"},
    "classification · text · linear": {"data": sentences, "target": "topic", "data.inputs": {"text": "text"}},
    "classification · text · bag": {"data": sentences, "target": "topic", "data.inputs": {"text": "text"}, "model": "bag", "train.epochs": 2},
    "classification · text · transformer": {
        "data": sentences, "target": "topic", "data.inputs": {"text": "text"}, "model": "transformer", "train.epochs": 1,
    },
    "classification · text · bert": {
        "data": sentences, "target": "topic", "data.inputs": {"text": "text"}, "model": {"name": "bert", "width": 32, "feedforward": 64},
        "train.epochs": 1,
    },
    "classification · long texts in slices": {
        "data": sentences, "target": "topic", "data.inputs": {"text": "text"}, "data.frame": {"name": "slices", "length": 5, "overlap": 1},
        "model": "text-cnn", "train.epochs": 1,
    },
    "fill-mask · text · bert": {"task": "fill-mask", "model": {"name": "bert", "width": 32, "feedforward": 64}, "train.epochs": 1},
    "text embedding · pairs · bert": {"task": "text-embedding", "model": {"name": "bert", "width": 32, "feedforward": 64}, "train.epochs": 1},
    "classification · image · cnn": {"data": digits, "target": "digit", "train.epochs": 2},
    "regression · table · trees": {"task": "regression"},
    "regression · table · mlp": {"task": "regression", "model": "mlp", "train.epochs": 3},
    "regression · table · neighbours": {"task": "regression", "model": "neighbours"},
    "anomaly detection · table · detectors": {"task": "anomaly-detection"},
    "anomaly detection · table · local outlier": {"task": "anomaly-detection", "model": "local-outlier"},
    "clustering · table · k-means": {"task": "clustering"},
    "clustering · table · hierarchical": {"task": "clustering", "model": "hierarchical"},
    "clustering · table · dbscan": {"task": "clustering", "model": "dbscan"},
    "clustering · table · hdbscan": {"task": "clustering", "model": "hdbscan"},
    "clustering · table · grid": {"task": "clustering", "model": "grid"},
    "clustering · table · gaussian-mixture": {"task": "clustering", "model": "gaussian-mixture"},
    "two outputs · text and table · nets": {
        "data": mixed, "data.inputs": {"text": "text", "size": "number"}, "data.outputs": {"topic": "category", "price": "number"}, "train.epochs": 2,
    },
    "classification · composite of trees and mlp": {
        "task": "classification", "model": {"parts": ["trees", "mlp"], "combine": "mean"}, "train.epochs": 2,
    },
    "classification · search among models": {
        "task": "classification", "model": {"name": "auto", "candidates": ["linear", {"name": "trees", "trees": 30}]}, "train.preset": "balanced",
    },
    "regression · search among models, distilled": {
        "task": "regression", "model": {"name": "auto", "candidates": ["linear", {"name": "forest", "trees": 20}]}, "train.preset": "balanced",
        "train.distil": "linear",
    },
    "tagging · words · bilstm": {"task": "token-classification", "train.epochs": 3},
    "translation · text · seq2seq": {"task": "translation", "model": {"name": "seq2seq", "width": 32, "layers": 1}, "train.epochs": 4},
    "summarisation · text · seq2seq": {"task": "summarisation", "model": {"name": "seq2seq", "width": 32, "layers": 1}, "train.epochs": 4},
    "text generation · causal": {
        "task": "text-generation", "model": {"name": "causal", "width": 32, "layers": 1, "heads": 2, "tokenizer": "bytes", "vocabulary": 300},
        "train.epochs": 2,
    },
    "tagging (probe)": {"task": "modelyard-probes/tagging"},
    "generation (probe)": {"task": "modelyard-probes/character-generation"},
    "control (probe)": {"task": "modelyard-probes/control"},
    "forecasting (probe)": {"task": "modelyard-probes/forecasting"},
}  # fmt: skip


SEARCHED: dict[str | None, dict[str, Any]] = {
    None: {"train.lr": "log 1e-3..1e-2"},
    "trees": {"model": [{"name": "trees", "leaves": 7}, {"name": "trees", "leaves": 15}]},
    "linear": {"model": [{"name": "linear", "c": 0.1}, {"name": "linear", "c": 1.0}]},
    "forest": {"model": [{"name": "forest", "trees": 20}, {"name": "forest", "trees": 40}]},
    "neighbours": {"model": [{"name": "neighbours", "k": 3}, {"name": "neighbours", "k": 9}]},
    "detectors": {"model": [{"name": "detectors"}, {"name": "robust-z"}]},
    "local-outlier": {"model": [{"name": "local-outlier", "k": 5}, {"name": "local-outlier", "k": 20}]},
    "k-means": {"model": [{"name": "k-means", "groups": 2}, {"name": "k-means", "groups": 3}]},
    "hierarchical": {"model": [{"name": "hierarchical", "groups": 2}, {"name": "hierarchical", "groups": 3}]},
    "dbscan": {"model": [{"name": "dbscan", "min_rows": 8}, {"name": "dbscan", "min_rows": 12}]},
    "hdbscan": {"model": [{"name": "hdbscan", "min_group": 8}, {"name": "hdbscan", "min_group": 12}]},
    "grid": {"model": [{"name": "grid", "cells": 8}, {"name": "grid", "cells": 10}]},
    "gaussian-mixture": {"model": [{"name": "gaussian-mixture", "groups": 2}, {"name": "gaussian-mixture", "groups": 3}]},
}
"""What the cell of `tune` searches, by estimator; None for nets."""


def project_of(row: dict[str, Any], folder: Path) -> Any:
    """The project of a row: its own data, or the toy of its task."""
    from modelyard.project import load_project

    row = dict(row)
    maker = row.pop("data", None)
    (folder / "modelyard.yaml").write_text("version: 1\nname: cell\n", encoding="utf-8")
    if maker is not None:
        values = {"data.path": pl.DataFrame({k: pl.Series(k, v) for k, v in maker().items()}), **row}
        if "target" in values:
            values["data.target"] = values.pop("target")
        return load_project(folder, values={**values, "train.seed": 1})
    toy = registry.load("tasks", row["task"]).TASK.toy(240, 0)
    data = toy_data(toy)
    project = load_project(folder, values={**row, "train.seed": 1, **({"data.env": data.env} if data.env else {"data.path": data.path})})
    object.__setattr__(project, "data", data)
    return project


def cells(row: dict[str, Any], folder: Path, staged: bool = True) -> dict[str, str]:
    """`ok`, or `never`/`not yet`/`use`/`needs` with the reason, for every verb."""
    from modelyard.options import Options

    project = project_of(row, folder)
    state: dict[str, Any] = {}

    def verb(name: str, model: Any = None, **keys: Any) -> Any:
        options = Options(json=True, quiet=True, trust_code=True)
        return registry.load("verbs", name).run(project, model=model, options=options)

    def prepare() -> None:
        """Copies are set aside; what was written is data for the same task."""
        from modelyard.tasks._binding import bind
        from modelyard.verbs.prepare import Config

        project.sections["prepare"] = Config(steps=["deduplicate"])
        made = verb("prepare")
        data = dataclasses.replace(project.data, path=made.data, env=None)
        assert sum(bind(data, project.task, project.base, seed=1).rows.values()) > 0

    def train() -> None:
        state["run"] = str(verb("train").run)

    def tune() -> None:
        from modelyard.verbs.tune import Config

        manifest = json.loads((Path(state["run"]) / "model" / "manifest.json").read_text(encoding="utf-8"))
        project.sections["tune"] = Config(search=SEARCHED[manifest["model"].get("estimator") if not project.data.env else None], trials=2)
        found = verb("tune")
        assert found.trials == 2 and not found.failed and Model.load(found.model, trust_code=True).replay().ok

    def predict() -> None:
        model = Model.load(Path(state["run"]) / "model")
        answers = model.predict(model.examples)
        assert answers.failed == 0 and len(answers) > 0

    def threshold() -> None:
        from modelyard.tasks._binding import bind
        from modelyard.verbs.evaluate._thresholds import tune

        if project.data.env:
            raise Unsupported("an environment has no validation rows", "never")
        folder = Path(state["run"]) / "model"
        model = Model.load(folder)
        bound = bind(project.data, project.task, project.base, like=model.pipeline, tasks=model.tasks, seed=1)
        child = tune(model, bound, "f1", folder)
        assert Model.load(child).replay().ok

    def export() -> None:
        exported = verb("export", state["run"])
        assert exported.parity["max_difference"] <= 1e-4
        state["export"] = exported.folder

    def compressed(name: str) -> None:
        """What ran was replayed when it was loaded, and judged; whether it is smaller is no matter here."""
        from modelyard.verbs.compress import Config

        if "stages" not in state:
            inputs = Model.load(Path(state["run"]) / "model", trust_code=True).pipeline.inputs
            student = next((STUDENTS[c.kind] for c in inputs if c.kind in STUDENTS), "mlp")
            asked = [{n: {**s, "to": {"name": student}} if n == "distil" else s} for n, s in STAGES.items()]
            project.sections["compress"] = Config(stages=asked, favour="size", max_loss=1.0)
            state["stages"] = None
            found = verb("compress", state["run"])
            assert Model.load(found.model, trust_code=True).parity.ok  # type: ignore[union-attr]
            state["stages"] = {s["stage"]: s for s in found.stages}
        elif state["stages"] is None:
            raise Unsupported(state["refused"].message, state["refused"].why)
        stage = state["stages"][name]
        if "why" in stage:
            raise Unsupported(stage["reason"], stage["why"])
        assert stage["bytes"] > 0 and stage["milliseconds_1"] > 0

    def stage(name: str) -> None:
        try:
            compressed(name)
        except Unsupported as refusal:
            state["refused"] = refusal
            raise

    def compared() -> None:
        """Every form answers the rows as the model does."""
        from modelyard.verbs.benchmark import Config

        project.sections["benchmark"] = Config(forms=["onnx", *FORMS], rows=40, batch=2, seconds=0.1)
        found = verb("benchmark", state["run"])
        state["forms"] = {f["form"]: f for f in found.forms}
        measured = [f for f in found.forms if "refused" not in f]
        assert measured[0]["form"] == "model" and all(f["differing"] == 0 and f["bytes"] and f["milliseconds"]["median"] > 0 for f in measured)

    def form(name: str) -> None:
        """Replays the stored examples, or refuses; `files` of other programs were proven when they were written."""
        from modelyard.verbs.export import export

        if "forms" not in state:
            made = export(Path(state["run"]) / "model", name, trust_code=True)
            assert made.parity["rows"] > 0 and made.files
        elif (found := state["forms"][name]).get("why", "files") != "files":
            raise Unsupported(found["refused"], found["why"])

    def serve() -> None:
        from modelyard.verbs.serve import serve as serving

        folder = state.get("export", str(Path(state["run"]) / "model"))
        rows = Model.load(folder).examples[:30]
        with serving(folder) as server:
            body = json.dumps({"instances": rows}).encode()
            with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/models/cell:predict", body)) as response:
                answers = json.load(response)["predictions"]
        expected = Model.load(folder).predict(rows)
        assert len(answers) == len(expected) and not any(isinstance(a, dict) and isinstance(a.get("error"), dict) for a in answers)

    steps: dict[str, Callable[[], Any]] = {
        "check": lambda: verb("check"), "prepare": prepare, "plan": lambda: verb("plan"), "train": train, "tune": tune, "predict": predict,
        "evaluate": lambda: verb("evaluate", state["run"]), "threshold": threshold, "report": lambda: verb("report", state["run"]),
        "export": export, "benchmark": compared, "serve": serve, **{name: partial(form, name) for name in FORMS},
        **{name: partial(stage, name) for name in STAGES},
    }  # fmt: skip
    found = {}
    for name in (*VERBS, *FORMS, *(STAGES if staged else ())):
        try:
            steps[name]()
            found[name] = "ok"
        except Unsupported as refusal:
            found[name] = f"{refusal.why}: {refusal.message}"
        except GateFailed:  # it ran and found something to mend, which toys with few different rows deserve
            found[name] = "ok"
        except ModelyardError as error:
            raise AssertionError(f"{name}: {error}") from error
    return found


@pytest.mark.parametrize("name", list(ROWS))
def test_matrix(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    refresh = request.config.getoption("--refresh")
    found = cells(ROWS[name], tmp_path, bool(refresh or name in STAGED))
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.is_file() else {}
    if refresh:
        expected[name] = found
        EXPECTED.write_text(
            json.dumps({k: expected[k] for k in ROWS if k in expected}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        MATRIX.write_text(page({k: expected[k] for k in ROWS if k in expected}), encoding="utf-8")
        return
    known = {verb: what for verb, what in expected.get(name, {}).items() if verb in found or verb not in STAGES}
    lost = [verb for verb, what in known.items() if what == "ok" and found[verb] != "ok"]
    assert not lost, f"{name}: cells that worked now refuse: {[(v, found[v]) for v in lost]}"
    assert found == known, "the matrix changed; look at it and refresh with: make matrix"


def test_page_is_the_matrix() -> None:
    assert MATRIX.read_text(encoding="utf-8") == page(json.loads(EXPECTED.read_text(encoding="utf-8")))


def page(found: dict[str, dict[str, str]]) -> str:
    columns = (*VERBS, *FORMS, *STAGES)
    lines = ["# Tasks × verbs, forms of export and stages of compression", ""]
    lines += ["Made from what ran (`make matrix`): ✓ works, a number refuses for the reason below.", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    reasons: list[str] = []
    for name, row in found.items():
        marks = []
        for verb in columns:
            if row.get(verb, "ok") == "ok":  # a verb that is new has no cell before its row was run
                marks.append("✓" if verb in row else "")
                continue
            if row[verb] not in reasons:
                reasons.append(row[verb])
            marks.append(str(reasons.index(row[verb]) + 1))
        lines.append(f"| {name} | " + " | ".join(marks) + " |")
    working = sum(cell == "ok" for row in found.values() for cell in row.values())
    lines += [
        "",
        f"{working} of {sum(len(r) for r in found.values())} cells work.",
        "",
        *(f"{i}. {r}" for i, r in enumerate(reasons, 1)),
        "",
    ]
    return "\n".join(lines)


def test_image_rows_are_base64_in_json() -> None:
    """What a client sends for an image is what `to_json` gives."""
    kind = registry.load("kinds", "image").KIND
    value = digits()["image"][0]
    assert kind.to_json(pl.Series([value], dtype=pl.Binary)) in (
        [base64.b64encode(value).decode()],
        [f"data:image/png;base64,{base64.b64encode(value).decode()}"],
    )
