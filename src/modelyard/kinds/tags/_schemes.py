"""How tags mark entities: BIO (IOB2), IOB1, BIOES (IOBES) and BILOU; read leniently, written strictly.

Reading follows conlleval (Tjong Kim Sang & Buchholz 2000), as `seqeval` does by default: an entity also begins where an inside tag follows
`O` or another type, so that every sequence has its entities. Writing makes only what the scheme allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

Entity = tuple[int, int, str]
"""(first word, word behind the last, type)."""

PREFIXED = re.compile(r"^[BIESLU](-.*)?$", re.DOTALL)

LIKE = {"U": "S", "L": "E"}
"""BILOU in the letters of BIOES."""


def parsed(tag: str) -> tuple[str, str]:
    """(letter, type) of a tag: `("B", "person")`; the type of a bare letter is `_`."""
    letter, _, kind = tag[:1], "", tag[1:].split("-", 1)[-1]
    return letter, kind or "_"


def scheme_of(labels: Sequence[str]) -> str:
    """`plain` where the tags mark no entities (parts of speech), else `bio`, `bioes` or `bilou`, by the letters that occur."""
    marked = [t for t in labels if t != "O"]
    if not marked or not all(PREFIXED.match(t) for t in marked):
        return "plain"
    letters = {t[0] for t in marked}
    if letters & {"L", "U"} and not letters & {"E", "S"}:
        return "bilou"
    return "bioes" if letters & {"E", "S"} else "bio"


def entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of one sequence, read as conlleval does."""
    found: list[Entity] = []
    begin, before, kind_before = 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        letter, kind = parsed(tag)
        letter = LIKE.get(letter, letter)
        if before not in ("O", ".") and _ends(before, letter, kind_before != kind):
            found.append((begin, i, kind_before))
        if letter not in ("O", ".") and _starts(before, letter, kind_before != kind):
            begin = i
        before, kind_before = letter, kind
    return found


def _ends(before: str, now: str, other: bool) -> bool:
    return other or before in ("E", "S") or (before in ("B", "I") and now in ("B", "S", "O"))


def _starts(before: str, now: str, other: bool) -> bool:
    return other or now in ("B", "S") or (before in ("E", "S", "O") and now in ("E", "I"))


def strict(tags: Sequence[str], scheme: str) -> list[Entity]:
    """Entities that the scheme allows and nothing else: what does not begin with its first tag or end with its last is none."""
    found: list[Entity] = []
    begin: int | None = None
    kind = ""
    for i, tag in enumerate([*tags, "O"]):
        letter, now = parsed(tag)
        letter = LIKE.get(letter, letter)
        goes_on = begin is not None and letter in ("I", "E") and now == kind
        if begin is not None and not goes_on:
            if scheme == "bio":
                found.append((begin, i, kind))
            begin = None
        if goes_on and letter == "E":
            found.append((begin or 0, i + 1, kind))
            begin = None
        elif letter == "S":
            found.append((i, i + 1, now))
        elif letter == "B":
            begin, kind = i, now
    return found


def write(found: Sequence[Entity], length: int, scheme: str) -> list[str]:
    """Tags of entities that do not overlap."""
    first, inside, last, only = tuple({"bio": "BIIB", "bioes": "BIES", "bilou": "BILU"}[scheme])
    tags = ["O"] * length
    for start, end, kind in found:
        suffix = "" if kind == "_" else f"-{kind}"
        letters = [only] if end - start == 1 else [first, *[inside] * (end - start - 2), last]
        tags[start:end] = [letter + suffix for letter in letters]
    return tags


def classes(labels: Sequence[str], scheme: str) -> list[str]:
    """Every tag that the scheme can write for the types in `labels`, `O` first; plain labels as they are."""
    if scheme == "plain":
        return sorted(labels)
    kinds = sorted({parsed(t)[1] for t in labels if t != "O"})
    letters = {"bio": "BI", "bioes": "BIES", "bilou": "BILU"}[scheme]
    return ["O", *(letter + ("" if kind == "_" else f"-{kind}") for kind in kinds for letter in letters)]


def legal(names: Sequence[str], scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first (K,), last (K,), step (K, K) from row to column): which tags may begin, end and follow each other."""
    size = len(names)
    if scheme == "plain":
        return np.ones(size, bool), np.ones(size, bool), np.ones((size, size), bool)
    split = [(LIKE.get(letter, letter), kind) for letter, kind in map(parsed, names)]
    opens = np.array([letter in ("B", "I") if scheme != "bio" else False for letter, _ in split])
    goes_on = np.array([letter in ("I", "E") for letter, _ in split])
    same = np.array([[a != "O" and b != "O" and x == y for b, y in split] for a, x in split])
    may_go_on = np.array([letter in ("B", "I") for letter, _ in split])
    step = np.where(goes_on[None, :], may_go_on[:, None] & same, ~opens[:, None])
    return ~goes_on, ~opens, step
