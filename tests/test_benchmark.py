"""Exports side by side: what is measured against what it is defined by, refusals with their reasons, and the page."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import ConfigError, ParityError, Unsupported
from modelyard.runtime.answers import Parity
from modelyard.verbs.benchmark import _contenders, _measure

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of torch's exporter

QUICK = {"benchmark.seconds": 0.05, "quiet": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `line` (an estimator, two classes), `net` (torch, a number) and `pair` (two outputs)."""
    folder: Path = tmp_path_factory.mktemp("benchmark")
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 240))
    rows = pl.DataFrame({"a": a, "b": b, "y": np.where(a + 0.3 * b > 0, "yes", "no"), "z": a - b})
    rows.write_csv(folder / "rows.csv")
    rows.drop("z").write_csv(folder / "yes.csv")
    with contextlib.chdir(folder):
        modelyard.train(data="yes.csv", target="y", model="linear", name="line", quiet=True)
        modelyard.train(data="yes.csv", target="y", model="trees", name="trees", quiet=True, **{"model.trees": 5})
        outputs = {"data.outputs": {"y": "category", "z": "number"}}
        modelyard.train(data="rows.csv", name="pair", model="mlp", quiet=True, **{"train.epochs": 2, **outputs})
    return folder


def test_medians_have_the_interval_of_order_statistics() -> None:
    """The largest coverage at or above 95 % that leaves out as much as it may, by scipy's binomial; below six rounds the extremes."""
    binomial = pytest.importorskip("scipy.stats").binom
    for count in (5, 6, 9, 25, 100, 501):
        low, high = _measure.interval(count)
        assert high == count - 1 - low
        cover = binomial.cdf(high, count, 0.5) - binomial.cdf(low, count, 0.5)  # P(low + 1 <= values below <= high)
        tighter = binomial.cdf(high - 1, count, 0.5) - binomial.cdf(low + 1, count, 0.5)
        assert (cover >= 0.95 or count < 6) and tighter < 0.95
    low, high = _measure.interval(40)
    ordered = np.sort(np.random.default_rng(0).lognormal(size=(5000, 40)), axis=1)
    assert 0.945 < ((ordered[:, low] <= 1) & (ordered[:, high] >= 1)).mean() < 0.98


def test_work_takes_turns_and_slow_work_is_found_slow() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> Any:
        def go() -> None:
            order.append(name)
            time.sleep(seconds)

        return go

    found = _measure.rounds({"quick": work("quick", 0.001), "slow": work("slow", 0.004)}, 0.03)
    assert len(found["quick"]) == len(found["slow"]) >= _measure.ROUNDS
    turns = [tuple(order[i : i + 2]) for i in range(2, len(order), 2)]
    assert set(turns) == {("quick", "slow"), ("slow", "quick")}
    told = _measure.summary(found["slow"], found["quick"])
    assert told["low"] <= told["median"] <= told["high"] and told["share"] > 2 and told["median"] >= 4.0


def test_every_form_is_measured_or_refused_with_its_reason(place: Path) -> None:
    with contextlib.chdir(place):
        found = modelyard.benchmark("runs/line-0001", **{"benchmark.beside": ["trees-0001"], "benchmark.batch": 32, **QUICK})
    entries = {e["name"]: e for e in found.entries}
    assert next(iter(entries)) == "model" and {"onnx", "docker", "gguf", "torch-export", "litert", "trees-0001"} <= set(entries)
    for name, e in entries.items():
        assert bool(e["one"]) != bool(e["refused"]), name
        if e["refused"]:
            assert e["refused"]["why"] in ("use", "never", "needs", "not yet") and len(e["refused"]["reason"]) > 20
        else:
            assert e["bytes"] > 1000 and e["batch"]["rows"] == 32 and e["batch"]["rows_per_second"] == pytest.approx(32e3 / e["batch"]["median"])
            assert e["metrics"]["accuracy"]["low"] <= e["metrics"]["accuracy"]["value"] <= e["metrics"]["accuracy"]["high"]
    assert entries["onnx"]["parity"]["max_difference"] <= 1e-5 and not entries["onnx"]["parity"].get("differing")
    assert entries["trees-0001"]["what"] == "another model" and entries["trees-0001"]["parity"]["max_difference"] > 1e-3
    assert entries["model"]["metrics"] == entries["onnx"]["metrics"] and entries["model"]["one"]["share"] == 1
    run = json.loads((place / "runs/line-0001/run.json").read_text(encoding="utf-8"))
    assert run["state"] == "finished"  # the run itself is as it was
    with contextlib.chdir(place):
        folder = Path(found.data).parent
        assert json.loads(Path(found.data).read_text(encoding="utf-8"))["entries"] == json.loads(json.dumps(found.entries))
        page = Path(found.report).read_text(encoding="utf-8")
        assert "Exports side by side" in page and "llama.cpp" not in page.partition("Refused, or not run here")[0].partition("<table>")[2]
        assert (folder / "plots/exports.svg").is_file() and not list((place / "runs/line-0001").glob(".benchmark*"))
        assert str(found).count("\n") == len(entries)
        again = modelyard.benchmark("runs/line-0001", exports=["onnx"], **{"data": "yes.csv", **QUICK})
        assert Path(again.report).parent.name == "benchmark-2" and [e["name"] for e in again.entries] == ["model", "onnx"]


def test_several_outputs_and_a_torch_net(place: Path) -> None:
    with contextlib.chdir(place):
        found = modelyard.benchmark("runs/pair-0001", exports=["onnx", "torch-export", "triton"], **QUICK)
    for e in found.entries:
        assert e["refused"] is None and len(e["metrics"]) == 2 and all("." in m for m in e["metrics"])
    values = [[m["value"] for m in e["metrics"].values()] for e in found.entries]
    assert np.allclose(values, values[0], atol=1e-6)


def test_an_export_that_answers_otherwise_is_told_and_not_timed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.verbs import export as exports

    def differs(*_: Any, **__: Any) -> Any:
        raise ParityError("2 of 9 stored examples are answered differently by onnx", [], Parity(9, 0.25, 0, [1, 2]))

    monkeypatch.setattr(exports, "export", differs)
    with contextlib.chdir(place):
        found = modelyard.benchmark("runs/line-0001", exports=["onnx"], **QUICK)
    (entry,) = [e for e in found.entries if e["name"] == "onnx"]
    assert entry["one"] is None and entry["refused"]["why"] == "parity" and entry["parity"]["max_difference"] == 0.25
    assert "2 of 9" in str(found) and "2 of 9" in (place / found.report).read_text(encoding="utf-8")


def test_what_does_not_fit_is_refused(place: Path) -> None:
    with contextlib.chdir(place):
        with pytest.raises(ConfigError, match="2 form"):
            modelyard.benchmark("runs/line-0001", exports=["onnxx", "pickle"], **QUICK)
        with pytest.raises(Unsupported, match="same outputs"):
            modelyard.benchmark("runs/line-0001", exports=["onnx"], **{"benchmark.beside": ["pair-0001"], **QUICK})
    assert _contenders.entry("x", "export")["bytes"] == 0
