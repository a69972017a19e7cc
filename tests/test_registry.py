"""Versions of models: numbers, aliases, promotion and rollback, kills, signatures, garbage, backup and restore."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard import cli
from modelyard.errors import ArtefactError, UsageError
from modelyard.runtime.model import Model
from modelyard.store import atomic, backup, signature
from modelyard.store.place import place_of
from modelyard.store.registry import Registry, resolve
from modelyard.verbs.models import worse


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of the same rows, each with a little more noise in its columns."""
    folder = tmp_path_factory.mktemp("trained")
    random_ = np.random.default_rng(0)
    x = random_.uniform(-3, 3, (300, 3))
    rows = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": x.sum(1) + random_.normal(0, 0.2, 300)})
    found = []
    with contextlib.chdir(folder):
        rows.write_csv("rows.csv")
        for columns in (["a"], ["a", "b"], ["a", "b", "c"]):
            kinds = dict.fromkeys(columns, "number")
            data = {"data.path": "rows.csv", "data.inputs": kinds, "data.outputs": {"y": "number"}}
            result = modelyard.train(**data, model="linear", name="line", quiet=True)
            found.append(folder / result.run)
    return found


@pytest.fixture
def registry(trained: list[Path], tmp_path: Path) -> Registry:
    made = Registry(tmp_path / "registry")
    for run in trained:
        made.register(run / "model")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_was_exchanged_is_not_loaded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_REGISTRY", str(registry.place))
    one, two = (registry.folder(registry.get("line", n)) for n in (1, 2))
    shutil.rmtree(one)
    shutil.copytree(two, one)
    with pytest.raises(ArtefactError, match="exchanged"):
        resolve("models:/line/1")


def test_versions_are_copies_that_are_found_by_number_digits_and_alias(registry: Registry, trained: list[Path]) -> None:
    assert [(v.name, v.number) for v in registry.versions()] == [("line", 1), ("line", 2), ("line", 3)]
    again = registry.register(trained[0] / "model")
    assert again.number == 1 and len(registry.versions()) == 3
    for v, run in zip(registry.versions(), trained, strict=True):
        assert files(registry.folder(v)) == files(run / "model") and v.facts["run"] == run.name
        assert v.facts["metrics"]["rmse"]["value"] == json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["rmse"]["value"]
        assert registry.get("line", v.version) == registry.get("line", v.number) == v
    registry.point(registry.get("line", 2), "challenger", "test")
    assert registry.get("line", "challenger").number == 2 and registry.get("line").number == 3  # no champion: the newest
    for wrong in (("line", "9"), ("line", "champion"), ("other", None)):
        with pytest.raises(ArtefactError, match="there are"):
            registry.get(*wrong)
    for name in ("../up", "", "a/b", ".hidden"):
        with pytest.raises(UsageError):
            registry.register(trained[0] / "model", name)


