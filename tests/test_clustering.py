"""Groups of rows: every model against another library or a slow loop, noise, why as many groups, and segments in words."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("sklearn", reason="groups are found with scikit-learn, of the extra 'train'")
pytest.importorskip("torch", reason="training needs the extra 'train'")

from modelyard import cli, registry
from modelyard.errors import DataError
from modelyard.estimators import dbscan, gaussian_mixture, grid, hdbscan, hierarchical
from modelyard.estimators._groups import by_size, points, space_of
from modelyard.kinds._contract import Head
from modelyard.kinds.cluster import ClusterIndex, ClusterState
from modelyard.metrics._segments import profiles
from modelyard.runtime.model import Model
from modelyard.verbs.report._report import Report
from modelyard.verbs.report._words import words
from modelyard.verbs.report.page import render
from modelyard.verbs.report.segments import in_words, why

HEADS = [Head("y", "cluster", "distances", 0)]
NAMES = ("dbscan", "gaussian-mixture", "grid", "hdbscan", "hierarchical")


def blobs(rows: int, centres: int = 4, seed: int = 0, categories: bool = False) -> tuple[dict[str, Any], np.ndarray]:
    """Round groups of unequal size, far apart, in three dimensions; one category goes with them."""
    rng = np.random.default_rng(seed)
    places = np.array(list(itertools.product([-2.0, 2.0], repeat=3)))[:centres]
    who = rng.choice(centres, rows, p=np.arange(1, centres + 1)[::-1] / sum(range(1, centres + 1)))
    inputs = {"table.numbers": (places[who] + rng.normal(size=(rows, 3)) * 0.35).astype(np.float32)}
    if categories:
        inputs["table.categories"] = (who % 2 + 2)[:, None].astype(np.int32)
    return inputs, who


def moons(rows: int, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    from sklearn.datasets import make_moons

    x, y = make_moons(rows, noise=0.05, random_state=seed)
    return {"table.numbers": ((x - x.mean(0)) / x.std(0)).astype(np.float32)}, y


def labels(module: Any, state: Any, inputs: dict[str, Any]) -> np.ndarray:
    """Answers as the model folder gives them."""
    found = {k.removeprefix("y."): v for k, v in module.apply(inputs, state).items()}
    coder = ClusterIndex()
    return coder.decode(found, coder.learned(ClusterState(), found), {})[""].to_numpy()


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a, b))


@pytest.mark.parametrize("name", NAMES)
def test_groups_that_are_there_are_found(name: str) -> None:
    """Four groups with numbers and a category, their number not told; numbered by falling size; graphs agree on strange values too."""
    from modelyard.kinds._contract import Part
    from modelyard.runtime.backends.onnx import session

    module = registry.load("estimators", name)
    inputs, who = blobs(500, categories=True)
    state = module.fit(inputs, {}, HEADS, module.Config())
    found = labels(module, state, inputs)
    kept = found >= 0
    assert state.suggestion["groups"] == 4 and kept.mean() > 0.85 and agreement(found[kept], who[kept]) > 0.99
    fresh, truth = blobs(200, seed=1, categories=True)
    again = labels(module, state, fresh)
    assert (again >= 0).mean() > 0.8 and agreement(again[again >= 0], truth[again >= 0]) > 0.99
    sizes = np.bincount(found[kept])
    assert name in ("grid", "dbscan") or (np.diff(sizes) <= 0).all()
    strange = {"table.numbers": np.float32([[0, 0, 0], [50, -50, 1e4], [2, 2, 2]]), "table.categories": np.int32([[0], [900], [1]])}
    parts = {"table.numbers": Part((3,), "float32"), "table.categories": Part((1,), "int32")}
    run = session(module.graph(state, parts).SerializeToString())
    for rows in (fresh, strange):
        ours, theirs = module.apply(rows, state), run(rows)
        assert set(ours) == set(theirs)
        for key, value in ours.items():
            assert np.abs(value - theirs[key]).max() <= 1e-5 * max(1.0, float(np.abs(value).max()))


@pytest.mark.parametrize("linkage", ["ward", "average", "complete", "single"])
def test_hierarchical_groups_are_those_of_scikit_learn(linkage: Any) -> None:
    """The cut of the tree, and for new rows the distance that the linkage names, in slow loops."""
    from sklearn.cluster import AgglomerativeClustering

    inputs, _ = blobs(150)
    x = inputs["table.numbers"].astype(np.float64)
    peer = AgglomerativeClustering(4, linkage=linkage).fit(x).labels_
    state = hierarchical.fit(inputs, {}, HEADS, hierarchical.Config(groups=4, linkage=linkage))
    assert agreement(labels(hierarchical, state, inputs), peer) == 1.0
    fresh = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32) * 2
    groups = [x[by_size(peer) == k] for k in range(4)]
    how = {"ward": lambda d, g, q: np.linalg.norm(q - g.mean(0)), "average": lambda d, g, q: d.mean(),
           "complete": lambda d, g, q: d.max(), "single": lambda d, g, q: d.min()}[linkage]  # fmt: skip
    slow = [[how(np.linalg.norm(g - q, axis=1), g, q) for g in groups] for q in fresh.astype(np.float64)]
    assert (labels(hierarchical, state, {"table.numbers": fresh}) == np.argmin(slow, axis=1)).all()


def test_dbscan_is_that_of_scikit_learn_and_new_rows_ask_the_nearest_core() -> None:
    from sklearn.cluster import DBSCAN

    inputs, _ = moons(300)
    x = inputs["table.numbers"].astype(np.float64)
    config = dbscan.Config(reach=0.2, min_rows=8)
    state = dbscan.fit(inputs, {}, HEADS, config)
    peer = DBSCAN(eps=0.2, min_samples=8).fit(x)
    ours = labels(dbscan, state, inputs)
    assert (ours == by_size(peer.labels_)).mean() > 0.99 and ((ours < 0) == (peer.labels_ < 0)).all()
    fresh = np.random.default_rng(3).normal(size=(200, 2)).astype(np.float32)
    cores, of = x[peer.core_sample_indices_], by_size(peer.labels_)[peer.core_sample_indices_]
    slow = []
    for q in fresh.astype(np.float64):
        far = np.linalg.norm(cores - q, axis=1)
        slow.append(of[far.argmin()] if far.min() <= 0.2 else -1)
    assert (labels(dbscan, state, {"table.numbers": fresh}) == slow).all() and -1 in slow and 0 in slow
    with pytest.raises(DataError, match=r"no row has 8 rows within 1e-06.*larger model\.reach"):
        dbscan.fit(inputs, {}, HEADS, dbscan.Config(reach=1e-6, min_rows=8))


def test_hdbscan_gives_training_rows_what_the_tree_gave_them() -> None:
    """Exactly scikit-learn's labels, though they come from reaches alone; new rows by the definition, in a slow loop."""
    from sklearn.cluster import HDBSCAN

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(150, 2)) * 0.2, rng.normal(size=(150, 2)) * 0.7 + 4, rng.uniform(-4, 8, (60, 2))]).astype(np.float32)
    state = hdbscan.fit({"table.numbers": x}, {}, HEADS, hdbscan.Config(min_group=12, crowd=6))
    peer = by_size(HDBSCAN(min_cluster_size=12, min_samples=6, copy=True).fit(x.astype(np.float64)).labels_)
    ours = labels(hdbscan, state, {"table.numbers": x})
    assert (ours == peer).all() and peer.max() >= 1 and 10 < (peer < 0).sum() < 120
    core = np.sort(np.linalg.norm(x[:, None].astype(np.float64) - x, axis=2), axis=1)[:, 5]
    between = np.maximum(np.linalg.norm(x[:, None].astype(np.float64) - x, axis=2), np.maximum(core[:, None], core))
    births = [between[peer == k][:, peer != k].min() for k in range(peer.max() + 1)]
    fresh = rng.uniform(-4, 8, (200, 2)).astype(np.float32)
    slow = []
    for q in fresh.astype(np.float64):
        far = np.linalg.norm(x - q, axis=1)
        mutual = np.maximum(np.maximum(far, core), np.sort(far)[5])
        share = [mutual[peer == k].min() / births[k] for k in range(len(births))]
        slow.append(int(np.argmin(share)) if min(share) < 1 else -1)
    assert (labels(hdbscan, state, {"table.numbers": fresh}) == slow).all() and len(set(slow)) > 2


