"""`prepare`: what it writes is split as training splits, judged rows are never touched, every row is accounted for, nothing is redone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard import cli
from modelyard.data import artefact
from modelyard.data.nearest import nearest
from modelyard.data.source import DataConfig, open_source
from modelyard.data.split import SplitConfig
from modelyard.errors import ArtefactError, ConfigError, DataError, Unsupported
from modelyard.runtime.model import Model
from modelyard.tasks._binding import bind
from modelyard.verbs import prepare as prepare_verb
from modelyard.verbs.prepare import prepare
from modelyard.verbs.prepare.deduplicate import _grams, near_copies
from modelyard.verbs.prepare.label_spreading import spread

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def people(n: int = 300, seed: int = 0, rare: float = 0.15) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    y = random.random(n) < rare
    return pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(n)],
            "a": random.normal(y * 2.0, 1.0, n),
            "b": [None if random.random() < 0.05 else float(v) for v in random.integers(0, 9, n)],
            "city": random.choice(["Oslo", "Lima", "Kyiv"], n),
            "y": np.where(y, "rare", "often"),
        }
    )


def config(**keys: Any) -> DataConfig:
    return DataConfig(**{"target": "y", "id": "id", **keys})


def tables(folder: str | Path) -> dict[str, pl.DataFrame]:
    return {n: t.data for n, t in artefact.tables(Path(folder)).items()}


@pytest.mark.parametrize("method", ["over", "under", "smote"])
def test_resampling_splits_as_training_does_and_changes_train_alone(tmp_path: Path, method: str) -> None:
    people().write_csv(tmp_path / "t.csv")
    made = prepare(config(path="t.csv"), {"resample": {"method": method}}, base=tmp_path, seed=4)
    found = tables(tmp_path / made.data)
    wanted = bind(config(path="t.csv"), None, tmp_path).splits
    for name in ("valid", "test"):
        assert found[name].select("a", "b", "city", "y").equals(wanted[name].select("a", "b", "city", "y"))
    kept = found["train"].filter(pl.col("id").is_not_null())
    if method == "under":
        assert kept.height == found["train"].height
    else:
        assert kept.select("a", "y").equals(wanted["train"].select("a", "y"))
        assert kept.height + made.steps[0]["made"] == found["train"].height
    assert found["train"]["y"].value_counts()["count"].n_unique() == 1
    judged = set(found["valid"]["id"]) | set(found["test"]["id"])
    assert not judged & set(found["train"]["id"].drop_nulls())


def test_what_is_downstream_needs_no_further_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The artefact carries target, kinds and split: check, train, evaluate and predict take it as it is."""
    monkeypatch.chdir(tmp_path)
    people(400).write_csv("t.csv")

    def ask(*args: str) -> dict[str, Any]:
        code = cli.main([*args, "--json", "-q"])
        answer = json.loads(capfd.readouterr().out)
        assert code == 0, answer
        return answer

    made = ask("prepare", "data=t.csv", "target=y", "data.id=id", "prepare=[{resample: {method: smote}}]", "prepare.out=made")
    assert made["data"] == "made" and made["rows_in"] == 400 and not made["unchanged"]
    checked = ask("check", "data=made")
    assert checked["rows"] == made["rows"] and {c["name"] for c in checked["columns"]} == {"a", "b", "city", "y"}
    trained = ask("train", "data=made", "model=linear")
    assert ask("evaluate", trained["run"])["rows"] == {k: made["rows"][k] for k in ("valid", "test")}
    assert ask("predict", trained["run"], "data=made")["failed"] == 0
    assert ask("prepare", "data=t.csv", "target=y", "data.id=id", "prepare=[{resample: {method: smote}}]", "prepare.out=made")["unchanged"]
    with pytest.raises(Unsupported, match=r"train\.folds would learn from copies.*train\.balance"):
        modelyard.train(data="made", model="linear", **{"train.folds": 3})


