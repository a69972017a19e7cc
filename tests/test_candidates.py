"""Folds, ensembles and the search among candidates: nothing is judged on rows it learnt from, and what is saved answers as it was judged."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold

import modelyard as my
from modelyard.data.folds import folds
from modelyard.data.split import SplitConfig
from modelyard.errors import DataError
from modelyard.estimators import trees
from modelyard.kinds._contract import Head
from modelyard.runtime.model import Model
from modelyard.verbs.train import cross_validation, ensemble

CATEGORY = Head("y", "category", "logits", 3)
NUMBER = Head("y", "number", "value", 1)


@pytest.fixture(scope="module")
def cancer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """569 tumours, 30 numbers (Wolberg 1993; scikit-learn's copy)."""
    found = load_breast_cancer()
    frame = pl.DataFrame({n.replace(" ", "_"): found.data[:, i] for i, n in enumerate(found.feature_names[:10])})
    frame = frame.with_columns(patient=pl.Series([f"p{i % 190}" for i in range(frame.height)]), kind=pl.Series(found.target_names[found.target]))
    path = tmp_path_factory.mktemp("cancer") / "cancer.csv"
    frame.write_csv(path)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- folds ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [97, 400])
def test_every_row_is_held_out_once_and_labels_are_spread(rows: int) -> None:
    labels = np.random.default_rng(0).choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1])
    made = folds(pl.DataFrame({"y": labels}), SplitConfig(), ["y"], 5, seed=3)
    assert np.array_equal(np.sort(np.concatenate([held for _, held in made])), np.arange(rows))
    assert all(not set(learnt) & set(held) and len(learnt) + len(held) == rows for learnt, held in made)
    ours = [[int((labels[held] == k).sum()) for k in "abc"] for _, held in made]
    theirs = [[int((labels[held] == k).sum()) for k in "abc"] for _, held in StratifiedKFold(5).split(labels, labels)]
    assert np.ptp(ours, axis=0).max() <= max(2, np.ptp(theirs, axis=0).max())
    again = folds(pl.DataFrame({"y": labels}), SplitConfig(), ["y"], 5, seed=3)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made, again, strict=True))
    other = folds(pl.DataFrame({"y": labels}), SplitConfig(), ["y"], 5, seed=4)
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(made, other, strict=True))


def test_numbers_are_spread_over_folds() -> None:
    y = np.random.default_rng(1).lognormal(0, 2, 400)
    means = [np.log(y[held]).mean() for _, held in folds(pl.DataFrame({"y": y}), SplitConfig(), ["y"], 8)]
    assert np.ptp(means) < 0.1  # at random it is about 0.8


def test_groups_stay_together_and_folds_are_even() -> None:
    group = np.random.default_rng(2).integers(0, 37, 500)
    made = folds(pl.DataFrame({"g": group}), SplitConfig(by="g"), [], 5)
    assert all(not set(group[learnt]) & set(group[held]) for learnt, held in made)
    sizes = [len(held) for _, held in made]
    assert sum(sizes) == 500 and max(sizes) - min(sizes) <= 20
    with pytest.raises(DataError, match="at most 3"):
        folds(pl.DataFrame({"g": [1, 2, 3, 1]}), SplitConfig(by="g"), [], 5)


def test_time_never_learns_from_what_follows() -> None:
    when = np.random.default_rng(3).permutation(60)
    made = folds(pl.DataFrame({"t": when}), SplitConfig(time="t"), [], 4)
    assert all(when[learnt].max() < when[held].min() for learnt, held in made)
    assert [len(learnt) for learnt, _ in made] == [12, 24, 36, 48]


# -- ensembles --------------------------------------------------------------------------------------------------------------


