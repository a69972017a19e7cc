# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""Candidates for tables: forests, neighbours, bent linear models and nets, against scikit-learn, slow loops and closed forms."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from modelyard import registry
from modelyard.data.source import DataConfig
from modelyard.errors import DataError, MissingExtra
from modelyard.estimators import _forest, forest, linear, neighbours
from modelyard.kinds._bins import Bins, BinsConfig
from modelyard.kinds._contract import Array, Head, Part
from modelyard.nets import ft_transformer
from modelyard.nets._network import MEMBERS, build
from modelyard.runtime.model import Model
from modelyard.verbs.train import Config, train
from modelyard.verbs.train.loop import Batch, Term, each

CATEGORY = Head("y", "category", "logits", 2)
CLASSES = Head("y", "category", "logits", 3)
LABELS = Head("y", "label-set", "logits", 3)
NUMBER = Head("y", "number", "value", 1)
PARTS = {"table.numbers": Part((4,), "float32"), "table.categories": Part((2,), "int32")}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Nets this small only wait for a second thread."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


def table(rows: int, seed: int = 0, missing: float = 0.0) -> dict[str, Array]:
    """Four numbers (one of few values, so that ties are common) and two categories."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, 4)).astype(np.float32)
    numbers[:, 3] = rng.integers(-3, 4, rows)
    numbers[rng.random(numbers.shape) < missing] = np.nan
    return {"table.numbers": numbers, "table.categories": np.stack([rng.integers(0, 4, rows), rng.integers(0, 40, rows)], 1).astype(np.int32)}


def signal(inputs: dict[str, Array], seed: int = 1) -> np.ndarray:
    """What the targets depend on, with noise."""
    numbers, ids = np.nan_to_num(np.asarray(inputs["table.numbers"])), np.asarray(inputs["table.categories"])
    noise = np.random.default_rng(seed).normal(size=len(numbers))
    return numbers[:, 0] * numbers[:, 1] + numbers[:, 3] + 2 * np.sin(ids[:, 1] * 2.4) + 0.5 * noise


def targets_of(inputs: dict[str, Array], head: Head) -> dict[str, np.ndarray]:
    """A target for each head, made of the same signal."""
    s = signal(inputs)
    if head.kind == "number":
        return {"y.value": (s / s.std()).astype(np.float32)}
    if head.kind == "label-set":
        return {"y.multi_hot": np.stack([s > 0, s > 1, s < -1], 1).astype(np.float32)}
    return {"y.index": np.digitize(s, [0] if head.size == 2 else [-1, 1]).astype(np.int64)}


def probabilities(out: np.ndarray, kind: str) -> np.ndarray:
    """Of graph outputs, in float64."""
    out = out.astype(np.float64)
    if kind == "label-set":
        return 1 / (1 + np.exp(-out))
    return out if kind == "number" else np.exp(out) / np.exp(out).sum(1, keepdims=True)


def run_onnx(proto: Any, inputs: dict[str, Any]) -> np.ndarray:
    """The one output of ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})[0])


# -- bins --------------------------------------------------------------------------------------------------------------------


def test_bins_are_those_of_the_paper() -> None:
    """Against equation 1 of arXiv:2203.05556, written as a loop; edges are quantiles, and what is missing is the median."""
    x = np.random.default_rng(0).exponential(size=999)
    coder, column = Bins(), pl.Series("c", [*x, None], dtype=pl.Float64)
    state = coder.fit(column, BinsConfig(bins=7))
    assert np.abs(state.edges - np.quantile(x, np.linspace(0, 1, 8))).max() < 0.02
    out = coder.encode(column, state, {})
    for i in range(0, 999, 37):
        for t, (low, high) in enumerate(zip(state.edges[:-1], state.edges[1:], strict=True)):
            expected = 0.0 if x[i] < low else 1.0 if x[i] >= high else (x[i] - low) / (high - low)
            assert abs(out["value"][i, t] - expected) < 1e-6
    median = coder.encode(pl.Series("c", [float(np.median(x))]), state, {})["value"]
    assert np.abs(out["value"][-1] - median[0]).max() < 0.02 and out["missing"][-1] == 1 and out["missing"][:-1].sum() == 0
    assert coder.encode(pl.Series("c", [-1e9, 1e9]), state, {})["value"][:, [0, -1]].tolist() == [[-1.0, 0.0], [1.0, 2.0]]


