"""The four probes of the contracts: tasks from outside, through every verb, with no edit to the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard import registry
from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.verbs.evaluate import judge
from modelyard.verbs.export import export
from modelyard.verbs.serve import serve
from modelyard.verbs.train import Trained, train

PROBES = ("tagging", "character-generation", "control", "forecasting")
ROWS = 240


def data_of(toy: object) -> DataConfig:
    options = dict(toy.options)  # type: ignore[attr-defined]
    if "split" in options:
        options["split"] = SplitConfig(**options["split"])
    inputs = {k: {"kind": v} for k, v in toy.kinds.items() if k != toy.target}  # type: ignore[attr-defined]
    outputs = {toy.target: {"kind": toy.kinds[toy.target]}} if toy.target else None  # type: ignore[attr-defined]
    return DataConfig(path=toy.tables or None, target=toy.target, inputs=inputs or None, outputs=outputs, **options)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("probes")
    found = {}
    for name in PROBES:
        task = registry.load("tasks", f"modelyard-probes/{name}").TASK
        found[name] = train(data_of(task.toy(ROWS, 0)), task.name, name=name, base=folder)
    return found


@pytest.mark.parametrize(
    ("probe", "metric", "limit"),
    [
        ("tagging", "tag-accuracy", 0.95),
        ("character-generation", "exact-match", 0.9),
        ("control", "return", -12.0),
        ("forecasting", "horizon-error", None),
    ],
)
def test_learns(trained: dict[str, Trained], probe: str, metric: str, limit: float | None) -> None:
    found = {k.rpartition("/")[2]: v["value"] for k, v in trained[probe].metrics["test"].items()}
    if limit is None:
        assert found[metric] < 1.0  # the swing of the series is 5, its noise 0.2
    else:
        assert found[metric] >= limit


@pytest.mark.parametrize("probe", PROBES)
def test_saved_model_replays_exports_and_serves(trained: dict[str, Trained], probe: str) -> None:
    import urllib.request

    model = Model.load(trained[probe].model)
    assert model.replay().ok
    folder = trained[probe].model
    if probe == "control":
        with pytest.raises(Unsupported, match="no ONNX graph"):
            export(folder)
    else:
        exported = export(folder)
        assert exported.parity["rows"] > 0 and exported.parity["max_difference"] < 1e-4
        folder = Path(exported.folder)
    rows = model.examples[:40]
    expected = Model.load(folder).predict(rows).to_json()
    with serve(folder) as server:
        body = json.dumps({"instances": rows}).encode()
        request = urllib.request.Request(f"{server.url}/v1/models/{model.name}:predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answers = json.load(response)["predictions"]
    name = model.signature.outputs[0].name
    assert [a[name] if isinstance(a, dict) else a for a in answers] == [e[name] for e in expected]


def test_answers_are_the_same_alone_and_in_a_batch(trained: dict[str, Trained]) -> None:
    for probe in ("tagging", "character-generation"):
        model = Model.load(trained[probe].model)
        rows, name = model.examples, model.signature.outputs[0].name
        together = model.predict(rows).columns[name].to_list()
        assert [model.predict([row]).columns[name].to_list()[0] for row in rows] == together


def test_tags_lie_along_their_words(trained: dict[str, Trained]) -> None:
    model = Model.load(trained["tagging"].model)
    answer = model.predict([{"sentence": ["anna", "sees", "rain"]}, {"sentence": ["bob"]}])
    assert answer.columns["tags"].to_list() == [["A", "V", "N"], ["A"]]


def test_generation_takes_params_and_replays_by_seed(trained: dict[str, Trained]) -> None:
    model = Model.load(trained["character-generation"].model)
    hot = {"temperature": 3.0, "max_length": 6}
    rows = [{"prompt": "ab"}] * 20
    first, again = (model.predict(rows, hot, seed=5).columns["continuation"].to_list() for _ in range(2))
    assert first == again
    assert len(set(first)) > 1, "examples draw their own numbers"
    assert first != model.predict(rows, hot, seed=6).columns["continuation"].to_list()
    assert all(len(x) <= 6 for x in first)


def test_policy_is_the_one_of_the_bellman_equation(trained: dict[str, Trained]) -> None:
    """Next to the goal the only best move leads into it; the value is checked by playing (the return above)."""
    model = Model.load(trained["control"].model)
    moves = model.predict([{"cell": "3,2"}, {"cell": "2,3"}]).columns["move"].to_list()
    assert moves == ["right", "down"]


def test_forecast_of_each_group(trained: dict[str, Trained]) -> None:
    model = Model.load(trained["forecasting"].model)
    answers = model.predict(registry.load("tasks", "modelyard-probes/forecasting").TASK.toy(ROWS, 1).tables["train"])
    assert answers.columns["shop"].to_list() == ["a", "b", "c", "d"]
    assert all(len(x) == 3 for x in answers.columns["sales"].to_list())


def test_a_net_and_a_metric_are_one_file_each(tmp_path: Path) -> None:
    from modelyard.tasks._binding import bind

    toy = registry.load("tasks", "classification").TASK.toy(400, 0)
    data = DataConfig(path=toy.tables["train"], target=toy.target)
    found = train(data, "classification", "modelyard-probes/wide", base=tmp_path)
    model = Model.load(found.model)
    assert found.metrics["test"]["accuracy"]["value"] > 0.8
    bound = bind(data, "classification", tmp_path, like=model.pipeline, tasks=model.tasks)
    scores = judge(model, bound, ["test"], ["modelyard-probes/minority-recall"]).metrics()["test"]
    assert 0.3 < next(iter(scores.values()))["value"] <= 1.0


@pytest.mark.parametrize(
    ("task", "rule"),
    [
        ("classification", {"combine": "mean"}),
        ("classification", {"combine": "weights", "weights": [3.0, 1.0]}),
        ("classification", {"combine": "vote"}),
        ("regression", {"combine": "mean"}),
    ],
)
def test_a_composite_of_two_models(tmp_path: Path, task: str, rule: dict[str, object]) -> None:
    """A net from outside and an estimator of the house: trained, saved, replayed, served; its answers are checked by hand."""
    import numpy as np

    toy = registry.load("tasks", task).TASK.toy(300, 0)
    data = DataConfig(path=toy.tables["train"], target=toy.target)
    section = {"parts": ["linear", {"name": "modelyard-probes/wide"}], **rule}
    found = train(data, task, section, base=tmp_path)
    model = Model.load(found.model)
    assert model.replay().ok
    rows, name = model.examples, model.signature.outputs[0].name
    parts = [Model.load(p).predict(rows) for p in sorted((found.model / "parts").iterdir())]
    whole = model.predict(rows)
    weights = np.array(rule.get("weights", [1.0, 1.0]), np.float64)
    weights /= weights.sum()
    if task == "regression":
        expected = sum(w * p.columns[name].to_numpy() for w, p in zip(weights, parts, strict=True))
        assert np.allclose(whole.columns[name].to_numpy(), expected, rtol=1e-5)
    elif rule["combine"] != "vote":
        scores = [p.columns[f"{name}.scores"].struct.unnest().to_numpy() for p in parts]
        expected = sum(w * s for w, s in zip(weights, scores, strict=True))
        assert np.allclose(whole.columns[f"{name}.scores"].struct.unnest().to_numpy(), expected, atol=1e-5)
    exported = export(found.model)
    assert exported.parity["rows"] == len(rows) and exported.parity["max_difference"] < 1e-5
    with serve(found.model) as server:
        import urllib.request

        body = json.dumps({"instances": rows}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/models/model:predict", body)) as response:
            answers = json.load(response)["predictions"]
    assert [a[name] if isinstance(a, dict) else a for a in answers] == [a[name] for a in whole.to_json()]
