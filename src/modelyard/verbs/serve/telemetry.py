"""Counters in the Prometheus text format. Labels are chosen here, never by clients, so the number of series is bounded."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""


class Telemetry:
    """Requests, rows, row errors and times by route and code."""

    def __init__(self, model: str, version: str) -> None:
        self.label = f'model="{_escape(model)}",version="{version}"'
        self.lock = threading.Lock()
        self.requests: dict[tuple[str, int], int] = defaultdict(int)
        self.times: dict[str, list[float]] = defaultdict(lambda: [0.0] * (len(BUCKETS) + 2))
        self.rows = self.errors = 0

    def request(self, route: str, code: int, seconds: float) -> None:
        """One finished request."""
        with self.lock:
            self.requests[route, code] += 1
            series = self.times[route]
            for i, bound in enumerate(BUCKETS):
                if seconds <= bound:
                    series[i] += 1
            series[-2] += 1
            series[-1] += seconds

    def answered(self, rows: int, errors: int) -> None:
        """Rows of one call and how many failed."""
        with self.lock:
            self.rows += rows
            self.errors += errors

    def samples(self) -> dict[str, list[str]]:
        """Lines by metric."""
        with self.lock:
            found = {
                "modelyard_model_info": [f"modelyard_model_info{{{self.label}}} 1"],
                "modelyard_requests_total": [
                    f'modelyard_requests_total{{{self.label},route="{r}",code="{c}"}} {n}' for (r, c), n in sorted(self.requests.items())
                ],
                "modelyard_rows_total": [f"modelyard_rows_total{{{self.label}}} {self.rows}"],
                "modelyard_row_errors_total": [f"modelyard_row_errors_total{{{self.label}}} {self.errors}"],
                "modelyard_request_seconds": [],
            }
            times = found["modelyard_request_seconds"]
            for route, series in sorted(self.times.items()):
                label = f'{self.label},route="{route}"'
                times += [f'modelyard_request_seconds_bucket{{{label},le="{b}"}} {int(series[i])}' for i, b in enumerate(BUCKETS)]
                times.append(f'modelyard_request_seconds_bucket{{{label},le="+Inf"}} {int(series[-2])}')
                times.append(f"modelyard_request_seconds_sum{{{label}}} {series[-1]:.6f}")
                times.append(f"modelyard_request_seconds_count{{{label}}} {int(series[-2])}")
        return found


METRICS = {
    "modelyard_model_info": ("gauge", "Models that are served."),
    "modelyard_requests_total": ("counter", "Requests by route and status code."),
    "modelyard_rows_total": ("counter", "Rows that came."),
    "modelyard_row_errors_total": ("counter", "Rows that could not be answered."),
    "modelyard_request_seconds": ("histogram", "Time to answer."),
}


def text(all_of: Sequence[Telemetry]) -> str:
    """What `/metrics` answers: every metric once, with the series of all models."""
    samples = [t.samples() for t in all_of]
    lines: list[str] = []
    for name, (kind, said) in METRICS.items():
        lines += [f"# HELP {name} {said}", f"# TYPE {name} {kind}", *(line for s in samples for line in s[name])]
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
