"""Regular expressions to grammars: the part of Python's syntax that describes regular languages.

Read are letters, `.`, sets `[a-z]`, `\\d \\w \\s` and their opposites, groups `(…)` and `(?:…)`, `|`, `* + ? {m,n}` (lazy ones too: the
language is the same), and `^` and `$` at the two ends. Look-around and back-references are not regular, and are refused by name.
"""

from __future__ import annotations

from modelyard.runtime._grammar import GrammarError, Node, alt, characters, repeat, seq

LENGTH = 2_000
"""Characters of an expression."""
TIMES = 1_000
"""Largest count in {m,n}."""
SIZE = 20_000
"""Counts within counts, multiplied."""
NEST = 50
LAST = 0x10FFFF

Ranges = list[tuple[int, int]]
DIGITS: Ranges = [(48, 57)]
WORDS: Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
BLANKS: Ranges = [(9, 13), (32, 32)]
NAMED = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}


def expression(pattern: str, inside_json: bool = False) -> Node:
    """The grammar of texts that match as a whole. `inside_json`: as a JSON string writes them, so without `"`, `\\` and controls;
    there an expression without `^` and `$` is refused, since a schema's `pattern` may match anywhere."""
    if not isinstance(pattern, str) or len(pattern) > LENGTH:
        raise GrammarError(f"the expression must be a text of at most {LENGTH} characters")
    if inside_json and not (pattern.startswith("^") and pattern.endswith("$") and not pattern.endswith("\\$")):
        raise GrammarError("a pattern must begin with ^ and end in $, so that it says what the whole text is")
    found = Parser(pattern.removeprefix("^"), inside_json)
    node = found.choice(0)
    if found.at < len(found.text):
        raise GrammarError(f"the expression has ) at {found.at} without its (")
    return node