def test_references_stand_for_folders_everywhere(registry: Registry, trained: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELYARD_REGISTRY", str(registry.place))
    registry.point(registry.get("line", 2), "champion", "test")
    assert resolve("models:/line@champion") == resolve("models:/line/2") == resolve("models:/line") == registry.folder(registry.get("line", 2))
    assert resolve("elsewhere/line") is None
    for wrong in ("models:/", "models:/line@", "models:/../x"):
        with pytest.raises((UsageError, ArtefactError)):
            resolve(wrong)
    with modelyard.serve("models:/line@champion") as server:
        assert server.model.version == registry.get("line", 2).version
        assert server.swap("models:/line/3") == registry.get("line", 3).version
    pl.read_csv(trained[0].parent.parent / "rows.csv").write_csv(tmp_path / "rows.csv")
    answered = modelyard.predict("models:/line@champion", data=str(tmp_path / "rows.csv"), out=str(tmp_path / "out.csv"))
    assert answered.version == registry.get("line", "champion").version


def test_a_worse_one_is_not_promoted_and_rollback_walks_back(registry: Registry, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MODELYARD_REGISTRY", str(registry.place))

    def models(*words: str) -> tuple[int, Any]:
        code = cli.main(["models", *words, "--json"])
        return code, json.loads(capfd.readouterr().out)

    assert models("promote", "line", "2")[0] == 0
    code, refused = models("promote", "line", "1")
    assert code == 1 and "rmse" in refused["error"]["message"] and registry.get("line", "champion").number == 2
    assert models("promote", "line", "3")[0] == 0 and models("promote", "line", "1", "force=true")[0] == 0
    assert [h["number"] for h in registry.history("line")] == [2, 3, 1] and "by force" in registry.history("line")[-1]["why"]
    assert [models("rollback", "line")[1]["versions"][0]["number"] for _ in range(2)] == [3, 2]
    assert models("rollback", "line")[0] == 2  # nothing before the first
    assert models("promote", "line", "3")[0] == 0 and models("rollback", "line")[1]["versions"][0]["number"] == 2
    assert models("alias", "line", "1", "shadow")[0] == 0 and registry.get("line", "shadow").number == 1
    assert models("list", "line")[1]["versions"][1]["aliases"] == ["champion"]
    for wrong in (["nonsense"], ["promote", "line"], ["gc", "keep=x"], ["show", "line@champion", "2"], ["register", "colour=red"]):
        assert models(*wrong)[0] == 2, wrong


def test_what_speaks_against_a_promotion() -> None:
    data = {"fingerprint": "f"}
    score = lambda value, better="higher": {"auc": {"value": value, "low": value - 0.02, "high": value + 0.02, "better": better}}  # noqa: E731
    present = {"data": data, "metrics": score(0.8)}
    assert not worse({"data": data, "metrics": score(0.79)}, present) and not worse({"data": data, "metrics": score(0.9)}, present)
    assert "auc" in worse({"data": data, "metrics": score(0.77)}, present)[0]
    loss = {"data": data, "metrics": score(0.8, "lower")}
    assert worse({"data": data, "metrics": score(0.83, "lower")}, loss) and not worse({"data": data, "metrics": score(0.5, "lower")}, loss)
    assert "data" in worse({"data": {"fingerprint": "g"}, "metrics": score(0.9)}, present)[0]
    assert "compare" in worse({"data": data, "metrics": {}}, present)[0] and not worse({"metrics": {}}, None)
    assert "gate" in worse({"gate": [{"metric": "auc", "limit": ">= 0.9", "value": 0.8, "passed": False}]}, None)[0]


def _register(place: str, folder: str, barrier: Any) -> None:
    barrier.wait()
    Registry(place).register(Path(folder))


def test_processes_register_side_by_side(trained: list[Path], tmp_path: Path) -> None:
    """Six processes, two for each model: three versions, numbered without a hole."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    jobs = [context.Process(target=_register, args=(str(tmp_path / "r"), str(trained[i % 3] / "model"), barrier)) for i in range(6)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    found = Registry(tmp_path / "r")
    assert [j.exitcode for j in jobs].count(0) >= 3
    assert [v.number for v in found.versions()] == [1, 2, 3] and not found.verify()


class Death:
    """Ends the process at a file-system call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, call: str, path: Path) -> None:
        if self.left == 0:
            os._exit(9)
        self.left -= 1


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_kill_at_any_call_leaves_a_registry_that_goes_on(trained: list[Path], tmp_path: Path) -> None:
    """The process dies at each file-system call of a registration in turn."""
    calls = 0

    def count(call: str, path: Path) -> None:
        nonlocal calls
        calls += 1

    Registry(tmp_path / "count").register(trained[1] / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "watch", count)
        Registry(tmp_path / "count").register(trained[0] / "model")
    assert calls > 5
    for at in range(calls):
        place = tmp_path / f"r{at}"
        Registry(place).register(trained[1] / "model")
        pid = os.fork()
        if pid == 0:
            atomic.watch = Death(at)
            Registry(place).register(trained[0] / "model")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        again = Registry(place)
        assert [v.number for v in again.versions()] == [1] and not again.verify()
        assert again.register(trained[0] / "model").number == 2 and not again.verify()


def test_garbage_goes_and_what_is_needed_stays(registry: Registry, trained: list[Path], tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        exported = Path(modelyard.export(str(trained[0])).folder)
    child = registry.register(exported, "line")  # its parent is version 1
    registry.point(child, "champion", "test")
    orphan = registry.place / "models" / "line" / ".abc.partial"
    orphan.mkdir()
    os.utime(orphan, (time.time() - 7200,) * 2)
    gone, size = registry.gc(keep=0)
    assert [g.split(" (")[0] for g in gone if "left over" not in g] == ["line 2", "line 3"] and any("left over" in g for g in gone) and size > 0
    assert len(registry.versions()) == 4 and orphan.exists()  # told, not done
    registry.gc(keep=0, apply=True)
    assert [v.number for v in registry.versions()] == [1, 4] and not orphan.exists() and not registry.verify()
    assert registry.register(trained[2] / "model").number == 5  # numbers are not given twice
    assert registry.gc(keep=5) == ([], 0)
    registry.gc(keep=0, apply=True)  # the newest goes too
    assert [v.number for v in registry.versions()] == [1, 4] and registry.register(trained[1] / "model").number == 6


# --- signatures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and the folder of trusted public ones."""
    pytest.importorskip("cryptography", reason="signatures need the extra 'access'")
    _, public = signature.keygen(tmp_path / "keys" / "signing.pem")
    assert (tmp_path / "keys" / "signing.pem").stat().st_mode & 0o077 == 0
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(public, trusted)
    return tmp_path / "keys" / "signing.pem", trusted


def test_unsigned_models_do_not_load_where_keys_are_trusted(
    trained: list[Path], keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, trusted = keys
    folder = tmp_path / "model"
    shutil.copytree(trained[0] / "model", folder)
    version = Model.load(folder).version
    monkeypatch.setenv("MODELYARD_TRUST", str(trusted))
    with pytest.raises(ArtefactError, match="not signed"):
        Model.load(folder)
    signature.sign(folder, private)
    assert Model.load(folder).version == version  # a signature makes no other model
    _, stranger = signature.keygen(tmp_path / "other.pem")
    monkeypatch.setenv("MODELYARD_TRUST", str(stranger))
    with pytest.raises(ArtefactError, match="not signed"):
        Model.load(folder)
    signature.sign(folder, tmp_path / "other.pem")
    assert Model.load(folder) and len(json.loads((folder / "signature.json").read_text(encoding="utf-8"))["signatures"]) == 2
    monkeypatch.setenv("MODELYARD_TRUST", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="public key"):
        Model.load(folder)
    with pytest.raises(UsageError, match="never overwritten"):
        signature.keygen(private)


def test_tampered_signed_models_are_refused_at_load_and_swap(
    trained: list[Path], keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random changes of random files, with the manifest mended by one who has no key; `make prove` makes 5,000."""
    sys.path.insert(0, str(Path(__file__).parent / "crash"))
    from prove_security import tamper

    private, trusted = keys
    folder = tmp_path / "signed"
    shutil.copytree(trained[0] / "model", folder)
    signature.sign(folder, private)
    monkeypatch.setenv("MODELYARD_TRUST", str(trusted))
    draw = random.Random(0)
    with modelyard.serve(str(folder)) as server:
        for i in range(60):
            copy = tmp_path / f"t{i}"
            shutil.copytree(folder, copy)
            what = tamper(copy, draw)
            with pytest.raises((ArtefactError, UsageError)):
                Model.load(copy)
                pytest.fail(f"loaded after: {what}")
            if i % 10 == 0:
                with pytest.raises((ArtefactError, UsageError)):
                    server.swap(copy)
            shutil.rmtree(copy)
        assert server.swap(folder)


# --- backup and restore ----------------------------------------------------------------------------------------------------


def test_a_restored_registry_is_bit_identical(registry: Registry, tmp_path: Path) -> None:
    registry.point(registry.get("line", 2), "champion", "test")
    count, _ = backup.backup(registry, str(tmp_path / "b"))
    assert count == len({atomic.sha256(p) for p in (registry.place / "models").rglob("*") if p.is_file()})
    assert backup.backup(registry, str(tmp_path / "b")) == (0, 0)  # nothing is copied twice
    registry.point(registry.get("line", 3), "champion", "later")
    backup.backup(registry, str(tmp_path / "b"))
    restored = Registry(tmp_path / "empty")
    assert backup.restore(str(tmp_path / "b"), restored) == 3
    assert files(restored.place / "models") == files(registry.place / "models")
    assert restored.versions() == registry.versions() and restored.history("line") == registry.history("line")
    assert restored.get("line").number == 3 and not restored.verify()
    assert restored.rollback("line").number == 2  # its history goes on
    with pytest.raises(UsageError, match="not empty"):
        backup.restore(str(tmp_path / "b"), restored)
    some = next((tmp_path / "b" / "objects").iterdir())
    some.write_bytes(b"x" + some.read_bytes()[1:])
    with pytest.raises(ArtefactError, match="damaged"):
        backup.restore(str(tmp_path / "b"), Registry(tmp_path / "third"))
    assert not (tmp_path / "third").exists()


def test_a_damaged_version_is_not_backed_up(registry: Registry, tmp_path: Path) -> None:
    victim = next(registry.folder(registry.get("line", 1)).glob("examples.json"))
    victim.write_bytes(victim.read_bytes() + b" ")
    assert registry.verify()
    with pytest.raises(ArtefactError, match="damaged"):
        backup.backup(registry, str(tmp_path / "b"))
    for wrong in ("s3://", "ftp://x/y"):
        with pytest.raises(UsageError):
            place_of(wrong)
