"""Metrics against scikit-learn and slow loops; intervals by their coverage; what is not defined says so."""

import math
import warnings

import numpy as np
import pytest

from modelyard.errors import UsageError
from modelyard.metrics import Predicted, baseline, evaluate_output, get, names
from modelyard.metrics._contract import Undefined
from modelyard.metrics._interval import interval, wilson
from modelyard.metrics._ranking import auc, average_precision


@pytest.fixture
def sk():
    """scikit-learn's metrics without its warnings and argument checks."""
    metrics = pytest.importorskip("sklearn.metrics")
    import sklearn

    with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore")
        yield metrics


def value(name, truth, prediction, **options):
    """The metric, NaN where undefined."""
    try:
        return get(name).compute(truth, prediction, **options)
    except Undefined:
        return math.nan


def close(ours, theirs):
    return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9)


def random_case(rng, k, tied):
    n = int(rng.integers(2, 40))
    truth = rng.integers(0, k, n)
    scores = rng.dirichlet(np.ones(k), n)
    if tied:
        scores = np.round(scores * 4) + 1e-3
        scores /= scores.sum(1, keepdims=True)
    weights = rng.integers(0, 4, n) + 0.5 if rng.random() < 0.5 else None
    return truth, scores, weights


def test_category_metrics_equal_scikit_learn_on_350_cases(sk):
    rng, compared = np.random.default_rng(0), dict.fromkeys(("f1", "roc_auc", "average_precision", "undefined"), 0)
    for case in range(350):
        k = 2 if case % 2 else int(rng.integers(3, 6))
        y, p, w = random_case(rng, k, case % 3 == 0)
        found, ids = p.argmax(1), list(range(k))
        seen = np.union1d(y, found)
        binary = {"average": "binary", "pos_label": 1} if k == 2 else {"average": "macro"}
        given = {"weights": w, "labels": ids}
        if case % 8 == 1:  # one class only
            y = np.zeros_like(y)
            seen = np.union1d(y, found)
        assert close(value("accuracy", y, found, **given), sk.accuracy_score(y, found, sample_weight=w))
        # scikit-learn takes milliseconds a call: each case compares one third of the averages.
        three = (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score))
        for name, score in three[case % 3 : case % 3 + 1]:
            theirs = score(y, found, sample_weight=w, zero_division=np.nan if k == 2 else 0, **binary)
            if name == "f1" and k == 2 and 1 not in seen:
                theirs = math.nan
            ours = value(name, y, found, **given)
            assert close(ours, theirs) or (math.isnan(ours) and math.isnan(theirs)), (name, ours, theirs)
        compared["f1"] += 1
        for average in ("macro", "weighted", "micro")[case % 3 : case % 3 + 1]:
            theirs = sk.f1_score(y, found, sample_weight=w, average=average, zero_division=0)
            assert close(value(f"{average}_f1", y, found, **given), theirs)
        if len(np.unique(y)) > 1:
            theirs = sk.balanced_accuracy_score(y, found, sample_weight=w)
            assert close(value("balanced_accuracy", y, found, **given), theirs)
        assert close(value("log_loss", y, p, **given), sk.log_loss(y, p, sample_weight=w, labels=ids))
        theirs = np.average(((p - np.eye(k)[y]) ** 2).sum(1) / (2 if k == 2 else 1), weights=w)
        assert close(value("brier", y, p, **given), theirs)
        questions = [1] if k == 2 else [c for c in ids if 0 < (y == c).sum() < len(y)]
        if k == 2 and len(np.unique(y)) < 2:
            assert math.isnan(value("roc_auc", y, p, **given)) and math.isnan(value("pr_auc", y, p, **given))
            compared["undefined"] += 1
        elif questions:
            two = (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score))
            for name, score in two[case % 5 % 2 : case % 5 % 2 + 1]:
                theirs = np.mean([score(y == c, p[:, c], sample_weight=w) for c in questions])
                assert close(value(name, y, p, **given), theirs), name
                compared[name] += 1
    assert min(compared.values()) >= 30, compared


