"""Share of the true entities that are found with both ends and type."""

from __future__ import annotations

from modelyard.metrics._entities import entity_metric

METRIC = entity_metric("entity_recall", "recall")
