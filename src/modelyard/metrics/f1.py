"""Harmonic mean of precision and recall; two classes: of the positive class, else the macro mean."""

from __future__ import annotations

from modelyard.metrics._confusion import class_metric

METRIC = class_metric("f1", "f1", "auto")
