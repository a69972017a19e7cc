"""Project files: places, order of layers, safety of the reader, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import ConfigError, UsageError
from modelyard.project import Project, load_project


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def project(text: str, *overrides: str, **values: object) -> Project:
    Path("modelyard.yaml").write_text(text, encoding="utf-8")
    return load_project(overrides=overrides, values=values, verb="train")


def mistakes(text: str | bytes, *overrides: str) -> list[str]:
    raw = text if isinstance(text, bytes) else text.encode("utf-8")
    Path("modelyard.yaml").write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load_project(overrides=overrides)
    return [str(d) for d in caught.value.details] or [caught.value.message]


def test_all_mistakes_with_lines_and_nearest_keys() -> None:
    found = mistakes(
        "version: 2\ntask: tabular-clasification\ndata:\n  path: x.csv\n  targt: y\n  split: {test: 1.5}\nmodl: auto\n"
        "model: lightgmb\ntrain:\n  epochs: many\n  lr: 1e-4\n  optimizer: adam\n  epochs: 3\n",
        "train.batch=no",
        "epoch=3",
    )
    starts = {f.split(" ")[0]: f for f in found}
    expected = {
        "modelyard.yaml:1:", "modelyard.yaml:2:", "modelyard.yaml:5:", "modelyard.yaml:6:", "modelyard.yaml:7:",
        "modelyard.yaml:8:", "modelyard.yaml:10:", "modelyard.yaml:12:", "modelyard.yaml:13:", "command",
    }  # fmt: skip
    assert set(starts) == expected and len(found) == 11
    assert "Did you mean 'target'?" in starts["modelyard.yaml:5:"]
    assert "Did you mean 'optimiser'?" in starts["modelyard.yaml:12:"]
    assert "written twice (first at modelyard.yaml:10)" in starts["modelyard.yaml:13:"]
    assert any("command line: train.batch: got 'no'" in f for f in found)
    assert any("command line: epoch: unknown key" in f and "'epochs'" in f for f in found)


def test_yaml_is_1_2() -> None:
    found = project(
        "task: classification\ndata: {target: no, ignore: [yes, 'on', 2024-01-01]}\ntrain: {lr: 1e-4, epochs: 0x10}\n"
    )
    assert found.data.target == "no" and found.data.ignore == ["yes", "on", "2024-01-01"]
    assert found.train.lr == 1e-4 and found.train.epochs == 16


def test_order_of_layers_and_origins() -> None:
    Path("base.yaml").write_text("train:\n  epochs: 1\n  lr: 0.5\n  batch: 7\ndata: low.csv\n", encoding="utf-8")
    found = project("preset: base.yaml\ntrain: {epochs: 2, lr: 0.25}\n", "train.epochs=3", target="y")
    assert (found.train.epochs, found.train.lr, found.train.batch, found.data.path) == (3, 0.25, 7, "low.csv")
    origins = {
        k: found.origins[k]
        for k in ("train.epochs", "train.lr", "train.batch", "data.path", "data.target", "train.clip")
    }
    assert origins == {
        "train.epochs": "command line", "train.lr": "modelyard.yaml:2", "train.batch": "preset base.yaml:4",
        "data.path": "preset base.yaml:5", "data.target": "call", "train.clip": "default",
    }  # fmt: skip


def test_short_forms_meet_long_ones() -> None:
    found = project(
        "data: a.csv\ntrain: 2m\nmodel: mlp\n",
        "data.split=0.3",
        "split.valid=0.2",
        "target=y",
        "epochs=4",
        "data=b.csv",
    )
    assert (found.data.path, found.data.target, found.data.split.test, found.data.split.valid) == (
        "b.csv",
        "y",
        0.3,
        0.2,
    )
    assert (found.train.budget, found.train.epochs, found.model.value) == (120.0, 4, "mlp")


def test_values_that_yaml_would_twist() -> None:
    found = load_project(
        overrides=["data=*.csv", "data.missing=[n/a, '-']", "name=a: b", "data.separator=|", "target=[a, b]"]
    )
    assert (found.data.path, found.data.missing, found.name, found.data.separator) == (
        "*.csv",
        ["n/a", "-"],
        "a: b",
        "|",
    )
    assert found.data.target == ["a", "b"]


def test_one_seed_for_all_sections_that_have_none() -> None:
    assert project("seed: 7\n").train.seed == 7
    found = project("train: {seed: 5}\nseed: 7\n")
    assert found.train.seed == 5 and found.resolved()["seed"] == 7
    assert project("seed: 7\ntrain: 2m\n").train.budget == 120.0


def test_paths_of_the_command_line_are_relative_to_here(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "modelyard.yaml").write_text("data: {path: in.csv, valid: v.csv}\n", encoding="utf-8")
    found = load_project("sub/modelyard.yaml", ["data.test=t.csv"])
    assert (found.base / found.data.path, found.base / found.data.test) == (Path("sub/in.csv"), tmp_path / "t.csv")


def test_secrets_are_resolved_but_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_PLACE", "secret-place")
    found = project("data: {path: '${env:DATA_PLACE}/x.csv'}\n")
    assert found.data.path == "secret-place/x.csv"
    assert found.resolved()["data"]["path"] == "${env:DATA_PLACE}/x.csv"
    assert all("secret-place" not in m for m in mistakes("train: {lr: '${env:DATA_PLACE}'}\n"))
    monkeypatch.delenv("DATA_PLACE")
    assert "DATA_PLACE is not set" in mistakes("data: {path: '${env:DATA_PLACE}'}\n")[0]


def test_a_dump_reads_back_as_the_same_project(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    first = project(
        "name: n\nseed: 3\ndata: {path: x.csv, target: y, split: 0.1}\nmodel: {name: auto}\ntrain: {lr: 1e-3}\n"
    )
    with (tmp_path / "again.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(first.resolved(), file)
    assert load_project("again.yaml").resolved() == first.resolved()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system ['true']\n", ":1: the tag"),
        ("train:\n\tepochs: 3\n", ":2: is not YAML: a tab"),
        ("train:\n  epochs: 3\n lr: 1\n", ":3: is not YAML"),
        ("data: [a, b\n", "is not YAML"),
        ("- a\n- b\n", ":1: expected keys such as"),
        ("just text\n", ":1: expected keys such as"),
        ("name: a\n---\nname: b\n", "one document"),
        ("a: &a [1]\nb: &b [*a,*a]\nname: *c\n", "is not YAML"),
        ("x: &x {y: *x}\n", "itself"),
        ("base: &b {lr: 1}\ntrain: {<<: *b}\n", "merge keys"),
        (b"name: caf\xe9\n", ":1: is not UTF-8"),
        (b"name: a\n\nname\x00: b\n", "is not YAML"),
        ("name: " + "[" * 5000, "nested too deeply"),
        (b"#" * (2**20 + 1), "at most 1048576"),
        ("? [a, b]\n: c\n", "plain word"),
        ("version: true\n", "expected a whole number"),
        ("data: {path: x.csv}\nmodel: [a]\n", ":2: model: got"),
        ("model: {name: mlp, widht: 3}\n", "model.widht: unknown key"),
        ("doctor: {x: 1}\n", ":1: doctor: unknown section"),
        ("preset: no.yaml\n", "there is no file"),
    ],
)
def test_bad_files_are_one_sentence(text: str | bytes, said: str) -> None:
    found = " ".join(mistakes(text))
    assert said in found and "Traceback" not in found


def test_alias_bombs_are_bounded() -> None:
    lines = [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)),
    ]
    assert "aliases expand" in mistakes("\n".join(lines))[0]


def test_empty_and_bom_and_missing_files() -> None:
    assert project("").data.path is None
    Path("modelyard.yaml").write_bytes(b"\xef\xbb\xbfname: bom\n")
    assert load_project().name == "bom"
    with pytest.raises(ConfigError, match=r"there is no file other\.yaml"):
        load_project("other.yaml")
    with pytest.raises(UsageError, match="no key=value"):
        load_project(overrides=["epochs"])