def test_selection_is_at_least_the_best_single_model_and_near_the_best_weights() -> None:
    random = np.random.default_rng(4)
    truth = ensemble.Truth(NUMBER, random.normal(size=2000))
    noise = random.normal(size=(3, 2000)) * np.array([[0.5], [0.6], [2.0]])
    library = [{"y.value": (truth.target + n)[:, None]} for n in noise]
    weights = ensemble.select([truth], library)
    assert math.isclose(sum(weights), 1.0)
    mixed = ensemble.total([truth], ensemble.blend(library, weights))
    assert mixed < min(ensemble.total([truth], one) for one in library)
    # independent errors: the best weights are proportional to 1 / variance
    best = np.array([1 / 0.25, 1 / 0.36, 1 / 4.0])
    assert np.abs(np.array(weights) - best / best.sum()).max() < 0.06


def test_losses_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import log_loss, mean_squared_error

    random = np.random.default_rng(5)
    logits, y, w = random.normal(size=(50, 3)).astype(np.float32), random.integers(0, 3, 50), random.random(50)
    found = ensemble.loss(ensemble.Truth(CATEGORY, y, w), ensemble.answers(CATEGORY, logits))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found == pytest.approx(log_loss(y, p / p.sum(1, keepdims=True), sample_weight=w), abs=1e-6)
    value = random.normal(size=(50, 1)).astype(np.float32)
    assert ensemble.loss(ensemble.Truth(NUMBER, y.astype(float)), value) == pytest.approx(mean_squared_error(y, value[:, 0]), abs=1e-6)


def test_a_stack_of_numbers_is_the_non_negative_least_squares_solution() -> None:
    from scipy.optimize import nnls

    random = np.random.default_rng(7)
    z = random.normal(size=(4, 500, 1))
    y = 0.7 * z[0, :, 0] + 0.2 * z[1, :, 0] - 0.4 * z[2, :, 0] + 1.5 + random.normal(size=500) * 0.1
    weights, shifts = ensemble.stack(ensemble.Truth(NUMBER, y), z, ridge=0.0)
    design = np.column_stack([z[:, :, 0].T, np.ones(500), -np.ones(500)])
    expected, _ = nnls(design, y)
    assert np.abs(np.array(weights) - expected[:4]).max() < 1e-4 and abs(shifts[0] - expected[4] + expected[5]) < 1e-4


def test_a_stack_of_labels_undoes_what_was_done_to_logits() -> None:
    random = np.random.default_rng(8)
    true = random.normal(size=(20_000, 3)) * 2
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    y = (p.cumsum(1) > random.random((len(p), 1))).argmax(1)
    z = np.stack([true * 3 + np.array([1.0, 0, -1]), random.normal(size=true.shape)])  # overconfident and shifted; noise
    weights, shifts = ensemble.stack(ensemble.Truth(CATEGORY, y), z, ridge=0.0)
    assert abs(weights[0] - 1 / 3) < 0.02 and weights[1] < 0.03
    assert np.abs(np.diff(shifts) - 1 / 3).max() < 0.06  # the shift is undone: -1/3, 0, 1/3 up to a constant


def test_joined_trees_are_the_mean_of_their_outputs() -> None:
    random = np.random.default_rng(6)
    x = {"table.numbers": random.normal(size=(300, 4)).astype(np.float32), "table.categories": random.integers(0, 5, (300, 1)).astype(np.int32)}
    y = {"y.index": (x["table.numbers"][:, 0] + x["table.categories"][:, 0] > 2).astype(np.int64) + (x["table.numbers"][:, 1] > 1)}
    config = trees.Config(trees=20, bags=1)
    states = [trees.fit(x, y, [CATEGORY], config, seed=s) for s in range(3)]
    mean = np.mean([trees.apply(x, s)["y.logits"] for s in states], axis=0)
    assert np.abs(trees.apply(x, trees.join(states))["y.logits"] - mean).max() < 1e-6


# -- the search -------------------------------------------------------------------------------------------------------------


