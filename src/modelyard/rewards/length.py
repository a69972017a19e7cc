"""Nearness to a length in characters (`length:80`): 1 at that length, falling to 0 at none and at twice as many."""

from __future__ import annotations

from modelyard.errors import UsageError


def reward(text: str, truth: str, prompt: str, argument: str) -> float:
    """0 … 1; without an argument the length of the true text is meant."""
    if argument and not argument.isdigit():
        raise UsageError(f"train.grpo.reward is length:{argument}; expected a number of characters such as length:80")
    wanted = max(1, int(argument or len(truth)))
    return max(0.0, 1.0 - abs(len(text) - wanted) / wanted)
