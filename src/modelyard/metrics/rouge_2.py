"""ROUGE-2: mean F1 of pairs of words that a written text shares with the true one (Lin 2004)."""

from __future__ import annotations

from modelyard.metrics._rouge import metric

METRIC = metric("rouge_2", 2)