def test_a_search_is_a_model_whose_stored_weights_and_scores_are_those_of_the_leaderboard(cancer: Path) -> None:
    model = {"name": "auto", "candidates": ["linear", {"name": "trees", "trees": 60, "bags": 1}, {"name": "k-means"}]}
    done = my.train(
        data={"path": str(cancer), "target": "kind", "ignore": "patient"}, model=model, train={"preset": "balanced", "budget": "60s"}
    )
    run = json.loads((done.run / "run.json").read_text(encoding="utf-8"))
    board = run["leaderboard"]
    assert [e["model"] for e in board if "reason" in e] == ["02-k-means"] and "cluster" in board[-1]["reason"]
    scored = [e for e in board if "scores" in e]
    assert {e["settings"].get("trees") for e in scored} == {None, 60} and sorted(e["loss"] for e in scored) == [e["loss"] for e in scored]
    whole = Model.load(done.model)
    assert whole.replay().ok
    parts = whole.manifest["model"].get("parts", [])
    weights = {e["model"]: e["weight"] for e in scored if e["weight"]}
    assert math.isclose(sum(weights.values()), 1, abs_tol=1e-3) and (not parts or set(parts) == set(weights))
    # valid is judged out of fold: all rows but the test rows, and worse than the model's own answers to rows it learnt from
    assert run["data"]["rows"]["valid"] == run["data"]["rows"]["train"] == 569 - run["data"]["rows"]["test"]
    frame = pl.read_csv(cancer)
    own = whole.predict(frame.drop("kind")).columns["kind"]
    assert (own == frame["kind"]).mean() > done.metrics["valid"]["accuracy"]["value"] > 0.9
    # judged again it does not score the rows that it learnt from
    assert set(my.evaluate(str(done.run)).metrics) == {"test"}


