"""Versions of models: numbers, aliases, promotion and rollback, kills, signatures, garbage, backup and restore.

Most of it twice: in a folder (SQLite), and by URL (a real PostgreSQL server, moto's S3 server).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

import modelyard
import servers
from modelyard import cli
from modelyard.errors import ArtefactError, GateFailed, MachineError, UsageError
from modelyard.runtime.model import Model
from modelyard.store import atomic, backup, sealed, shelf, signature
from modelyard.store import folder as folders_
from modelyard.store.place import Bucket, place_of
from modelyard.store.registry import Registry, resolve
from modelyard.store.run import Run
from modelyard.store.shelf import Stored
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


@pytest.fixture(scope="module")
def remote(postgres: str) -> Iterator[tuple[str, str]]:
    """URLs of a database server and of a bucket."""
    with servers.s3("models"):
        yield postgres, "s3://models"


EMBEDDED = pytest.param("embedded", id="folder")
BOTH = [EMBEDDED, pytest.param("remote", id="url")]


@pytest.fixture(params=BOTH)
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str | None]:
    """(place, store) of an empty registry, which MODELYARD_REGISTRY and MODELYARD_STORE name too."""
    if request.param == "embedded":
        place, store = str(tmp_path / "registry"), None
    else:
        server, bucket = request.getfixturevalue("remote")
        name = f"r{secrets.token_hex(6)}"
        import psycopg

        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        place, store = server.replace("/postgres?", f"/{name}?"), f"{bucket}/{name}"
        monkeypatch.setenv("MODELYARD_STORE", store)
        monkeypatch.setenv("MODELYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELYARD_REGISTRY", place)
    return place, store


@pytest.fixture
def registry(trained: list[Path], where: tuple[str, str | None]) -> Registry:
    made = Registry(*where)
    for run in trained:
        made.register(run / "model")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


embedded = pytest.mark.parametrize("where", [EMBEDDED], indirect=True)
by_url = pytest.mark.parametrize("where", [BOTH[1]], indirect=True)


@embedded
def test_a_folder_that_was_exchanged_is_not_loaded(registry: Registry) -> None:
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


def test_references_stand_for_folders_everywhere(registry: Registry, trained: list[Path], tmp_path: Path) -> None:
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


def test_a_worse_one_is_not_promoted_and_rollback_walks_back(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
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


def _register(where: tuple[str, str | None], folder: str, barrier: Any) -> None:
    barrier.wait()
    Registry(*where).register(Path(folder))


def test_processes_register_side_by_side(trained: list[Path], where: tuple[str, str | None]) -> None:
    """Six processes, two for each model: three versions, numbered without a hole."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    jobs = [context.Process(target=_register, args=(where, str(trained[i % 3] / "model"), barrier)) for i in range(6)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    found = Registry(*where)
    assert [j.exitcode for j in jobs] == [0] * 6
    assert [v.number for v in found.versions()] == [1, 2, 3] and not found.verify()


def _promote(where: tuple[str, str | None], number: int, barrier: Any, told: Any) -> None:
    found = Registry(*where)
    version, champion = found.get("line", number), found.get("line", "champion").number
    barrier.wait()
    try:
        found.point(version, "champion", "promoted", champion)
        told.put((number, None))
    except GateFailed as error:
        told.put((number, error.message))


