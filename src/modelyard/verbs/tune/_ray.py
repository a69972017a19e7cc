"""The same search with trials as Ray tasks (Moritz et al. 2018): on one machine, or on a cluster that shares the run folder.

Suggestions, journal and pruning stay here; Ray is asked to run `Course.advance`, and nothing else.
"""

from __future__ import annotations

import functools
from typing import Any

from modelyard.errors import MissingExtra
from modelyard.verbs.tune._engines import Done, Job
from modelyard.verbs.tune._trial import Course, pack, unpack


class Tasks:
    """At most `slots` tasks; a cluster that runs already is used (`RAY_ADDRESS`), else one is started here."""

    def __init__(self, course: Course, slots: int, whole_data: bool) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtra("ray", "ray") from None
        self.ray, self.slots = ray, slots
        self.own = not ray.is_initialized()
        if self.own:
            ray.init(num_cpus=None, log_to_driver=False, include_dashboard=False, configure_logging=False)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self.task = ray.remote(num_cpus=max(1, cores // slots), max_retries=1)(advance)
        self.text = ray.put(pack(course, tables=not whole_data))
        self.running: dict[Any, Job] = {}

    def start(self, job: Job) -> None:
        """Submits the job."""
        self.running[self.task.remote(self.text, job.number, dict(job.params), job.rung, job.left)] = job

    def wait(self) -> Done:
        """The next task that ends; one that died is told as failed."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1)
        job = self.running.pop(ready[0])
        try:
            return job, self.ray.get(ready[0])
        except self.ray.exceptions.RayError as error:
            return job, {"error": f"the Ray task ended: {' '.join(str(error).split())[:300]}", "seconds": 0.0}

    def close(self) -> None:
        """Cancels what runs; stops Ray where it was started here."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        if self.own:
            self.ray.shutdown()


@functools.lru_cache(maxsize=1)
def _course(text: str) -> Course:
    return unpack(text)


def advance(text: str, number: int, params: dict[str, Any], rung: int | None, left: float | None) -> dict[str, Any]:
    """The task: a Ray worker keeps the bound data between its tasks."""
    return _course(text).advance(number, params, rung, left)
