"""Average precision: area under the precision-recall curve by steps; macro one-against-rest beyond two classes."""

from __future__ import annotations

from modelyard.metrics._ranking import average_precision, ranking_metric

METRIC = ranking_metric("average_precision", average_precision)
