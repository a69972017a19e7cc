"""Calibration, conformal promises, costs and weights, against scikit-learn, closed forms, slow loops and counted coverage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.errors import ConfigError, ModelyardError, Unsupported
from modelyard.runtime import post
from modelyard.runtime.answers import compare
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column
from modelyard.tasks._binding import bind
from modelyard.verbs.evaluate import Config as Judged
from modelyard.verbs.evaluate import judge
from modelyard.verbs.evaluate._costs import matrix
from modelyard.verbs.evaluate._thresholds import tune
from modelyard.verbs.export import export
from modelyard.verbs.report._svg import number as shown
from modelyard.verbs.train import Config, calibrate, train
from modelyard.verbs.train.calibrate import Evidence


def category(labels: int) -> Column:
    column = Column("y", "category", "index")
    column.state = column.coder.State(target=True, labels=[str(k) for k in range(labels)])
    return column


def number() -> Column:
    return Column("y", "number", "scaled", state=Column("y", "number", "scaled").coder.State())


def drawn(logits: np.ndarray, seed: int = 0) -> np.ndarray:
    """One label a row from the probabilities of its logits."""
    p = np.exp(post.log_scores(logits, True))
    return (np.random.default_rng(seed).random((len(p), 1)) > p.cumsum(1)).sum(1).clip(max=logits.shape[1] - 1)


def true_logits(rows: int, labels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=1.5, size=(rows, labels))


# calibration


@pytest.mark.parametrize("labels", [2, 4])
def test_temperature_and_platt_find_what_was_done(labels: int) -> None:
    """Logits were multiplied by 3 (and shifted): the fitted step undoes it; sampled labels say so."""
    logits = true_logits(30_000, labels)
    truth = drawn(logits)
    hot = calibrate.fit_temperature(Evidence(category(labels), 3 * logits, truth))
    assert hot["value"] == pytest.approx(3, rel=0.05)
    shift = np.linspace(0, 1, labels)
    bent = Evidence(category(labels), 3 * post.log_scores(logits, True) + shift, truth)
    after = bent.after([calibrate.fit_platt(bent)])
    ideal = np.exp(post.log_scores(logits, True))
    assert np.abs(np.exp(post.log_scores(after.outputs, True)) - ideal).mean() < 0.01
    assert calibrate.error(after) < 0.015 < 0.05 < calibrate.error(bent)


def test_pools_are_those_of_scikit_learn() -> None:
    """Without a least gap, the means of the pools are the isotonic regression at every point; with one, centres keep apart."""
    from sklearn.isotonic import IsotonicRegression

    random = np.random.default_rng(0)
    x = np.round(random.normal(size=800), 2)  # with ties
    y = (random.random(800) < 1 / (1 + np.exp(-2 * x))).astype(np.float64)
    at, mean, size = calibrate.pooled(x, y, gap=0.0)
    expected = IsotonicRegression().fit(x, y).predict(np.sort(x))
    assert np.allclose(np.repeat(mean, size.astype(int)), expected, atol=1e-12)
    assert (np.diff(mean) > 0).all() and size.sum() == 800
    at, mean, _ = calibrate.pooled(x, y, gap=0.05)
    assert (np.diff(at) >= 0.05).all() and (np.diff(mean) > 0).all()


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("method", calibrate.METHODS)
def test_scores_become_frequencies(method: str, labels: int) -> None:
    """Over-confident scores: on rows that were not fitted on, the calibration error falls to a third; the order of two labels stays."""
    logits = true_logits(12_000, labels, 1)
    sharp = Evidence(category(labels), (2.5 * logits).astype(np.float32), drawn(logits, 1))
    fit, rest = sharp.take(np.arange(0, 12_000, 2)), sharp.take(np.arange(1, 12_000, 2))
    after = rest.after([calibrate.FITS[method](fit)])
    assert calibrate.error(after) < calibrate.error(rest) / 3
    assert calibrate.log_loss(after) < calibrate.log_loss(rest)
    if labels == 2:
        order = np.argsort(rest.outputs[:, 1] - rest.outputs[:, 0])
        assert (np.diff((after.outputs[:, 1] - after.outputs[:, 0])[order]) >= -1e-6).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize("labels", [2, 5])
def test_a_constant_in_all_logits_changes_nothing(method: str, labels: int) -> None:
    """Backends and composites give logits up to a constant; answers must not depend on it, nor blow up the seventh digit."""
    logits = true_logits(2000, labels).astype(np.float32)
    held = Evidence(category(labels), logits, drawn(logits / 2))
    step = calibrate.FITS[method](held)
    scores = lambda z: np.exp(post.log_scores(held.__class__(held.column, z, held.truth).after([step]).outputs, True))  # noqa: E731
    assert np.abs(scores(logits + np.float32(3)) - scores(logits)).max() < 1e-5
    assert np.abs(scores(logits * np.float32(1 + 1e-7)) - scores(logits)).max() < 1e-5


def test_log_odds_of_the_sure() -> None:
    """Against high-precision sums; 1 - p is never formed, so 1e-30 keeps its digits."""
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    for row in ([0.0, 70.0, -5.0], [-40.0, 30.0, 29.0], [1.0, 2.0, 3.0]):
        found = post.log_odds(np.array([row]), True)[0]
        e = [Decimal(v).exp() for v in row]
        for k in range(3):
            assert found[k] == pytest.approx(float((e[k] / (sum(e) - e[k])).ln()), rel=1e-12)


def test_auto_takes_what_is_best() -> None:
    """Hot logits need a temperature (or more); true ones nothing, to within the noise of the choice."""
    logits = true_logits(4000, 2)
    truth = drawn(logits)
    config = Config(calibration="auto")
    method, losses = calibrate._choose(Evidence(category(2), 4 * logits, truth), config)
    assert method in calibrate.METHODS and losses[method] < 0.8 * losses["none"]
    _, losses = calibrate._choose(Evidence(category(2), logits, truth), config)
    assert min(losses.values()) > losses["none"] - 0.002


# conformal prediction


def slow_strangeness(p: np.ndarray, step: dict[str, Any]) -> list[float]:
    out = []
    for k in range(len(p)):
        ahead = [j for j in range(len(p)) if p[j] > p[k] or (p[j] == p[k] and j < k)]
        before = sum(p[j] for j in ahead)
        out.append(1 - p[k] if step["method"] == "lac" else before if step["method"] == "aps" else
                   before + step["penalty"] * max(0, len(ahead) + 1 - step["free"]))  # fmt: skip
    return out


@pytest.mark.parametrize("step", [{"method": "lac"}, {"method": "aps"}, {"method": "raps", "penalty": 0.1, "free": 2}])
def test_strangeness_against_a_slow_loop(step: dict[str, Any]) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), 200)
    p[:20] = np.round(p[:20], 1)  # ties
    assert np.allclose(post.strangeness(p, step), [slow_strangeness(row, step) for row in p], atol=1e-12)


def test_limit_is_the_smallest_that_keeps_the_promise() -> None:
    """By definition: ⌈(n + 1) coverage⌉ values lie at or below it; too few rows are refused with the number needed."""
    for n, coverage in itertools.product((9, 10, 57, 99, 100), (0.5, 0.8, 0.9)):
        values = np.random.default_rng(n).permutation(n).astype(np.float64)
        assert (values <= calibrate.limit(values, coverage, "y")).sum() == math.ceil((n + 1) * coverage - 1e-9)
    with pytest.raises(Unsupported, match="at least 19 validation rows"):
        calibrate.limit(np.zeros(18), 0.95, "y")
    calibrate.limit(np.zeros(19), 0.95, "y")


@pytest.mark.parametrize("sets", ["lac", "aps", "raps"])
@pytest.mark.parametrize("sharp", [0.5, 3.0])
def test_sets_hold_the_truth_as_promised(sets: Any, sharp: float) -> None:
    """Mean over 200 draws of calibration and test rows, of a model that is right or far too sure: the promise, to ±1 %."""
    config, kept_ = Config(coverage=0.85, sets=sets), []
    logits = true_logits(40_000, 4)
    all_ = Evidence(category(4), sharp * logits, drawn(logits))
    for seed in range(200):
        some = all_.take(np.random.default_rng(seed).permutation(40_000)[:800])
        held, test = some.take(np.arange(400)), some.take(np.arange(400, 800))
        step = calibrate.conform(held, config)
        found = calibrate.kept(test, step)
        kept_.append(found["coverage"])
        if sets != "lac":
            p = np.exp(post.log_scores(test.outputs, True))
            inside = post.strangeness(p, step) <= step["threshold"]
            assert inside[np.arange(400), p.argmax(1)].all()  # never empty
    assert abs(np.mean(kept_) - 0.85) < 0.01


@pytest.mark.parametrize("intervals", ["scaled", "constant"])
def test_intervals_hold_the_truth_and_follow_the_noise(intervals: Any) -> None:
    """Noise grows with the value: coverage is kept by both, and scaled intervals are wider where the noise is."""
    config, kept_, widths = Config(coverage=0.9, intervals=intervals), [], []
    random = np.random.default_rng(0)
    value = random.uniform(0, 3, 40_000)
    truth = value + value * random.normal(size=40_000)
    for seed in range(200):
        some = np.random.default_rng(seed).permutation(40_000)[:1000]
        held, test = (Evidence(number(), value[i][:, None].astype(np.float32), truth[i]) for i in (some[:500], some[500:]))
        step = calibrate.conform(held, config)
        kept_.append(calibrate.kept(test, step)["coverage"])
        out = post.apply({"y.value": np.array([[0.3], [2.7]])}, [step])
        widths.append((out["y.high"] - out["y.low"])[:, 0])
    assert abs(np.mean(kept_) - 0.9) < 0.01
    narrow, wide = np.mean(widths, 0)
    assert wide > 3 * narrow if intervals == "scaled" else wide == pytest.approx(narrow)


def table(rows: int = 900, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, rows))
    c = random.choice(["x", "y", "z"], rows)
    s = a + (c == "x") + random.normal(size=rows)
    tags = [[t for t, cut in (("p", 0), ("q", 1)) if v > cut] for v in s]
    return pl.DataFrame(
        {"a": a, "b": b, "c": c, "y": np.where(s > 0.3, "yes", "no"), "m": [f"m{k}" for k in np.digitize(s, [-0.5, 0.3, 1])], "v": 10 * s, "l": tags}
    )


def data(target: str, **options: Any) -> DataConfig:
    kind = {"outputs": {"l": {"kind": "label-set"}}, "target": None} if target == "l" else {"target": target}
    return DataConfig(**{"path": table(), "inputs": {"a": "number", "b": "number", "c": "category"}, **kind, **options})


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("y", "trees", {"calibration": "isotonic", "coverage": 0.8}), ("m", "linear", {"calibration": "platt", "coverage": 0.8, "sets": "aps"}),
    ("m", "trees", {"calibration": "temperature", "coverage": 0.8, "sets": "raps"}), ("v", "trees", {"coverage": 0.9}),
    ("l", "trees", {"calibration": "isotonic"}), ("y", {"parts": ["trees", "linear"]}, {"calibration": "auto", "coverage": 0.8}),
]  # fmt: skip


@pytest.mark.parametrize("target, model, settings", CASES)
def test_promises_travel_with_the_model(target: str, model: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Saved, loaded back, exported: the same scores, sets and intervals, alone as in a batch; metrics, card and signature tell of them."""
    found = train(data(target), None, model, Config(**settings), base=tmp_path)
    loaded = Model.load(found.model)
    assert loaded.replay().ok
    rows = loaded.examples
    together = loaded.predict(rows)
    others = [loaded] if isinstance(model, dict) else [loaded, Model.load(export(found.model).folder)]
    for other in others:
        for i, row in enumerate(rows[:12]):
            alone = other.predict(row)
            part = replace(together, columns=together.columns[i : i + 1], errors=[], rows=1)
            assert compare(part, alone, loaded.pipeline.scales()).ok
        assert compare(together, other.predict(rows), loaded.pipeline.scales()).ties == 0
    metrics, card = found.metrics["test"], (found.model / "README.md").read_text(encoding="utf-8")
    if "coverage" in settings:
        assert abs(metrics["coverage"]["value"] - settings["coverage"]) < 0.2  # 45 rows to fit on and 90 to count: three deviations
        assert metrics["coverage"]["low"] < metrics["coverage"]["value"] < metrics["coverage"]["high"]
        assert loaded.signature.outputs[0].summary == {"coverage": settings["coverage"]} and "holds the truth in" in card
        answer = together.to_json()[0]
        wanted = {f"{target}.low", f"{target}.high"} if target == "v" else {f"{target}.set"}
        assert wanted <= answer.keys()
        if target == "v":
            assert answer["v.low"] < answer["v"] < answer["v.high"]
    if "calibration" in settings:
        told = loaded.manifest["promises"][target]["calibration"]["calibration_error"]
        assert set(told) == {"valid", "test"} and f"calibration error {told['test']['before']:.4f} before" in card
        if any(s["step"] in post.CALIBRATION for s in loaded.manifest["post"]):
            assert metrics["calibration_error"]["before"] == pytest.approx(told["test"]["before"], abs=1e-6)
            assert metrics["calibration_error"]["value"] == pytest.approx(told["test"]["after"], abs=1e-6)