def test_what_the_project_says_wins_over_the_artefact(tmp_path: Path) -> None:
    for inputs in (["a", "b", "city"], {"a": "number", "b": "category", "city": "category"}):
        made = prepare(config(path=people(), inputs=inputs), "deduplicate", base=tmp_path)
        bound = bind(DataConfig(path=made.data), None, tmp_path)
        assert [c.name for c in bound.pipeline.inputs] == ["a", "b", "city"] and [c.name for c in bound.pipeline.outputs] == ["y"]
        other = bind(DataConfig(path=made.data, target="city", ignore=["a"]), None, tmp_path)
        assert [c.name for c in other.pipeline.outputs] == ["city"] and [c.name for c in other.pipeline.inputs] == ["b"]
        assert {c.name: c.kind for c in bound.pipeline.inputs}["b"] == ("category" if isinstance(inputs, dict) else "number")


def test_the_key_is_the_content(tmp_path: Path) -> None:
    people().write_csv(tmp_path / "t.csv")
    people().write_parquet(tmp_path / "other.parquet")
    first = prepare(config(path="t.csv"), "deduplicate", base=tmp_path)
    again = prepare(config(path="t.csv"), ["deduplicate"], base=tmp_path)
    assert again.unchanged and again.data == first.data and again.rows == first.rows
    assert prepare(config(path="other.parquet"), "deduplicate", base=tmp_path).unchanged
    people(seed=1).write_csv(tmp_path / "t.csv")
    other = prepare(config(path="t.csv"), "deduplicate", base=tmp_path)
    assert not other.unchanged and other.data != first.data
    with pytest.raises(ArtefactError, match=r"holds other data and nothing is ever overwritten; choose another prepare\.out"):
        prepare(config(path="t.csv"), ["deduplicate"], base=tmp_path, out=first.data)
    file = tmp_path / first.data / "train.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactError, match=r"train\.parquet: is not the file that was written"):
        open_source(DataConfig(path=first.data), tmp_path)
    file.unlink()
    with pytest.raises(ArtefactError, match=r"train\.parquet: is missing"):
        prepare(config(path="other.parquet"), "deduplicate", base=tmp_path)
    (tmp_path / first.data / "data.json").write_text('{"format": 9}', encoding="utf-8")
    with pytest.raises(ArtefactError, match="upgrade Modelyard"):
        open_source(DataConfig(path=first.data), tmp_path)


def test_a_kill_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.store import atomic

    people().write_csv(tmp_path / "t.csv")
    for call in ("open", "fsync", "rename"):

        def stop(name: str, path: Path, call: str = call) -> None:
            if name == call:
                raise KeyboardInterrupt

        monkeypatch.setattr(atomic, "watch", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(path="t.csv"), "deduplicate", base=tmp_path)
        assert not list((tmp_path / "prepared").iterdir())


def test_every_row_is_kept_or_named(tmp_path: Path) -> None:
    """Bad values, broken lines and copies together: each lost row has its file or table, its number and a reason."""
    frame = people(120)
    lines = frame.write_csv().splitlines()
    lines[10] = "p9,broken"
    lines[20] = lines[20].replace("p19", "p19b", 1)
    lines.append(lines[30].replace("p29", "copy"))
    lines[40] = "p39," + "word" + lines[40][lines[40].index(",", 5) :]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = prepare(config(path="t.csv", inputs={"a": "number", "b": "number", "city": "category"}), ["deduplicate", {"resample": {}}], base=tmp_path)
    assert made.rows_in == 121
    kept = sum(t["id"].drop_nulls().len() for t in tables(tmp_path / made.data).values())
    assert kept + made.set_aside_count == made.rows_in
    assert [(s["line"], s["reason"].split(";")[0]) for s in made.set_aside] == [
        (11, "has 2 fields where the header has 5"), (120, "is a copy of row 29"), (39, "is not a finite number"),
    ]  # fmt: skip
    facts = artefact.made(tmp_path / made.data)
    assert facts is not None and facts.set_aside_count == 3 and facts.parents[0]["rows_read"] == 121 and facts.columns["a"] == "number"