def test_a_grid_joins_crowded_cells_that_touch() -> None:
    """Two moons, which k-means cannot tell apart; cells and their neighbours in a slow loop."""
    inputs, who = moons(1500)
    state = grid.fit(inputs, {}, HEADS, grid.Config(cells=16, dense=0.5))
    found = labels(grid, state, inputs)
    assert state.suggestion["groups"] == 2 and (found < 0).mean() < 0.1 and agreement(found[found >= 0], who[found >= 0]) > 0.97
    where = np.floor(inputs["table.numbers"].astype(np.float64) @ state.turn + state.shift)
    counts: dict[tuple[float, ...], int] = {}
    for cell in map(tuple, where.tolist()):
        counts[cell] = counts.get(cell, 0) + 1
    crowded = {c for c, n in counts.items() if n >= 0.5 * np.mean(list(counts.values()))}
    group = {c: i for i, c in enumerate(sorted(crowded))}
    for _ in range(len(crowded)):
        for c in crowded:
            near = [group[o] for o in crowded if max(abs(a - b) for a, b in zip(c, o, strict=True)) <= 1]
            group[c] = min(near)
        if len(set(group.values())) == 2:
            break
    slow = np.array([group.get(tuple(c), -1) for c in where.tolist()])
    assert ((slow < 0) == (found < 0)).all() and agreement(slow[found >= 0], found[found >= 0]) == 1.0