def test_label_set_metrics_equal_scikit_learn_on_100_cases(sk):
    rng = np.random.default_rng(1)
    for _ in range(100):
        n, k = int(rng.integers(2, 40)), int(rng.integers(2, 4))
        y, p = rng.integers(0, 2, (n, k)), np.round(rng.random((n, k)), 1)
        found, w = (p >= 0.5).astype(int), rng.random(n) + 0.1 if rng.random() < 0.5 else None
        assert close(value("subset_accuracy", y, found, weights=w), sk.accuracy_score(y, found, sample_weight=w))
        assert close(value("hamming", y, found, weights=w), sk.hamming_loss(y, found, sample_weight=w))
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score)):
            used = [c for c in range(k) if y[:, c].any() or found[:, c].any()]
            theirs = np.mean([score(y[:, c], found[:, c], sample_weight=w, zero_division=0) for c in used])
            assert close(value(name, y, found, weights=w), theirs)
        theirs = sk.f1_score(y, found, average="micro", sample_weight=w, zero_division=0)
        assert close(value("micro_f1", y, found, weights=w), theirs)
        used = [c for c in range(k) if 0 < y[:, c].sum() < n]
        if used:
            theirs = np.mean([sk.roc_auc_score(y[:, c], p[:, c], sample_weight=w) for c in used])
            assert close(value("roc_auc", y, p, weights=w), theirs)


def test_number_metrics_equal_scikit_learn_on_900_cases(sk):
    rng = np.random.default_rng(2)
    for _ in range(900):
        n = int(rng.integers(2, 50))
        y, shift = rng.normal(size=n) * 10 ** rng.uniform(-3, 3), rng.choice([0.0, 1e5])
        found, y = y + rng.normal(size=n) + shift, y + shift
        w = rng.random(n) + 0.1 if rng.random() < 0.5 else None
        for name, score in (
            ("mse", sk.mean_squared_error),
            ("rmse", sk.root_mean_squared_error),
            ("mae", sk.mean_absolute_error),
            ("r2", sk.r2_score),
        ):
            assert close(value(name, y, found, weights=w), score(y, found, sample_weight=w)), name
    assert math.isnan(value("r2", np.ones(5), np.arange(5.0)))


def slow_davies_bouldin(x, ids):
    groups = [x[ids == c] for c in np.unique(ids)]
    centres = [g.mean(0) for g in groups]
    spread = [np.mean([math.dist(row, m) for row in g]) for g, m in zip(groups, centres, strict=True)]
    worst = []
    for i in range(len(groups)):
        others = [j for j in range(len(groups)) if j != i]
        worst.append(max((spread[i] + spread[j]) / math.dist(centres[i], centres[j]) for j in others))
    return np.mean(worst)


def test_cluster_metrics_equal_scikit_learn_on_700_cases(sk):
    rng = np.random.default_rng(3)
    for _ in range(700):
        n, d, k = int(rng.integers(6, 50)), int(rng.integers(1, 5)), int(rng.integers(2, 5))
        x, ids, other = rng.normal(size=(n, d)), rng.integers(0, k, n), rng.integers(-1, 3, n)
        if 1 < len(np.unique(ids)) < n:
            assert close(value("silhouette", x, ids), sk.silhouette_score(x, ids))
            assert close(value("calinski_harabasz", x, ids), sk.calinski_harabasz_score(x, ids))
            # scikit-learn's distance of a point to itself is 1e-8 here, ours is 0: hence the slow loop beside it.
            assert value("davies_bouldin", x, ids) == pytest.approx(sk.davies_bouldin_score(x, ids), rel=1e-6)
            assert close(value("davies_bouldin", x, ids), slow_davies_bouldin(x, ids))
        assert close(value("adjusted_rand", ids, other), sk.adjusted_rand_score(ids, other))


def test_cluster_metrics_do_not_lose_digits_far_from_the_origin():
    """At an offset of 10,000 scikit-learn's own Davies-Bouldin is off by more than this."""
    rng = np.random.default_rng(7)
    x, ids = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    for name in ("silhouette", "calinski_harabasz", "davies_bouldin"):
        assert value(name, x + 1e4, ids) == pytest.approx(value(name, x, ids), rel=1e-9)


