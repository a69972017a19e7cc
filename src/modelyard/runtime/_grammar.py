"""Grammars over bytes and the tokens they allow: a pushdown automaton whose states are sets of stacks.

Nodes are sets of bytes, sequences, choices, repetitions and references (so that JSON nests). A stack is what must still be matched; cells
of stacks are numbered, so a state is a set of numbers and every step is remembered. For a state, all tokens are walked at once: the
vocabulary lies as a matrix of bytes, and only rows that are still possible take the next step (compare Willard & Louf 2023).

Each cell knows the fewest bytes that end it, so a token is allowed only where the rest of the budget can finish the text: whatever
a model likes to write, its answer is whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from modelyard.errors import UsageError

FAR = 10**9
CELLS = 100_000
"""Cells of one grammar; a hostile one meets this cap instead of the machine's memory."""
STACKS = 150
"""Stacks of one state."""
WORK = 300_000
"""Cells that are opened for one grammar in all: a third of a second."""
DEAD, UNKNOWN = -1, -2
MASKS = 512
"""Masks that are kept of one grammar."""


class GrammarError(UsageError):
    """A schema or an expression that is not read, or too large."""


@dataclass(eq=False)
class Node:
    """A part of a grammar; equal only to itself."""

    parts: tuple[Node, ...] = ()
    kind: str = "seq"
    """`bytes`, `seq`, `alt`, `repeat`, `ref`."""
    allowed: frozenset[int] = frozenset()
    least: int = 1
    most: int | None = 1
    shortest: int = FAR
    letters: str = ""
    """Of a literal: what a vocabulary must be able to write."""


def byte_set(allowed: Iterable[int]) -> Node:
    """One byte of a set."""
    return Node(kind="bytes", allowed=frozenset(allowed), shortest=1)


def literal(text: str) -> Node:
    """Exactly this text."""
    return Node(tuple(byte_set([b]) for b in text.encode("utf-8")), letters=text)


def seq(*parts: Node) -> Node:
    """One after the other."""
    return parts[0] if len(parts) == 1 else Node(parts)


def alt(*parts: Node) -> Node:
    """One of several."""
    return parts[0] if len(parts) == 1 else Node(parts, "alt")


def repeat(part: Node, least: int = 0, most: int | None = None) -> Node:
    """`part` from `least` to `most` times; None: without end."""
    return Node((part,), "repeat", least=least, most=most)


def optional(part: Node) -> Node:
    """`part` or nothing."""
    return repeat(part, 0, 1)


def reference() -> Node:
    """A place whose `parts` are set later: grammars that nest."""
    return Node(kind="ref")


def characters(ranges: Sequence[tuple[int, int]]) -> Node:
    """One character of ranges of code points, as UTF-8."""
    found: list[Node] = []
    for low, high in ranges:
        for a, b in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)):
            if max(low, a) <= min(high, b):
                found += _utf8(chr(max(low, a)).encode("utf-8"), chr(min(high, b)).encode("utf-8"))
    if not found:
        raise GrammarError("a set of characters is empty")
    singles = frozenset().union(*(n.allowed for n in found if n.kind == "bytes"))
    rest = [n for n in found if n.kind != "bytes"]
    return alt(*([byte_set(singles)] if singles else []), *rest)


def _utf8(low: bytes, high: bytes) -> list[Node]:
    """Sequences of byte ranges between two encoded characters of equal length."""
    if len(low) == 1:
        return [byte_set(range(low[0], high[0] + 1))]
    if low[0] == high[0]:
        return [seq(byte_set([low[0]]), tail) for tail in _utf8(low[1:], high[1:])]
    found: list[Node] = []
    first, last = low[0], high[0]
    if any(b != 0x80 for b in low[1:]):
        found += [seq(byte_set([first]), tail) for tail in _utf8(low[1:], b"\xbf" * (len(low) - 1))]
        first += 1
    ends = []
    if any(b != 0xBF for b in high[1:]):
        ends = [seq(byte_set([last]), tail) for tail in _utf8(b"\x80" * (len(low) - 1), high[1:])]
        last -= 1
    if first <= last:
        found.append(seq(byte_set(range(first, last + 1)), *(byte_set(range(0x80, 0xC0)) for _ in low[1:])))
    return found + ends


