"""A registry for many machines: rows in a real PostgreSQL, folders in a place that all see; what the embedded one promises holds."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard import cli
from modelyard.errors import ArtefactError, MachineError, UsageError
from modelyard.runtime.model import Model
from modelyard.store import backup, shelf, signature
from modelyard.store.place import Folder, Place, place_of
from modelyard.store.registry import Registry, resolve

psycopg = pytest.importorskip("psycopg", reason="needs the extra 'postgres'")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Model folders of three runs."""
    folder = tmp_path_factory.mktemp("trained")
    x = np.random.default_rng(0).uniform(-3, 3, (200, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": x.sum(1)}).write_csv("rows.csv")
        settings: dict[str, Any] = {"data": "rows.csv", "target": "y", "model": "linear", "name": "line", "quiet": True}
        return [folder / modelyard.train(**settings, **{"train.seed": seed}).run / "model" for seed in range(3)]


@pytest.fixture
def shared(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty registry; this machine's copies and the common folder lie beside each other."""
    monkeypatch.setenv("MODELYARD_REGISTRY", postgres)
    monkeypatch.setenv("MODELYARD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MODELYARD_CACHE", str(tmp_path / "here"))
    yield postgres
    with psycopg.connect(postgres) as connection:
        connection.execute("drop schema if exists modelyard cascade")


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From here on this is a machine that has seen nothing."""
    monkeypatch.setenv("MODELYARD_CACHE", str(tmp_path / f"elsewhere{time.monotonic_ns()}"))


def test_what_one_machine_registers_another_serves(shared: str, trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["models", "register", str(trained[0]), "--quiet"]) == 0
    first, second = (Registry().register(folder, "line") for folder in trained[:2])
    assert [first.number, second.number] == [1, 2] and Registry().register(trained[1], "line").number == 2
    Registry().point(first, "champion", "test")
    elsewhere(monkeypatch, tmp_path)
    folder = resolve("models:/line@champion")
    assert folder is not None and files(folder) == files(trained[0])
    rows = Model.load(trained[0]).examples
    assert Model.load(folder).predict(rows)["y"].to_list() == Model.load(trained[0]).predict(rows)["y"].to_list()
    monkeypatch.chdir(tmp_path)
    with modelyard.serve("models:/line@champion") as server:
        assert server.model.version == first.version
        assert server.swap("models:/line/2") == second.version
    Registry().point(second, "champion", "later")
    assert Registry().rollback("line").number == 1
    assert [h["why"] for h in Registry().history("line")] == ["test", "later", "rollback"] and Registry().verify() == []
    with pytest.raises(ArtefactError, match="no version or alias '9'"):
        Registry().get("line", 9)


def _race(kind: str, folder: str, cache: str, barrier: Any, out: Any) -> None:
    os.environ["MODELYARD_CACHE"] = cache
    barrier.wait()
    if kind == "register":
        out.put(Registry().register(Path(folder), "line").number)
    else:
        out.put(Registry().point(Registry().get("line", int(folder)), "champion", "race"))


def test_machines_race_and_every_number_is_given_once(shared: str, trained: list[Path], tmp_path: Path) -> None:
    """Six machines register three models at once, then six promote at once: each sees what the one before it had done."""
    context = multiprocessing.get_context("fork")
    for kind, given in (("register", [str(trained[i % 3]) for i in range(6)]), ("promote", [str(1 + i % 3) for i in range(6)])):
        barrier, out = context.Barrier(6), context.Queue()
        jobs = [context.Process(target=_race, args=(kind, g, str(tmp_path / f"m{i}"), barrier, out)) for i, g in enumerate(given)]
        for job in jobs:
            job.start()
        found = [out.get(timeout=60) for _ in jobs]
        for job in jobs:
            job.join(60)
        if kind == "register":
            assert sorted(found) == [1, 1, 2, 2, 3, 3]
    history = Registry().history("line")
    assert len(history) == 6 and [h["previous"] for h in history] == [None, *(h["number"] for h in history[:-1])]


class Death(Exception):
    """A machine that dies."""


def test_one_that_dies_while_it_stores_leaves_no_version(shared: str, trained: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At each object in turn; the next one goes on, and garbage is what nobody names."""
    Registry().register(trained[0], "line")
    before, count, real = len(place_of(str(tmp_path / "store")).have("objects/")), 0, Folder.put
    for at in range(40):
        left = at

        def put(self: Any, name: str, path: Path) -> None:
            nonlocal left
            if left == 0:
                raise Death
            left -= 1
            real(self, name, path)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "put", put)
            try:
                Registry().register(trained[1], "line")
            except Death:
                assert [v.number for v in Registry().versions()] == [1] and Registry().verify() == []
                count += 1
                continue
        break
    assert count >= 3 and [v.number for v in Registry().versions()] == [1, 2] and Registry().verify() == []
    place: Place = place_of(str(tmp_path / "store"))
    (tmp_path / "loose").write_bytes(b"left by one that died")
    place.put("objects/loose", tmp_path / "loose")
    monkeypatch.setattr(shelf, "ORPHAN", 0.0)
    gone, size = Registry().gc(keep=1)
    assert gone == [f"line 1 ({Registry().get('line', 1).version})", f"left over: 1 object(s) in {tmp_path / 'store'}"]
    assert size >= 21 and len(place.have("objects/")) > before
    Registry().gc(keep=1, apply=True)
    assert [v.number for v in Registry().versions()] == [2] and Registry().verify() == [] and "objects/loose" not in place.have("objects/")
    assert Registry().register(trained[0], "line").number == 3  # a number that garbage had is not given again


def test_damage_in_the_store_is_found_and_never_loaded(shared: str, trained: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Registry().register(trained[0], "line")
    victim = next((tmp_path / "store" / "objects").iterdir())
    whole = victim.read_bytes()
    victim.write_bytes(b"x" + whole[1:])
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ArtefactError, match="is damaged"):
        resolve("models:/line")
    assert len(Registry().verify()) == 1
    victim.unlink()
    with pytest.raises(MachineError, match="not there"):
        resolve("models:/line")
    assert len(Registry().verify()) == 1
    victim.write_bytes(whole)
    assert resolve("models:/line") is not None
    with psycopg.connect(shared) as connection:
        connection.execute("update modelyard.contents set files = replace(files, 'examples.json', '../../../outside')")
    with pytest.raises(ArtefactError, match="outside"):
        resolve("models:/line")


def test_a_signature_that_comes_later_reaches_every_copy(
    shared: str, trained: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra 'access'")
    Registry().register(trained[0], "line")
    monkeypatch.setenv("MODELYARD_CACHE", str(tmp_path / "old"))
    old = resolve("models:/line")
    assert old is not None
    _, public = signature.keygen(tmp_path / "key.pem")
    elsewhere(monkeypatch, tmp_path)
    assert cli.main(["models", "sign", "models:/line", f"key={tmp_path / 'key.pem'}", "--quiet"]) == 0
    monkeypatch.setenv("MODELYARD_CACHE", str(tmp_path / "old"))
    monkeypatch.setenv("MODELYARD_TRUST", str(public))
    with pytest.raises(ArtefactError):
        Model.load(old)
    new = resolve("models:/line")
    assert new is not None and new != old and Model.load(new).name == "line"  # who has the old copy open keeps it


def test_backup_and_restore_move_between_the_two_forms(shared: str, trained: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in trained:
        Registry().register(folder, "line")
    Registry().point(Registry().get("line", 2), "champion", "one")
    Registry().point(Registry().get("line", 3), "champion", "two")
    elsewhere(monkeypatch, tmp_path)
    count, _ = backup.backup(Registry(), str(tmp_path / "b"))
    assert count > 5 and backup.backup(Registry(), str(tmp_path / "b"))[0] == 0
    embedded = Registry(tmp_path / "embedded")
    assert backup.restore(str(tmp_path / "b"), embedded) == 3
    assert embedded.versions() == Registry().versions() and embedded.history("line") == Registry().history("line")
    assert {files(embedded.folder(v)).keys() == files(Registry().folder(v)).keys() for v in embedded.versions()} == {True}
    embedded.rollback("line")
    backup.backup(embedded, str(tmp_path / "c"))
    with pytest.raises(UsageError, match="not empty"):
        backup.restore(str(tmp_path / "c"), Registry())
    with psycopg.connect(shared) as connection:
        connection.execute("drop schema modelyard cascade")
    shutil.rmtree(tmp_path / "store")
    assert backup.restore(str(tmp_path / "c"), Registry()) == 3
    elsewhere(monkeypatch, tmp_path)
    assert Registry().get("line").number == 2 and Registry().verify() == [] and Registry().tables() == embedded.tables()
    Registry().point(Registry().get("line", 1), "champion", "its history goes on")
    assert [h["number"] for h in Registry().history("line")] == [2, 3, 2, 1]