def test_cluster_weights_are_repeated_rows():
    rng = np.random.default_rng(4)
    x, ids, w = rng.normal(size=(30, 3)), rng.integers(0, 3, 30), rng.integers(1, 4, 30)
    for name in ("calinski_harabasz", "davies_bouldin"):
        assert close(value(name, x, ids, weights=w), value(name, np.repeat(x, w, 0), np.repeat(ids, w)))


def test_calibration_error_against_a_slow_loop():
    rng = np.random.default_rng(5)
    for _ in range(50):
        y, p, w = random_case(rng, 4, False)
        w = np.ones(len(y)) if w is None else w
        total = 0.0
        for b in range(15):
            inside = [i for i in range(len(y)) if b / 15 < p[i].max() <= (b + 1) / 15]
            total += abs(sum(w[i] * ((p[i].argmax() == y[i]) - p[i].max()) for i in inside))
        assert close(value("calibration_error", y, p, weights=w), total / w.sum())


@pytest.mark.parametrize("f", [auc, average_precision])
def test_influence_is_the_derivative_by_the_weights(f):
    rng = np.random.default_rng(6)
    y, s, w = rng.random(25) < 0.4, np.round(rng.random(25), 1), rng.random(25) + 0.5
    _, derivative = f(y, s, w)
    for i in range(25):
        step = np.zeros(25)
        step[i] = 1e-6
        numerical = (f(y, s, w + step)[0] - f(y, s, w - step)[0]) / 2e-6
        assert derivative[i] == pytest.approx(numerical, abs=1e-7)


def test_wilson_is_the_published_interval():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I: 81/263, 15/148, 0/20, 1/29, method 3.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def binary_world(rng, n):
    y = (rng.random(n) < 0.35).astype(np.int64)
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * y - 1)))
    return y, np.stack([1 - p, p], 1)


def number_world(rng, n):
    y = rng.normal(size=n)
    return y, 0.7 * y + 0.5 * rng.normal(size=n)


COVERAGE = ["accuracy", "balanced_accuracy", "precision", "recall", "f1", "macro_f1", "roc_auc", "average_precision",
            "log_loss", "brier", "mse", "rmse", "mae", "r2"]  # fmt: skip


@pytest.mark.parametrize("name", COVERAGE)
def test_intervals_cover_the_truth_as_often_as_they_say(name):
    """400 simulations of 250 rows: between 90 and 99 % hold the true value (95 ± 1.1 % is one standard deviation)."""
    metric = get(name)
    world = number_world if "number" in metric.kinds else binary_world

    def arguments(rng, n):
        y, p = world(rng, n)
        return y, p.argmax(1) if metric.needs == "labels" else p

    truth = metric.compute(*arguments(np.random.default_rng(10), 300_000))
    rng, hits = np.random.default_rng(11), 0
    for _ in range(400):
        y, p = arguments(rng, 250)
        low, high, _how = interval(metric, y, p, resamples=400)
        hits += low <= truth <= high
    assert 361 <= hits <= 396, hits / 400


@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_the_interval_of_the_calibration_error_is_safe(shift):
    """Plain percentiles never hold the 0 of a calibrated model; this interval must, and must still see a real error."""
    rng, hits, seen, metric = np.random.default_rng(14), 0, 0, get("calibration_error")
    for _ in range(200):
        p = rng.uniform(0.5, 0.8, 500)
        y = (rng.random(500) < p + shift).astype(np.int64)
        low, high, _how = interval(metric, y, np.stack([1 - p, p], 1), resamples=300)
        hits += low <= shift <= high
        seen += low > 0
    assert hits >= 184 and (seen > 190 if shift else seen < 16), (hits, seen)


def test_a_million_rows_by_the_normal_limit_and_the_bootstrap_agree():
    rng = np.random.default_rng(12)
    y, p = number_world(rng, 19_000)
    exact = interval(get("r2"), y, p)
    big = interval(get("r2"), np.tile(y, 2), np.tile(p, 2))
    assert exact[2] == "bootstrap" and big[2] == "normal"
    assert (exact[1] - exact[0]) / (big[1] - big[0]) == pytest.approx(math.sqrt(2), rel=0.15)


