"""Who runs the trials: this process one by one, or worker processes that are told by a line of JSON and answer by one."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from modelyard.registry import ROOT
from modelyard.verbs.tune._trial import Course, pack


@dataclass(frozen=True)
class Job:
    """A trial to be taken to the end of a rung."""

    number: int
    params: Mapping[str, Any]
    rung: int | None
    left: float | None = None
    """Seconds that remain of the search."""


Done = tuple[Job, dict[str, Any]]
"""A job and what `Course.advance` said of it."""


class Engine(Protocol):
    """What the search needs of whoever runs trials."""

    slots: int

    def start(self, job: Job) -> None:
        """Begins a job; at most `slots` run together."""

    def wait(self) -> Done:
        """The next job that is done."""

    def close(self) -> None:
        """Ends what runs."""


class Here:
    """In this process, one after the other: the data is bound once for all."""

    slots = 1

    def __init__(self, course: Course) -> None:
        self.course = course
        self.jobs: list[Job] = []

    def start(self, job: Job) -> None:
        """Keeps the job for `wait`."""
        self.jobs.append(job)

    def wait(self) -> Done:
        """Runs it."""
        job = self.jobs.pop()
        return job, self.course.advance(job.number, job.params, job.rung, job.left)

    def close(self) -> None:
        """Nothing is left behind."""


class Workers:
    """Processes of their own (`python -m modelyard.verbs.tune._worker`), which die with this one: they watch their stdin.

    The machine's threads are divided among them. A worker that dies fails its trial and is replaced.
    """

    def __init__(self, course: Course, slots: int, whole_data: bool) -> None:
        self.slots = slots
        self.text = pack(course, tables=not whole_data)
        self.done: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.running: dict[int, Job] = {}
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.listeners: dict[int, threading.Thread] = {}
        self.count = 0
        self.free: list[int] = []

    def start(self, job: Job) -> None:
        """Hands the job to a worker that is free, or to a new one."""
        worker = self.free.pop() if self.free else self._new()
        self.running[worker] = job
        self._tell(worker, {"number": job.number, "params": dict(job.params), "rung": job.rung, "left": job.left})

    def wait(self) -> Done:
        """Blocks until a worker answers or dies."""
        while True:
            worker, answer = self.done.get()
            job = self.running.pop(worker, None)
            if answer is None:
                code = self._ended(worker)
                if worker in self.free:
                    self.free.remove(worker)
                if job is None:
                    continue
                why = f"signal {-code}" if code < 0 else f"exit code {code}"
                return job, {"error": f"the worker process ended with {why} (out of memory?)", "seconds": 0.0}
            self.free.append(worker)
            assert job is not None
            return job, answer

    def close(self) -> None:
        """Kills the workers; a trial that runs is asked again when the study goes on."""
        for process in self.processes.values():
            process.kill()
        for worker in list(self.processes):
            self._ended(worker)

    def _new(self) -> int:
        threads = str(max(1, (os.cpu_count() or 1) // self.slots))
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
        path = os.pathsep.join([str(ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "modelyard.verbs.tune._worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            env={**os.environ, **dict.fromkeys(names, threads), "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        worker, self.count = self.count, self.count + 1
        self.processes[worker] = process
        self.listeners[worker] = threading.Thread(target=self._listen, args=(worker, process), daemon=True)
        self.listeners[worker].start()
        self._tell(worker, self.text)
        return worker

    def _ended(self, worker: int) -> int:
        """Exit code of a worker, its pipes closed."""
        process = self.processes.pop(worker)
        code = process.wait()
        self.listeners.pop(worker).join()
        with contextlib.suppress(BrokenPipeError):  # what it never read
            assert process.stdin is not None
            process.stdin.close()
        return code

    def _tell(self, worker: int, message: Any) -> None:
        stream = self.processes[worker].stdin
        assert stream is not None
        try:
            stream.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
            stream.flush()
        except BrokenPipeError:
            pass  # it died; `_listen` says so

    def _listen(self, worker: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.done.put((worker, json.loads(line)))
        self.done.put((worker, None))
