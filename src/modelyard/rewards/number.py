"""1 where the answer's last number is that of the true text: behind `####` (GSM8K's form) where it has that mark, else anywhere."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

MARK = "####"
INSIDE = frozenset("0123456789.,-+/%$€£")


def number(text: str) -> Decimal | None:
    """The first number behind the last `####`, else the last of the text; thousands' commas and signs of money are read over."""
    _, mark, behind = text.rpartition(MARK)
    words = (behind if mark else text).replace("=", " ").split()
    for word in words if mark else reversed(words):
        plain = "".join(c for c in word if c in INSIDE).strip(".,$€£%+/").replace(",", "")
        try:
            found = Decimal(plain)
        except InvalidOperation:
            continue
        if found.is_finite():
            return found
    return None


def reward(text: str, truth: str, prompt: str, argument: str) -> float:
    """1 or 0; `argument` `marked` asks for the mark in the answer too."""
    wanted, found = number(truth), number(text)
    return float(found is not None and found == wanted and (argument != "marked" or MARK in text))
