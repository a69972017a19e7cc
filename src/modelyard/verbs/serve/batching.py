"""Requests that come while the model is busy go through it together: dynamic batching without a delay.

A lone request never waits. Under load the batch is what has gathered since the last one began (Crankshaw et al. 2017, Clipper, without
its timer). A request's rows get the answers they would get alone: models answer a row the same in any batch, and where a batch fails
as a whole its requests are answered one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from modelyard.verbs.serve.body import Refused

Answers = list[dict[str, Any]]
Predict = Callable[[list[Any]], Answers]
Done = Callable[[Answers | Exception], None]

MOST = 512
"""Rows of a batch: what passes through the graphs at once."""
QUICK = 0.002
"""Seconds below which a batch runs on the event loop itself: handing it to a thread and back costs 0.1 to 0.2 ms."""


class Batcher:
    """One model's queue. All methods but `predict` run on the event loop."""

    def __init__(self, predict: Predict, pool: ThreadPoolExecutor, waiting: int, patience: float, lanes: int = 1) -> None:
        """`waiting` rows at most are queued, for `patience` seconds at most; `lanes` batches run side by side, in threads of `pool` where
        there is more than one."""
        self.predict, self.pool, self.waiting, self.patience = predict, pool, waiting, patience
        self.queue: deque[tuple[list[Any], Done, float]] = deque()
        self.rows = 0
        self.lanes, self.running = lanes, 0
        self.seconds = 1.0
        """Of the last batch; the first one goes to a thread."""

    def submit(self, rows: list[Any], done: Done) -> None:
        """`done` gets the answers to the rows of one request, or what kept them from being answered.

        Raises `Refused` (503) where too many rows wait already; it is given to `done` where they waited too long.
        """
        if self.rows + len(rows) > max(self.waiting, len(rows)):
            raise self._full()
        self.queue.append((rows, done, time.monotonic()))
        self.rows += len(rows)
        if self.running < self.lanes:
            self.running += 1
            asyncio.get_running_loop().call_soon(self._next)

    def turn_away(self) -> None:
        """Raises `Refused` (503) where the queue is full: before a body is read, so that those who are refused cost those who are not nothing."""
        if self.rows >= self.waiting:
            raise self._full()

    def _full(self) -> Refused:
        return Refused(503, f"{self.rows} rows wait already, and at most {self.waiting} may; come back later", self._later())

    def _later(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, round(self.seconds * self.rows / MOST)))}

    def _next(self) -> None:
        """Starts a lane's next batch, or lets it rest."""
        batch: list[tuple[list[Any], Done]] = []
        total, now = 0, time.monotonic()
        while self.queue and (not batch or total + len(self.queue[0][0]) <= MOST):
            rows, done, came = self.queue.popleft()
            self.rows -= len(rows)
            if now - came > self.patience:
                done(Refused(503, f"the request waited {now - came:.0f} s for the model; come back later", self._later()))
                continue
            batch.append((rows, done))
            total += len(rows)
        loop = asyncio.get_running_loop()
        if not batch:
            self.running -= 1
        elif self.lanes == 1 and self.seconds < QUICK and total <= MOST:
            self._give(batch, self._run(batch))
            loop.call_soon(self._next)
        else:
            loop.run_in_executor(self.pool, self._run, batch).add_done_callback(lambda found: self._take(batch, found))

    def _take(self, batch: list[tuple[list[Any], Done]], found: asyncio.Future[list[Answers | Exception]]) -> None:
        self._give(batch, found.result())
        self._next()

    @staticmethod
    def _give(batch: list[tuple[list[Any], Done]], found: list[Answers | Exception]) -> None:
        for (_, done), result in zip(batch, found, strict=True):
            done(result)

    def _run(self, batch: list[tuple[list[Any], Done]]) -> list[Answers | Exception]:
        """Answers of each request; one that raises does not touch the others."""
        began = time.perf_counter()
        try:
            if len(batch) == 1:
                return [self._alone(batch[0][0])]
            try:
                whole = self.predict([row for rows, _ in batch for row in rows])
            except Exception:
                return [self._alone(rows) for rows, _ in batch]
            found: list[Answers | Exception] = []
            start = 0
            for rows, _ in batch:
                found.append(whole[start : start + len(rows)])
                start += len(rows)
            return found
        finally:
            self.seconds = time.perf_counter() - began

    def _alone(self, rows: list[Any]) -> Answers | Exception:
        try:
            return self.predict(rows)
        except Exception as error:
            return error