def test_copies_leave_train_and_never_the_rows_that_judge(tmp_path: Path) -> None:
    train, test = people(50), people(20, 1)
    train = pl.concat([train, test.head(3).with_columns(pl.col("id") + "x"), train.head(2).with_columns(pl.col("id") + "y")])
    made = prepare(config(train=train, test=test), "deduplicate", base=tmp_path)
    assert made.rows == {"train": 50, "test": 20} and made.steps[0]["by_table"] == {"train": 5}
    assert {s["reason"] for s in made.set_aside} == {
        "is a copy of row 1 of test", "is a copy of row 2 of test", "is a copy of row 3 of test", "is a copy of row 1", "is a copy of row 2",
    }  # fmt: skip


def test_near_copies_are_those_of_a_loop() -> None:
    """Against all pairs: a text leaves if it is similar to an earlier one that stays."""
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    texts: list[str] = []
    for _ in range(60):
        text = random.choice(words, 40)
        texts.append(" ".join(text))
        for changes in random.integers(0, 12, 2):
            other = text.copy()
            other[random.integers(0, 40, changes)] = random.choice(words, changes)
            texts.append(" ".join(other))
    order = random.permutation(len(texts))
    texts = [texts[i] for i in order]
    for threshold in (0.7, 0.9):
        sets = [set(_grams(t).tolist()) for t in texts]
        gone: set[int] = set()
        for i in range(len(texts)):
            if any(len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= threshold for j in range(i) if j not in gone):
                gone.add(i)
        found = near_copies(texts, threshold)
        assert set(found) == gone and len(gone) > 20
        assert all(len(sets[i] & sets[j]) / len(sets[i] | sets[j]) == pytest.approx(s) for i, (j, s) in found.items())
    plain = "a longer text about one thing"
    assert near_copies(["", "", plain, "A  longer TEXT about one thing", "北京的天气很好今天", "北京的天气很好今天"], 0.95) == {3: (2, 1.0), 5: (4, 1.0)}


def test_near_copies_in_a_table(tmp_path: Path) -> None:
    texts = [f"the customer number {i} said that the delivery number {i * 7} came late and was very sorry about it" for i in range(40)]
    frame = pl.DataFrame({"text": [*texts, texts[3] + "!", "something else altogether, of which there is no other row"], "y": ["a", "b"] * 21})
    made = prepare(DataConfig(path=frame, target="y"), {"deduplicate": {"near": 0.95}}, base=tmp_path)
    assert made.steps[0]["near"] == 1 and made.set_aside[0]["line"] == 41 and "similarity 0.9" in made.set_aside[0]["reason"]
    with pytest.raises(DataError, match="no column holds any"):
        prepare(DataConfig(path=people(), target="y"), {"deduplicate": {"near": 0.9}}, base=tmp_path)


def test_label_spreading_is_its_closed_form() -> None:
    """(1 - α) (I - α S)⁻¹ Y with dense matrices."""
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(size=(40, 3)), random.normal(size=(40, 3)) + 3])[random.permutation(80)]
    y = np.array([0, 1, 0, 1, 0])
    near, distance = nearest(points, 6)
    graph = np.zeros((80, 80))
    graph[np.repeat(np.arange(80), 6), near.reshape(-1)] = np.exp(-(distance**2) / (2 * np.median(distance) ** 2)).reshape(-1)
    graph = np.maximum(graph, graph.T)
    root = 1 / np.sqrt(graph.sum(1))
    smooth = root[:, None] * graph * root
    start = np.zeros((80, 2))
    start[np.arange(5), y] = 1
    exact = 0.2 * np.linalg.solve(np.eye(80) - 0.8 * smooth, start)
    np.testing.assert_allclose(spread(points, y, 2, 6, 0.8), exact, atol=1e-5)