@dataclass
class Grammar:
    """A grammar with its cells, states and transitions; shared by all texts that are written with it."""

    root: Node
    whole: frozenset[bytes] | None = None
    """Tokens of up to four bytes, where a vocabulary is known: literals that cannot be written are no choice."""
    cells: list[tuple[Node, int, int, int]] = field(default_factory=lambda: [(Node(), 0, 0, 0)])
    """(node, how often it was repeated, cell behind, fewest bytes to the end); cell 0 is the end."""
    numbers: dict[tuple[int, int, int], int] = field(default_factory=dict)
    states: list[frozenset[int]] = field(default_factory=list)
    places: dict[frozenset[int], int] = field(default_factory=dict)
    table: list[np.ndarray] = field(default_factory=list)
    """By state: the next state of each byte, `DEAD` or `UNKNOWN`."""
    least: list[int] = field(default_factory=list)
    """By state: the fewest bytes to an end."""
    behind: dict[tuple[int, ...], int] = field(default_factory=dict)
    """States by the cells that a byte left behind: the letters of a string all leave the same."""
    work: int = 0
    lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        measure(self.root, self.whole)
        if self.root.shortest >= FAR:
            measure(self.root, None)
            if self.root.shortest >= FAR:
                raise GrammarError("nothing can ever satisfy it: it nests without an end")
            raise GrammarError("the model has no tokens for letters or signs that every answer needs")

    @cached_property
    def start(self) -> int:
        """The first state."""
        return self._state(self._open([self._cell(self.root, 0, 0)]))

    def _cell(self, node: Node, times: int, behind: int) -> int:
        key = (id(node), times, behind)
        found = self.numbers.get(key)
        if found is None:
            if len(self.cells) >= CELLS:
                raise GrammarError("it has too many states")
            rest = max(0, node.least - times) * node.parts[0].shortest if node.kind == "repeat" else node.shortest
            found = self.numbers[key] = len(self.cells)
            self.cells.append((node, times, behind, min(FAR, rest + self.cells[behind][3])))
        return found

    def _open(self, todo: list[int]) -> frozenset[int]:
        """Cells that wait for a byte, and 0 where the text may end."""
        seen, found = set(todo), set()
        while todo:
            cell = todo.pop()
            node, times, behind, _ = self.cells[cell]
            if cell == 0 or node.kind == "bytes":
                found.add(cell)
                continue
            more: list[int] = []
            if node.kind in ("seq", "ref"):
                for part in reversed(node.parts):
                    behind = self._cell(part, 0, behind)
                more = [behind]
            elif node.kind == "alt":
                more = [self._cell(part, 0, behind) for part in node.parts]
            else:
                if times >= node.least:
                    more.append(behind)
                if node.most is None or times < node.most:
                    again = self._cell(node, times + 1 if node.most is not None else min(times + 1, node.least), behind)
                    more.append(self._cell(node.parts[0], 0, again))
            todo += [c for c in more if c not in seen]
            seen.update(more)
            self.work += 1
            if len(seen) > 20 * STACKS or self.work > WORK:
                raise GrammarError("it has too many states")
        found = {c for c in found if self.cells[c][3] < FAR}
        if len(found) > STACKS:
            raise GrammarError("it is too ambiguous")
        return frozenset(found)

    def _state(self, cells: frozenset[int]) -> int:
        found = self.places.get(cells)
        if found is None:
            found = self.places[cells] = len(self.states)
            self.states.append(cells)
            self.table.append(np.full(256, UNKNOWN, np.int32))
            self.least.append(min((self.cells[c][3] for c in cells), default=FAR))
        return found

    def step(self, state: int, byte: int) -> int:
        """The next state, or `DEAD`."""
        if state == DEAD:
            return DEAD
        found = int(self.table[state][byte])
        if found == UNKNOWN:
            with self.lock:
                left = tuple(sorted(self.cells[c][2] for c in self.states[state] if c and byte in self.cells[c][0].allowed))
                if left not in self.behind:
                    self.behind[left] = self._state(self._open(list(left))) if left else DEAD
                found = self.table[state][byte] = self.behind[left]
        return found

    def complete(self, state: int) -> bool:
        """Whether the text may end."""
        return 0 in self.states[state]

    def matches(self, text: bytes) -> bool:
        """Whether a whole text is of the grammar."""
        state = self.start
        for byte in text:
            state = self.step(state, byte)
        return state != DEAD and self.complete(state)


def writes(text: str, whole: frozenset[bytes]) -> bool:
    """Whether every character is a token, or each of its bytes."""
    return all(c.encode("utf-8") in whole or all(bytes([b]) in whole for b in c.encode("utf-8")) for c in text)