def test_of_promoters_that_race_one_wins(registry: Registry, where: tuple[str, str | None]) -> None:
    """Four processes have compared with the same champion; who comes later is refused, and the history has one move."""
    registry.point(registry.get("line", 1), "champion", "first")
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(4), context.Queue()
    jobs = [context.Process(target=_promote, args=(where, 2 + i % 2, barrier, told)) for i in range(4)]
    for job in jobs:
        job.start()
    answers = [told.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(60)
    won = [number for number, refused in answers if refused is None]
    assert len(won) == 1 and all("compare again" in refused for _, refused in answers if refused)
    assert registry.get("line", "champion").number == won[0]
    assert [(h["previous"], h["number"]) for h in registry.history("line")] == [(None, 1), (1, won[0])]


class Death:
    """Ends the process at a file-system call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, call: str, path: Path) -> None:
        if self.left == 0:
            os._exit(9)
        self.left -= 1


def die(left: list[int]) -> None:
    """Ends the process where nothing is left."""
    if left[0] == 0:
        os._exit(9)
    left[0] -= 1


@by_url
def test_a_kill_at_any_request_leaves_a_registry_by_url_that_goes_on(
    trained: list[Path], registry: Registry, where: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before and after each request to the storage and each statement of the database, from the first to the last."""
    registry.gc(keep=0, apply=True)
    registry.register(trained[1] / "model")
    at = 0
    while True:
        pid = os.fork()
        if pid == 0:
            left = [at]

            def counted(work: Any, left: list[int] = left) -> Any:
                def done(*given: Any, **named: Any) -> Any:
                    die(left)
                    answer = work(*given, **named)
                    die(left)
                    return answer

                return done

            import psycopg

            Bucket.put, Bucket.size = counted(Bucket.put), counted(Bucket.size)  # type: ignore[method-assign]
            psycopg.Connection.execute = counted(psycopg.Connection.execute)  # type: ignore[method-assign]
            Registry(*where).register(trained[0] / "model")
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        found = Registry(*where)
        assert not found.verify() and found.register(trained[1] / "model").number == 4
        if [v.number for v in found.versions()] != [4]:
            break
        assert code == 9
        at += 13
    assert at > 50 and [v.number for v in found.versions()] == [4, 5]
    assert found.register(trained[0] / "model").number == 5 and found.register(trained[2] / "model").number == 6 and not found.verify()


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


def test_garbage_goes_and_what_is_needed_stays(registry: Registry, trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.chdir(tmp_path):
        exported = Path(modelyard.export(str(trained[0])).folder)
    child = registry.register(exported, "line")  # its parent is version 1
    registry.point(child, "champion", "test")
    orphan = registry.place / "models" / "line" / ".abc.partial"
    if registry.embedded:
        orphan.mkdir()
        os.utime(orphan, (time.time() - 7200,) * 2)
        there = orphan.exists
    else:
        (tmp_path / "orphan").write_bytes(b"left")
        stored = cast(Stored, registry.shelf)
        stored.place.put("objects/orphan", tmp_path / "orphan")
        there = lambda: stored.place.size("objects/orphan") is not None  # noqa: E731
        assert not any("left over" in g for g in registry.gc(keep=5)[0])  # it may be of one who registers just now
        monkeypatch.setattr(shelf, "ORPHAN", 0.0)
    gone, size = registry.gc(keep=0)
    assert [g.split(" (")[0] for g in gone if "left over" not in g] == ["line 2", "line 3"] and any("left over" in g for g in gone) and size > 0
    assert len(registry.versions()) == 4 and there()  # told, not done
    registry.gc(keep=0, apply=True)
    assert [v.number for v in registry.versions()] == [1, 4] and not there() and not registry.verify()
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
    folders = [registry.folder(v) for v in registry.versions()]
    assert count == len({atomic.sha256(p) for folder in folders for p in folder.rglob("*") if p.is_file()})
    assert backup.backup(registry, str(tmp_path / "b")) == (0, 0)  # nothing is copied twice
    registry.point(registry.get("line", 3), "champion", "later")
    backup.backup(registry, str(tmp_path / "b"))
    restored = Registry(tmp_path / "empty")
    assert backup.restore(str(tmp_path / "b"), restored) == 3
    assert [files(restored.folder(v)) for v in restored.versions()] == [files(folder) for folder in folders]
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


@embedded
def test_a_damaged_version_is_not_backed_up(registry: Registry, tmp_path: Path) -> None:
    victim = next(registry.folder(registry.get("line", 1)).glob("examples.json"))
    victim.write_bytes(victim.read_bytes() + b" ")
    assert registry.verify()
    with pytest.raises(ArtefactError, match="damaged"):
        backup.backup(registry, str(tmp_path / "b"))
    for wrong in ("s3://", "ftp://x/y"):
        with pytest.raises(UsageError):
            place_of(wrong)


# --- by URL ----------------------------------------------------------------------------------------------------------------


@by_url
def test_what_is_fetched_is_checked_and_kept(registry: Registry, trained: list[Path], tmp_path: Path) -> None:
    stored, one = cast(Stored, registry.shelf), registry.get("line", 1)
    folder = registry.folder(one)
    before = folder.stat().st_ino
    assert files(folder) == files(trained[0] / "model") and registry.folder(one).stat().st_ino == before  # not fetched again
    victim = folder / "examples.json"
    victim.write_bytes(victim.read_bytes()[:-1] + b" ")
    assert files(registry.folder(one)) == files(trained[0] / "model") and registry.folder(one).stat().st_ino != before  # it heals
    (folder / "examples.json").unlink()
    assert files(registry.folder(one)) == files(trained[0] / "model") and not registry.verify()
    (tmp_path / "other").write_bytes(b"x" * (trained[0] / "model" / "examples.json").stat().st_size)
    stored.place.put(f"objects/{atomic.sha256(trained[0] / 'model' / 'examples.json')}", tmp_path / "other")
    assert registry.folder(one) == folder  # the cache is whole
    assert "damaged" in registry.verify()[0]  # and the storage is not
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ArtefactError, match="damaged"):
        registry.folder(one)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@by_url
def test_versions_in_storage_are_signed_sealed_and_rewrapped(
    registry: Registry, trained: list[Path], keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, trusted = keys
    assert len(registry.verify(trusted=trusted)) == 3
    assert registry.register(trained[0] / "model", key=private).number == 1  # signed afterwards, by registering again
    assert cli.main(["models", "sign", "models:/line/2", f"key={private}"]) == 0
    assert [p.split(":")[0] for p in registry.verify(trusted=trusted)] == ["line 3"] and not registry.verify()
    monkeypatch.setenv("MODELYARD_TRUST", str(trusted))
    assert Model.load(registry.folder(registry.get("line", 2))).version == registry.get("line", 2).version
    monkeypatch.delenv("MODELYARD_TRUST")
    with pytest.raises(ArtefactError, match="not encrypted"):
        registry.register(trained[0] / "model", encrypt=True)
    sealed.keygen(tmp_path / "one.key")
    monkeypatch.setenv(sealed.KEY, f"file:{tmp_path / 'one.key'}")
    found = registry.register(trained[0] / "model", "secret", encrypt=True)
    assert sealed.is_sealed(folders_.read_manifest(registry.folder(found))) and found.version == registry.get("line", 1).version
    sealed.keygen(tmp_path / "two.key")
    (tmp_path / "both.key").write_text((tmp_path / "two.key").read_text() + (tmp_path / "one.key").read_text(), encoding="utf-8")
    monkeypatch.setenv(sealed.KEY, f"file:{tmp_path / 'both.key'}")
    assert cli.main(["models", "rewrap", "models:/secret/1"]) == 0
    monkeypatch.setenv(sealed.KEY, f"file:{tmp_path / 'two.key'}")  # the old key is gone
    rows = [{"a": 1.0}, {"a": -2.0}]
    assert Model.load(registry.folder(registry.get("secret"))).predict(rows).to_json() == Model.load(trained[0] / "model").predict(rows).to_json()
    assert not registry.verify()


@by_url
def test_a_folder_becomes_a_registry_by_url_and_back(registry: Registry, where: tuple[str, str | None], trained: list[Path], tmp_path: Path) -> None:
    registry.point(registry.get("line", 2), "champion", "test")
    registry.gc(keep=1, apply=True)  # 2 and 3 stay
    backup.backup(registry, str(tmp_path / "b"))
    with pytest.raises(UsageError, match="not empty"):
        backup.restore(str(tmp_path / "b"), registry)
    local = Registry(tmp_path / "local")
    assert backup.restore(str(tmp_path / "b"), local) == 2 and local.versions() == registry.versions()
    assert local.register(trained[0] / "model").number == 4
    backup.backup(local, str(tmp_path / "b"))
    import psycopg

    with psycopg.connect(where[0]) as connection:
        connection.execute("drop schema modelyard cascade")
    assert not registry.records.there()
    assert cli.main(["models", "restore", str(tmp_path / "b")]) == 0
    assert registry.tables() == local.tables() and [v.number for v in registry.versions()] == [2, 3, 4] and not registry.verify()
    assert registry.register(trained[0] / "model", "new").number == 1


@by_url
def test_passwords_are_nowhere(registry: Registry, where: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What is printed when it works, and by every way in which it does not."""
    place, bucket = where
    assert servers.PASSWORD in place
    wrong = [
        place.replace(servers.PASSWORD, "Hunter2secret"), f"postgresql://me:{servers.PASSWORD}@127.0.0.1:1/x", f"postgresql://me:{servers.PASSWORD}/x@host/x",
        f"postgresql://me:{servers.PASSWORD}%zz@host/x", place + "&nonsense=1", f"postgresql://127.0.0.1:1/x?user=me&password={servers.PASSWORD}",
        place.replace("/r", "/nowhere", 1), f"mysql://me:{servers.PASSWORD}@host/x",
    ]  # fmt: skip
    for url in (place, *wrong):
        code = cli.main(["models", "list", f"path={url}", f"store={bucket}"])
        printed = "".join(capfd.readouterr())
        assert (code == 0) == (url == place) and code != 101, printed
        assert servers.PASSWORD not in printed and "Hunter2secret" not in printed, url
        assert cli.main(["models", "show", "line", f"path={url}", f"store={bucket}", "--json"]) == code
        printed = "".join(capfd.readouterr())
        assert servers.PASSWORD not in printed and "Hunter2secret" not in printed, url
    assert servers.PASSWORD not in registry.told
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert cli.main(["models", "list", f"path={place}", f"store=s3://me:{servers.PASSWORD}@bucket/x"]) == 2
    monkeypatch.delenv("MODELYARD_STORE")
    assert cli.main(["models", "list", f"path={place}"]) == 2  # no storage
    printed = "".join(capfd.readouterr())
    assert servers.PASSWORD not in printed and "MODELYARD_STORE" in printed


@by_url
def test_no_row_without_its_files(registry: Registry, where: tuple[str, str | None], trained: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the storage refuses, nor where garbage collection takes files just before the row is written."""
    elsewhere = Registry(where[0], f"{where[1]}/elsewhere")

    def full(self: Bucket, name: str, path: Path) -> None:
        raise MachineError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", full)
        with pytest.raises(MachineError, match="full"):
            elsewhere.register(trained[0] / "model", "other")
    assert {v.name for v in registry.versions()} == {"line"}
    whole, times = Stored.take, 0

    def take(self: Stored, *given: Any) -> shelf.Taken:
        nonlocal times
        taken, times = whole(self, *given), times + 1
        if times < 3:
            self.place.remove([f"objects/{taken.files['manifest.json'][0]}"])
        return taken

    monkeypatch.setattr(Stored, "take", take)
    assert elsewhere.register(trained[0] / "model", "other").number == 1 and times == 3 and not elsewhere.verify("other")


def test_only_old_uploads_are_ended() -> None:
    """moto dates every upload 2010, so the ages are told by a stand-in."""
    ages = {"young": 3600.0, "old": 3 * 24 * 3600.0}
    ended: list[str] = []
    uploads = [{"Key": f"r/{n}", "UploadId": n, "Initiated": datetime.now(UTC) - timedelta(seconds=age)} for n, age in ages.items()]
    bucket = object.__new__(Bucket)
    bucket.bucket, bucket.prefix, bucket.errors = "b", "r/", (OSError,)
    bucket.client = SimpleNamespace(
        get_paginator=lambda name: SimpleNamespace(paginate=lambda **asked: [{"Uploads": uploads[:1]}, {}, {"Uploads": uploads[1:]}]),
        abort_multipart_upload=lambda Bucket, Key, UploadId: ended.append(Key),
    )
    assert bucket.tidy() == 1 and ended == ["r/old"]
    assert bucket.tidy(0.0) == 2


def test_a_folder_is_a_place(tmp_path: Path) -> None:
    place = place_of(str(tmp_path / "p"))
    (tmp_path / "file").write_bytes(b"abc")
    place.put("objects/a", tmp_path / "file")
    (tmp_path / "p" / "objects" / ".b.123").write_bytes(b"half")  # of a process that was killed
    assert place.have("objects/") == {"objects/a": 3} and place.have("objects/", 3600) == {} and place.size("objects/b") is None
    assert place.tidy() == 0 and place.tidy(0.0) == 1
    place.remove(["objects/a", "objects/a"])
    assert place.size("objects/a") is None
    with pytest.raises(MachineError, match="not there"):
        place.get("objects/a", tmp_path / "got")


def test_a_run_keeps_no_password_of_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "data.path=postgresql://me:s3cret@host/db", "data.valid=postgresql://host/db?user=me&password=s3cret&sslmode=require"]
    monkeypatch.setattr(sys, "argv", ["modelyard", *words])
    told = Run.create(tmp_path, "x").read("run.json")["argv"]
    assert told == [
        "train", "data.path=postgresql://me:***@host/db", "data.valid=postgresql://host/db?user=me&password=***&sslmode=require",
    ]  # fmt: skip
