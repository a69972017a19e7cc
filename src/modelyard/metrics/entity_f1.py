"""Harmonic mean of precision and recall of entities: both ends and the type must be right."""

from __future__ import annotations

from modelyard.metrics._entities import entity_metric

METRIC = entity_metric("entity_f1", "f1")