def test_a_grid_finds_no_crowd_in_every_row() -> None:
    """Noise in five directions, nearly every row in a cell of its own: such cells were once hundreds of groups."""
    noise = {"table.numbers": np.random.default_rng(0).normal(size=(1200, 5)).astype(np.float32)}
    state = grid.fit(noise, {}, HEADS, grid.Config(cells=40, directions=3))
    found = labels(grid, state, noise)
    assert (found < 0).mean() > 0.9 and state.suggestion["groups"] < 60
    assert grid.fit(noise, {}, HEADS, grid.Config()).suggestion["groups"] < 10


@pytest.mark.parametrize(("ours", "theirs"), [("full", "full"), ("diagonal", "diag")])
def test_a_gaussian_mixture_is_that_of_scikit_learn(ours: Any, theirs: Any) -> None:
    """Its likelihood, criterion and posteriors on numbers; scores of an answer are the posteriors."""
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(300, 2)) @ [[1.5, 0], [1.2, 0.3]], rng.normal(size=(200, 2)) * 0.5 + [0, 1.5]]).astype(np.float32)
    inputs = {"table.numbers": x}
    state = gaussian_mixture.fit(inputs, {}, HEADS, gaussian_mixture.Config(groups=2, covariance=ours))
    peer = GaussianMixture(2, covariance_type=theirs, reg_covar=gaussian_mixture.FLOOR, tol=1e-5, max_iter=500, n_init=3, random_state=0).fit(x)
    blank, rows = gaussian_mixture._prepare(inputs, space_of(inputs), None)
    joint = gaussian_mixture._joint(rows.normal_Nd, rows.upper_NP, rows.ids_Nm, state)
    likelihood = np.log(np.exp(joint).sum(1)).mean()
    assert abs(likelihood - peer.score(x)) < 2e-3 and not blank.pairs
    criterion = gaussian_mixture._parameters(state, ours) * np.log(len(x)) - 2 * likelihood * len(x)
    assert abs(criterion / peer.bic(x) - 1) < 2e-3
    found = {k.removeprefix("y."): v for k, v in gaussian_mixture.apply(inputs, state).items()}
    scores = ClusterIndex().decode(found, ClusterState(2), {})["scores"].struct.unnest().to_numpy()
    posterior = peer.predict_proba(x)[:, np.argsort(-peer.weights_)]
    assert np.abs(scores - posterior).max() < 0.03 and np.abs(scores - np.exp(joint) / np.exp(joint).sum(1, keepdims=True)).max() < 1e-5


