"""Trees, linear models and k-means against LightGBM, scikit-learn, slow loops and ONNX Runtime."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from modelyard import registry
from modelyard.estimators import _forest, k_means, linear, trees
from modelyard.estimators._contract import Estimator
from modelyard.estimators._forest import Forest
from modelyard.kinds._contract import Array, Head, Part, Ragged, pad

CATEGORY = Head("y", "category", "logits", 2)
NUMBER = Head("y", "number", "value", 1)


def table(rows: int, seed: int = 0, missing: float = 0.1) -> dict[str, Array]:
    """Four numbers (one of few values, so that ties are common) and two categories."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, 4)).astype(np.float32)
    numbers[:, 3] = rng.integers(-3, 4, rows)
    numbers[rng.random(numbers.shape) < missing] = np.nan
    ids = np.stack([rng.integers(0, 4, rows), rng.integers(0, 40, rows)], 1).astype(np.int32)
    return {"table.numbers": numbers, "table.categories": ids}


def signal(inputs: dict[str, Array], seed: int = 1) -> np.ndarray:
    """What the targets of the tests depend on, with noise."""
    numbers, ids = np.nan_to_num(np.asarray(inputs["table.numbers"])), np.asarray(inputs["table.categories"])
    noise = np.random.default_rng(seed).normal(size=len(numbers))
    return numbers[:, 0] * numbers[:, 1] + numbers[:, 3] + np.sin(ids[:, 1]) + 0.5 * noise


def boosted(x: np.ndarray, y: np.ndarray, objective: str, rounds: int = 12, **params: Any) -> Any:
    """A LightGBM booster, fitted directly."""
    import lightgbm as lgb

    settings = {"objective": objective, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "seed": 0, **params}
    sets = [4, 5] if x.shape[1] == 6 else []
    return lgb.train(settings, lgb.Dataset(x, y, params={"verbose": -1, "min_data_in_bin": 1}, categorical_feature=sets), rounds)


def walked(node: dict[str, Any], x: np.ndarray) -> float:
    """A tree of LightGBM's JSON dump, followed for one row in Python floats."""
    while "leaf_value" not in node:
        value = float(x[node["split_feature"]])
        if node["decision_type"] == "==":
            left = str(int(value)) in node["threshold"].split("||")
        elif np.isnan(value) and node["missing_type"] == "NaN":
            left = node["default_left"]
        else:
            left = (0.0 if np.isnan(value) else value) <= float(node["threshold"])
        node = node["left_child"] if left else node["right_child"]
    return float(node["leaf_value"])


@pytest.mark.parametrize("objective", ["binary", "regression", "multiclass"])
@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("leaves", [2, 31, 64, 90])
def test_trees_are_those_of_lightgbm(objective: str, missing: float, leaves: int) -> None:
    """Raw scores to 1e-6 of LightGBM and of a per-row walk, with NaN whether or not training had it."""
    fitted, fresh = trees.matrix(table(2000, missing=missing)), trees.matrix(table(300, seed=7, missing=0.2))
    fresh[:30, 4:] = [[1000, 40]]  # categories that training never saw
    s = signal(table(2000, missing=missing))
    y = s if objective == "regression" else np.digitize(s, [-1, 1]) if objective == "multiclass" else s > 0
    columns = 3 if objective == "multiclass" else 1
    more = {"min_data_per_group": 5, "cat_smooth": 1.0}
    booster = boosted(fitted, y.astype(float), objective, num_leaves=leaves, **more, **({"num_class": 3} if columns == 3 else {}))
    forest = _forest.read([booster.model_to_string()], columns)
    assert (forest.masks is None) == (leaves > 64) and (leaves == 2 or len(forest.members) > 20)
    expected = booster.predict(fresh, raw_score=True).reshape(len(fresh), columns)
    assert np.abs(_forest.score(fresh, forest) - expected).max() < 1e-6
    assert np.abs(_forest.walk(fresh, forest) - expected).max() < 1e-6
    infos = booster.dump_model()["tree_info"]
    of_column = [[t["tree_structure"] for t in infos if t["tree_index"] % columns == k] for k in range(columns)]
    slow = [[sum(walked(tree, row) for tree in mine) for mine in of_column] for row in fresh[:40]]
    assert np.abs(_forest.score(fresh[:40], forest) - slow).max() < 1e-6


