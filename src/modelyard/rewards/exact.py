"""1 where the answer is the true text, blanks around it aside."""

from __future__ import annotations


def reward(text: str, truth: str, prompt: str, argument: str) -> float:
    """1 or 0."""
    return float(text.strip() == truth.strip())