def test_bins_of_columns_that_are_no_bell() -> None:
    """A column that is zero nine times in ten keeps bins for the rest; few values are their own edges; streams end close by."""
    rest = np.random.default_rng(1).uniform(1, 100, 400)
    edges = Bins().fit(pl.Series([*np.zeros(3600), *rest])).edges
    assert len(edges) > 22 and np.abs(np.diff(edges[2:]) - 100 / 23).max() < 4
    assert Bins().fit(pl.Series([3.0, 1.0, 2.0, 2.0])).edges.tolist() == [1.0, 2.0, 3.0]
    for odd in ([5.0, 5.0], [None, None], [1e300, -1e300], [1.0, 1.0 + 1e-15]):
        state = Bins().fit(pl.Series(odd, dtype=pl.Float64))
        assert np.isfinite(Bins().encode(pl.Series([*odd, 1e308, -1e308], dtype=pl.Float64), state, {})["value"]).all()
    x = np.random.default_rng(2).normal(size=120_000)
    coder = Bins()
    state = coder.start(BinsConfig())
    for low in range(0, len(x), 5000):
        state = coder.update(state, pl.Series(x[low : low + 5000]))
    inner = coder.finish(state).edges[1:-1]
    assert np.abs(np.searchsorted(np.sort(x), inner) / len(x) - np.linspace(0, 1, 25)[1:-1]).max() < 0.002


# -- forests -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "missing"), [("random", 0.0), ("random", 0.1), ("extra", 0.1)])
def test_forests_are_those_of_scikit_learn(variant: Any, missing: float) -> None:
    """The same trees though grown in portions; the prior is one tree more; numbers alone, so that the features are the same."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

    inputs, fresh = ({"table.numbers": table(n, s, missing)["table.numbers"]} for n, s in ((700, 0), (300, 5)))
    y = targets_of(table(700, 0, missing), CATEGORY)["y.index"]
    state = forest.fit(inputs, {"y.index": y}, [CATEGORY], forest.Config(variant=variant, trees=50, min_leaf=3, features=0.5), seed=4)
    peer = (ExtraTreesRegressor if variant == "extra" else RandomForestRegressor)(50, min_samples_leaf=3, max_features=0.5, random_state=4)
    expected = peer.fit(inputs["table.numbers"], y).predict(fresh["table.numbers"])
    found = probabilities(forest.apply(fresh, state)["y.logits"], "category")[:, 1]
    assert np.abs(found - (50 * expected + y.mean()) / 51).max() < 1e-6


@pytest.mark.parametrize("head", [CATEGORY, CLASSES, LABELS, NUMBER], ids=["two", "three", "labels", "number"])
def test_forests_learn_and_export(head: Head) -> None:
    """Deep trees: better than a constant on fresh rows, ONNX within 1e-5 with missing values and unseen categories, and joined
    forests answer the mean of their answers."""
    inputs, fresh = table(900, missing=0.1), table(400, seed=5, missing=0.1)
    states = [forest.fit(inputs, targets_of(inputs, head), [head], forest.Config(trees=40, min_leaf=1), seed=s) for s in (0, 1)]
    out = forest.apply(fresh, states[0])[head.key]
    truth = next(iter(targets_of(fresh, head).values()))
    if head.kind == "number":
        assert ((out[:, 0] - truth) ** 2).mean() < 0.6 * truth.var()
    elif head.kind == "label-set":
        assert ((out > 0) == (truth > 0)).mean() > 0.8
    else:
        assert (out.argmax(1) == truth).mean() > np.bincount(truth).max() / len(truth) + 0.15
    fresh["table.categories"][:50] = 1000  # type: ignore[index]
    joined = forest.join(states)
    each_one = [probabilities(forest.apply(fresh, s)[head.key], head.kind) for s in states]
    whole = forest.apply(fresh, joined)[head.key]
    assert np.abs(probabilities(whole, head.kind) - (each_one[0] + each_one[1]) / 2).max() < 1e-6
    for state in (states[0], joined):
        ours, theirs = forest.apply(fresh, state)[head.key], run_onnx(forest.graph(state, PARTS), fresh)
        assert np.abs(ours - theirs).max() < 1e-5 * max(1.0, float(np.abs(ours).max()))


def test_vector_leaves_by_masks_by_walking_and_by_hand() -> None:
    """Small trees (bit masks) and the same trees walked; a row followed in Python."""
    inputs = table(300)
    targets = targets_of(inputs, CLASSES)
    for least in (20, 1):  # at most 15 leaves; over 64
        state = forest.fit(inputs, targets, [CLASSES], forest.Config(trees=25, min_leaf=least))
        f = state.forests["y.logits"]
        x = forest.features(inputs, state.sources["y.logits"], state.tables["y.logits"])
        assert (f.masks is None) == (least == 1)
        walked = _forest.walk(x, f)
        assert np.allclose(_forest.score(x, f), walked, rtol=0, atol=1e-12)
        for i in range(0, 300, 41):
            total = f.base.copy()
            for node in f.roots.tolist():
                while f.left[node] != node:
                    node = f.left[node] if x[i, f.feature[node]] <= f.threshold[node] else f.right[node]
                total += f.leaves[int(f.value[node])]
            assert np.abs(total - walked[i]).max() < 1e-12


@pytest.mark.parametrize("variant", ["random", "extra"])
def test_forests_of_large_tables_stay_small(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees see so many rows at most, and have so many leaves; limits are lowered here."""
    inputs = table(600)
    for limit, most in (("ROWS", 60), ("LEAVES", 8)):
        with monkeypatch.context() as lowered:
            lowered.setattr(forest, limit, most)
            state = forest.fit(inputs, targets_of(inputs, NUMBER), [NUMBER], forest.Config(variant=variant, trees=5, min_leaf=1))
        f = state.forests["y.value"]
        leaves = np.add.reduceat(f.left == np.arange(len(f.left)), f.roots)
        assert most / 2 <= leaves.max() <= most