def test_the_report_tells_what_was_promised_and_what_came_of_it(tmp_path: Path) -> None:
    found = train(data("y"), None, "trees", Config(calibration="isotonic", coverage=0.8), base=tmp_path)
    page = (found.run / "report.html").read_text(encoding="utf-8")
    block, told = page.partition('<section id="promises">')[2].partition("</section>")[0], Model.load(found.model).manifest["promises"]["y"]
    error, seen, metrics = told["calibration"]["calibration_error"]["test"], told["coverage"]["test"], found.metrics["test"]
    for value in (error["before"], error["after"], 0.8, seen["coverage"], seen["low"], seen["high"]):
        assert shown(value) in block
    assert all(seen[k] == pytest.approx(metrics["coverage"][m], abs=1e-9) for k, m in (("coverage", "value"), ("low", "low"), ("high", "high")))
    bins = told["calibration"]["reliability"]["after"]["bins"]  # the mean score of a bin lies within it, and all test rows are in one
    assert sum(b["count"] for b in bins) == seen["rows"] == 180
    assert block.count("<svg") == 2 and {p.name for p in (found.run / "plots").glob("y.*.svg")} == {"y.coverage.svg", "y.reliability.svg"}
    plain = train(data("y"), None, "trees", base=tmp_path)
    assert 'id="promises"' not in (plain.run / "report.html").read_text(encoding="utf-8")


