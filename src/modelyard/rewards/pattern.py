"""1 where the answer has the pieces of a pattern in their order: `*` stands for any text, everything else for itself (`pattern:<think>*</think>*`).

No regular expressions: the pieces are looked for one after the other, in time proportional to the text.
"""

from __future__ import annotations


def reward(text: str, truth: str, prompt: str, argument: str) -> float:
    """1 or 0; the whole answer must fit, blanks around it aside."""
    pieces, text = argument.split("*"), text.strip()
    if len(pieces) == 1:
        return float(text == argument)
    first, *between, last = pieces
    if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
        return 0.0
    place, end = len(first), len(text) - len(last)
    for piece in between:
        place = text.find(piece, place, end)
        if place < 0:
            return 0.0
        place += len(piece)
    return 1.0