def test_categories_are_ordered_by_their_target() -> None:
    """Ranks rise with the mean target; ids that training never had are missing; three classes lie along one line."""
    ids = np.repeat(np.arange(2, 8), 50)[:, None].astype(np.int32)
    means = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2])
    y = (np.tile(np.arange(50), 6) / 50 < np.repeat(means, 50)).astype(np.int64)
    state = forest.fit({"table.categories": ids}, {"y.index": y}, [CATEGORY], forest.Config(trees=2))
    ranks = state.tables["y.logits"][0]
    assert np.argsort(ranks[2:8]).tolist() == np.argsort(means).tolist() and np.isnan(ranks[[0, 1, 8]]).all()
    grades = np.repeat([2, 0, 1, 1, 0, 2], 50)
    state = forest.fit({"table.categories": ids}, {"y.index": grades}, [CLASSES], forest.Config(trees=2))
    r = state.tables["y.logits"][0][2:8]
    assert r[0] == r[5] and r[1] == r[4] and r[2] == r[3] and len(set(r.tolist())) == 3


def test_out_of_bag_answers() -> None:
    """The mean over the trees that did not draw a row, by a slow loop; near the score on fresh rows, far from that on seen ones."""
    inputs, fresh = table(500), table(2000, seed=3)
    y, truth = targets_of(inputs, NUMBER), targets_of(fresh, NUMBER)["y.value"]
    state, out = forest.out_of_bag(inputs, y, [NUMBER], forest.Config(trees=60, min_leaf=1), seed=2)
    again = forest.fit(inputs, y, [NUMBER], forest.Config(trees=60, min_leaf=1), seed=2)
    assert np.array_equal(state.forests["y.value"].value, again.forests["y.value"].value)
    f = state.forests["y.value"]
    x = forest.features(inputs, state.sources["y.value"], state.tables["y.value"])
    single = [dataclasses.replace(f, roots=f.roots[i : i + 1], column=f.column[:1]) for i in range(60)]
    answers = np.stack([_forest.walk(x[:30], s)[:, 0] for s in single]) * 60
    from sklearn.utils import check_random_state

    seeds = check_random_state(2).randint(np.iinfo(np.int32).max, size=60)
    seen = [set(np.random.RandomState(s).randint(0, 500, 500, dtype=np.int64).tolist()) for s in seeds]
    mean = float(y["y.value"].mean())
    for i in range(30):
        free = [answers[t, i] for t in range(60) if i not in seen[t]]
        assert abs(out["y.value"][i, 0] - (mean + sum(free)) / (1 + len(free))) < 1e-4
    errors = [((a - b) ** 2).mean() for a, b in ((out["y.value"][:, 0], y["y.value"]), (forest.apply(fresh, state)["y.value"][:, 0], truth),
                                                 (forest.apply(inputs, state)["y.value"][:, 0], y["y.value"]))]  # fmt: skip
    assert abs(errors[0] / errors[1] - 1) < 0.25 and errors[2] < 0.5 * errors[0]


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("head", [CATEGORY, CLASSES, LABELS, NUMBER], ids=["two", "three", "labels", "number"])
def test_catboost_is_read_as_it_answers(head: Head, missing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw scores of the library on the same features, with missing values; ONNX on unseen categories."""
    library = pytest.importorskip("catboost", reason="the extra 'catboost' is not installed")
    from modelyard.estimators import catboost

    models: list[Any] = []
    original = library.CatBoost.fit
    monkeypatch.setattr(library.CatBoost, "fit", lambda self, *a, **k: models.append(original(self, *a, **k)) or models[-1])
    inputs, fresh = table(700, missing=missing), table(300, 5, missing)
    state = catboost.fit(inputs, targets_of(inputs, head), [head], catboost.Config(trees=40, lr=0.2), seed=1)
    x = forest.features(fresh, state.sources[head.key], state.tables[head.key])
    raw = models[0].predict(x, prediction_type="RawFormulaVal").reshape(300, -1)
    fresh["table.categories"][:20] = 1000  # type: ignore[index]
    out = catboost.apply(fresh, state)[head.key]
    ours = out[20:, 1:] - out[20:, :1] if head is CATEGORY else out[20:]
    assert np.abs(ours - raw[20:]).max() < 1e-5
    assert np.abs(run_onnx(catboost.graph(state, PARTS), fresh) - out).max() < 1e-5
    joined = catboost.apply(fresh, catboost.join([state, state]))[head.key]
    assert np.abs(joined - out).max() < 1e-5


def test_catboost_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the message holds the line that installs it."""
    import sys

    from modelyard.estimators import catboost

    monkeypatch.setitem(sys.modules, "catboost", None)
    inputs = table(30)
    with pytest.raises(MissingExtra, match=r"pip install 'modelyard\[catboost\]'"):
        catboost.fit(inputs, targets_of(inputs, NUMBER), [NUMBER], catboost.Config())


# -- neighbours --------------------------------------------------------------------------------------------------------------


def points(inputs: dict[str, Array], cards: list[int]) -> np.ndarray:
    """Numbers and indicators divided by the root of two, by a loop."""
    blocks = [np.asarray(inputs["table.numbers"], np.float64)]
    for column, card in zip(np.asarray(inputs["table.categories"]).T, cards, strict=True):
        blocks.append(np.array([[float(i == k) for k in range(card)] for i in column]) / np.sqrt(2))
    return np.concatenate(blocks, axis=1)


@pytest.mark.parametrize("head", [CATEGORY, CLASSES, LABELS, NUMBER], ids=["two", "three", "labels", "number"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_neighbours_are_those_of_scikit_learn(head: Head, weights: Any) -> None:
    from sklearn.neighbors import KNeighborsRegressor

    inputs, fresh = table(1500), table(300, seed=5)
    targets = targets_of(inputs, head)
    state = neighbours.fit(inputs, targets, [head], neighbours.Config(k=9, weights=weights))
    y = next(iter(targets.values()))
    y_NC = np.eye(head.size)[y] if head.kind == "category" else y.reshape(len(y), -1)
    weigh = "uniform" if weights == "uniform" else (lambda d: 1 / (d + neighbours.NEAR))
    peer = KNeighborsRegressor(9, weights=weigh, algorithm="brute").fit(points(inputs, [4, 40]), y_NC)
    expected = peer.predict(points(fresh, [4, 40])).reshape(300, -1)
    if head.kind != "number":
        expected = (9 * expected + y_NC.mean(0)) / 10
    out = neighbours.apply(fresh, state)[head.key]
    found = probabilities(out, head.kind)
    assert np.abs(found - expected).max() < 1e-6
    assert np.array_equal(out[7:8], neighbours.apply({k: np.asarray(v)[7:8] for k, v in fresh.items()}, state)[head.key])
    assert np.abs(run_onnx(neighbours.graph(state, PARTS), fresh) - out).max() < 1e-5


def test_ties_copies_and_rare_values() -> None:
    """A thousand copies of two rows: the first in order are asked, alone and in a batch, also by ONNX; a rare value is no nearer to
    one value than to another."""
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {"table.numbers": np.repeat(np.float32([[0], [1]]), 500, 0), "table.categories": np.full((1000, 1), 2, np.int32)}
    y = rng.random(1000).astype(np.float32)
    state = neighbours.fit(inputs, {"y.value": y}, [NUMBER], neighbours.Config(k=4, weights="uniform"), seed=3)
    assert len(state.numbers) == 10
    order = np.random.default_rng(3).permutation(1000)
    ask: dict[str, Array] = {"table.numbers": np.float32([[0.2], [0.5], [0.9]]), "table.categories": np.int32([[2], [2], [9]])}
    expected = [y[order[order < 500][:4]].mean(), y[order[:4]].mean(), y[order[order >= 500][:4]].mean()]
    out = neighbours.apply(ask, state)["y.value"][:, 0]
    assert np.abs(out - expected).max() < 1e-6
    parts = {"table.numbers": Part((1,), "float32"), "table.categories": Part((1,), "int32")}
    assert np.abs(run_onnx(neighbours.graph(state, parts), ask)[:, 0] - out).max() < 1e-6
    many: dict[str, Array] = {"table.categories": np.arange(600, dtype=np.int32)[:, None]}
    state = neighbours.fit(many, {"y.value": np.arange(600, dtype=np.float32)}, [NUMBER], neighbours.Config(k=1))
    _, far = neighbours.nearest(state, np.zeros((3, 0), np.float32), np.int32([[5], [400], [5000]]), 2)
    assert np.allclose(far, [[0, 0.5], [0, 0], [0, 0]])


def test_outliers_neither_hide_neighbours_nor_cost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row ten thousand deviations away: the same neighbours as by a slow loop, and few distances are worked out twice."""
    inputs, fresh = table(2000), table(50, seed=4)
    for rows in (inputs, fresh):
        rows["table.numbers"][:3] *= 1e4  # type: ignore[index, operator]
    state = neighbours.fit(inputs, targets_of(inputs, NUMBER), [NUMBER], neighbours.Config(k=5))
    worked: list[int] = []
    original = neighbours._distances
    monkeypatch.setattr(neighbours, "_distances", lambda *a: worked.append(len(a[3])) or original(*a))
    where, _ = neighbours.nearest(state, np.asarray(fresh["table.numbers"]), np.asarray(fresh["table.categories"]), 5)
    here = points({"table.numbers": state.numbers, "table.categories": state.ids}, [4, 40])
    for i, x in enumerate(points(fresh, [4, 40])):
        assert where[i].tolist() == np.argsort(((here - x) ** 2).sum(1), kind="stable")[:5].tolist()
    assert sum(worked) < 50 * 2000 / 4


def test_the_number_of_neighbours_is_chosen_by_leaving_out() -> None:
    """The stored losses are those of a slow loop; pure noise asks many, a checkerboard few."""
    inputs = table(250)
    y = targets_of(inputs, NUMBER)["y.value"]
    state = neighbours.fit(inputs, {"y.value": y}, [NUMBER], neighbours.Config())
    x = points(inputs, [4, 40])
    far = ((x[:, None] - x[None]) ** 2).sum(2)
    np.fill_diagonal(far, np.inf)
    for k in (3, 20):
        guess = [y[np.argsort(row)[:k]].mean() for row in far]
        assert abs(state.losses[f"uniform {k}"] - ((guess - y) ** 2).mean() / y.var()) < 1e-5
    best = min(state.losses, key=lambda name: state.losses[name])
    assert best == f"{'distance' if state.by_distance else 'uniform'} {state.k}"
    noise = np.random.default_rng(0).integers(0, 2, 250)
    assert neighbours.fit(inputs, {"y.index": noise}, [CATEGORY], neighbours.Config()).k >= 30
    grid: dict[str, Array] = {"table.numbers": (np.arange(900)[:, None] // [30, 1] % 30 / 10).astype(np.float32)}
    board = (np.asarray(grid["table.numbers"]).round(1) * 10 // 5).sum(1).astype(int) % 2
    assert neighbours.fit(grid, {"y.index": board.astype(np.int64)}, [CATEGORY], neighbours.Config()).k <= 10


def test_rows_of_weight_zero_are_never_asked() -> None:
    inputs = table(400)
    y = (signal(inputs) > 0).astype(np.int64)
    weights = np.repeat([1.0, 0.0], 200)
    half = {k: np.asarray(v)[:200] for k, v in inputs.items()}
    config = neighbours.Config(k=7, weights="distance")
    one = neighbours.fit(inputs, {"y.index": y}, [CATEGORY], config, weights=weights)
    two = neighbours.fit(half, {"y.index": y[:200]}, [CATEGORY], config)
    assert len(one.numbers) == len(two.numbers) == 200
    assert np.abs(neighbours.apply(inputs, one)["y.logits"] - neighbours.apply(inputs, two)["y.logits"]).max() < 1e-5
    with pytest.raises(DataError, match="weight zero"):
        neighbours.fit(inputs, {"y.index": y}, [CATEGORY], config, weights=np.zeros(400))
    assert len(neighbours.fit(inputs, {"y.index": y}, [CATEGORY], neighbours.Config(rows=50)).numbers) == 50


# -- linear ------------------------------------------------------------------------------------------------------------------


def test_linear_models_bend(tmp_path: Path) -> None:
    """y = x² has no line; with bins the model explains it, and `numbers: scaled` asks for the line."""
    x = np.random.default_rng(0).uniform(-3, 3, 600)
    frame = pl.DataFrame({"x": x, "y": x**2})
    bent, straight = (
        Model.load(train(DataConfig(path=frame, target="y"), "regression", m, base=tmp_path).model)
        for m in ("linear", {"name": "linear", "numbers": "scaled"})
    )
    errors = [float(((m.predict(frame)["y"] - frame["y"]) ** 2).mean() / frame["y"].var()) for m in (bent, straight)]  # type: ignore[operator, arg-type]
    assert errors[0] < 0.01 and errors[1] > 0.9


def test_elastic_penalty_is_glmnets() -> None:
    """Against scikit-learn with the target in another unit; more L1 leaves fewer weights; the mean of models is their joint."""
    from sklearn.linear_model import ElasticNet

    inputs = table(300)
    y = signal(inputs)
    config = linear.Config(penalty="elastic", ratio=0.8, c=0.05)
    state = linear.fit(inputs, {"y.value": y}, [NUMBER], config)
    x = np.concatenate([np.asarray(inputs["table.numbers"], np.float64), (points(inputs, [4, 40])[:, 4:] > 0).astype(float)], 1)
    peer = ElasticNet(alpha=1 / (0.05 * 300), l1_ratio=0.8, max_iter=5000).fit(x, (y - y.mean()) / y.std())
    expected = peer.predict(x) * y.std() + y.mean()
    assert np.abs(linear.apply(inputs, state)["y.value"][:, 0] - expected).max() < 1e-3
    large = linear.fit(inputs, {"y.value": y * 1000 + 5}, [NUMBER], config)
    assert np.abs(large.weights["y.value"] - 1000 * state.weights["y.value"]).max() < 1e-1
    kept = [int((linear.fit(inputs, {"y.value": y}, [NUMBER], linear.Config(penalty="elastic", ratio=r, c=0.05)).weights["y.value"] != 0).sum())
            for r in (0.1, 1.0)]  # fmt: skip
    assert kept[1] < kept[0]
    few = {k: np.asarray(v)[np.asarray(inputs["table.categories"])[:, 1] < 30] for k, v in inputs.items()}  # narrower one-hot block
    other = linear.fit(few, {"y.value": signal(few)}, [NUMBER], config)
    joined = linear.apply(inputs, linear.join([state, other]))["y.value"]
    mean = (linear.apply(inputs, state)["y.value"] + linear.apply(inputs, other)["y.value"]) / 2
    assert np.abs(joined - mean).max() < 1e-5


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_elastic_labels_are_at_the_optimum(labels: int, ratio: float) -> None:
    """Against scikit-learn's SAGA run long: no worse an objective, the same margins, the same weights at zero."""
    from sklearn.linear_model import LogisticRegression

    inputs = table(400)
    y = targets_of(inputs, CATEGORY if labels == 2 else CLASSES)["y.index"]
    x = np.concatenate([np.asarray(inputs["table.numbers"], np.float64), (points(inputs, [4, 40])[:, 4:] > 0).astype(float)], 1)
    weights = np.random.default_rng(0).uniform(0.5, 2, 400)
    ours = linear._Elastic(0.3, ratio).fit(x, y, weights)
    peer = LogisticRegression(C=0.3, l1_ratio=ratio, solver="saga", max_iter=20_000, tol=1e-8).fit(x, y, weights)
    assert ours.coef_.shape == peer.coef_.shape
    margins = ours.decision_function(x), peer.decision_function(x)
    if labels == 3:  # an equal shift of all classes changes nothing
        margins = tuple(m - m.mean(1, keepdims=True) for m in margins)  # type: ignore[assignment]
    assert np.abs(margins[0] - margins[1]).max() < 0.02
    assert (ours.coef_ == 0).sum() > 10 and ((ours.coef_ == 0) == (np.abs(peer.coef_) < 1e-4)).mean() > 0.97


# -- nets --------------------------------------------------------------------------------------------------------------------

TABLE = {"numbers": Part((7,), "float32", groups=(4, 1, 2)), "categories": Part((2,), "int32")}


def net_inputs(rows: int = 6) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    return {
        "t.numbers": torch.randn(rows, 7, generator=draw), "t.categories": torch.randint(0, 4, (rows, 2), generator=draw, dtype=torch.int32)
    }  # fmt: skip


def test_tabm_is_its_members() -> None:
    """Each member computed as a net of its own with the matrix diag(r) W diag(s); answers are means of probabilities."""
    heads = [Head("a", "category", "logits", 3), Head("b", "label-set", "logits", 2), Head("c", "number", "value", 1)]
    spec = {"nets": {"t": {"name": "tabm", "config": {"members": 5, "hidden": [6, 4], "dropout": 0.0, "filled": 3}}}}
    net: Any = build(spec, {"t": TABLE}, [4, 9], heads, seed=0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.7)
    x = net_inputs()
    taught = net.train()(x)
    out = net.eval()(x)
    row = net.columns.row({k.removeprefix("t."): v for k, v in net.embed(x).items()})
    assert row.shape[1] == 3 + 3 + 1 + net.columns.tables[0].embedding_dim + net.columns.tables[1].embedding_dim
    for m in range(5):
        h = row
        for layer in net.layers:
            r, s, b = (v.view(5, -1)[m] for v in (layer.scale_in, layer.scale_out, layer.bias))
            h = torch.relu(h @ (torch.diag(r) @ layer.weight @ torch.diag(s)) + b)
        for head, top in zip(heads, net.heads, strict=True):
            expected = h @ top.weight[m] + top.bias.view(5, -1)[m]
            assert torch.allclose(taught[f"{head.key}{MEMBERS}"][:, m], expected, atol=1e-4)
    members = {h.key: taught[f"{h.key}{MEMBERS}"] for h in heads}
    assert torch.allclose(out["a.logits"].exp(), members["a.logits"].softmax(-1).mean(1), atol=1e-6)
    assert torch.allclose(out["b.logits"].sigmoid(), members["b.logits"].sigmoid().mean(1), atol=1e-6)
    assert torch.allclose(out["c.value"], members["c.value"].mean(1), atol=1e-6)
    assert not any(k.endswith(MEMBERS) for k in out)


@pytest.mark.parametrize("name", ["mlp", "tabm", "ft-transformer"])
def test_a_value_that_training_never_saw_is_the_middle(name: str) -> None:
    """The embeddings of missing and unseen values begin at zero."""
    net: Any = build({"nets": {"t": {"name": name, "config": {}}}}, {"t": TABLE}, [4, 9], [NUMBER], seed=0)
    found = [m.weight for m in net.modules() if isinstance(m, torch.nn.Embedding)]
    assert len(found) == 2 and all(not w[:2].any() and w[2:].any(1).all() for w in found)


def test_members_are_taught_one_by_one() -> None:
    """The loss of a step is the mean of the members' losses, with weights of rows and classes, also for numbers and label sets."""
    draw = torch.Generator().manual_seed(0)
    rows, weights = 7, torch.rand(7, generator=draw)
    for name, size, target in (
        ("cross_entropy", 3, torch.randint(0, 3, (rows,), generator=draw)), ("mse", 1, torch.randn(rows, generator=draw)),
        ("binary_cross_entropy", 3, torch.randint(0, 2, (rows, 3), generator=draw).float()),
    ):  # fmt: skip
        members = torch.randn(rows, 4, size, generator=draw)
        loss = registry.load("losses", name).loss
        classes = torch.tensor([1.0, 2.0, 5.0]) if name == "cross_entropy" else None
        term = Term("y.o", "y.t", loss, class_weights_K=classes)
        batch = Batch({}, {"y.t": target}, weights, np.arange(rows))
        ((value, units),) = each([term], {"y.o": members.mean(1), f"y.o{MEMBERS}": members}, batch)
        singles = [next(iter(each([term], {"y.o": members[:, m]}, batch))) for m in range(4)]
        assert torch.allclose(value, torch.stack([v for v, _ in singles]).mean(0)) and torch.allclose(units, singles[0][1])


def test_ft_transformer_reads_every_column() -> None:
    """The last block works out the reading token alone: the same as all tokens; every column moves the answer; a slow attention."""
    torch.manual_seed(0)
    encoder = ft_transformer.Encoder(ft_transformer.Config(width=8, heads=2, layers=2), TABLE, cardinalities=[4, 9]).eval()
    x = {k.removeprefix("t."): v for k, v in net_inputs().items()}
    out = encoder(x)
    for i in range(7):
        moved = {**x, "numbers": x["numbers"].clone()}
        moved["numbers"][:, i] += 1
        assert float((encoder(moved) - out).detach().abs().max()) > 1e-4
    block, tokens = copy.deepcopy(encoder.blocks[1]), torch.randn(3, 5, 8)
    assert torch.allclose(block(tokens, alone=True), block(tokens, alone=False)[:, -1:], atol=1e-6)
    normal = block.before(tokens)
    q, (k, v) = block.query(normal), block.rest(normal).chunk(2, -1)
    seen = [((q[..., h] @ k[..., h].transpose(1, 2)) / 2).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
    x1 = tokens + block.out(torch.cat(seen, -1))
    value, gate = block.gated(block.between(x1)).chunk(2, -1)
    assert torch.allclose(block(tokens, alone=False), x1 + block.down(value * gate.relu()), atol=1e-5)


@pytest.mark.parametrize("model", [
    {"name": "tabm", "members": 4}, "ft-transformer", {"name": "tabm", "numbers": "periodic", "members": 4}, {"name": "mlp", "numbers": "bins"},
], ids=["tabm", "ft", "periodic", "bins"])  # fmt: skip
def test_nets_learn_tables_with_gaps(model: Any, tmp_path: Path) -> None:
    """A curve and a category decide; unseen categories, missing and absurd values are answered."""
    rng = np.random.default_rng(0)
    x, c = rng.uniform(-3, 3, 500), rng.choice(["a", "b", "c"], 500)
    y = np.where((np.abs(x) > 1.5) ^ (c == "b"), "in", "out")
    frame = pl.DataFrame({"x": [None if i % 17 == 0 else v for i, v in enumerate(x)], "c": c, "constant": np.ones(500), "y": y})
    config = Config(epochs=15, batch=32, lr=2e-3 if model == "ft-transformer" else 1e-2, smoke=False, threads=1)
    result = train(DataConfig(path=frame, target="y", inputs=["x", "c", "constant"]), None, model, config, base=tmp_path)
    assert result.metrics["test"]["accuracy"]["value"] > 0.8
    rows = [{"x": 1e30, "c": "new", "constant": 5}, {"x": None, "c": None, "constant": None}, {"x": 0.1, "c": "a", "constant": 1}]
    found = Model.load(result.model).predict(rows)
    assert found.failed == 0 and set(found["y"].to_list()) <= {"in", "out"}


# -- all of them -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [CATEGORY, CLASSES, LABELS, NUMBER], ids=["two", "three", "labels", "number"])
@pytest.mark.parametrize(
    ("name", "options"), [("forest", {}), ("forest", {"variant": "extra"}), ("neighbours", {}), ("linear", {}), ("trees", {}), ("catboost", {})],
    ids=str,
)
def test_awkward_tables(name: str, options: dict[str, Any], head: Head) -> None:
    """Twenty rows, a constant column, one without values, a class of one row; weights, a seed twice, no time at all."""
    if name == "catboost":
        pytest.importorskip("catboost", reason="the extra 'catboost' is not installed")
    module = registry.load("estimators", name)
    inputs = table(20)
    numbers = np.array(inputs["table.numbers"])
    numbers[:, 1] = 7
    if module.NUMBERS == "raw":
        numbers[:, 2] = np.nan
    inputs["table.numbers"] = numbers
    targets = {"y.index": np.array([0] * 19 + [1])} if head is CATEGORY else targets_of(inputs, head)
    weights = np.random.default_rng(0).uniform(0.5, 2, 20)
    fitted = [module.fit(inputs, targets, [head], module.Config(**options), weights=weights, seed=3, budget_s=0.0) for _ in range(2)]
    fresh = table(50, seed=8)
    fresh["table.categories"][:9] = 10_000  # type: ignore[index]
    a, b = (module.apply(fresh, s)[head.key] for s in fitted)
    assert a.shape == (50, head.size) and np.isfinite(a).all() and np.array_equal(a, b)