class Parser:
    """One pass from left to right."""

    def __init__(self, text: str, inside_json: bool) -> None:
        self.text = text[:-1] if text.endswith("$") and not text.endswith("\\$") else text
        self.at, self.size = 0, 1
        self.usable: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, LAST)] if inside_json else [(0, LAST)]

    def peek(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def choice(self, depth: int) -> Node:
        """`a|b|c`."""
        if depth > NEST:
            raise GrammarError(f"the expression nests deeper than {NEST}")
        parts = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            parts.append(self.sequence(depth))
        return alt(*parts)

    def sequence(self, depth: int) -> Node:
        """Pieces until `|`, `)` or the end."""
        parts: list[Node] = []
        while (c := self.peek()) and c not in "|)":
            parts.append(self.counted(depth))
        return seq(*parts)

    def counted(self, depth: int) -> Node:
        """A piece and how often it stands."""
        size, self.size = self.size, 1
        node = self.piece(depth)
        while (c := self.peek()) and (c in "*+?" or (c == "{" and self._count() is not None)):
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(c) or self._taken()
            if c != "{":
                self.at += 1
            if max(least, most or 0) > TIMES or (most is not None and least > most):
                raise GrammarError(f"the expression repeats {least} to {most} times; at most {TIMES}")
            self.size *= max(1, least, most or 1)
            if self.size > SIZE:
                raise GrammarError(f"the expression repeats within repeats more than {SIZE} times")
            node = repeat(node, least, most)
            if self.peek() and self.peek() in "?+":  # lazy and possessive: the same texts, but for what possessive ones give up
                if self.peek() == "+":
                    raise GrammarError("the expression has a possessive count, which is not read")
                self.at += 1
        self.size = max(size, self.size) if size == 1 or self.size == 1 else size + self.size
        if self.size > SIZE:
            raise GrammarError(f"the expression repeats more than {SIZE} times")
        return node

    def _count(self) -> tuple[int, int | None] | None:
        """{m}, {m,}, {,n} or {m,n}; anything else is a brace as it stands."""
        end = self.text.find("}", self.at)
        inner = self.text[self.at + 1 : end] if end > 0 else ""
        low, comma, high = inner.partition(",")
        if not inner or not (low + high) or len(inner) > 12 or not all(x.isascii() and x.isdigit() for x in (low, high) if x):
            return None
        return int(low or 0), (int(high) if high else None) if comma else int(low)

    def _taken(self) -> tuple[int, int | None]:
        found = self._count()
        assert found is not None
        self.at = self.text.index("}", self.at) + 1
        return found

    def piece(self, depth: int) -> Node:
        """A letter, a set or a group."""
        c = self.peek()
        self.at += 1
        if c == "(":
            if self.peek() == "?":
                if self.text[self.at : self.at + 2] != "?:":
                    raise GrammarError(f"the expression has (?{self.text[self.at + 1 : self.at + 3]} at {self.at}; of these only (?: is read")
                self.at += 2
            node = self.choice(depth + 1)
            if self.peek() != ")":
                raise GrammarError("the expression has a ( without its )")
            self.at += 1
            return node
        if c == "[":
            return self._one(self.members())
        if c == ".":
            return self._one(opposite([(10, 10)]))
        if c == "\\":
            return self._one(self.escape())
        if c in "*+?":
            raise GrammarError(f"the expression has {c} at {self.at - 1} with nothing to repeat")
        if c in "^$":
            raise GrammarError(f"the expression has {c} inside; it is read at the two ends")
        return self._one([(ord(c), ord(c))])

    def _one(self, ranges: Ranges) -> Node:
        kept = [(max(a, x), min(b, y)) for a, b in ranges for x, y in self.usable if max(a, x) <= min(b, y)]
        if not kept:
            raise GrammarError("the expression asks for a character that cannot stand there")
        return characters(merged(kept))

    def escape(self) -> Ranges:
        """What stands behind a backslash."""
        c = self.peek()
        self.at += 1
        sets = {"d": DIGITS, "w": WORDS, "s": BLANKS}
        if c.lower() in sets and c:
            return sets[c] if c in sets else opposite(sets[c.lower()])
        if c in NAMED and c:
            return [(NAMED[c], NAMED[c])]
        if c in ("x", "u"):
            digits = self.text[self.at : self.at + (2 if c == "x" else 4)]
            self.at += len(digits)
            try:
                return [(int(digits, 16), int(digits, 16))]
            except ValueError:
                raise GrammarError(f"the expression has \\{c}{digits}, which is no character") from None
        if not c or c.isalnum():
            raise GrammarError(f"the expression has \\{c}, which is not read")
        return [(ord(c), ord(c))]

    def members(self) -> Ranges:
        """`[…]`."""
        negative = self.peek() == "^"
        self.at += negative
        found: Ranges = []
        first = True
        while (c := self.peek()) != "]" or first:
            first = False
            if not c:
                raise GrammarError("the expression has a [ without its ]")
            self.at += 1
            low = self.escape() if c == "\\" else [(ord(c), ord(c))]
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "") and low[0][0] == low[-1][1]:
                self.at += 1
                d = self.peek()
                self.at += 1
                high = self.escape() if d == "\\" else [(ord(d), ord(d))]
                if high[0][0] != high[-1][1] or high[0][0] < low[0][0]:
                    raise GrammarError("the expression has a range in [ ] that runs backwards")
                low = [(low[0][0], high[0][0])]
            found += low
        self.at += 1
        return opposite(found) if negative else found


def merged(ranges: Ranges) -> Ranges:
    """Sorted, without overlaps."""
    found: Ranges = []
    for a, b in sorted(ranges):
        if found and a <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], b))
        else:
            found.append((a, b))
    return found


def opposite(ranges: Ranges) -> Ranges:
    """All other characters."""
    found, start = [], 0
    for a, b in merged(ranges):
        if a > start:
            found.append((start, a - 1))
        start = b + 1
    return [*found, (start, LAST)] if start <= LAST else found