def blobs(n: int, seed: int, labelled: bool = True) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    side = random.integers(0, 2, n)
    frame = pl.DataFrame({"a": random.normal(side * 6.0, 1), "b": random.normal(side * -6.0, 1), "c": random.choice(["u", "v"], n)})
    return frame.with_columns(y=pl.Series(np.array(["left", "right"])[side])) if labelled else frame


@pytest.mark.parametrize("step", ["label-spreading", {"self-training": {"rounds": 1}}])
def test_unlabelled_rows_get_the_label_of_their_cluster(tmp_path: Path, step: Any) -> None:
    truth = blobs(200, 1)
    data = DataConfig(train=blobs(60, 0), test=blobs(40, 2), unlabelled=truth.drop("y"), target="y", inputs=["a", "b", "c"])
    empty = prepare(replace(data, unlabelled=truth.with_columns(y=None)), step, model="linear", base=tmp_path)  # the same with the column there
    with pytest.raises(DataError, match=r"200 row\(s\) of unlabelled: has a target already"):
        prepare(replace(data, unlabelled=truth), step, model="linear", base=tmp_path)
    made = prepare(data, step, model="linear", base=tmp_path)
    found = tables(tmp_path / made.data)
    new = found["train"].tail(made.steps[0]["labelled"])
    joined = new.join(truth, on=["a", "b"], suffix="_true")
    assert empty.steps == made.steps and tables(tmp_path / empty.data)["train"].equals(found["train"])
    assert made.steps[0]["labelled"] > 150 and joined.height == new.height and (joined["y"] == joined["y_true"]).mean() > 0.99
    assert (new["confidence"] == new["confidence"]).all() and new["confidence"].max() <= 1 and found["train"]["confidence"][0] == 1.0
    assert found["test"].equals(blobs(40, 2).select(found["test"].columns))
    left = found["unlabelled"].height if "unlabelled" in found else 0
    assert left + new.height == 200
    assert bind(DataConfig(path=made.data), None, tmp_path).weight == "confidence"


def test_points_that_nothing_joins_with_a_label_stay_unlabelled() -> None:
    """Two islands, one of them without a label."""
    random = np.random.default_rng(0)
    points = np.concatenate([random.normal(size=(20, 2)), random.normal(size=(20, 2)) + 1e3])
    beliefs = spread(points, np.array([0, 1]), 2, 3, 0.9)
    assert (beliefs[20:] == 0).all() and (beliefs[:20].sum(1) > 0).any()


def test_out_of_fold_answers_know_nothing_of_their_own_row(tmp_path: Path) -> None:
    """Labels are noise: a model that saw a row's label would score above chance on it."""
    random = np.random.default_rng(0)
    n = 240
    frame = pl.DataFrame({"a": random.normal(size=n), "b": random.normal(size=n), "y": random.choice(["no", "yes"], n)})
    data = DataConfig(path=frame, target="y", split=SplitConfig(test=0.2, valid=0.0))
    made = prepare(data, {"out-of-fold": {"folds": 3, "name": "near"}}, "classification", {"name": "neighbours", "k": 1}, base=tmp_path)
    found = tables(tmp_path / made.data)
    assert made.steps[0]["columns"] == ["near.y.no", "near.y.yes"] and made.steps[0]["answered"] == found["train"].height
    for table in found.values():
        assert table["near.y.yes"].null_count() == 0
        np.testing.assert_allclose((table["near.y.no"] + table["near.y.yes"]).to_numpy(), 1, atol=1e-5)
    right = ((found["train"]["near.y.yes"] > 0.5) == (found["train"]["y"] == "yes")).mean()
    assert 0.35 < right < 0.65
    bound = bind(DataConfig(path=made.data), None, tmp_path)
    assert [c.name for c in bound.pipeline.inputs] == ["a", "b", "near.y.no", "near.y.yes"]
    again = prepare(DataConfig(path=made.data), "resample", base=tmp_path)  # an artefact is data like any other
    assert tables(tmp_path / again.data)["test"].equals(found["test"])
    with pytest.raises(Unsupported, match="put out-of-fold before resample"):
        prepare(data, ["resample", "out-of-fold"], base=tmp_path)


