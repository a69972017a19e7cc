"""Every example, as a user runs it: trains, beats the trivial baseline, replays, exports the same answers, leaves nothing behind."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelyard import cli, project
from modelyard.runtime.model import Model

pytest.importorskip("torch", reason="the examples train, which needs the extra 'train'")
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

SMALL: dict[str, list[str]] = {
    "churn": ["model.trees=200"],
    "digits": ["train.epochs=8", "data.limit=700"],
    "entities": ["data.limit=500", "train.epochs=8", "train.batch=8"],
    "fusion": ["train.epochs=4", "data.limit=800"],
    "houses": ["model.trees=200"],
    "intents": ["data.limit=1000"],
    "own-module": ["train.epochs=20"],
    "poems": ["data.limit=300", "train.epochs=2", "model.width=48", "model.layers=2"],
    "requests": ["data.limit=800", "model.c=1"],
    "segments": [],
    "shakespeare": ["train.epochs=1", "train.batch=64", "model.width=48", "model.context=64", "model.layers=2"],
    "spam": ["data.limit=1000"],
}
"""What makes each of them a matter of seconds; without these the project files run as they are."""

ABOVE: dict[str, dict[str, float]] = {
    "churn": {"roc_auc": 0.75},
    "digits": {"accuracy": 0.7},
    "entities": {"tag_accuracy": 0.8},
    "fusion": {"topic.accuracy": 0.75, "charge.r2": 0.5},
    "houses": {"r2": 0.5},
    "intents": {"accuracy": 0.85},
    "own-module": {"accuracy": 0.85},
    "poems": {"token_accuracy": 0.11},
    "requests": {"micro_f1": 0.6},
    "segments": {"silhouette": 0.15},
    "shakespeare": {"token_accuracy": 0.25},
    "spam": {"f1": 0.75},
}
"""Floors well below what was measured and well above what guessing gives, so that only a broken example falls under one."""

PICK = {"churn": "model=trees", "houses": "model=trees", "requests": "model=linear"}
"""Options of a model need its name (a scalar `model: auto` has none)."""


APART = {"assistant"}
"""Those with a test of their own (several project files, and no ONNX form)."""


def names() -> list[str]:
    return sorted(p.parent.name for p in EXAMPLES.glob("*/modelyard.yaml") if p.parent.name not in APART)


def command(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    capfd.readouterr()
    code = cli.main([*args, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, (args, out[-2000:], err[-2000:])
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def value(metrics: dict[str, Any], name: str) -> float:
    entry: Any = metrics
    for part in name.split("."):
        entry = entry[part]
    return float(entry["value"])


def outputs_depend_on_their_inputs(model: Model) -> None:
    """Shuffling an input at prediction time hurts the output that is made of it, and leaves the other nearly alone."""
    rows = pl.read_parquet("rows.parquet")[-400:]

    def scores(frame: pl.DataFrame) -> tuple[float, float]:
        answers = model.predict(frame.drop("topic", "charge"))
        right = float((answers["topic"] == frame["topic"]).mean())  # type: ignore[arg-type]
        error = (answers["charge"] - frame["charge"]).to_numpy()
        return right, 1 - float((error**2).mean() / np.var(frame["charge"].to_numpy()))

    accuracy, r2 = scores(rows)
    order = np.random.default_rng(0).permutation(rows.height)
    for column, output in (("photo", 0), ("message", 0), ("total", 1), ("internet", 1)):
        hurt = scores(rows.with_columns(rows[column][order]))
        assert hurt[output] < (accuracy, r2)[output] - 0.02, column
        assert hurt[1 - output] > (accuracy, r2)[1 - output] - 0.15, column


@pytest.mark.parametrize("name", names())
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    before = {p for p in EXAMPLES.rglob("*") if "__pycache__" not in p.parts}
    monkeypatch.chdir(tmp_path)
    command(capfd, "init", name)
    monkeypatch.chdir(tmp_path / name)

    settings = [PICK[name]] if name in PICK else []
    trained = command(capfd, "train", *settings, *SMALL[name])
    # the same rows: what `evaluate` reads is the project's data, and a limit is part of it
    limit = [key for key in SMALL[name] if key.startswith("data.")]
    judged = command(capfd, "evaluate", trained["run"], "--trust-code", *limit)
    for metric, floor in ABOVE[name].items():
        assert value(trained["metrics"]["test"], metric) > floor
        assert math.isclose(value(judged["metrics"]["test"], metric), value(trained["metrics"]["test"], metric), abs_tol=1e-9)
        baseline = judged["baselines"].get("test") or {}
        for part in metric.split("."):
            baseline = baseline.get(part) or {}
        if baseline:
            assert value(judged["metrics"]["test"], metric) > baseline["value"]

    model = Model.load(trained["model"], trust_code=True)
    writes = "causal" in (EXAMPLES / name / "modelyard.yaml").read_text(encoding="utf-8")
    assert model.replay().ok and len(model.examples) >= (8 if writes else 20)
    if name == "fusion":
        outputs_depend_on_their_inputs(model)
    exported = command(capfd, "export", trained["run"], "--trust-code")
    assert exported["parity"]["max_difference"] <= 1e-5 and exported["parity"]["rows"] == len(model.examples)
    onnx = Model.load(Path(trained["run"]) / "exports" / ("safetensors" if writes else "onnx"))
    assert writes or onnx.backend == "onnx"
    assert onnx.replay().ok
    rows = model.examples[:5]
    assert [set(a) for a in onnx.predict(rows).to_json()] == [set(a) for a in model.predict(rows).to_json()]
    assert (Path(trained["run"]) / "report.html").stat().st_size < 5e6

    after = {p for p in EXAMPLES.rglob("*") if "__pycache__" not in p.parts}
    assert after == before, "an example wrote into the repository"


def test_every_example_is_small_and_says_where_its_data_is_from() -> None:
    assert set(names()) == set(SMALL) == set(ABOVE)
    for name in names():
        folder = EXAMPLES / name
        lines = [x for x in (folder / "modelyard.yaml").read_text(encoding="utf-8").splitlines() if x.strip()]
        assert 8 <= len(lines) <= 22 and lines[0].startswith("# ")
        about = (folder / "DATA.md").read_text(encoding="utf-8")
        assert re.search(r"Apache-2\.0|CC BY|BSD-3|MIT|public domain", about)
        loaded = project.load_project(folder)
        data = EXAMPLES / name / loaded.data.path
        assert data.is_file() and data.name in about and data.stat().st_size < 500_000