def test_an_interrupted_search_goes_on_with_the_candidates_it_had(cancer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "data": {"path": str(cancer), "target": "kind", "ignore": "patient"}, "train": {"preset": "balanced", "budget": "60s"},
        "model": {"name": "auto", "candidates": [{"name": "trees", "trees": 40, "bags": 1}, "linear"]},
    }  # fmt: skip
    from modelyard.estimators import linear

    fits: list[str] = []
    real_trees, real_linear = trees.fit, linear.fit
    monkeypatch.setattr(trees, "fit", lambda *a, **k: fits.append("trees") or real_trees(*a, **k))

    def killed(*a: object, **k: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(linear, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        my.train(**settings)
    assert len(fits) == 5
    monkeypatch.setattr(linear, "fit", real_linear)
    done = my.train(**settings, resume=True)
    assert len(fits) == 5 and Model.load(done.model).replay().ok
    board = json.loads((done.run / "run.json").read_text(encoding="utf-8"))["leaderboard"]
    assert {e["model"] for e in board if "scores" in e} == {"00-trees", "01-linear"}


@pytest.mark.parametrize("how", ["single", "mean", "vote", "stack"])
def test_every_way_to_combine_is_judged_by_what_answers(cancer: Path, how: str) -> None:
    model = {"name": "auto", "candidates": ["linear", {"name": "trees", "trees": 30, "bags": 1}, {"name": "neighbours", "k": 5}]}
    train = {"preset": "balanced", "budget": "60s", "ensemble": how}
    done = my.train(data={"path": str(cancer), "target": "kind", "ignore": "patient"}, model=model, train=train)
    whole = Model.load(done.model)
    assert whole.replay().ok and whole.manifest["model"].get("combine", "single") == how
    assert done.metrics["test"]["accuracy"]["value"] > 0.88 and done.metrics["valid"]["accuracy"]["value"] > 0.9


def test_a_whole_is_distilled_into_one_small_model(cancer: Path) -> None:
    model = {"name": "auto", "candidates": ["linear", {"name": "trees", "trees": 60, "bags": 1}]}
    train = {"preset": "balanced", "budget": "60s", "distil": "linear"}
    done = my.train(data={"path": str(cancer), "target": "kind", "ignore": "patient"}, model=model, train=train)
    student = Model.load(done.model)
    assert student.manifest["model"]["estimator"] == "linear" and student.replay().ok and set(done.metrics) == {"test"}
    assert done.metrics["test"]["accuracy"]["value"] > 0.88 and student.manifest["distilled_from"]


def test_copies_weighted_by_the_teacher_have_its_cross_entropy() -> None:
    from modelyard.verbs.train.distil import soft

    random = np.random.default_rng(9)
    teacher = {"y.logits": random.normal(size=(40, 3)).astype(np.float32)}
    student = random.normal(size=(40, 3))
    index, weights, targets = soft([CATEGORY], {"y.index": np.zeros(40, np.int64)}, teacher, None)
    log_q = student - np.log(np.exp(student).sum(1, keepdims=True))
    copies = -(weights * log_q[index, targets["y.index"]]).sum()
    p = np.exp(teacher["y.logits"]) / np.exp(teacher["y.logits"]).sum(1, keepdims=True)
    p = np.where(p >= 0.02, p, 0) / np.where(p >= 0.02, p, 0).sum(1, keepdims=True)
    assert copies == pytest.approx(-(p * log_q).sum(), rel=1e-5) and np.bincount(index, weights) == pytest.approx(np.ones(40), abs=1e-5)


def test_copies_of_label_sets_have_the_cross_entropy_of_every_label() -> None:
    from modelyard.verbs.train.distil import soft

    random = np.random.default_rng(9)
    head, student = Head("y", "label-set", "logits", 4), random.normal(size=(50, 4))
    teacher = random.normal(size=(50, 4)).astype(np.float32) * 3
    teacher[3], teacher[4] = 9, -9  # all known, none
    teacher[7] = np.nan  # never held out: its own labels
    own = (random.random((50, 4)) > 0.5).astype(np.float32)
    index, weights, targets = soft([head], {"y.multi_hot": own}, {"y.logits": teacher}, np.arange(1, 51).astype(np.float32))
    p = 1 / (1 + np.exp(-teacher.astype(np.float64)))
    p[7] = own[7]
    p = np.where(p < 0.02, 0, np.where(p > 0.98, 1, p))
    q, t = 1 / (1 + np.exp(-student)), targets["y.multi_hot"]
    entropy = lambda truth, answer: -(truth * np.log(answer) + (1 - truth) * np.log(1 - answer))  # noqa: E731
    assert set(np.unique(t)) == {0.0, 1.0} and (np.bincount(index)[[3, 4, 7]] == 1).all() and np.bincount(index).max() <= 5
    for k in range(4):  # label by label, with the weights of the data
        mine, theirs = (weights * entropy(t[:, k], q[index, k])).sum(), (np.arange(1, 51) * entropy(p[:, k], q[:, k])).sum()
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_whole_of_label_sets_is_distilled() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(500, 3))
    sets = [[n for n, v in zip(("red", "green", "blue"), row, strict=True) if v > 0.3] for row in x + 0.3 * random.normal(size=x.shape)]
    table = pl.DataFrame({**{f"x{i}": x[:, i] for i in range(3)}, "y": pl.Series(sets, dtype=pl.List(pl.String))})
    data = {"path": table, "target": "y"}
    done = my.train(
        data=data, model={"name": "auto", "candidates": [{"name": "trees", "trees": 40, "bags": 1}, "linear"]},
        train={"preset": "balanced", "budget": "60s", "distil": "linear"}, evaluate={"metrics": ["hamming"]},
    )  # fmt: skip
    student = Model.load(done.model)
    assert student.manifest["model"]["estimator"] == "linear" and student.manifest["distilled_from"] and student.replay().ok
    assert done.metrics["test"]["hamming"]["value"] < 0.15


def test_catboost_is_a_candidate_of_best_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.verbs.train import search

    names = {}
    for installed in (True, False):
        monkeypatch.setattr(search, "find_spec", lambda package, there=installed: object() if there else None)
        names[installed] = [one["name"] for one in search.PRESETS["best"].possible]
    assert set(names[True]) - set(names[False]) == {"catboost"} and "catboost" not in [one["name"] for one in search.PRESETS["balanced"].possible]


def test_catboost_joins_a_whole(cancer: Path) -> None:
    pytest.importorskip("catboost")
    model = {"name": "auto", "candidates": ["linear", {"name": "catboost", "trees": 60}]}
    done = my.train(data={"path": str(cancer), "target": "kind", "ignore": "patient"}, model=model, train={"preset": "balanced", "ensemble": "mean"})
    board = json.loads((done.run / "run.json").read_text(encoding="utf-8"))["leaderboard"]
    assert {e["model"].partition("-")[2] for e in board if e["weight"] > 0} == {"linear", "catboost"} and Model.load(done.model).replay().ok


# -- cross-validation -------------------------------------------------------------------------------------------------------


def test_cross_validation_refits_everything_and_reports_mean_interval_and_spread(cancer: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    done = my.train(
        data={"path": str(cancer), "target": "kind", "ignore": "patient"}, model={"name": "linear", "c": 1.0}, train={"folds": 5, "repeats": 2}
    )
    found = done.metrics["folds"]["accuracy"]
    assert len(found["scores"]) == 10 and found["value"] == pytest.approx(np.mean(found["scores"]), abs=1e-6)
    assert found["spread"] == pytest.approx(np.std(found["scores"], ddof=1), abs=1e-5)
    frame = pl.read_csv(cancer)
    x, y = frame.drop("kind", "patient").to_numpy(), frame["kind"].to_numpy()
    theirs = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), x, y, cv=StratifiedKFold(5, shuffle=True, random_state=0))
    assert abs(found["value"] - theirs.mean()) < 0.015
    assert {"valid", "test", "folds"} == set(done.metrics) and not (done.run / "fold").exists()