def measure(root: Node, whole: frozenset[bytes] | None) -> None:
    """Sets `shortest` of all nodes: the fewest bytes, by going over them until nothing changes."""
    nodes: list[Node] = []
    todo, seen = [root], {id(root)}
    while todo:
        node = todo.pop()
        nodes.append(node)
        node.shortest = FAR
        for part in node.parts:
            if id(part) not in seen:
                seen.add(id(part))
                todo.append(part)
    changed = True
    while changed:
        changed = False
        for node in reversed(nodes):
            if node.kind == "bytes":
                ascii_only = whole is not None and all(b < 128 for b in node.allowed)
                best = 1 if not ascii_only or any(bytes([b]) in (whole or ()) for b in node.allowed) else FAR
            elif node.letters and whole is not None and not writes(node.letters, whole):
                best = FAR
            elif node.kind == "alt":
                best = min(p.shortest for p in node.parts)
            elif node.kind == "repeat":
                best = node.least * node.parts[0].shortest if node.least else 0
            else:
                best = sum(p.shortest for p in node.parts)
            best = min(FAR, best)
            changed |= best != node.shortest
            node.shortest = best


class Tokens:
    """A vocabulary as a matrix of bytes, for walking all tokens through a grammar at once."""

    def __init__(self, pieces: Sequence[bytes], size: int, ends: Sequence[int]) -> None:
        self.size, self.ends = size, list(ends)
        known = [(i, p) for i, p in enumerate(pieces[:size]) if p and i not in set(ends)]
        self.ids_N = np.array([i for i, _ in known], np.int64)
        self.length_N = np.array([len(p) for _, p in known], np.int64)
        self.bytes_NL = np.zeros((len(known), int(self.length_N.max(initial=1))), np.uint8)
        for row, (_, piece) in zip(self.bytes_NL, known, strict=True):
            row[: len(piece)] = np.frombuffer(piece, np.uint8)
        self.whole = frozenset(p for _, p in known if len(p) <= 4)

    def costs(self, grammar: Grammar, state: int) -> np.ndarray:
        """(V,) fewest bytes that end the text after each token; `FAR` where it may not follow."""
        alive, state_N = np.arange(len(self.ids_N)), np.full(len(self.ids_N), state, np.int64)
        for place in range(self.bytes_NL.shape[1]):
            alive = alive[self.length_N[alive] > place]
            if not len(alive):
                break
            state_N[alive] = self._stepped(grammar, state_N[alive], self.bytes_NL[alive, place])
            alive = alive[state_N[alive] != DEAD]
        out_V = np.full(self.size, FAR, np.int64)
        least = np.array([*grammar.least, FAR], np.int64)  # DEAD is -1: the last
        out_V[self.ids_N] = least[state_N]
        return out_V

    @staticmethod
    def _stepped(grammar: Grammar, state_M: np.ndarray, byte_M: np.ndarray) -> np.ndarray:
        pairs, inverse = np.unique(state_M * 256 + byte_M, return_inverse=True)
        found = np.array([grammar.step(int(p) >> 8, int(p) & 255) for p in pairs], np.int64)
        return found[inverse]


class Rule:
    """A grammar over a vocabulary, with the masks that were asked for; shared by many texts."""

    def __init__(self, grammar: Grammar, tokens: Tokens) -> None:
        self.grammar, self.tokens = grammar, tokens
        self.masks: dict[int, np.ndarray] = {}

    def costs(self, state: int) -> np.ndarray:
        """`Tokens.costs`, remembered."""
        found = self.masks.get(state)
        if found is None:
            if len(self.masks) >= MASKS:
                self.masks.clear()
            with self.grammar.lock:
                found = self.masks[state] = self.tokens.costs(self.grammar, state)
        return found

    def text(self, pieces: Sequence[bytes]) -> Constrained:
        """The constraint of one text."""
        return Constrained(self, pieces)


class Constrained:
    """One text that follows a rule; `runtime/engine.Constraint`."""

    def __init__(self, rule: Rule, pieces: Sequence[bytes]) -> None:
        self.rule, self.pieces, self.state = rule, pieces, rule.grammar.start

    def allowed(self, left: int) -> np.ndarray:
        """Tokens after which the text can still be finished with what is left; the ends where it may end."""
        costs_V = self.rule.costs(self.state)
        allowed_V = costs_V <= left - 1
        if self.complete or not allowed_V.any():
            allowed_V[self.rule.tokens.ends] = True
        return np.asarray(allowed_V)

    def take(self, token: int) -> None:
        """Goes on by the bytes of a token."""
        for byte in self.pieces[token]:
            self.state = self.rule.grammar.step(self.state, byte)

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self.state != DEAD and self.rule.grammar.complete(self.state)

    @property
    def exhausted(self) -> bool:
        """Whether nothing may follow."""
        return self.state == DEAD or self.rule.grammar.states[self.state] == frozenset([0])

    @property
    def least(self) -> int:
        """Fewest tokens that finish the text from here."""
        return self.rule.grammar.least[self.state]
