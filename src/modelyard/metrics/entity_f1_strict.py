"""F1 of entities where only sequences that the scheme allows count, as the strict mode of seqeval."""

from __future__ import annotations

from modelyard.metrics._entities import entity_metric

METRIC = entity_metric("entity_f1_strict", "f1", strictly=True)
