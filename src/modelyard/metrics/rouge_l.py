"""ROUGE-L: mean F1 of the longest common subsequence of words of a written text and the true one (Lin 2004)."""

from __future__ import annotations

from modelyard.metrics._rouge import metric

METRIC = metric("rouge_l", None)
