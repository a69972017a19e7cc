"""ROUGE-1: mean F1 of words that a written text shares with the true one (Lin 2004)."""

from __future__ import annotations

from modelyard.metrics._rouge import metric

METRIC = metric("rouge_1", 1)