def neighbours(count: int = 64) -> np.ndarray:
    """float32 numbers that follow each other without a gap: no float32 lies between two of them."""
    values = [np.float32(1.1)]
    for _ in range(count - 1):
        values.append(np.nextafter(values[-1], np.float32(2)))
    return np.array(values, np.float32)


def test_worst_case_for_thresholds() -> None:
    """Every threshold falls between two neighbouring float32 numbers: rounded to the nearest it flips rows, rounded down none."""
    values = neighbours()
    x = np.tile(values, 40)[:, None]
    y = (np.arange(len(x)) % 2).astype(float)
    y[: len(values)] = 0
    booster = boosted(x, y, "binary", rounds=20, num_leaves=31, max_bin=255, min_data_in_leaf=1)
    text = booster.model_to_string()
    expected = booster.predict(x, raw_score=True)
    assert np.ptp(expected) > 0.5
    assert np.abs(_forest.score(x, _forest.read([text], 1))[:, 0] - expected).max() < 1e-9
    nearest = _forest.read([text], 1)
    thresholds = np.concatenate([np.array(line[10:].split(), np.float64) for line in text.splitlines() if line.startswith("threshold=")])
    nearest.threshold = np.where(nearest.left == np.arange(len(nearest.left)), 0, nearest.threshold).astype(np.float32)
    assert (thresholds.astype(np.float32) > thresholds).any()  # the case is as bad as it claims
    up = {float(d): float(np.float32(t)) for d, t in zip(_forest.rounded_down(thresholds), thresholds, strict=True)}
    nearest.threshold = np.array([up.get(float(t), float(t)) for t in nearest.threshold], np.float32)
    assert np.abs(_forest.score(x, nearest)[:, 0] - expected).max() > 0.01


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1e-35, -1e-35, 1e300, -1e300, 1e-46, 16777217.0, float(np.float32(0.3))])
def test_rounding_down_keeps_every_comparison(threshold: float) -> None:
    """`x <= t` for float32 x around t decides the same after rounding."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    around = [np.float32(v) for v in (near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf)), 0.0, -0.0)]
    found = _forest.rounded_down(np.array([threshold]))[0]
    for x in around:
        if np.isfinite(x):
            assert (x <= found) == (float(x) <= threshold), (x, threshold)


@pytest.mark.parametrize("limit", ["MASKS_LIMIT", "FEATURES_LIMIT"])
def test_masks_and_walk_agree(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both evaluations give the same bits; beyond a limit the walk is taken."""
    inputs = table(1500)
    state = trees.fit(inputs, {"y.index": (signal(inputs) > 0).astype(np.int64)}, [CATEGORY], trees.Config(trees=40))
    forest = state.forests["y.logits"]
    fresh = trees.matrix(table(700, seed=3))
    fast = _forest.score(fresh, forest)
    assert np.array_equal(fast, _forest.walk(fresh, forest))
    assert np.array_equal(fast[:1], _forest.score(fresh[:1], forest))
    monkeypatch.setattr(_forest, limit, 1)
    again = Forest(**{f.name: getattr(forest, f.name) for f in fields(Forest)})
    assert again.masks is None and np.array_equal(_forest.score(fresh, again), fast)


def targets_of(inputs: dict[str, Array], kind: str) -> tuple[Head, dict[str, np.ndarray]]:
    """A target of each kind made of the same signal."""
    s = signal(inputs)
    if kind == "number":
        return NUMBER, {"y.value": (s / s.std()).astype(np.float32)}
    if kind == "label-set":
        return Head("y", kind, "logits", 3), {"y.multi_hot": np.stack([s > 0, s > 1, s < -1], 1).astype(np.float32)}
    size = 2 if kind == "two classes" else 3
    return Head("y", "category", "logits", size), {"y.index": np.digitize(s, [0] if size == 2 else [-1, 1]).astype(np.int64)}


PARTS = {"table.numbers": Part((4,), "float32"), "table.categories": Part((2,), "int32")}


def run_onnx(proto: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of ONNX Runtime by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()}), strict=True))


