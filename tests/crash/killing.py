"""Children forked from a warm process, killed with SIGKILL, and their courses resumed: a cycle costs under a second.

A budgeted course takes decisions from the clock; what it decided stands in its last checkpoint, and the straight run
that it is compared with makes the same decisions again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modelyard.store import atomic, checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import course


def warm() -> None:
    """One short course in the parent: a first optimiser step imports for a second, and forks inherit what is imported."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    course.go(course.make(epochs=1), None)


def child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Runs `work` in a fork; SIGKILL after `kill_after` seconds. Returns the exit status (-9: killed)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def calls_of_a_run(folder: Path, settings: dict[str, Any]) -> list[str]:
    """The file-system calls of a whole run, in order."""
    listing = folder.with_suffix(".calls")

    def work() -> None:
        seen: list[str] = []
        atomic.watch = lambda call, path: seen.append(f"{call} {path.name}")
        course.go(course.make(**settings), folder)
        listing.write_text(json.dumps(seen), encoding="utf-8")

    assert child(work) == 0
    found: list[str] = json.loads(listing.read_text(encoding="utf-8"))
    return found


def killed_at(folder: Path, settings: dict[str, Any], k: int) -> int:
    """A run that dies by SIGKILL just before its k-th file-system call (from 0)."""

    def work() -> None:
        left = [k]

        def watch(call: str, path: Path) -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        atomic.watch = watch
        course.go(course.make(**settings), folder)

    return child(work)


def killed_after(folder: Path, settings: dict[str, Any], seconds: float, resume: bool = False) -> int:
    """A run killed after `seconds`."""
    return child(lambda: (course.go(course.make(**settings), folder, resume=resume), None)[1], seconds)


def resumed(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Resumes to the end: `{"print", "decisions", "notes", "from"}`."""
    answer = folder.with_suffix(".resumed")

    def work() -> None:
        fit, seen = course.make(**settings), []
        course.go(fit, folder, resume=True, events=seen.append)
        start = next(e for e in seen if e["event"] == "resume")
        facts = {"print": course.print_of(fit), "decisions": fit.decisions, "notes": start["notes"], "from": start["step"]}
        answer.write_text(json.dumps(facts), encoding="utf-8")

    assert child(work) == 0, f"resuming {folder.name} failed"
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def straight(folder: Path, settings: dict[str, Any], decisions: list[list[int]]) -> str:
    """The print of a run that nobody touches, with the same decisions."""
    answer = folder.with_suffix(".straight")

    def work() -> None:
        fit = course.make(**settings)
        course.go(fit, None, decided=dict((a, b) for a, b in decisions) if decisions else None)
        answer.write_text(course.print_of(fit), encoding="utf-8")

    assert child(work) == 0
    return answer.read_text(encoding="utf-8")


def newest(folder: Path) -> int:
    """Step of the newest whole checkpoint, -1 where there is none."""
    found = checkpoint.load(folder)
    return -1 if found is None else int(found[1]["step"])
