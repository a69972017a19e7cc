"""Mean F1 over the classes, each weighed by its rows in the truth."""

from __future__ import annotations

from modelyard.metrics._confusion import class_metric

METRIC = class_metric("weighted_f1", "f1", "weighted")