@pytest.mark.parametrize("kind", ["two classes", "classes", "label-set", "number"])
@pytest.mark.parametrize("name", ["trees", "linear"])
def test_it_learns_and_its_graph_agrees(name: str, kind: str) -> None:
    """Better than a constant on fresh rows; ONNX within 1e-5, labels equal, on unseen categories and missing values too."""
    module: Any = {"trees": trees, "linear": linear}[name]
    missing = 0.1 if name == "trees" else 0.0
    inputs, fresh = table(1200, missing=missing), table(500, seed=5, missing=missing)
    head, targets = targets_of(inputs, kind)
    config = trees.Config(trees=60) if name == "trees" else linear.Config(c=1.0)
    state = module.fit(inputs, targets, [head], config)
    out = module.apply(fresh, state)[head.key]
    truth = next(iter(targets_of(fresh, kind)[1].values()))
    if kind == "number":
        assert ((out[:, 0] - truth) ** 2).mean() < 0.8 * truth.var()
    elif kind == "label-set":
        assert ((out > 0) == (truth > 0)).mean() > 0.75
    else:
        assert (out.argmax(1) == truth).mean() > np.bincount(truth).max() / len(truth) + 0.05
    unseen = {k: np.array(v) for k, v in fresh.items()}
    unseen["table.categories"][:50] = 1000
    for rows in (fresh, unseen):
        ours, theirs = module.apply(rows, state)[head.key], run_onnx(module.graph(state, PARTS), rows)[head.key]
        assert np.abs(ours - theirs).max() < 1e-5
        assert np.array_equal(ours.argmax(1), theirs.argmax(1))


@pytest.mark.parametrize("name", registry.names("estimators"))
def test_modules_keep_the_contract(name: str) -> None:
    """Members and the parameters of `fit` are those of the protocol; `monotone` may follow."""
    module = registry.load("estimators", name)
    assert isinstance(module, Estimator)
    own, promised = (list(inspect.signature(f).parameters) for f in (module.fit, Estimator.fit))
    assert own in (promised, [*promised, "monotone"])
    module.Config()  # every setting has a default


def test_two_classes_have_one_score() -> None:
    """softmax of the two logits is the sigmoid of LightGBM's raw score."""
    inputs = table(600)
    y = (signal(inputs) > 0).astype(np.int64)
    state = trees.fit(inputs, {"y.index": y}, [CATEGORY], trees.Config(trees=10, bags=1))
    logits = trees.apply(inputs, state)["y.logits"].astype(np.float64)
    raw = _forest.score(trees.matrix(inputs), state.forests["y.logits"])[:, 0]
    softmax = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    assert np.abs(softmax - 1 / (1 + np.exp(-raw))).max() < 1e-6


def test_boosting_stops_where_validation_is_best_and_at_the_budget() -> None:
    """The kept round has the least validation loss; a budget of nothing leaves one round; a seed fixes everything."""
    inputs, held = table(800), table(400, seed=9)
    y, y_held = (signal(i) > 0 for i in (inputs, held))
    said: list[dict[str, Any]] = []
    valid = (held, {"y.index": y_held.astype(np.int64)})
    config = trees.Config(trees=400, patience=20, bags=1, lr=0.3)
    fit = lambda **more: trees.fit(inputs, {"y.index": y.astype(np.int64)}, [CATEGORY], config, **more)  # noqa: E731
    state = fit(valid=valid, progress=said.append)
    (rounds,) = state.rounds["y.logits"]
    assert 1 <= rounds < 380 and len(state.forests["y.logits"].roots) == rounds and said

    def loss(keep: int) -> float:
        f = state.forests["y.logits"]
        cut = int(f.roots[keep]) if keep < len(f.roots) else len(f.feature)
        part = Forest(*(getattr(f, k)[:cut] for k in ("feature", "threshold", "left", "right", "missing_left", "value")),
                      f.roots[:keep], f.column[:keep], f.base, f.depth, f.choice[:cut], f.members, f.bounds)  # fmt: skip
        s = _forest.score(trees.matrix(held), part)[:, 0]
        return float(np.logaddexp(0, np.where(y_held, -s, s)).mean())

    assert all(loss(rounds) <= loss(k) for k in range(1, rounds))
    assert fit(valid=valid, budget_s=0.0).rounds["y.logits"] == [1]
    again = fit(valid=valid)
    assert np.array_equal(again.forests["y.logits"].value, state.forests["y.logits"].value)


