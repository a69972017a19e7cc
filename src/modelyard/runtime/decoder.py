"""What a backend supplies where a language model writes: one graph with memory, over numbered slots.

A program of graphs (`read`, `step`) passes its states in and out, which suits a text or a batch. Many texts that come and go want
their keys and values to stay where they are: a decoder owns them, and whoever schedules (offline: `programs/complete.py`; the server:
its engine) only says which slot goes on with which tokens.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Decoder(Protocol):
    """A causal language model with a cache of `slots` texts of up to `length` tokens each. Not to be called by two threads at once."""

    vocabulary: int
    """Number of ids."""
    context: int
    """Tokens that a text may have, its answer included."""
    column: str
    """Input that is continued: `<column>.tokens`."""
    output: str
    """What is written: `<output>.ids`."""
    ends: tuple[int, ...]
    """Ids that end a text, at least one."""

    def reserve(self, slots: int, length: int) -> None:
        """Make room; what was remembered is forgotten. `length` is at most `context`."""

    def feed(self, tokens_BT: np.ndarray, length_B: np.ndarray, slot_B: np.ndarray, start_B: np.ndarray) -> np.ndarray:
        """Logits (B, V) float32 of the token after the last real one of each row.

        Row `b` writes its `length_B[b]` tokens (int64, padded at the back) into slot `slot_B[b]` at the places from `start_B[b]` on;
        what lies in the slot before is looked back on, what lay after it is forgotten. Slots of one call differ. A slot is free as soon
        as nobody feeds it: starting at 0 begins a new text.
        """

    def swap(self, a: int, b: int) -> None:
        """Two slots change what they hold, so that those which are fed together lie side by side."""

    def fresh(self) -> Decoder:
        """Another memory over the same weights: each thread and each engine has its own."""

    def memory(self) -> int:
        """Bytes of the cache."""