def test_the_row_bootstrap_agrees_with_the_fast_one():
    rng = np.random.default_rng(13)
    y, p = binary_world(rng, 400)
    found = p.argmax(1)
    fast = interval(get("f1"), y, found)
    slow = interval(get("f1"), y, found, weights=np.ones(400))
    assert slow[:2] == pytest.approx(fast[:2], abs=0.025)


def test_perfect_answers_do_not_get_an_interval_of_no_width():
    y = np.array([0, 1] * 10)
    found = evaluate_output("category", y, np.eye(2)[y])
    for name in ("accuracy", "f1", "roc_auc", "average_precision", "balanced_accuracy"):
        assert found[name]["value"] == 1 and 0.6 < found[name]["low"] < 0.99 and found[name]["high"] == 1


def test_undefined_is_nan_with_the_reason_and_never_zero_or_one():
    zeros = np.zeros(6, np.int64)
    found = evaluate_output("category", zeros, np.tile([0.9, 0.1], (6, 1)))
    for name in ("precision", "recall", "f1", "roc_auc", "average_precision", "balanced_accuracy"):
        assert math.isnan(found[name]["value"]) and found[name]["note"].startswith("not defined: ")
    assert found["accuracy"]["value"] == 1
    empty = evaluate_output("number", np.zeros(0), np.zeros(0))
    assert all(math.isnan(m["value"]) and "no rows" in m["note"] for m in empty.values())
    one = evaluate_output("cluster", None, Predicted(labels=zeros, features=np.ones((6, 2))))
    assert "two clusters" in one["silhouette"]["note"] and "adjusted_rand" not in one


def test_rows_without_truth_are_left_out_and_counted():
    y, p = np.array([0, 1, -1, 1]), np.array([0.1, 0.8, 0.9, 0.4])
    found = evaluate_output("category", y, p, ["accuracy"])
    assert found["accuracy"]["value"] == pytest.approx(2 / 3) and "1 rows without truth" in found["accuracy"]["note"]


def test_all_wrong_metric_names_are_named_at_once():
    with pytest.raises(UsageError) as error:
        evaluate_output("category", np.array([0, 1]), np.array([0, 1]), ["acuracy", "rmse", "accuracy"])
    text = str(error.value)
    assert "acuracy" in text and "accuracy" in text and "'rmse' is for number" in text
    with pytest.raises(UsageError, match="no metrics for outputs of kind 'boxes'"):
        evaluate_output("boxes", np.zeros(1), np.zeros(1))


def test_the_positive_class_can_be_chosen():
    y, p = np.array([0, 0, 1, 1, 0]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.8, 0.2]])
    found = evaluate_output("category", y, p, ["precision"], positive=0)
    assert found["precision"]["value"] == pytest.approx(2 / 3)
    found = evaluate_output("category", y, p, ["precision"])
    assert found["precision"]["value"] == pytest.approx(1 / 2)


def test_baselines_know_only_the_training_targets():
    shares = baseline("category", np.array([0, 1, 1, 2, -1]), 3, labels="abc")
    assert shares.labels.tolist() == [1, 1, 1] and shares.scores[0].tolist() == [0.25, 0.5, 0.25]
    assert baseline("number", np.array([1.0, 3.0, math.nan]), 2).values.tolist() == [2, 2]
    sets = baseline("label-set", np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]]), 1)
    assert sets.labels.tolist() == [[1, 1, 0]]
    assert evaluate_output("number", np.array([1.0, 3.0]), baseline("number", np.array([2.0]), 2))["r2"]["value"] == 0
    found = evaluate_output("category", np.array([0, 1, 2]), baseline("category", np.array([1, 1, 0]), 3, labels="abc"))
    assert found["accuracy"]["value"] == pytest.approx(1 / 3) and found["roc_auc"]["value"] == 0.5


def test_every_file_holds_a_metric_with_its_own_name():
    for name in names():
        metric = get(name)
        assert metric.name == ("average_precision" if name == "pr_auc" else name)
        assert metric.kinds and metric.better in ("higher", "lower")