def test_weights_of_rows_count() -> None:
    """Rows of weight zero might as well be absent: their flipped labels teach nothing."""
    inputs = table(1000)
    y = (signal(inputs) > 0).astype(np.int64)
    wrong = y.copy()
    wrong[500:] = 1 - wrong[500:]
    weights = np.repeat([1.0, 1e-6], 500)
    for module, config in ((trees, trees.Config(trees=50)), (linear, linear.Config(c=1.0))):
        clean = {k: np.nan_to_num(v) if v.dtype == np.float32 else v for k, v in inputs.items()}  # type: ignore[union-attr]
        state = module.fit(clean, {"y.index": wrong}, [CATEGORY], config, weights=weights)  # type: ignore[attr-defined]
        assert (module.apply(clean, state)["y.logits"].argmax(1) == y)[500:].mean() > 0.6, module.__name__  # type: ignore[attr-defined]


def one_hot(inputs: dict[str, Array]) -> np.ndarray:
    """Numbers and one-hot categories, written out by a loop."""
    ids = np.asarray(inputs["table.categories"])
    blocks = [np.asarray(inputs["table.numbers"], np.float64)]
    for column in ids.T:
        blocks.append(np.array([[float(i == k) for k in range(column.max() + 1)] for i in column]))
    return np.concatenate(blocks, axis=1)


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_linear_is_that_of_scikit_learn(penalty: str) -> None:
    """Margins of the same model fitted on written-out features; ridge for numbers."""
    from sklearn.linear_model import LogisticRegression, Ridge

    inputs = table(400, missing=0.0)
    dense, s = one_hot(inputs), signal(inputs)
    state = linear.fit(inputs, {"y.index": (s > 0).astype(np.int64)}, [CATEGORY], linear.Config(c=0.5, penalty=penalty))  # type: ignore[arg-type]
    logits = linear.apply(inputs, state)["y.logits"]
    solver = {"l1_ratio": 1.0, "solver": "saga"} if penalty == "l1" else {}
    peer = LogisticRegression(C=0.5, max_iter=20_000, tol=1e-8, **solver).fit(dense, s > 0)
    margin = peer.decision_function(dense)
    assert np.abs((logits[:, 1] - logits[:, 0]) - margin).max() < 0.02
    ridge = linear.fit(inputs, {"y.value": s.astype(np.float32)}, [NUMBER], linear.Config(c=0.1))
    expected = Ridge(alpha=10.0).fit(dense, s).predict(dense)
    assert np.abs(linear.apply(inputs, ridge)["y.value"][:, 0] - expected).max() < 1e-4


def texts(rows: int, seed: int = 0) -> tuple[dict[str, Array], np.ndarray]:
    """Bags of 30 grams beside a table; gram 3 speaks for class 1, some texts are empty."""
    rng = np.random.default_rng(seed)
    grams = [sorted(rng.choice(30, rng.integers(0, 9), replace=False).tolist()) for _ in range(rows)]
    inputs = table(rows, seed, missing=0.0)
    ids = Ragged.from_lists(grams, np.int32)
    inputs |= {"t.grams": ids, "t.weights": Ragged(rng.random(len(ids.values)).astype(np.float32) + 0.1, ids.offsets)}
    return inputs, np.array([int(3 in g) for g in grams])


def test_texts_beside_a_table() -> None:
    """Ragged and padded inputs give the same answer, also in ONNX; grams that training never saw add nothing."""
    inputs, y = texts(600)
    fresh, truth = texts(200, seed=4)
    state = linear.fit(inputs, {"y.index": y}, [CATEGORY], linear.Config())
    ragged = linear.apply(fresh, state)["y.logits"]
    assert (ragged.argmax(1) == truth).mean() > 0.95
    padded = {k: v for k, v in fresh.items() if isinstance(v, np.ndarray)}
    for key in ("t.grams", "t.weights"):
        array = fresh[key]
        assert isinstance(array, Ragged)
        padded[key], padded["t.length"] = pad(array, multiple=4)
    assert np.abs(linear.apply(padded, state)["y.logits"] - ragged).max() < 1e-5
    parts = PARTS | {"t.grams": Part((None,), "int32"), "t.weights": Part((None,), "float32"), "t.length": Part((), "int64")}
    assert np.abs(run_onnx(linear.graph(state, parts), padded)["y.logits"] - ragged).max() < 1e-5
    strange = padded | {"t.grams": np.where(padded["t.grams"] == 3, 10_000, padded["t.grams"])}
    silenced = padded | {"t.weights": np.where(padded["t.grams"] == 3, 0, padded["t.weights"]).astype(np.float32)}
    assert np.allclose(linear.apply(strange, state)["y.logits"], linear.apply(silenced, state)["y.logits"], atol=1e-6)


