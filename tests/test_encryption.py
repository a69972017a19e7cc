"""Models encrypted at rest: the same answers, nothing in the clear, nothing that can be altered, keys from anywhere."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard import cli
from modelyard.errors import ArtefactError, ModelyardError, Unsupported, UsageError
from modelyard.runtime.model import Model
from modelyard.store import backup, sealed, signature
from modelyard.store import folder as store
from modelyard.store.registry import Registry

pytest.importorskip("cryptography", reason="the extra access")
linux = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="plain files lie in /dev/shm")
pytestmark = linux


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A net of a table, another one, and a composite of both."""
    folder = tmp_path_factory.mktemp("runs")
    draw = np.random.default_rng(0)
    x = draw.uniform(-3, 3, (300, 2))
    rows = pl.DataFrame({"income": x[:, 0], "visits": x[:, 1], "kind": ["secretlabel" if v > 0 else "other" for v in x.sum(1)]})
    found = {}
    with contextlib.chdir(folder):
        rows.write_csv("rows.csv")
        data: dict[str, Any] = {"data.path": "rows.csv", "data.outputs": {"kind": "category"}, "quiet": True}
        for name, model in (("first", {"name": "mlp", "hidden": [8]}), ("second", "linear"), ("mean", {"parts": ["linear", "linear"], "combine": "mean"})):
            found[name] = folder / modelyard.train(**data, model=model, name=name, **({"train.epochs": 2} if name == "first" else {})).run / "model"
    return found


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own.key"
    sealed.keygen(path)
    monkeypatch.setenv(sealed.KEY, f"file:{path}")
    return path


