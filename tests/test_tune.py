"""The verb `tune`: what may be searched, that nothing finished is lost, repeated or suggested otherwise, that test rows stay unseen."""

from __future__ import annotations

import json
import math
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard import cli, registry
from modelyard.errors import ArtefactError, ConfigError, DataError, GateFailed, MissingExtra, Unsupported
from modelyard.project import load_project
from modelyard.runtime.model import Model
from modelyard.verbs.tune import Config, Tuned, _search, _space, _trial, tune
from modelyard.verbs.tune._journal import Journal, trials
from modelyard.verbs.tune._space import Choice, Range, Settings, dimension
from modelyard.verbs.tune._study import Suggestions, importances

pytest.importorskip("optuna", reason="the search needs the extra 'tune'")
pytest.importorskip("sklearn", reason="the trials need the extra 'train'")

BASE = Settings("auto", {}, {"split": {"test": 0.2}})


def table(rows: int = 240, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    y = x[:, 0] + x[:, 1] + random.normal(size=rows) > 0
    return pl.DataFrame({**{f"x{i}": x[:, i] for i in range(3)}, "y": np.where(y, "yes", "no")})


def search(folder: Path, resume: bool | str = False, **values: Any) -> Tuned:
    """A search of a linear model on a small table; keys are written `tune__trials`."""
    (folder / "modelyard.yaml").write_text("version: 1\nname: cell\n", encoding="utf-8")
    base = {"data.path": table(), "data.target": "y", "model": "linear", "tune.metric": "log_loss", "tune.trials": 4}
    space = {} if "tune__search" in values else {"tune.search": {"model.c": "log 1e-3..1e2", "model.penalty": ["l1", "l2"]}}
    given = {k.replace("__", "."): v for k, v in values.items()}
    return tune(load_project(folder, values={**base, **space, **given}), resume=resume)


def journal(found: Tuned | Path) -> list[dict[str, Any]]:
    folder = Path(found.run) if isinstance(found, Tuned) else found
    return Journal(folder / "trials.jsonl").read()


def course(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What a study did: settings, state and value of each trial, in order."""
    return [(n, t["params"], t.get("state"), t.get("value")) for n, t in sorted(trials(entries).items())]


# --- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0..0.5", Range(0, 0.5)), ("log 1e-5..1e-2", Range(1e-5, 1e-2, log=True)), ("int 8..256", Range(8, 256, whole=True)),
        ("log int 8..256", Range(8, 256, log=True, whole=True)), ("int log 8..256", Range(8, 256, log=True, whole=True)),
        ("int 8..30 step 8", Range(8, 24, whole=True, step=8)), ("-1..-.5 step .25", Range(-1, -0.5, step=0.25)), ([1, None], Choice((1, None))),
    ],
)  # fmt: skip
def test_forms_of_a_dimension(text: Any, expected: Any) -> None:
    assert dimension(text) == expected


@pytest.mark.parametrize(
    "wrong", ["1e-5-1e-2", "5..1", "log 0..1", "int 0.5..3", "log 1..9 step 2", "0..1 step 3", "lin 0..1", 3, [], ["a", "a"], "0..", True]
)
def test_what_is_no_dimension_is_told_with_the_forms(wrong: Any) -> None:
    assert isinstance(dimension(wrong), str)
    with pytest.raises(ConfigError) as error:
        _space.read({"train.lr": wrong}, BASE)
    assert "log 1e-5..1e-2" in str(error.value) and "tune.search.train.lr" in str(error.value)


def test_every_mistake_is_told_at_once_before_data_is_read(tmp_path: Path) -> None:
    wanted = {
        "train.lrr": "log 1e-4..1e-1", "train.dropout": "0..2", "train.batch": "8..64", "train": {"optimiser": ["adam", "adamm"]}, "model.leafs": "int 4..9",
        "train.seed": [1, 2], "data.split": [0.1, 0.2], "lr": "0..1", "train.epochs": "five", "model.name": ["trees", "mlp", "tress"],
    }  # fmt: skip
    with pytest.raises(ConfigError) as error:
        search(tmp_path, data__path="nowhere.csv", tune__search=wanted)
    told = {p.where.split("tune.search.")[1]: f"{p.message} {p.hint}" for p in error.value.details}
    assert set(told) == {"train.optimiser" if k == "train" else k for k in wanted}
    for key, part in {
        "train.lrr": "Did you mean 'lr'?", "train.dropout": "from 0 to 0.95", "train.batch": "Write int 8..64", "train.optimiser": "'adam'",
        "model.leafs": "Did you mean 'model.leaves'?", "train.seed": "draws the split", "data.split": "which rows judge", "lr": "Did you mean 'train.lr'?",
        "train.epochs": "int 8..256", "model.name": "Did you mean 'trees'?",
    }.items():  # fmt: skip
        assert part in told[key], (key, told[key])
    assert not (tmp_path / "runs").exists()


def test_what_no_model_would_look_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no effect"):
        search(tmp_path, tune__search={"train.lr": "0..1"})
    with pytest.raises(ConfigError, match="no effect"):  # auto is known to be trees once the data is read
        search(tmp_path, model="auto", tune__search={"train.lr": "log 1e-3..1"})
    with pytest.raises(ConfigError, match="needs a named model"):
        search(tmp_path, model="auto", tune__search={"model.c": "0..1"})
    with pytest.raises(ConfigError, match="names nothing"):
        search(tmp_path, tune__search={})
    with pytest.raises(ConfigError, match="did you mean 'halving'"):
        search(tmp_path, tune__method="halvin")
    with pytest.raises(ConfigError, match="Use one of"):
        search(tmp_path, tune__metric="rmse")
    with pytest.raises(Unsupported, match="fitted in one go"):
        search(tmp_path, tune__method="halving")
    with pytest.raises(Unsupported, match="validation rows"):
        search(tmp_path, data__split={"valid": 0.0})


def test_settings_of_a_trial_are_those_of_the_project_with_its_values() -> None:
    base = Settings({"name": "trees", "leaves": 5}, {"lr": 0.1, "augment": {"crop": 1}}, {"inputs": {"a": "text", "b": "number"}})
    found = _space.applied(base, {"model.min_leaf": 3, "train.augment.crop": 2, "data.inputs.a.encoding": "bag"})
    assert found.model == {"name": "trees", "leaves": 5, "min_leaf": 3} and found.train == {"lr": 0.1, "augment": {"crop": 2}}
    assert found.data == {"inputs": {"a": {"kind": "text", "encoding": "bag"}, "b": "number"}}
    assert _space.applied(base, {"model.name": "linear"}).model == {"name": "linear"}  # leaves were those of the trees
    assert base.model == {"name": "trees", "leaves": 5} and base.train["augment"] == {"crop": 1}


def test_a_grid_has_each_combination_once_and_skips_what_has_no_meaning() -> None:
    wanted = {"model.name": ["trees", "linear"], "model.leaves": "int 4..8 step 2", "model.penalty": ["l1", "l2"], "model.c": "log 0.01..1"}
    points = _space.read(wanted, BASE).grid(3)
    assert len(points) == 3 + 2 * 3  # leaves of trees; penalties and strengths of the linear model
    assert len({json.dumps(p, sort_keys=True) for p in points}) == len(points)
    assert [p["model.c"] for p in points if p.get("model.penalty") == "l1"] == pytest.approx([0.01, 0.1, 1.0])
    with pytest.raises(ConfigError, match="100,000"):
        _space.read({f"train.{k}": "0..0.5" for k in ("dropout", "warmup", "momentum", "label_smoothing")}, BASE).grid(20)


# --- suggestions -----------------------------------------------------------------------------------------------------


def play(method: str, finished: dict[int, dict[str, Any]], count: int) -> dict[int, dict[str, Any]]:
    """A search of a formula, without training; `finished` is what a journal held before."""
    space = _space.read({"train.lr": "log 1e-4..1", "train.batch": [16, 32, 64], "train.dropout": "0..0.5"}, Settings("mlp", {}, {}))
    config = Config(method=method, search={"train.lr": "log 1e-4..1"}, seed=3)
    module = registry.load("verbs/tune", method)
    suggestions = Suggestions(module, space, "lower", config)
    found = {int(k): v for k, v in json.loads(json.dumps(finished)).items()}
    for t in found.values():
        t["scores"] = {int(k): v for k, v in t["scores"].items()}
    while True:
        waiting = {n for n, t in found.items() if "state" not in t}
        number = module.promoted({n: t["scores"] for n, t in found.items()}, waiting, config) if module.PRUNES else None
        rung = config.rungs - 1 if not module.PRUNES else max(found[number]["scores"]) + 1 if number is not None else 0
        if number is None:
            if (number := len(found)) >= count:
                return found
            params = suggestions.next(number, found)
            assert params is not None
            found[number] = {"params": params, "scores": {}}
            rung = module.first_rung(number, config) if module.PRUNES else rung
        p = found[number]["params"]
        x = (math.log10(p["train.lr"]) + 2) ** 2 + p["train.dropout"] + p["train.batch"] / 64 + 1 / (rung + 1)
        if module.PRUNES:
            found[number]["scores"][rung] = x
        if number % 7 == 5:
            found[number]["state"] = "failed"
        elif rung == config.rungs - 1:
            found[number] |= {"state": "complete", "value": x}


@pytest.mark.parametrize("method", ["tpe", "random", "halving", "hyperband", "bohb"])
def test_suggestions_follow_from_what_was_found_before(method: str) -> None:
    """Cut anywhere, the search goes on as if it had never stopped."""
    whole = play(method, {}, 36)
    for cut in (1, 13, 22, 35):
        assert play(method, play(method, {}, cut), 36) == whole
    assert sum(t.get("state") == "complete" for t in whole.values()) >= 3


def test_guided_search_beats_chance() -> None:
    """Of a bowl: the mean of the last ten values."""
    last = lambda found: np.mean([t["value"] for t in list(found.values())[-10:] if "value" in t])  # noqa: E731
    assert last(play("tpe", {}, 36)) < 0.6 * last(play("random", {}, 36))


def test_halving_tries_what_random_search_tries() -> None:
    chance, halving = play("random", {}, 20), play("halving", {}, 20)
    assert [t["params"] for t in chance.values()] == [t["params"] for t in halving.values()]


def test_the_best_third_goes_on_and_the_highest_rung_first() -> None:
    """Against the rule by hand: of nine trials three come to the second rung and one of these to the last."""
    config = SimpleNamespace(eta=3, rungs=3, seed=0)
    scores = {n: {0: float(v)} for n, v in enumerate([5, 3, 8, 1, 9, 2, 7, 6, 4])}
    promoted = registry.load("verbs/tune", "halving").promoted
    first_two = {n: scores[n] for n in (0, 1)}
    assert promoted(first_two, {0, 1}, config) is None and promoted({n: scores[n] for n in range(3)}, {0, 1, 2}, config) == 1
    order = []
    while (number := promoted(scores, set(scores), config)) is not None and len(order) < 20:
        rung = max(scores[number]) + 1
        scores[number][rung] = scores[number][0] + rung
        order.append((number, rung))
    assert sorted(order) == [(1, 1), (3, 1), (3, 2), (5, 1)] and order[-1] == (3, 2)
    assert promoted(scores, set(scores) - {3}, config) is None


def test_brackets_of_hyperband_have_the_shares_of_the_paper() -> None:
    config = SimpleNamespace(eta=3, rungs=3, seed=1)
    drawn = np.bincount([registry.load("verbs/tune", "hyperband").first_rung(n, config) for n in range(10 * 17)])
    assert drawn.tolist() == [90, 50, 30]  # ceil(3 * 9 / 3), ceil(3 * 3 / 2), 3 / 1 of every 17


def test_a_small_space_is_tried_out_without_repeating(tmp_path: Path) -> None:
    found = search(tmp_path, tune__search={"model.c": [0.01, 0.1, 1.0], "model.penalty": ["l1", "l2"]}, tune__trials=30)
    keys = [json.dumps(t["params"], sort_keys=True) for t in trials(journal(found)).values()]
    assert len(keys) == len(set(keys)) == 6 and "all 6 combinations were tried" in found.notes


def test_importance_is_the_share_of_variance() -> None:
    random = np.random.default_rng(0)
    space = SimpleNamespace(dimensions={"a": Range(0, 1), "b": Range(0, 1), "c": Choice(("x", "y"))})
    made = [{"params": {"a": random.random(), "b": random.random(), "c": random.choice(["x", "y"])}} for _ in range(4000)]
    for t in made:
        t["shown"] = (t["params"]["a"] > 0.5) * 3.0 + (t["params"]["c"] == "x") * 1.0
    found = dict(importances(made, space))  # type: ignore[arg-type]
    assert found["a"] == pytest.approx(0.9, abs=0.02) and found["c"] == pytest.approx(0.1, abs=0.02) and found["b"] < 0.01  # 9/4 and 1/4 of the variance


# --- whole searches --------------------------------------------------------------------------------------------------


def test_search_ends_with_the_best_model_and_says_how_to_make_it_again(tmp_path: Path) -> None:
    found = search(tmp_path, tune__trials=6)
    run = Path(found.run)
    done = trials(journal(found))
    assert found.trials == 6 and found.best["value"] == min(t["value"] for t in done.values())
    model = Model.load(found.model)
    assert model.replay().ok and found.metrics["valid"]["log_loss"]["value"] == pytest.approx(found.best["value"], abs=1e-12)
    assert set(found.to_json()) >= {"run", "model", "best", "trials", "pruned", "failed", "metrics"} and "log_loss" in str(found)
    again = load_project(run / "best.yaml", values={"data.path": table(), "data.target": "y"})
    from modelyard.verbs.train import train

    trained = train(again.data, None, again.model.value, again.section("train"), base=tmp_path, runs=tmp_path / "again")
    assert trained.metrics["valid"]["log_loss"]["value"] == found.metrics["valid"]["log_loss"]["value"]
    assert not list(run.glob("trials/*/model")) and json.loads((run / "run.json").read_text(encoding="utf-8"))["state"] == "finished"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="search"' in page and "model.penalty" in page
    for name in ("search_history", "search_settings"):
        ET.fromstring((run / "plots" / f"{name}.svg").read_text(encoding="utf-8"))


def test_test_rows_choose_nothing_and_data_is_bound_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning every test label round changes the test metrics and nothing of the search."""
    whole, bound = table(400), []
    parts = {"train": whole[:240], "valid": whole[240:320], "test": whole[320:]}
    turned = {**parts, "test": parts["test"].with_columns(y=pl.when(pl.col("y") == "yes").then(pl.lit("no")).otherwise(pl.lit("yes")))}
    real = _search.bind
    for module in (_search, _trial):
        monkeypatch.setattr(module, "bind", lambda *a, **k: (bound.append(1), real(*a, **k))[1])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = search(tmp_path / "a", data__path=parts), search(tmp_path / "b", data__path=turned)
    assert course(journal(one)) == course(journal(two)) and len(bound) == 2
    assert one.metrics["test"]["accuracy"]["value"] == pytest.approx(1 - two.metrics["test"]["accuracy"]["value"])


def test_a_study_cut_anywhere_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """The journal after each kind of kill: between lines, in the middle of a line, before the first trial."""
    found = search(tmp_path, tune__trials=5)
    lines = (Path(found.run) / "trials.jsonl").read_bytes().splitlines(keepends=True)
    whole = course(journal(found))
    for i, kept in enumerate([lines[:1], [*lines[:4], lines[4][:20]], [*lines[:7], b"\0\0\0"], lines]):
        (Path(found.run) / "trials.jsonl").write_bytes(b"".join(kept))
        again = search(tmp_path, resume=True, tune__trials=5)
        entries = journal(again)
        assert course(entries) == whole, i
        assert [e["trial"] for e in entries if e["event"] == "finished"] == list(range(5))
        assert Model.load(again.model).replay().ok and again.best == found.best
    more = search(tmp_path, resume="cell-0001", tune__trials=7)
    assert course(journal(more))[:5] == whole and more.trials == 7


def test_what_keeps_a_study_from_going_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no study"):
        search(tmp_path, resume=True)
    found = search(tmp_path, tune__trials=2)
    with pytest.raises(ConfigError) as error:
        search(tmp_path, resume=True, tune__seed=5, data__path=table(seed=1))
    assert {p.where for p in error.value.details} == {"tune.seed", "fingerprint"}
    path = Path(found.run) / "trials.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"nonsense\n", *lines[2:]]))
    with pytest.raises(ArtefactError, match=r"trials\.jsonl:2 is damaged"):
        search(tmp_path, resume=True)


def test_failed_trials_are_listed_with_their_reason(tmp_path: Path) -> None:
    found = search(tmp_path, tune__search={"model.name": ["linear", "k-means"]}, tune__method="grid")
    assert [f["params"] for f in found.failed] == [{"model.name": "k-means"}] and "predicts cluster" in found.failed[0]["reason"]
    assert "k-means predicts" in str(found) and "predicts cluster" in (Path(found.run) / "report.html").read_text(encoding="utf-8")
    with pytest.raises(GateFailed, match="all 1 trials failed"):
        search(tmp_path, tune__search={"model.name": ["k-means"]})


def test_budget_ends_the_search_with_at_least_one_whole_trial(tmp_path: Path) -> None:
    found = search(tmp_path, tune__budget=1e-3, tune__trials=50)
    assert found.trials == 1 and Model.load(found.model).replay().ok


def test_ctrl_c_leaves_the_best_so_far_and_resume_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.verbs.tune._engines import Here

    (tmp_path / "a").mkdir()
    whole = search(tmp_path / "a", tune__trials=6)
    real, waits = Here.wait, []

    def wait(self: Here) -> Any:
        waits.append(1)
        if len(waits) == 4:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Here, "wait", wait)
    cut = search(tmp_path, tune__trials=6)
    assert cut.interrupted and cut.trials == 3 and Model.load(cut.model).replay().ok
    again = search(tmp_path, resume=True, tune__trials=6)
    assert course(journal(again)) == course(journal(whole)) and again.best == whole.best and not again.interrupted


def test_run_searches_where_the_project_says_so_and_does_it_once(tmp_path: Path) -> None:
    import modelyard

    given = {"data.path": str(tmp_path / "t.csv"), "data.target": "y", "model": "linear", "tune.search": {"model.c": [0.1, 1.0]}, "tune.trials": 2}
    table().write_csv(tmp_path / "t.csv")
    (tmp_path / "modelyard.yaml").write_text("version: 1\nname: cell\n", encoding="utf-8")
    first, second = (modelyard.run(str(tmp_path), given, quiet=True) for _ in range(2))
    assert first.stages["tune"] == "done" and set(second.stages.values()) == {"unchanged"} and first.run == second.run
    assert len(trials(journal(Path(first.run)))) == 2


def test_halving_goes_on_from_checkpoints_and_ends_as_an_unpruned_training(tmp_path: Path) -> None:
    """Bit for bit: the best trial was stopped at two rungs, `train` with its settings was not."""
    pytest.importorskip("torch")
    given = {"train.epochs": 9, "train.lr": 0.01, "train.patience": 0, "train.threads": 1}
    found = search(
        tmp_path, model="mlp", tune__method="halving", tune__trials=5, tune__search={"train.lr": "log 1e-4..1e-1", "model.dropout": "0..0.5"},
        **{k.replace(".", "__"): v for k, v in given.items()},
    )  # fmt: skip
    done = trials(journal(found))
    assert found.pruned and {t["epochs"] for t in done.values()} <= {1, 3, 9} and all(t["of"] == 9 for t in done.values())
    assert found.epochs == sum(t["epochs"] for t in done.values()) < 5 * 9
    from modelyard.verbs.train import train

    best = load_project(Path(found.run) / "best.yaml", values={"data.path": table(), "data.target": "y"})
    config = load_project(tmp_path, values={**given, "train.lr": best.section("train").lr}).section("train")
    trained = train(best.data, None, best.model.value, config, base=tmp_path, runs=tmp_path / "again")
    assert (trained.model / "model.safetensors").read_bytes() == (Path(found.model) / "model.safetensors").read_bytes()


def test_trees_are_halved_by_rounds(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    trees = {"name": "trees", "trees": 45, "bags": 1}
    found = search(tmp_path, model=trees, tune__search={"model.lr": "log 1e-3..0.5"}, tune__method="halving", tune__trials=4)
    taken = {(t["epochs"], t["of"], t["unit"]) for t in trials(journal(found)).values()}
    assert taken <= {(5, 45, "trees"), (5 + 15, 45, "trees"), (5 + 15 + 45, 45, "trees")}  # an estimator begins again at each rung
    assert found.pruned


def test_groups_of_clusters_are_found_by_silhouette(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(c, 0.2, size=(60, 2)) for c in ((0, 0), (4, 0), (0, 4))])
    found = search(
        tmp_path, data__path=pl.DataFrame({"a": points[:, 0], "b": points[:, 1]}), data__target=None, task="clustering", model="k-means",
        tune__metric=None, tune__search={"model.groups": "int 2..6"}, tune__method="grid", tune__trials=None,
    )  # fmt: skip
    assert found.metric == "silhouette" and found.best["params"] == {"model.groups": 3}


def test_two_workers_do_what_one_process_does(tmp_path: Path) -> None:
    """A grid does not depend on order: the same values in both; a table from Python travels to the workers."""
    (tmp_path / "a").mkdir()
    wanted: dict[str, Any] = {"tune__search": {"model.c": [0.01, 1.0], "model.penalty": ["l1", "l2"]}, "tune__method": "grid"}
    one, two = search(tmp_path / "a", **wanted), search(tmp_path, tune__parallel=2, **wanted)
    values = lambda found: {json.dumps(t["params"]): t["value"] for t in trials(journal(found)).values()}  # noqa: E731
    assert values(one) == values(two) and two.best["value"] == one.best["value"]
    assert Model.load(one.model).manifest["data"] == Model.load(two.model).manifest["data"]  # the same rows, by their content


# --- nested cross-validation -----------------------------------------------------------------------------------------

GRID: dict[str, Any] = {"tune__search": {"model.c": [1e-3, 0.05, 1.0]}, "tune__method": "grid", "tune__trials": None}


def test_a_search_in_every_fold_is_judged_by_rows_it_never_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same by hand: each fold's rows as tables of their own, each setting trained, the best by its validation rows."""
    seen: dict[str, list[Any]] = {}
    real = _trial.fit

    def spy(bound: Any, model: Any, config: Any, run: Any, **more: Any) -> Any:
        seen.setdefault(run.folder.parts[-3], []).append(bound)
        return real(bound, model, config, run, **more)

    monkeypatch.setattr(_trial, "fit", spy)
    found = search(tmp_path, data__path=(whole := table(200)), train__folds=3, **GRID)
    held: list[float] = []
    for entry in found.folds:
        bounds = seen[f"{entry['repeat']}-{entry['fold']}"]
        assert len(bounds) == 3 and entry["value"] == min(t["value"] for t in trials(journal(Path(found.run) / "folds" / f"0-{entry['fold']}")).values())
        learnt, out = (set(pl.concat([bounds[0].splits[s] for s in names])["x0"]) for names in (("train", "valid"), ("test",)))
        assert not learnt & out and learnt | out == set(whole["x0"])
        held += sorted(out)
        tables = {name: frame.select(whole.columns) for name, frame in bounds[0].splits.items()}
        scores = {}
        for c in (1e-3, 0.05, 1.0):
            by_hand = modelyard.train(data={"path": tables, "target": "y"}, model={"name": "linear", "c": c}, evaluate={"metrics": ["log_loss", "accuracy"]})
            scores[c] = by_hand.metrics
        best = min(scores, key=lambda c: scores[c]["valid"]["log_loss"]["value"])
        assert entry["params"] == {"model.c": best}
        assert entry["scores"]["log_loss"]["value"] == pytest.approx(scores[best]["test"]["log_loss"]["value"], abs=1e-9)
    assert sorted(held) == sorted(whole["x0"])  # every row was held out once
    values = [entry["scores"]["log_loss"]["value"] for entry in found.folds]
    assert found.metrics["folds"]["log_loss"]["value"] == pytest.approx(np.mean(values), abs=1e-9)
    assert found.metrics["folds"]["log_loss"]["spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert {"valid", "test", "folds"} == set(found.metrics) and len(trials(journal(found))) == 3  # the model itself is searched for as ever
    page = (Path(found.run) / "report.html").read_text(encoding="utf-8")
    assert "Every fold made the whole search" in page and page.count("model.c: ") >= 3


def test_a_nested_search_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(tmp_path, train__folds=2, train__repeats=2, **GRID)
    run, asked = Path(found.run), []
    for journal_of, lines in ((run, 1), (run / "folds" / "1-0", 3)):  # killed in the third fold, in the middle of its second trial
        path = journal_of / "trials.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    shutil.rmtree(run / "folds" / "1-1")
    (run / "folds" / "1-0" / "fold.json").unlink()
    real = _trial.Course.advance
    monkeypatch.setattr(_trial.Course, "advance", lambda self, *a, **k: (asked.append(self.fold), real(self, *a, **k))[1])
    again = search(tmp_path, resume=True, train__folds=2, train__repeats=2, **GRID)
    assert again.folds == found.folds and again.metrics["folds"] == found.metrics["folds"] and again.best == found.best
    assert [0, 0] not in asked and [0, 1] not in asked and asked.count([1, 0]) in (2, 3) and asked.count([1, 1]) == 3 and asked.count(None) == 3


def test_a_worker_makes_the_same_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker process is told of a fold's search leads it to the very rows."""
    same: list[bool] = []
    real = _trial.Course.advance

    def spy(self: _trial.Course, *told: Any) -> dict[str, Any]:
        if self.fold is not None:
            mine, theirs = self.bound(self.data), _trial.unpack(_trial.pack(self, tables=True)).bound(self.data)
            same.append(mine.splits.keys() == theirs.splits.keys() and all(mine.splits[k].equals(theirs.splits[k]) for k in mine.splits))
        return real(self, *told)

    monkeypatch.setattr(_trial.Course, "advance", spy)
    search(tmp_path, train__folds=2, data__split={"test": 0.25, "valid": 0.25}, **{**GRID, "tune__search": {"model.c": [1.0]}})
    assert same == [True, True]


def test_folds_and_what_decides_the_rows_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        search(tmp_path, train__folds=2, tune__search={"data.inputs": [["x0"], ["x1"]], "model.c": [0.1, 1.0]})
    assert [p.where for p in error.value.details] == ["tune.search.data.inputs"]


def test_a_worker_that_dies_fails_its_trial_only(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "net.py").write_text("import os\n\nos._exit(9)\n", encoding="utf-8")
    wanted = {"model": ["linear", {"module": "net.py:Net"}]}
    found = search(tmp_path, tune__search=wanted, tune__method="grid", tune__parallel=2)
    assert found.trials == 2 and [f["trial"] for f in found.failed] == [1] and "exit code 9" in found.failed[0]["reason"]


@pytest.mark.parametrize(("package", "extra", "key"), [("optuna", "tune", {}), ("ray", "ray", {"tune__engine": "ray"})])
def test_a_missing_package_is_one_sentence(package: str, extra: str, key: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'modelyard\[{extra}\]'"):
        search(tmp_path, **key)


@pytest.mark.filterwarnings("ignore")
def test_ray_runs_the_same_trials(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    (tmp_path / "a").mkdir()
    wanted: dict[str, Any] = {"tune__search": {"model.c": [0.01, 1.0]}, "tune__method": "grid"}
    one, two = search(tmp_path / "a", **wanted), search(tmp_path, tune__engine="ray", tune__parallel=2, **wanted)
    assert {t["value"] for t in trials(journal(one)).values()} == {t["value"] for t in trials(journal(two)).values()}


def test_command_line_and_file_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Dotted keys, nested maps and single settings; the command line wins over the file."""
    monkeypatch.chdir(tmp_path)
    table().write_csv("t.csv")
    Path("modelyard.yaml").write_text(
        "version: 1\nname: file\ndata: {path: t.csv, target: y}\nmodel: linear\n"
        "tune: {trials: 2, metric: log_loss, search: {model.c: log 1e-3..1, model: {penalty: [l1, l2]}}}\n",
        encoding="utf-8",
    )
    assert cli.main(["tune", "--json"]) == 0
    first = json.loads(capfd.readouterr().out)
    assert set(first["best"]["params"]) == {"model.c", "model.penalty"} and first["trials"] == 2 and first["failed"] == []
    assert cli.main(["tune", "search.model.c=[5.0]", "tune.search={model.penalty: [l1]}", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["best"]["params"] == {"model.c": 5.0, "model.penalty": "l1"}
    assert cli.main(["tune", "search.model.d=0..1", "--json"]) == 2
    assert "command line: tune.search.model.d" in json.loads(capfd.readouterr().out)["error"]["details"][0]["where"]


def test_metric_of_one_of_several_outputs(tmp_path: Path) -> None:
    data = table().with_columns(z=pl.col("x0") * 2)
    found = search(
        tmp_path, data__path=data, data__target=None, data__inputs=["x0", "x1"], data__outputs={"y": "category", "z": "number"}, tune__metric="z.mae",
        tune__trials=2, tune__search={"model.c": "log 1e-3..10"},
    )  # fmt: skip
    assert found.metric == "z.mae" and found.best["value"] == found.metrics["valid"]["z"]["mae"]["value"]
    with pytest.raises(ConfigError, match="unknown"):
        search(tmp_path, tune__metric="logloss")
    with pytest.raises(DataError):
        search(tmp_path, data__target="w")
