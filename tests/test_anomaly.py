"""Detectors of anomalies: scores against scikit-learn or closed forms, alarms without a contamination setting, graphs that answer alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard as my
from modelyard import registry
from modelyard.estimators import _detect, isolation_forest, local_outlier, robust_covariance, robust_z, sampled_distance, tails
from modelyard.kinds._alarm import meaning
from modelyard.kinds._contract import Head, Part
from modelyard.runtime.model import Model

HEAD = Head("y", "category", "logits", 2)
DETECTORS = [n for n in registry.names("estimators") if getattr(registry.load("estimators", n), "SUPERVISED", True) is False]


def rows(n: int = 600, odd: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two groups of correlated rows and a few far from both."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 4)) @ np.array([[1, 0.8, 0, 0], [0, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) + 4.0 * random.integers(0, 2, (n, 1))
    x[:odd] = random.uniform(-9, 13, (odd, 4))
    return x.astype(np.float32), np.arange(n) < odd


def inputs(x: np.ndarray, ids: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return {"table.numbers": x, "table.categories": np.zeros((len(x), 1), np.int32) if ids is None else ids}


PARTS = {"table.numbers": Part((4,), "float32"), "table.categories": Part((1,), "int32")}


# -- every detector ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_anomalies_stand_out_and_onnx_answers_alike(name: str) -> None:
    import onnxruntime

    module = registry.load("estimators", name)
    x, odd = rows()
    ids = np.where(np.random.default_rng(1).random((len(x), 1)) < 0.02, 2, 1).astype(np.int32)
    state = module.fit(inputs(x, ids), {}, [HEAD], module.Config(), seed=0)
    logits = module.apply(inputs(x, ids), state)["y.logits"]
    margin = logits[:, 1] - logits[:, 0]
    wins = (margin[odd][:, None] > margin[~odd]).mean()
    assert wins > 0.85, f"{name}: AUC {wins:.3f}"
    assert (margin[~odd] > 0).mean() < 0.06  # of normal rows
    again = module.apply(inputs(x[:7], ids[:7]), state)["y.logits"]
    assert np.abs(again - logits[:7]).max() < 1e-5  # a row's answer does not depend on its neighbours
    same = module.apply(inputs(x, ids), module.fit(inputs(x, ids), {}, [HEAD], module.Config(), seed=0))["y.logits"]
    assert np.array_equal(same, logits)
    fresh = np.vstack([x[:50], np.full((1, 4), 1e4, np.float32), -np.full((1, 4), 1e4, np.float32)])
    unseen = np.full((len(fresh), 1), 77, np.int32)
    graph = module.graph(state, PARTS)
    ours = module.apply(inputs(fresh, unseen), state)["y.logits"]
    assert np.isfinite(ours).all()
    if graph is None:
        assert name in ("tails", "local-outlier")
        return
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    needed = {i.name for i in session.get_inputs()}
    theirs = session.run(["y.logits"], {k: v for k, v in inputs(fresh, unseen).items() if k in needed})[0]
    p = [1 / (1 + np.exp(np.clip(v[:, 0] - v[:, 1], -50, 50))) for v in (ours.astype(np.float64), theirs.astype(np.float64))]
    assert np.abs(p[0] - p[1]).max() < 1e-5


# -- formulas ---------------------------------------------------------------------------------------------------------------


def test_the_isolation_forest_is_scikit_learns() -> None:
    from sklearn.ensemble import IsolationForest

    x, _ = rows()
    state = isolation_forest.learn(x, isolation_forest.Config(trees=50), 3)
    theirs = -IsolationForest(n_estimators=50, max_samples=256, random_state=3).fit(x).score_samples(x)
    assert np.abs(isolation_forest.measure(x, state) - theirs).max() < 1e-9


def test_the_local_outlier_factor_is_scikit_learns() -> None:
    from sklearn.neighbors import LocalOutlierFactor

    x, _ = rows()
    fresh = x[:100] + np.float32(0.37)
    state = local_outlier.learn(x, local_outlier.Config(k=15), 0)
    theirs = -LocalOutlierFactor(15, novelty=True).fit(x.astype(np.float64)).score_samples(fresh.astype(np.float64))
    assert np.abs(local_outlier.measure(fresh, state) - theirs).max() < 1e-6


def test_the_robust_ellipse_is_scikit_learns() -> None:
    from sklearn.covariance import MinCovDet

    x, _ = rows()
    theirs = MinCovDet(random_state=1).fit(x.astype(np.float64)).mahalanobis(x.astype(np.float64))
    ours = robust_covariance.measure(x, robust_covariance.learn(x, robust_covariance.Config(), 1))
    assert np.abs(ours**2 - theirs).max() < 1e-6 * theirs.max()


def test_tails_are_empirical_probabilities() -> None:
    x = np.array([[0.0], [1], [2], [3], [10]], np.float32)
    state = tails.learn(x, tails.Config(), 0)
    left, right = -np.log(np.array([1, 2, 3, 4, 5]) / 5), -np.log(np.array([5, 4, 3, 2, 1]) / 5)
    assert tails.measure(x, state) == pytest.approx(np.maximum(left, right))
    assert tails.measure(np.array([[99.0]], np.float32), state) == pytest.approx([-np.log(0.5 / 5)])


def test_box_plot_and_median_deviations() -> None:
    x = np.arange(101, dtype=np.float32)[:, None]
    box = robust_z.learn(x, robust_z.Config(by="box"), 0)
    assert robust_z.measure(np.array([[200.0], [50], [-50]], np.float32), box) == pytest.approx([(200 - 75) / 50, 0, (25 + 50) / 50])
    deviation = robust_z.learn(x, robust_z.Config(), 0)
    assert robust_z.measure(np.array([[150.0]], np.float32), deviation) == pytest.approx([100 / (1.4826 * 25)])


def test_distances_to_handfuls_are_those_of_a_loop() -> None:
    x, _ = rows(200)
    state = sampled_distance.learn(x, sampled_distance.Config(samples=9, rows=5), 2)
    placed = sampled_distance._placed(x, state)
    slow = [np.mean([min(np.linalg.norm(row - p) for p in handful) for handful in state.points]) for row in placed[:40]]
    assert sampled_distance.measure(x[:40], state) == pytest.approx(slow, abs=1e-6)


# -- the alarm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_the_threshold_does_not_need_to_know_how_many_anomalies_there_are(share: float) -> None:
    random = np.random.default_rng(5)
    scores = random.logistic(3, 0.7, 20_000)
    odd = random.random(20_000) < share
    scores[odd] += 15
    z = _detect.standard(scores, _detect.scale_of(scores))
    logits = _detect.logits(z, 0.01)
    alarm = logits[:, 1] > logits[:, 0]
    assert alarm[odd].all() and 0.002 < alarm[~odd].mean() < 0.03


def test_the_probability_is_one_half_where_normal_rows_score_as_high_in_the_share_that_was_asked() -> None:
    z = np.log(1 / 0.03 - 1) / _detect.LOGISTIC
    assert np.ptp(_detect.logits(np.array([z]), 0.03)) < 1e-6
    far = _detect.logits(np.array([2 * z]), 0.03)[0]
    tail = 1 / (1 + np.exp(_detect.LOGISTIC * 2 * z))
    assert 1 / (1 + np.exp(far[0] - far[1])) == pytest.approx(0.03 / (0.03 + tail), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "counts", "expected"),
    [("fraud", {}, 1), ("0", {}, 0), ("-1", {"-1": 9, "1": 1}, 0), ("blue", {"blue": 3, "red": 90}, 1), ("red", {"blue": 3, "red": 90}, 0),
     ("healthy", {"healthy": 3, "fault": 9}, 0), ("x", {"x": 1, "y": 2, "z": 3}, -1), ("异常", {}, 1)],
)  # fmt: skip
def test_words_of_truth(value: str, counts: dict[str, int], expected: int) -> None:
    assert meaning(value, counts, []) == expected


# -- the whole way ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def payments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    monkeypatch.chdir(tmp_path)
    x, odd = rows(500, 15)
    shop = np.where(odd, "abroad", np.random.default_rng(2).choice(["a", "b"], 500))
    frame = pl.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "shop": shop, "fraud": ["yes" if o else None if i % 5 else "no" for i, o in enumerate(odd)]})
    return frame.sample(fraction=1.0, shuffle=True, seed=3)


def test_labels_judge_and_are_never_learnt(payments: pl.DataFrame) -> None:
    data = {"path": payments, "target": "fraud"}
    done = my.train(data=data, task="anomaly-detection")
    blind = my.train(data={"path": payments, "ignore": "fraud"}, task="anomaly-detection", train={"seed": 0})
    assert done.metrics["test"]["roc_auc"]["value"] > 0.9 and blind.metrics["test"] == {}
    flipped = payments.with_columns(fraud=pl.col("fraud").replace({"yes": "no", "no": "yes"}))
    turned = my.train(data={"path": flipped, "target": "fraud"}, task="anomaly-detection")
    asked = payments.drop("fraud")
    # other labels, the same training rows: the same model. (Labels may only decide which rows are held out.)
    answers: list[Any] = [Model.load(d.model).predict(asked) for d in (done, turned)]
    assert set(answers[0]["fraud"].unique()) <= {"normal", "anomaly"}
    both = np.array([a["fraud.scores"].struct.field("anomaly").to_numpy() for a in answers])
    assert np.corrcoef(both)[0, 1] > 0.97
    run = json.loads((blind.run / "run.json").read_text(encoding="utf-8"))
    assert run["state"] == "finished" and (blind.run / "report.html").stat().st_size > 5000


def test_models_and_tasks_that_do_not_go_together_say_why(payments: pl.DataFrame) -> None:
    with pytest.raises(my.ModelyardError, match="learns from labels"):
        my.train(data={"path": payments.drop("fraud")}, task="anomaly-detection", model="trees")
    with pytest.raises(my.ModelyardError, match="looks at no labels"):
        my.train(data={"path": payments.drop_nulls(), "target": "fraud"}, model="isolation-forest")


def test_the_oddest_rows_say_why(payments: pl.DataFrame) -> None:
    done = my.train(data={"path": payments.drop("fraud")}, task="anomaly-detection")
    stored = json.loads((done.run / "samples" / "evaluation.json").read_text(encoding="utf-8"))["test"]["anomaly"]["worst"]
    assert [r["score"] for r in stored] == sorted((r["score"] for r in stored), reverse=True) and stored[0]["prediction"] == "anomaly"
    assert "shop = abroad" in stored[0]["why"] or "median" in stored[0]["why"]
    page = (done.run / "report.html").read_text(encoding="utf-8")
    assert "Oddest rows" in page and "Worst rows" not in page