ROWS = [{"income": i / 3, "visits": 1.5 - i / 2} for i in range(-9, 9)]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rehashed(folder: Path, change: Any = None) -> None:
    """A manifest that fits the files again, as an attacker would write it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    data = (folder / sealed.FILE).read_bytes()
    manifest["files"] = {sealed.FILE: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    if change is not None:
        change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", ["first", "second", "mean"])
def test_a_sealed_model_answers_the_same_under_the_same_version_and_shows_nothing(name: str, runs: dict[str, Path], key: Path, tmp_path: Path) -> None:
    plain = Model.load(runs[name])
    sealed.seal(runs[name], tmp_path / "sealed")
    assert set(files(tmp_path / "sealed")) == {"manifest.json", sealed.FILE}
    inside = b"".join(files(tmp_path / "sealed").values())
    assert b"secretlabel" not in inside and b"income" not in inside
    opened = Model.load(tmp_path / "sealed")
    assert opened.predict(ROWS).to_json() == plain.predict(ROWS).to_json()
    assert opened.version == plain.version == store.version(tmp_path / "sealed")
    sealed.unseal(tmp_path / "sealed", tmp_path / "again")
    assert files(tmp_path / "again") == files(runs[name])
    sealed.seal(runs[name], tmp_path / "twice")
    assert files(tmp_path / "twice")[sealed.FILE] != files(tmp_path / "sealed")[sealed.FILE]  # another data key


def test_plain_files_live_in_memory_as_long_as_the_model_and_only_for_its_owner(runs: dict[str, Path], key: Path, tmp_path: Path) -> None:
    sealed.seal(runs["second"], tmp_path / "sealed")
    model = Model.load(tmp_path / "sealed")
    place = model.folder
    assert place.is_relative_to("/dev/shm") and place.parent.stat().st_mode & 0o777 == 0o700
    assert model.examples  # read from there
    del model
    assert not place.parent.exists()


def test_what_a_killed_process_left_is_taken_away_and_what_another_uses_is_not(
    runs: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setenv(sealed.UNSEALED, str(memory))
    sealed.seal(runs["second"], tmp_path / "sealed")
    program = f"from modelyard.runtime.model import Model\nm = Model.load({str(tmp_path / 'sealed')!r})\nprint('open', flush=True)\nimport time\ntime.sleep(60)"
    others = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    for other in others:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
    assert len(list(memory.iterdir())) == 2
    others[0].send_signal(signal.SIGKILL)
    others[0].communicate()
    for left in memory.iterdir():
        os.utime(left, (time.time() - 100,) * 2)
    model = Model.load(tmp_path / "sealed")
    assert len(list(memory.iterdir())) == 2 and model.folder.is_dir()  # its own, and that of the process that lives
    others[1].terminate()
    others[1].communicate()


def test_nothing_of_it_can_be_altered_moved_dropped_or_exchanged(
    runs: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "CHUNK", 1000)
    for name in ("first", "second"):
        sealed.seal(runs[name], tmp_path / name)
    whole, piece = (tmp_path / "first" / sealed.FILE).read_bytes(), 1000 + sealed.TAG
    assert len(whole) > 5 * piece
    chunks = [whole[i : i + piece] for i in range(0, len(whole), piece)]
    draw = random.Random(0)
    flipped = []
    for _ in range(60):
        at = draw.randrange(len(whole))
        flipped.append(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
    altered = [
        *flipped, whole[:-1], b"", whole + b"\0", b"".join(chunks[:-1]), b"".join(chunks[1:]), b"".join([chunks[1], chunks[0], *chunks[2:]]),
        b"".join([*chunks, chunks[-1]]), b"".join([*chunks[:2], *chunks[1:]]), whole[:7], (tmp_path / "second" / sealed.FILE).read_bytes(),
    ]  # fmt: skip
    for i, content in enumerate(altered):
        (tmp_path / "first" / sealed.FILE).write_bytes(content)
        rehashed(tmp_path / "first")
        with pytest.raises(ArtefactError, match=r"altered|too early"):
            Model.load(tmp_path / "first")
        assert not list(Path("/dev/shm").glob("modelyard-*/model/manifest.json")), i
    (tmp_path / "first" / sealed.FILE).write_bytes(whole)
    other = json.loads((tmp_path / "second" / "manifest.json").read_text(encoding="utf-8"))["sealed"]
    right = json.loads((tmp_path / "first" / "manifest.json").read_text(encoding="utf-8"))
    for change in (
        {"name": "second"}, {"sealed": other}, {"sealed": {**right["sealed"], "version": other["version"]}},
        {"sealed": {**right["sealed"], "wrapped": other["wrapped"]}}, {"sealed": {**right["sealed"], "wrapped": "!"}},
        {"sealed": {**right["sealed"], "version": "../../../up"}}, {"sealed": {}}, {"sealed": None}, {"sealed": []},
    ):  # fmt: skip
        (tmp_path / "first" / "manifest.json").write_text(json.dumps({**right, **change}), encoding="utf-8")
        rehashed(tmp_path / "first")
        with pytest.raises(ArtefactError, match=r"altered|damaged"):
            Model.load(tmp_path / "first")
    (tmp_path / "first" / "manifest.json").write_text(json.dumps(right), encoding="utf-8")
    rehashed(tmp_path / "first")
    assert Model.load(tmp_path / "first").predict(ROWS)


def test_keys_come_from_files_variables_and_commands_and_are_changed_by_a_line(
    runs: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = sealed.seal(runs["second"], tmp_path / "sealed")
    text = key.read_text(encoding="ascii")
    assert key.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("OWN", text)
    for source in ("env:OWN", f"command:cat {key}", f'command:{sys.executable} -c "print(open({str(key)!r}).read())"'):
        monkeypatch.setenv(sealed.KEY, source)
        assert Model.load(tmp_path / "sealed")
    new = base64.b64encode(bytes(range(32))).decode("ascii")
    monkeypatch.setenv("OWN", f"{new}\n{text}")
    monkeypatch.setenv(sealed.KEY, "env:OWN")
    assert Model.load(tmp_path / "sealed")
    assert sealed.seal(runs["second"], tmp_path / "newer") != number
    before, after = sealed.rewrap(tmp_path / "sealed")
    assert before == number != after
    monkeypatch.setenv("OWN", text)
    with pytest.raises(ArtefactError, match=f"with the key {after}.*supplies {number}"):
        Model.load(tmp_path / "sealed")
    monkeypatch.setenv("OWN", new)
    assert Model.load(tmp_path / "sealed")


@pytest.mark.parametrize(
    "source",
    ["", "word", "kms:x", "file:", "file:/no/such", "env:ABSENT", "command:false", "command:/no/such", "command:echo c2hvcnQ=", "command:echo hiddenhidden"],
)
def test_a_source_without_a_key_says_what_is_wrong_and_gives_nothing_away(
    source: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sealed.KEY, source)
    with pytest.raises(UsageError, match=sealed.KEY) as caught:
        sealed.seal(runs["second"], tmp_path / "sealed")
    assert "c2hvcnQ" not in caught.value.message and "hiddenhidden" not in caught.value.message
    assert not (tmp_path / "sealed").exists()


def test_the_registry_holds_signs_promotes_and_restores_sealed_versions(
    runs: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, public = signature.keygen(tmp_path / "signing.pem")
    registry = Registry(tmp_path / "registry")
    found = registry.register(runs["second"], "line", tmp_path / "signing.pem", encrypt=True)
    assert found.version == store.version(runs["second"]) and found.facts["metrics"]["accuracy"]["value"] > 0.5
    assert registry.register(registry.folder(found), "line").number == 1  # the same model
    assert b"secretlabel" not in b"".join(files(registry.folder(found)).values())
    registry.point(found, "champion", "test")
    monkeypatch.setenv(signature.TRUST, str(public))
    assert registry.verify(trusted=public) == []
    backup.backup(registry, str(tmp_path / "backup"))
    restored = Registry(tmp_path / "restored")
    backup.restore(str(tmp_path / "backup"), restored)
    assert files(restored.folder(found)) == files(registry.folder(found))
    answers = Model.load(restored.folder(restored.get("line"))).predict(ROWS).to_json()
    monkeypatch.delenv(signature.TRUST)
    assert answers == Model.load(runs["second"]).predict(ROWS).to_json()
    registry.register(runs["first"], "net")
    with pytest.raises(ArtefactError, match="not encrypted"):
        registry.register(runs["first"], "net", encrypt=True)


def test_a_signature_from_before_the_encryption_counts(runs: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, public = signature.keygen(tmp_path / "signing.pem")
    shutil.copytree(runs["second"], tmp_path / "plain")
    sealed.seal(tmp_path / "plain", tmp_path / "unsigned")
    signature.sign(tmp_path / "plain", tmp_path / "signing.pem")
    sealed.seal(tmp_path / "plain", tmp_path / "sealed")
    monkeypatch.setenv(signature.TRUST, str(public))
    assert Model.load(tmp_path / "sealed")
    with pytest.raises(ArtefactError, match="not signed"):
        Model.load(tmp_path / "unsigned")


def test_the_commands(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = str(runs["second"])
    assert cli.main(["models", "keygen", "for=encryption", "out=own.key"]) == 0
    monkeypatch.setenv(sealed.KEY, "file:own.key")
    assert cli.main(["models", "encrypt", plain, "out=kept"]) == 0
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in ROWS), encoding="utf-8")
    for folder, out in ((plain, "a.jsonl"), ("kept", "b.jsonl")):
        assert cli.main(["predict", folder, "data=rows.jsonl", f"out={out}"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert cli.main(["models", "decrypt", "kept", "out=clear"]) == 0 and files(tmp_path / "clear") == files(runs["second"])
    assert cli.main(["models", "register", plain, "name=line", "encrypt=true"]) == 0
    assert cli.main(["predict", "models:/line", "data=rows.jsonl", "out=c.jsonl"]) == 0
    capsys.readouterr()
    for wrong in (["encrypt", plain], ["encrypt", "kept", "out=x"], ["encrypt", plain, "out=kept"], ["decrypt", plain, "out=x"], ["rewrap", plain],
                  ["keygen", "for=fun"], ["keygen", "for=encryption", "out=own.key"], ["register", plain, "encrypt=7"]):  # fmt: skip
        assert cli.main(["models", *wrong]) in (1, 2), wrong
        assert "Traceback" not in capsys.readouterr().err


def test_what_would_write_a_plain_copy_is_refused(runs: dict[str, Path], key: Path, tmp_path: Path) -> None:
    sealed.seal(runs["second"], tmp_path / "sealed")
    for verb in (modelyard.export, modelyard.compress):
        with pytest.raises(Unsupported, match="decrypt it"):
            verb(tmp_path / "sealed", **({"data.path": str(runs["second"].parents[2] / "rows.csv")} if verb is modelyard.compress else {}))


def test_too_little_memory_is_said(runs: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed.seal(runs["second"], tmp_path / "sealed")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(ModelyardError, match="no room"):
        Model.load(tmp_path / "sealed")
    monkeypatch.setenv(sealed.UNSEALED, str(tmp_path / "absent"))
    with pytest.raises(ModelyardError, match="folder in memory"):
        Model.load(tmp_path / "sealed")