def test_mistakes_are_named_together_and_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "modelyard.yaml").write_text(
        "data: {path: absent.csv, target: y}\n"
        "prepare:\n  - dedupliate\n  - {resample: {method: smot, ratio: 3}}\n  - 7\n  - {deduplicate: {near: 0.9, nears: 1}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        modelyard.prepare(tmp_path)
    text = str(caught.value)
    for said in ("'dedupliate'", "Did you mean 'deduplicate'?", "got 'smot', expected one of over, under, smote", "resample.ratio: got 3", "got '7'",
                 "Did you mean 'near'?"):  # fmt: skip
        assert said in text, (said, text)
    people().write_csv(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="no steps are named; write prepare=NAME, one of deduplicate, label-spreading"):
        prepare(config(path="t.csv"), None, base=tmp_path)
    with pytest.raises(Unsupported, match=r"name them with data\.unlabelled"):
        prepare(config(path="t.csv"), "label-spreading", base=tmp_path)
    with pytest.raises(Unsupported, match=r"one target of labels; the targets are: a \(number\)"):
        prepare(config(path="t.csv", target="a", ignore=["y"]), "resample", base=tmp_path)
    shutil.rmtree(tmp_path / "prepared", ignore_errors=True)
    planned = modelyard.prepare(data=str(tmp_path / "t.csv"), target="y", steps="deduplicate", dry_run=True)
    assert "would do: deduplicate" in str(planned) and not (tmp_path / "prepared").exists()


def test_run_does_the_steps_of_its_section_and_trains_on_what_they_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once; again only what changed: the raw rows, a step, the model, or an artefact that is gone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    people(400).write_csv("shop/t.csv", separator=";")
    project = tmp_path / "shop" / "modelyard.yaml"

    def write(method: str = "over", model: str = "linear") -> None:
        text = f"version: 1\nname: p\ndata: {{path: t.csv, target: y, id: id, separator: ';', ignore: [b]}}\nmodel: {model}\n"
        project.write_text(f"{text}prepare:\n  - resample: {{method: {method}}}\n", encoding="utf-8")

    def ask() -> dict[str, Any]:
        code = cli.main(["run", "-f", "shop", "--json", "-q"])
        answer = json.loads(capfd.readouterr().out)
        assert code == 0, answer
        return answer

    write()
    first = ask()
    assert first["stages"] == {"prepare": "done", "train": "done", "evaluate": "done"}
    run = Path(first["run"])
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    folder = tmp_path / "shop" / facts["prepared"]["data"]
    rows = {n: f.height for n, f in tables(folder).items()}
    assert facts["data"]["rows"] == rows and tables(folder)["train"]["y"].value_counts()["count"].n_unique() == 1
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]["data"]["path"] == facts["prepared"]["data"]
    assert {f.name for f in Model.load(run / "model").signature.inputs} == {"a", "city"}
    alone = modelyard.train(data=str(folder), model="linear", train={"seed": 0})
    same = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["log_loss"]["value"]
    assert alone.metrics["test"]["log_loss"]["value"] == same

    reads: list[Any] = []
    real = prepare_verb.prepare
    monkeypatch.setattr(prepare_verb, "prepare", lambda *a, **k: (reads.append(1), real(*a, **k))[1])
    assert set(ask()["stages"].values()) == {"unchanged"} and not reads  # the raw rows are not even read
    write(model="trees")
    assert ask()["stages"] == {"prepare": "unchanged", "train": "done", "evaluate": "done"}
    write("under", "trees")
    assert ask()["stages"] == {"prepare": "done", "train": "done", "evaluate": "done"}
    write()
    assert set(ask()["stages"].values()) == {"unchanged"}
    shutil.rmtree(folder)
    assert ask()["stages"] == {"prepare": "done", "train": "unchanged", "evaluate": "unchanged"} and folder.is_dir()
    people(401).write_csv("shop/t.csv", separator=";")
    assert ask()["stages"]["prepare"] == "done"
