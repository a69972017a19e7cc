"""Share of the positive rows that are found; two classes: of the positive class, else the macro mean."""

from __future__ import annotations

from modelyard.metrics._confusion import class_metric

METRIC = class_metric("recall", "recall", "auto")