def test_a_budget_of_nothing_still_fits() -> None:
    """With no time at all the likeliest C is taken, and k-means tries one number of groups."""
    inputs, y = texts(200)
    for head, targets in ((CATEGORY, {"y.index": y}), (NUMBER, {"y.value": signal(inputs).astype(np.float32)})):
        assert linear.fit(inputs, targets, [head], linear.Config(), budget_s=0.0).chosen == {head.key: 1.0}
    groups = k_means.fit(blobs(60, 3)[0], {}, [Head("y", "cluster", "distances", 0)], k_means.Config(), budget_s=0.0)
    assert list(groups.silhouettes) == ["2"] and len(groups.centres) == 2


def test_hinge_margins_become_probabilities() -> None:
    """The scale fitted out of fold makes mean scores match frequencies in each fifth of the fresh rows."""
    inputs, fresh = table(3000, missing=0.0), table(5000, seed=2, missing=0.0)
    y, truth = ((signal(i) > 0).astype(np.int64) for i in (inputs, fresh))
    state = linear.fit(inputs, {"y.index": y}, [CATEGORY], linear.Config(loss="hinge"))
    logits = linear.apply(fresh, state)["y.logits"].astype(np.float64)
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    order = np.argsort(p)
    for fifth in np.array_split(order, 5):
        assert abs(p[fifth].mean() - truth[fifth].mean()) < 0.08


def blobs(rows: int, centres: int, seed: int = 0) -> tuple[dict[str, Array], np.ndarray]:
    """Groups with different numbers and one telling category."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(42).normal(size=(centres, 3)) * 6
    who = rng.integers(0, centres, rows)
    numbers = (places[who] + rng.normal(size=(rows, 3)) * 0.5).astype(np.float32)
    return {"table.numbers": numbers, "table.categories": (who % 2 + 2)[:, None].astype(np.int32)}, who


def test_k_means_is_that_of_scikit_learn() -> None:
    """Same groups, and distances that differ from scikit-learn's only by each row's smallest; ONNX agrees; auto finds four."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    inputs, who = blobs(400, 4)
    head = Head("y", "cluster", "distances", 0)
    state = k_means.fit(inputs, {}, [head], k_means.Config())
    assert len(state.centres) == 4 and max(state.silhouettes, key=lambda k: state.silhouettes[k]) == "4"
    fresh, truth = blobs(200, 4, seed=1)
    distances = k_means.apply(fresh, state)["y.distances"]
    assert adjusted_rand_score(truth, distances.argmin(1)) == 1.0
    dense, dense_fresh = one_hot(inputs), one_hot(fresh)
    peer = KMeans(4, n_init=10, random_state=1).fit(dense)
    squared = peer.transform(dense_fresh) ** 2
    match = [int(np.argmin(((c - peer.cluster_centers_) ** 2).sum(1))) for c in state.centres]
    assert np.abs(distances - (squared - squared.min(1, keepdims=True))[:, match]).max() < 1e-3 * squared.max()
    parts = {"table.numbers": Part((3,), "float32"), "table.categories": Part((1,), "int32")}
    assert np.abs(run_onnx(k_means.graph(state, parts), fresh)["y.distances"] - distances).max() < 1e-5 * max(1.0, float(distances.max()))
    sizes = np.bincount(k_means.apply(inputs, state)["y.distances"].argmin(1))
    assert (np.diff(sizes) <= 0).all() and who.max() == 3  # numbered by falling size


def test_k_means_with_few_distinct_rows() -> None:
    """Asked for five groups of two distinct rows it gives two."""
    inputs: dict[str, Array] = {"table.numbers": np.repeat(np.float32([[0], [5]]), 10, axis=0)}
    head = Head("y", "cluster", "distances", 0)
    for config in (k_means.Config(groups=5), k_means.Config()):
        assert len(k_means.fit(inputs, {}, [head], config).centres) == 2
