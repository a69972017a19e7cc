"""Share of the entities found that are right in both ends and type."""

from __future__ import annotations

from modelyard.metrics._entities import entity_metric

METRIC = entity_metric("entity_precision", "precision")