def test_a_mixture_of_categories_and_missing_marks_does_not_explode() -> None:
    """Two latent classes that only categories and a 0/1 number show; a rare value has no density of its own; one group is told as such."""
    rng = np.random.default_rng(2)
    who = rng.integers(0, 2, 1500)
    ids = np.stack([np.where(rng.random(1500) < 0.9, who, 1 - who) + 1 for _ in range(4)], 1).astype(np.int32)
    numbers = np.stack([rng.normal(size=1500), (rng.random(1500) < 0.1 + 0.8 * who)], 1).astype(np.float32)
    state = gaussian_mixture.fit({"table.numbers": numbers, "table.categories": ids}, {}, HEADS, gaussian_mixture.Config())
    found = labels(gaussian_mixture, state, {"table.numbers": numbers, "table.categories": ids})
    assert state.suggestion["groups"] == 2 and state.pairs == [1] and agreement(found, who) > 0.9
    alone = gaussian_mixture.fit({"table.numbers": numbers[:, :1]}, {}, HEADS, gaussian_mixture.Config())
    assert alone.suggestion["alone"] and "no groups" in why(alone.suggestion)


def test_large_tables_are_sampled_and_it_is_said() -> None:
    """The models whose time grows with the square of the rows look at a part; all rows get an answer."""
    inputs, who = blobs(30_000)
    for module, config in ((hierarchical, hierarchical.Config(rows=500)), (dbscan, dbscan.Config(rows=800)), (hdbscan, hdbscan.Config(rows=800))):
        state = module.fit(inputs, {}, HEADS, config)
        found = labels(module, state, inputs)
        assert state.suggestion["rows"] == config.rows and state.suggestion["of"] == 30_000
        assert "among" in why(state.suggestion) and agreement(found[found >= 0], who[found >= 0]) > 0.99
    none = np.zeros(30_000)
    none[7] = 1
    with pytest.raises(DataError, match=r"1 row\(s\) have a weight above zero"):
        hierarchical.fit(inputs, {}, HEADS, hierarchical.Config(), weights=none)
    half = (np.arange(600) % 2).astype(np.float64)
    inputs, _ = blobs(600)
    doubled = {"table.numbers": np.where(half[:, None] > 0, inputs["table.numbers"], np.float32(99))}
    assert hierarchical.fit(doubled, {}, HEADS, hierarchical.Config(), weights=half).suggestion["groups"] == 4


def test_different_values_are_as_far_as_numbers_one_deviation_apart() -> None:
    inputs = {"table.numbers": np.float32([[0], [1], [0], [0]]), "table.categories": np.int32([[1], [1], [2], [700]])}
    space = space_of({k: v[:3] for k, v in inputs.items()})
    x = points(inputs, space)
    far = np.linalg.norm(x - x[0], axis=1)
    assert np.allclose(far, [0, 1, 1, np.sqrt(0.5)]) and space.width == 1 + 3


def test_noise_is_an_answer_with_a_score() -> None:
    coder = ClusterIndex()
    outputs = {"distances": np.float32([[0.0, 2.0], [3.0, 1.0], [0.5, 0.5]]), "noise": np.float32([[1.0], [0.0], [0.5]])}
    state = coder.learned(ClusterState(), outputs)
    answer = coder.decode(outputs, state, {})
    assert (state.groups, state.noise) == (2, True) and answer[""].to_list() == [0, -1, 0]  # at the very edge it belongs
    scores = answer["scores"].struct.unnest()
    assert scores.columns == ["0", "1", "-1"] and np.allclose(scores.to_numpy().sum(1), 1)


def customers(rows: int = 600, seed: int = 0) -> pl.DataFrame:
    """Two kinds of customers: a third spends ten times as much, mostly in Paris, and joined later."""
    rng = np.random.default_rng(seed)
    big = rng.random(rows) < 1 / 3
    return pl.DataFrame(
        {
            "spends": np.where(big, 1000.0, 100.0) * rng.lognormal(0, 0.2, rows),
            "visits": np.where(big, 20.0, 5.0) + rng.normal(size=rows),
            "city": [("Paris" if rng.random() < 0.9 else "Lyon") if b else ("Paris" if rng.random() < 0.2 else "Lyon") for b in big],
            "age": [None if (b and rng.random() < 0.6) else 40 + rng.normal() * 10 for b in big],
        }
    )