def test_other_borders_are_noticed(tmp_path: Path) -> None:
    """Replaying with a threshold that moved, or without sets, is no tie; one label at the border in fifty rows is."""
    found = train(data("m"), None, "linear", Config(coverage=0.8), base=tmp_path)
    model = Model.load(found.model)
    rows = table(300, 5)
    good = model.predict(rows)
    step = model.manifest["post"][0]
    moved = replace(model, manifest={**model.manifest, "post": [{**step, "threshold": step["threshold"] - 0.05}]})
    bare = replace(model, manifest={**model.manifest, "post": []})
    for wrong in (moved, bare):
        assert not compare(good, wrong.predict(rows), {}).ok
    near = float(np.sort(1 - good["m.scores"].struct.unnest().to_numpy().astype(np.float64).ravel())[600])
    exact = replace(model, manifest={**model.manifest, "post": [{**step, "threshold": near + 5e-7}]})
    hair = replace(model, manifest={**model.manifest, "post": [{**step, "threshold": near - 5e-7}]})
    parity = compare(exact.predict(rows), hair.predict(rows), {})
    assert parity.ok and parity.ties >= 1


@pytest.mark.parametrize(
    "target, options, settings, says",
    [
        ("y", {"split": SplitConfig(valid=0.0)}, {"calibration": "platt"}, "train.calibration is fitted on validation rows"),
        ("v", {"split": SplitConfig(valid=0.0)}, {"coverage": 0.9}, "train.coverage is fitted on validation rows"),
        ("v", {}, {"calibration": "isotonic"}, "For intervals that hold the truth set train.coverage"),
        ("l", {}, {"coverage": 0.9}, "a label set has no one truth"),
        ("y", {}, {"coverage": 0.995}, "at least 199 validation rows"),
        ("y", {"limit": 120}, {"calibration": "temperature"}, "12 validation rows are too few"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(target: str, options: Any, settings: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        train(data(target, **options), None, "linear", Config(**settings), base=tmp_path)
    assert says in str(caught.value.to_json())


def test_out_of_fold_outputs_stand_for_validation_rows(tmp_path: Path) -> None:
    """A search learns from all rows: it is calibrated on answers of models that did not see them, and its coverage holds on test rows."""
    settings = Config(preset="balanced", budget=4.0, calibration="platt", coverage=0.8)
    found = train(data("y"), None, {"name": "auto", "candidates": ["linear", {"name": "trees", "trees": 60}]}, settings, base=tmp_path)
    model = Model.load(found.model)
    assert model.replay().ok and model.manifest["promises"]["y"]["rows"] == 720  # train and valid together
    assert abs(found.metrics["test"]["coverage"]["value"] - 0.8) < 0.1 and "before" not in found.metrics["valid"]["calibration_error"]


# costs


@pytest.mark.parametrize("costs", [{"false_positive": 1, "false_negative": 5}, {"false_positive": 8, "false_negative": 1}])
def test_least_cost_of_two_labels(costs: dict[str, float], tmp_path: Path) -> None:
    """On the validation rows no threshold among all scores is cheaper by more than the grid's step; the child says so and replays."""
    found = train(data("y"), None, "linear", base=tmp_path)
    model = Model.load(found.model)
    bound = bind(data("y"), None, tmp_path, like=model.pipeline, tasks=model.tasks)
    child = Model.load(tune(model, bound, None, found.model, costs))
    assert child.replay().ok and child.manifest["parents"][-1]["version"] == model.version
    valid = bound.splits["valid"]
    score = model.predict_examples(valid).columns["y.scores"].struct.field("yes").to_numpy()
    truth = (valid["y"] == "yes").to_numpy()
    price = lambda said: float(np.mean(np.where(truth, np.where(said, 0, costs["false_negative"]), np.where(said, costs["false_positive"], 0))))  # noqa: E731
    best = min(price(score >= t) for t in np.append(score, 2.0))
    mine = price((child.predict_examples(valid).columns["y"] == "yes").to_numpy())
    assert best <= mine <= best + 8 / len(valid)
    measured = judge(child, bound, ["valid"], costs=costs).metrics()["valid"]["cost"]
    assert measured["value"] == pytest.approx(mine) and measured["better"] == "lower"
    assert mine <= price(score >= 0.5)
    turned = judge(child, bound, ["valid"], costs={k: costs[o] for k, o in zip(costs, reversed(costs), strict=True)}, positive="no")
    assert turned.metrics()["valid"]["cost"]["value"] == pytest.approx(mine)  # the other label is positive, and the costs change places


def test_least_cost_of_several_labels(tmp_path: Path) -> None:
    """Every decision is the label of least expected cost, by a slow loop."""
    labels = [f"m{k}" for k in range(4)]
    costs = {t: {a: float(abs(int(t[1]) - int(a[1])) ** 2) for a in labels if a != t} for t in labels}
    found = train(data("m"), None, "linear", base=tmp_path)
    model = Model.load(found.model)
    bound = bind(data("m"), None, tmp_path, like=model.pipeline, tasks=model.tasks)
    child = Model.load(tune(model, bound, None, found.model, costs))
    answers = child.predict_examples(bound.splits["test"]).columns
    for scores, said in zip(answers["m.scores"].to_list(), answers["m"].to_list(), strict=True):
        expected = {a: sum(scores[t] * costs[t].get(a, 0.0) for t in labels) for a in labels}
        assert expected[said] <= min(expected.values()) + 1e-6
    before, after = (judge(m, bound, ["valid"], costs=costs).metrics()["valid"]["cost"]["value"] for m in (model, child))
    assert after < before


def test_label_sets_have_costs_too(tmp_path: Path) -> None:
    found = train(data("l"), None, "linear", base=tmp_path)
    model = Model.load(found.model)
    bound = bind(data("l"), None, tmp_path, like=model.pipeline, tasks=model.tasks)
    costs = {"false_positive": 1, "false_negative": 10}
    child = Model.load(tune(model, bound, None, found.model, costs))
    before, after = (judge(m, bound, ["valid"], costs=costs).metrics()["valid"]["cost"]["value"] for m in (model, child))
    assert child.replay().ok and after < 0.7 * before


def test_costs_on_the_command_line(tmp_path: Path) -> None:
    from modelyard.options import Options
    from modelyard.project import load_project
    from modelyard.verbs.evaluate import run as evaluate
    from modelyard.verbs.train import run as training

    (tmp_path / "modelyard.yaml").write_text("version: 1\nname: m\n", encoding="utf-8")
    values = {"data.path": table(), "data.target": "y", "data.inputs": {"a": "number", "c": "category"}, "model": "linear"}
    costs = {"evaluate.costs": {"false_negative": 7, "false_positive": 1}, "evaluate.gate": {"cost": "<= 100"}}
    trained = training(load_project(tmp_path, values={**values, **costs}), options=Options(json=True, quiet=True))
    assert trained.metrics["test"]["cost"]["value"] > 0 and trained.gate[0]["passed"]
    found = evaluate(load_project(tmp_path, values={**values, **costs}), model=str(trained.run), options=Options(json=True, quiet=True))
    assert found.costs["valid"]["cost"]["after"] < found.costs["valid"]["cost"]["before"] and "decided by the child" in str(found)
    assert "cost" in (trained.run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "target, costs, says",
    [
        ("m", {"false_positive": 1}, "write a map true label"), ("y", {"yes": {"maybe": 1}}, "expected one of no, yes"),
        ("y", {"false_positive": "much"}, "expected a number"), ("l", {"p": {"q": 1}}, "is a label set"), ("y", {"yess": {}}, "expected a map of labels"),
    ],
)  # fmt: skip
def test_wrong_costs_are_refused(target: str, costs: Any, says: str, tmp_path: Path) -> None:
    bound = bind(data(target), None, tmp_path)
    bound.pipeline.fit([bound.splits["train"]])
    with pytest.raises(ConfigError) as caught:
        matrix(costs, bound.pipeline.outputs[0], None)
    assert says in str(caught.value.to_json())
    with pytest.raises(ValueError, match="both choose"):
        Judged(threshold="f1", costs={"false_positive": 1})


# losses and weights


def rare(rows: int = 1200, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.where(x[:, 0] + 0.7 * random.normal(size=rows) > 1.7, "hit", "no")})


@pytest.mark.parametrize("model", ["trees", "linear", "mlp"])
def test_class_weights_find_more_of_the_rare(model: str, tmp_path: Path) -> None:
    config = DataConfig(path=rare(), target="y")
    shared = {"epochs": 6} if model == "mlp" else {}
    judged = Judged(metrics=["recall"], positive="hit")
    recall = {}
    for weights in (None, "balanced", {"hit": 30.0}):
        found = train(config, None, model, Config(class_weights=weights, **shared), base=tmp_path, judged_by=judged)  # type: ignore[arg-type]
        recall[str(weights)] = found.metrics["test"]["recall"]["value"]
    plain, balanced, heavy = recall.values()
    assert balanced > plain + 0.15 and heavy > plain + 0.15
    with pytest.raises(ConfigError, match="unknown labels: hitt"):
        train(config, None, model, Config(class_weights={"hitt": 2.0}, **shared), base=tmp_path)  # type: ignore[arg-type]


def test_weights_of_a_search_and_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="by their one label"):
        train(data("v"), None, "trees", Config(class_weights="balanced"), base=tmp_path)


@pytest.mark.parametrize("target", ["y", "l"])
def test_focal_loss_trains_nets(target: str, tmp_path: Path) -> None:
    """gamma 0 is cross-entropy to the last weight; gamma 3 gives less sure scores that still tell the labels apart."""
    answers = {}
    for name, settings in {"plain": {}, "zero": {"loss": "focal", "gamma": 0.0}, "three": {"loss": "focal", "gamma": 3.0}}.items():
        found = train(data(target), None, "mlp", Config(epochs=8, seed=1, label_smoothing=0.0, **settings), base=tmp_path)  # type: ignore[arg-type]
        answers[name] = Model.load(found.model).predict(table(200, 9))[f"{target}.scores"].struct.unnest().to_numpy()
        assert found.metrics["test"]["roc_auc"]["value"] > 0.75
    assert np.abs(answers["plain"] - answers["zero"]).max() < 1e-3
    sure = {name: np.abs(a - 0.5).mean() for name, a in answers.items()}
    assert sure["three"] < sure["plain"] - 0.02


@pytest.mark.parametrize("target, model, says", [("y", "trees", "an estimator has a loss of its own"), ("v", "mlp", "about labels")])
def test_focal_loss_elsewhere_is_refused(target: str, model: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelyardError, match=says):
        train(data(target), None, model, Config(loss="focal", epochs=1), base=tmp_path)
