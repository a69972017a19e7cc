"""Counters in the Prometheus text format. Labels are chosen here, never by clients, so the number of series is bounded."""

from __future__ import annotations

import threading
from collections import defaultdict

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

    def text(self) -> str:
        """What `/metrics` answers."""
        with self.lock:
            lines = [
                "# HELP modelyard_model_info Model that is served.",
                "# TYPE modelyard_model_info gauge",
                f"modelyard_model_info{{{self.label}}} 1",
            ]
            lines += ["# HELP modelyard_requests_total Requests by route and status code.", "# TYPE modelyard_requests_total counter"]
            lines += [f'modelyard_requests_total{{{self.label},route="{r}",code="{c}"}} {n}' for (r, c), n in sorted(self.requests.items())]
            for name, value, text in (
                ("rows", self.rows, "Rows that came."),
                ("row_errors", self.errors, "Rows that could not be answered."),
            ):
                lines += [
                    f"# HELP modelyard_{name}_total {text}",
                    f"# TYPE modelyard_{name}_total counter",
                    f"modelyard_{name}_total{{{self.label}}} {value}",
                ]
            lines += ["# HELP modelyard_request_seconds Time to answer.", "# TYPE modelyard_request_seconds histogram"]
            for route, series in sorted(self.times.items()):
                label = f'{self.label},route="{route}"'
                lines += [f'modelyard_request_seconds_bucket{{{label},le="{b}"}} {int(series[i])}' for i, b in enumerate(BUCKETS)]
                lines.append(f'modelyard_request_seconds_bucket{{{label},le="+Inf"}} {int(series[-2])}')
                lines += [
                    f"modelyard_request_seconds_sum{{{label}}} {series[-1]:.6f}",
                    f"modelyard_request_seconds_count{{{label}}} {int(series[-2])}",
                ]
        return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
