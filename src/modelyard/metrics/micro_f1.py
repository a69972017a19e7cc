"""F1 of all (row, label) pairs pooled; for one label per row it equals accuracy."""

from __future__ import annotations

from modelyard.metrics._confusion import class_metric

METRIC = class_metric("micro_f1", "f1", "micro")
