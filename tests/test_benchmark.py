"""Forms of a model side by side: what is measured is what runs, what cannot be had is listed, what answers otherwise is seen."""

from __future__ import annotations

import json
import re
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch", reason="nets need the extra 'train'")

import modelyard
from modelyard.errors import ConfigError, Unsupported
from modelyard.runtime.model import Model
from modelyard.verbs.benchmark._compare import taken

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # torch's exporter
FAST: dict[str, Any] = {"benchmark.seconds": 0.1, "benchmark.batch": 16, "quiet": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("benchmark")
    x = np.random.default_rng(0).normal(size=(400, 3))
    frame = pl.DataFrame({**{f"n{i}": x[:, i] for i in range(3)}, "y": np.where(x[:, 0] + 0.5 * np.random.default_rng(1).normal(size=400) > 0, "yes", "no")})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        frame.write_csv("rows.csv")
        for name, model in (("net", {"name": "mlp", "hidden": [16], "numbers": "plain"}), ("line", "linear")):
            modelyard.train(data="rows.csv", target="y", model=model, name=name, quiet=True, **({"train.epochs": 3} if name == "net" else {}))
        modelyard.train(data=frame.drop("n2"), target="y", model="linear", name="less", quiet=True)
        modelyard.train(data=frame.rename({"y": "z"}), target="z", model="linear", name="other", quiet=True)
    return folder


def test_every_form_is_measured_or_has_its_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = modelyard.benchmark("runs/net-0001", **FAST)
    by_form = {f["form"]: f for f in found.forms}
    assert next(iter(by_form)) == "model" and {"onnx", "torch-export", "litert", "triton", "docker", "gguf"} <= set(by_form)
    assert by_form["gguf"]["why"] == "never" and by_form["litert"]["why"] == "not yet" and by_form["docker"]["why"] == "files"
    test = json.loads(Path("runs/net-0001/metrics.json").read_text(encoding="utf-8"))["test"][found.metric]
    for form in ("model", "onnx", "torch-export"):
        f = by_form[form]
        assert f["value"]["value"] == pytest.approx(test["value"], abs=1e-9) and f["differing"] == 0 and f["largest"] <= 1e-5
        for times in (f["milliseconds"], f["rows_per_second"]):
            assert 0 < times["low"] <= times["median"] <= times["high"]
    assert by_form["onnx"]["backend"] == "onnx" and by_form["onnx"]["bytes"] > 1000 and not Path("runs/net-0001/exports").exists()
    kept = json.loads(Path("runs/net-0001/benchmark.json").read_text(encoding="utf-8"))
    assert kept["forms"] == found.to_json()["forms"] and kept["better"] == "higher"
    assert "onnx" in str(found) and "never: GGUF" in str(found)


def test_other_models_stand_beside_it_with_what_they_answer_otherwise(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    more = {"benchmark.forms": ["onnx"], "benchmark.models": ["runs/line-0001", "runs/less-0001"], "benchmark.metric": "accuracy"}
    found = modelyard.benchmark("runs/net-0001", **more, **FAST)
    own, onnx, line, less = found.forms
    assert line["form"] == "runs/line-0001" and line["version"] == Model.load("runs/line-0001/model").version
    assert line["differing"] > 0 == onnx["differing"] and less["value"]["value"] != own["value"]["value"]
    with pytest.raises(Unsupported, match="answers"):
        modelyard.benchmark("runs/net-0001", **{**more, "benchmark.models": ["runs/other-0001"]}, **FAST)
    with pytest.raises(ConfigError, match="1 mistake"):
        modelyard.benchmark("runs/net-0001", **{"benchmark.forms": ["onxx"]}, **FAST)


def test_new_rows_judge_too_and_the_page_reads_in_chinese(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    pl.read_csv("rows.csv").head(120).with_columns(y=pl.lit("yes")).write_csv("new.csv")
    found = modelyard.benchmark("runs/line-0001", data="new.csv", lang="zh", **{"benchmark.metric": "accuracy", "benchmark.forms": ["onnx"]}, **FAST)
    said = Model.load("runs/line-0001/model").predict(pl.read_csv("new.csv"))["y"].to_list()
    assert found.rows == 120 and found.forms[0]["value"]["value"] == pytest.approx(said.count("yes") / 120)
    page = Path(found.report).read_text(encoding="utf-8")
    assert found.report.endswith("benchmark.zh.html") and "各形式对比" in page and "<svg" in page and not re.search(r"<script|https?://(?!www\.w3\.org)", page)


def test_the_interval_is_that_of_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 101 times the ones at places 41 and 61 hold the median of any continuous distribution as often as a binomial count of halves lies between."""
    clock, times, hits = [0.0], np.random.default_rng(1).exponential(size=(400, 102)), 0
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("modelyard.verbs.benchmark._compare.FEWEST", 101)
    for row in times:
        left = iter(row.tolist())

        def work(left: Any = left) -> None:
            clock[0] += next(left)

        found = taken([work], 0.0)[0]
        assert (found["low"], found["median"], found["high"]) == pytest.approx(tuple(np.sort(row[1:])[[40, 50, 60]]))
        hits += found["low"] <= np.log(2) <= found["high"]
    exact = sum(comb(101, k) for k in range(41, 61)) / 2**101
    assert abs(hits / 400 - exact) < 0.035 and 0.94 < exact < 0.97
