"""Area under the ROC curve: the chance that a positive row scores above a negative one; macro one-against-rest
beyond two classes."""

from __future__ import annotations

from modelyard.metrics._ranking import auc, ranking_metric

METRIC = ranking_metric("roc_auc", auc)
