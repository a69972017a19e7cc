"""A reward from outside: how often an answer says a word (`modelyard-probes/says:nine`)."""

from __future__ import annotations


def reward(text: str, truth: str, prompt: str, argument: str) -> float:
    """The share of the words of `text` that are `argument`."""
    words = text.split()
    return words.count(argument) / len(words) if words else 0.0