def test_profiles_are_shares_of_pairs() -> None:
    """The effect of every column in a slow loop over pairs; columns that do not differ are not told; noise comes last."""
    frame = customers(240).with_columns(pl.Series("chance", np.random.default_rng(9).normal(size=240)))
    group = (frame["spends"] > 400).cast(pl.Int64).to_numpy().copy()
    group[:12] = -1
    kinds = {"spends": "number", "visits": "number", "city": "category", "age": "number", "chance": "number", "note": "text"}
    found = profiles(frame.with_columns(note=pl.lit("x")), kinds, group)
    assert [s["segment"] for s in found] == [0, 1, -1] and sum(s["rows"] for s in found) == 240
    for segment in found:
        inside = group == segment["segment"]
        assert abs(segment["share"] - inside.mean()) < 1e-12
        for d in segment["differences"]:
            if d["kind"] == "missing":
                x = frame[d["column"]].is_null().cast(pl.Float64).to_numpy()
            elif d["kind"] == "category":
                x = (frame[d["column"]] == d["value"]).cast(pl.Float64).to_numpy()
            else:
                x = frame[d["column"]].to_numpy()
            a, b = x[inside & ~np.isnan(x)], x[~inside & ~np.isnan(x)]
            slow = np.mean([(p > q) + 0.5 * (p == q) for p in a for q in b]) - 0.5
            assert abs(d["effect"] - slow) < 1e-9
    told = {d["column"]: d for d in found[1]["differences"]}
    assert set(told) == {"spends", "visits", "city", "age"} and told["city"]["value"] == "Paris" and told["age"]["kind"] == "missing"
    assert abs(told["spends"]["times"] - frame["spends"].to_numpy()[group == 1].mean() / frame["spends"].mean()) < 1e-12
    text = in_words(found)[1]["text"]
    assert "× the average" in text and "mostly city = Paris" in text and "age is more often missing" in text
    assert "平均值的" in in_words(found, words("zh"))[1]["text"]


def test_means_that_point_the_other_way_give_way_to_medians() -> None:
    """One row of a million makes the mean of a group of small values the larger one."""
    x = np.concatenate([np.full(99, 1.0), [1e6], np.linspace(50, 60, 300)])
    found = profiles(pl.DataFrame({"x": x}), {"x": "number"}, np.repeat([0, 1], [100, 300]))
    low = found[0]["differences"][0]
    assert low["effect"] < -0.45 and low["median"] and low["here"] == 1.0
    assert "mostly lower (median 1 against" in in_words(found)[0]["text"]
    days = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 7, 18), "1d", eager=True)
    late = in_words(profiles(pl.DataFrame({"joined": days}), {"joined": "timestamp"}, np.repeat([0, 1], 100)))
    assert "joined is later (median 2024-05-" in late[1]["text"] and late[1]["name"] == "joined late"
    alike = in_words(profiles(pl.DataFrame({"x": np.arange(100.0)}), {"x": "number"}, np.arange(100) % 2))
    assert alike[0]["name"] == "like everybody" and alike[0]["text"].endswith("in no column")


@pytest.mark.parametrize("model", ["k-means", "hdbscan"])
def test_a_run_tells_its_segments(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In JSON, on the terminal and in the report, in both languages, with everything escaped; the saved model answers noise too."""
    frame = customers().with_columns(pl.col("city").replace("Paris", "<b>Paris</b>"))
    frame.write_csv(tmp_path / "customers.csv")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "data=customers.csv", "task=clustering", f"model={model}", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    (told,) = found["segments"].values()
    groups = [s for s in told["profiles"] if s["segment"] >= 0]
    assert told["why"]["text"].startswith(f"Groups: {len(groups)}.") and (model == "hdbscan" or len(groups) == 2)
    spends = {s["segment"]: d["here"] for s in groups for d in s["differences"] if d["column"] == "spends"}
    spenders = next(s for s in groups if s["segment"] == max(spends, key=lambda k: spends[k]))
    assert 0.05 < spenders["share"] < 0.45 and "× the average" in spenders["text"] and spenders["name"]
    assert cli.main(["evaluate", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["segments"] == found["segments"]
    page = (Path(found["run"]) / "report.html").read_text(encoding="utf-8")
    assert f"Segment {spenders['segment']} (" in page and "mostly city = &lt;b&gt;Paris" in page and "<b>Paris</b>" not in page
    assert "平均值的" in render(Report.of_run(Path(found["run"])), "zh")
    odd = Model.load(Path(found["model"])).predict([{"spends": 1e7, "visits": 500, "city": "Nice", "age": -3}]).to_json()[0]
    assert odd["cluster"] == (-1 if model == "hdbscan" else spenders["segment"])