def test_a_preset_searches_in_every_fold_without_the_rows_held_out(cancer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested: what judges a fold is neither learnt from nor used to choose; labels turned there change no candidate."""
    from modelyard.verbs.train import search

    frame, learnt, turned = pl.read_csv(cancer), [], [False]
    real = search.divide

    def spy(bound: Any, *rest: Any) -> Any:
        if turned[0]:
            other = {k: v.with_columns(kind=v["kind"].reverse()) if k == "test" else v for k, v in bound.splits.items()}
            bound = dataclasses.replace(bound, splits=other)
        learnt.append({k: set(v["patient"]) for k, v in bound.splits.items()})
        return real(bound, *rest)

    monkeypatch.setattr(search, "divide", spy)
    boards = []
    for turned[0] in (False, True):
        done = my.train(
            data={"path": str(cancer), "target": "kind", "split": {"by": "patient"}}, model={"name": "auto", "candidates": ["linear"]},
            train={"folds": 2, "preset": "balanced", "budget": 60.0},
        )  # fmt: skip
        boards.append((json.loads((done.run / "run.json").read_text(encoding="utf-8"))["leaderboard"][0]["scores"], done.metrics["folds"]))
    assert boards[0][0] == boards[1][0] and boards[0][1]["accuracy"]["value"] > boards[1][1]["accuracy"]["value"] + 0.2
    folds_made, whole = learnt[:2], set(frame["patient"])
    assert all(not (made["train"] | made["valid"]) & made["test"] for made in folds_made)
    assert folds_made[0]["test"] | folds_made[1]["test"] == whole and not folds_made[0]["test"] & folds_made[1]["test"]


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    scores = [{"rmse": {"value": v, "better": "lower"}} for v in (1.0, 2.0, 4.0, 5.0)]
    found = cross_validation.summary(scores, 0.25)["rmse"]
    spread = math.sqrt(sum((v - 3) ** 2 for v in (1, 2, 4, 5)) / 3)
    reach = 3.182446305 * spread * math.sqrt(1 / 4 + 0.25)
    assert found["value"] == 3 and found["high"] == pytest.approx(3 + reach) and found["low"] == pytest.approx(3 - reach)


def test_groups_are_kept_apart_in_cross_validation(cancer: Path) -> None:
    data = {"path": str(cancer), "target": "kind", "split": {"by": "patient"}}
    done = my.train(data=data, model={"name": "linear", "c": 1.0}, train={"folds": 3})
    assert len(done.metrics["folds"]["accuracy"]["scores"]) == 3


# -- balancing --------------------------------------------------------------------------------------------------------------


def rare(n: int = 1500) -> pl.DataFrame:
    random = np.random.default_rng(10)
    x = random.normal(size=(n, 3))
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": np.where(x[:, 0] + 0.7 * random.normal(size=n) > 1.9, "rare", "common")})


@pytest.mark.parametrize("how", ["over", "under", "smote"])
def test_balancing_touches_the_training_rows_alone(how: str) -> None:
    data = {"path": rare(), "target": "y"}
    plain = my.train(data=data, model={"name": "linear", "c": 1.0})
    done = my.train(data=data, model={"name": "linear", "c": 1.0}, train={"balance": how})
    runs = [json.loads((d.run / "run.json").read_text(encoding="utf-8"))["data"]["rows"] for d in (plain, done)]
    assert {k: v for k, v in runs[0].items() if k != "train"} == {k: v for k, v in runs[1].items() if k != "train"}
    found = [d.metrics["test"]["recall"]["value"] for d in (plain, done)]  # of the rare label
    assert found[1] > found[0] + 0.15


@pytest.mark.parametrize("how", ["over", "smote"])
def test_balancing_in_a_search_works_inside_each_fold(how: str) -> None:
    data, model = {"path": rare(), "target": "y"}, {"name": "auto", "candidates": ["linear"]}
    done = my.train(data=data, model=model, train={"preset": "balanced", "balance": how, "budget": "60s"})
    assert done.metrics["valid"]["balanced_accuracy"]["value"] > 0.75


def test_rows_made_in_a_fold_come_from_its_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every made row lies between two rows of the fold's own rare label, in the numbers that the model is given; the fold's rows come first,
    and made rows weigh as the row that they start from."""
    from modelyard.verbs.train import by_folds

    table = rare(600).with_columns(weight=pl.int_range(1, 601).cast(pl.Float64))
    lessons: list[tuple[Any, Any]] = []
    real = by_folds.lesson

    def spy(found: Any, pipeline: Any, inputs: Any, targets: Any, learnt: Any) -> Any:
        lessons.append((learnt, real(found, pipeline, inputs, targets, learnt)))
        assert np.array_equal(lessons[-1][1].inputs["table.numbers"][: len(learnt)], inputs["table.numbers"][learnt])
        return lessons[-1][1]

    monkeypatch.setattr(by_folds, "lesson", spy)
    model = {"name": "auto", "candidates": [{"name": "trees", "trees": 5, "bags": 1}]}  # it reads numbers as they are
    my.train(data={"path": table, "target": "y", "weight": "weight"}, model=model, train={"preset": "balanced", "balance": "smote", "budget": 60.0})
    assert len(lessons) == 5
    for learnt, given in lessons:
        x, y, kept = given.inputs["table.numbers"].astype(np.float64), given.targets["y.index"], len(learnt)
        counts = np.bincount(y)
        assert counts[0] == counts[1] and len(y) > kept and len(given.index) == len(y) and np.isin(given.index, learnt).all()
        own = x[:kept][y[:kept] == y[kept]]
        assert (y[kept:] == y[kept]).all()
        for i in range(kept, min(len(y), kept + 40)):  # |a - m| + |m - b| = |a - b| for some pair a, b with m between them
            base = x[np.flatnonzero(learnt == given.index[i])[0]]
            to, span = np.linalg.norm(own - x[i], axis=1), np.linalg.norm(own - base, axis=1)
            assert np.min(np.abs(np.linalg.norm(base - x[i]) + to - span)) < 1e-5


def test_a_whole_is_exported_part_by_part(cancer: Path) -> None:
    model = {"name": "auto", "candidates": ["linear", {"name": "trees", "trees": 30, "bags": 1}, {"name": "neighbours", "k": 5}]}
    done = my.train(data={"path": str(cancer), "target": "kind", "ignore": "patient"}, model=model, train={"preset": "balanced", "ensemble": "mean"})
    found = my.export(str(done.run), quiet=True)
    exported = Model.load(found.folder)
    assert {p.manifest["model"]["backend"] for p in exported.parts} == {"onnx"} and found.parity["max_difference"] < 1e-5  # type: ignore[attr-defined]
    frame = pl.read_csv(cancer).drop("kind")
    assert exported.predict(frame)["kind"].equals(Model.load(done.model).predict(frame)["kind"])
