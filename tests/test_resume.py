# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""A killed and resumed run ends in the same bits as one that nobody touched (the full proof is tests/crash/prove_resume.py)."""

from __future__ import annotations

import errno
import os
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent / "crash"))
import course
import killing

from modelyard.errors import ArtefactError, MachineError
from modelyard.store import atomic, checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the kills are made in forked processes")

@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL loses nothing that was written; only a power cut would, and 200 fsyncs take a second on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(course, "make", one_thread(course.make))


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    killing.warm()


def one_thread(make: Any) -> Any:
    """Threads of a net this small only wait for each other."""

    def fit(*args: Any, **settings: Any) -> Any:
        torch.set_num_threads(1)
        return make(*args, **settings)

    return fit


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where the system has such a folder."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


LONG: dict[str, Any] = {"epochs": 8, "patience": 0}
SHORT: dict[str, Any] = {"epochs": 2, "patience": 0}


def test_kill_at_random_moments(tmp_path: Path) -> None:
    draw = random.Random(1)
    for i in range(5):
        settings = {**LONG, "seed": i} | ({"budget": 0.4, "epochs": 50} if i % 2 else {})
        folder = tmp_path / f"run{i}"
        killing.killed_after(folder, settings, draw.uniform(0.05, 0.35))
        found = killing.resumed(folder, settings)
        assert found["print"] == killing.straight(folder, settings, found["decisions"]), (i, found)


def test_kill_at_every_ninth_file_system_call(tmp_path: Path) -> None:
    calls = killing.calls_of_a_run(tmp_path / "whole", SHORT)
    assert {c.split()[0] for c in calls} >= {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"}
    expected = killing.straight(tmp_path / "straight", SHORT, [])
    for k in range(0, len(calls), 9):
        folder = tmp_path / f"call{k}"
        assert killing.killed_at(folder, SHORT, k) == -9
        assert killing.resumed(folder, SHORT)["print"] == expected, calls[k]


def test_budget_decisions_are_kept_by_a_resume(tmp_path: Path) -> None:
    settings = {**LONG, "budget": 5.0, "epochs": 100000}
    folder = tmp_path / "run"
    fit = course.make(**settings)
    stop = threading.Event()
    real = fit.update

    def once(batch: Any, epoch: int) -> list[float]:
        found = real(batch, epoch)
        if fit.decisions and fit.step == 3:
            stop.set()
        return found

    fit.update = once  # type: ignore[method-assign]
    assert course.go(fit, folder, stop=stop).stopped == "interrupt"
    decided = fit.steps
    again = course.make(**settings)
    again._affordable = lambda began: pytest.fail("decided twice")  # type: ignore[method-assign]
    stop = threading.Event()
    stop.set()
    course.go(again, folder, resume=True, stop=stop)
    assert again.decisions == [[0, decided]] and again.steps == decided


def test_interrupt_then_resume_equals_straight(tmp_path: Path) -> None:
    for at in (1, 6, 7, 12):  # inside an epoch, at its end, after it
        stop, folder, fit = threading.Event(), tmp_path / f"at{at}", course.make()
        real = fit.update

        def until(batch: Any, epoch: int, fit: Any = fit, real: Any = real, stop: Any = stop, at: int = at) -> list[float]:
            found = real(batch, epoch)
            if fit.step == at:
                stop.set()
            return found  # type: ignore[no-any-return]

        fit.update = until  # type: ignore[method-assign]
        result = course.go(fit, folder, stop=stop)
        assert (result.stopped, result.steps) == ("interrupt", at)
        resumed = course.make()
        course.go(resumed, folder, resume=True)
        straight = course.make()
        course.go(straight, None)
        assert course.print_of(resumed) == course.print_of(straight), at


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    first = course.make(patience=1, epochs=30, lr=0.3)
    result = course.go(first, tmp_path / "run")
    assert result.stopped == "patience"
    again = course.make(patience=1, epochs=30, lr=0.3)
    assert course.go(again, tmp_path / "run", resume=True).stopped == "patience"
    assert course.print_of(again) == course.print_of(first)


def test_other_batches_are_refused(tmp_path: Path) -> None:
    course.go(course.make(), tmp_path / "run")
    other = course.make()
    other.train.batch = 8
    with pytest.raises(ArtefactError, match="batches of 16"):
        course.go(other, tmp_path / "run", resume=True)


# -- checkpoints ------------------------------------------------------------------------------------------------------------

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "步": np.array(3, np.int64)}


def test_flipped_bytes_are_caught_and_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, ARRAYS, {"x": 1})
    good = checkpoint.save(tmp_path, 2, ARRAYS, {"x": 2})
    draw = random.Random(0)
    for _ in range(150):
        path = draw.choice(sorted(good.iterdir()))
        content = path.read_bytes()
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :])
        found = checkpoint.load(tmp_path)
        assert found is not None and found[1]["step"] == 1, (path.name, place)
        assert "step-000000002 is damaged" in found[2][0]
        path.write_bytes(content)
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1] == {"step": 2, "x": 2} and not found[2]
    np.testing.assert_array_equal(found[0]["a"], ARRAYS["a"])


def test_truncated_and_missing_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("state.safetensors", "meta.json", "index.json"):
        for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"[]")):
            folder = tmp_path / f"{name}-{damage.__code__.co_firstlineno}-{damage.__code__.co_code.hex()[:24]}"
            checkpoint.save(folder, 1, ARRAYS, {})
            damage(checkpoint.save(folder, 2, ARRAYS, {}) / name)
            found = checkpoint.load(folder)
            assert found is not None and found[1]["step"] == 1


def test_a_save_after_damage_keeps_what_is_good(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 50, ARRAYS, {})
    for step in (60, 70):
        (checkpoint.save(tmp_path, step, ARRAYS, {}) / "meta.json").write_text("{}", encoding="utf-8")
    checkpoint.save(tmp_path, 55, ARRAYS, {})  # the course goes on from 50 or 0
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1]["step"] == 55 and not found[2]
    checkpoint.save(tmp_path, 58, ARRAYS, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000055", "step-000000058"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_storage_that_fails_at_every_call(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(atomic, "watch", lambda call, path: calls.append(call))
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "probe", step, ARRAYS, {})
    per_save = calls[len(calls) - (len(calls) - 2) // 3 - 6 :]
    for k in range(len(per_save) + 1):
        folder = tmp_path / f"k{k}"
        monkeypatch.setattr(atomic, "watch", lambda call, path: None)
        for step in (1, 2):
            checkpoint.save(folder, step, ARRAYS, {"k": k})
        left = [k]

        def failing(call: str, path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(atomic, "watch", failing)
        try:
            checkpoint.save(folder, 3, ARRAYS, {"k": k})
        except MachineError as error:
            assert os.strerror(code) in str(error) and "step 3" in str(error) and "step-00000000" in str(error)
        monkeypatch.setattr(atomic, "watch", lambda call, path: None)
        found = checkpoint.load(folder)
        assert found is not None and found[1]["step"] in (2, 3) and not found[2], (k, per_save)
