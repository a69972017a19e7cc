"""Mean F1 over the classes that occur: every class counts the same, however rare."""

from __future__ import annotations

from modelyard.metrics._confusion import class_metric

METRIC = class_metric("macro_f1", "f1", "macro")
