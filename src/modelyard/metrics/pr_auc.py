"""Another name of `average-precision`."""

from __future__ import annotations

from modelyard.metrics.average_precision import METRIC

__all__ = ["METRIC"]
