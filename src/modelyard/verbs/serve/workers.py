"""Model processes behind one server: batches run side by side, and the death of one loses nothing.

Connections stay with the server, so a batch whose process dies is given to another. Where two died of a batch its requests are answered
one by one (`Batcher`), so that one which kills whatever touches it harms no neighbour: it is answered 503 itself.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

from modelyard.errors import MachineError, UsageError
from modelyard.verbs.serve import worker

TRIES = 2
"""Processes that a batch may cost before it is given up as a whole."""
LONGEST = 10.0
"""Seconds between two starts of a process that fails to start; the first comes after 0.1 s, each later one after twice the time."""


class Dead(Exception):
    """The process ended before it answered."""


class Process:
    """One worker."""

    def __init__(self, folder: Path, backend: str, trust_code: bool) -> None:
        more = ["trust"] if trust_code else []
        command = [sys.executable, "-m", "modelyard.verbs.serve.worker", str(folder), backend, *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.send, self.receive = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
        self.ready = False

    def hello(self) -> str:
        """Version of the model that it has loaded; waits for that."""
        first = worker.read(self.receive)
        if first is None:
            raise Dead
        self.ready = True
        return str(json.loads(first)["version"])

    def call(self, body: bytes) -> dict[str, Any]:
        """Its answer to rows. Raises `Dead`."""
        try:
            worker.write(self.send, body)
            found = worker.read(self.receive)
        except (OSError, ValueError):
            raise Dead from None
        if found is None:
            raise Dead
        return json.loads(found)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends it; it was between two batches, or is dead."""
        for stream in (self.send, self.receive):
            with contextlib.suppress(OSError):  # what lay in the pipe of a dead process cannot be flushed
                stream.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Workers:
    """`count` processes with the same model."""

    def __init__(self, folder: Path, count: int, backend: str, trust_code: bool) -> None:
        self.make = lambda: Process(folder, backend, trust_code)
        self.idle: queue.Queue[Process] = queue.Queue()
        self.all: set[Process] = set()
        self.lock = threading.Lock()
        self.open = True
        self.deaths = 0
        started = [self.make() for _ in range(count)]
        self.all.update(started)
        try:
            self.version = {process.hello() for process in started}.pop()
        except Dead:
            self.close()
            raise MachineError("a model process ended while it loaded the model; its message is on stderr") from None
        for process in started:
            self.idle.put(process)

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers to rows, from any process; from another one where it died. Raises what the model raised, or `MachineError`."""
        body = json.dumps(rows).encode("utf-8")
        for _ in range(TRIES):
            process = self.idle.get()
            try:
                found = process.call(body)
            except Dead:
                process.ready = False
                self.deaths += 1
                threading.Thread(target=self._replace, args=(process,), daemon=True, name="restart").start()
                continue
            self.idle.put(process)
            if "refused" in found:
                raise UsageError(found["refused"])
            if "failed" in found:
                raise RuntimeError(found["failed"])
            return found["answers"]  # type: ignore[no-any-return]
        raise MachineError(f"{TRIES} model processes ended while they answered this; others still answer")

    def _replace(self, process: Process) -> None:
        pause = 0.1
        while True:
            process.close()
            with self.lock:
                self.all.discard(process)
                if not self.open:
                    return
                process = self.make()
                self.all.add(process)
            try:
                process.hello()
            except Dead:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
                continue
            self.idle.put(process)
            return

    def close(self) -> None:
        """Ends all of them."""
        with self.lock:
            self.open = False
            ending = list(self.all)
        for process in ending:
            process.close()
