"""What the ids of a tokenizer stand for: bytes of each id, and ids to text one at a time without half a character.

Tokenizers write texts in four ways: bytes disguised as letters (GPT-2, Radford et al. 2019), a mark for a blank with bytes as `<0x0A>`
(SentencePiece, Kudo & Richardson 2018), word pieces (`##ing`), or characters as they are. Read from the tokenizer's own JSON.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import cached_property, lru_cache
from typing import Any

from modelyard.kinds.text._written import byte_letters

MARK = "▁"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """Ids and bytes of a `tokenizer.json` text."""

    def __init__(self, tokenizer: str) -> None:
        self.json = json.loads(tokenizer)
        self.tokenizer = _tokenizer(tokenizer)
        self.size: int = self.tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids that are no text: padding, the end, turns of a conversation."""
        return frozenset(t["id"] for t in self.json.get("added_tokens", []) if t.get("special"))

    @cached_property
    def pieces(self) -> list[bytes]:
        """Bytes that each id adds to a text; nothing for special ones. The first of a text loses its blank where `leading`."""
        added = {t["id"]: str(t["content"]) for t in self.json.get("added_tokens", [])}
        found = []
        for i in range(self.size):
            name = self.tokenizer.id_to_token(i) or ""
            found.append(b"" if i in self.special else added[i].encode("utf-8") if i in added else self._bytes(name))
        return found

    def _bytes(self, name: str) -> bytes:
        if "ByteLevel" in self._parts:
            table = byte_letters()
            return bytes(table[c] for c in name) if all(c in table for c in name) else name.encode("utf-8")
        if (match := BYTE.fullmatch(name)) and self.json["model"].get("byte_fallback"):
            return bytes([int(match[1], 16)])
        if self.json["model"].get("type") == "WordPiece":
            prefix = self.json["model"].get("continuing_subword_prefix", "##")
            return (name.removeprefix(prefix) if name.startswith(prefix) else f" {name}").encode("utf-8")
        return (name.replace(MARK, " ") if self._marked else name).encode("utf-8")

    @cached_property
    def _parts(self) -> set[str]:
        """Types of the decoder's and the pre-tokenizer's steps."""
        found: set[str] = set()
        todo: list[Any] = [self.json.get("decoder"), self.json.get("pre_tokenizer")]
        while todo:
            step = todo.pop()
            if isinstance(step, dict):
                found.add(str(step.get("type")))
                todo += [*step.get("decoders", []), *step.get("pretokenizers", [])]
        return found

    @cached_property
    def _marked(self) -> bool:
        return "Metaspace" in self._parts or f'"String": "{MARK}"' in json.dumps([self.json.get("decoder")], ensure_ascii=False)

    @cached_property
    def leading(self) -> bool:
        """Whether a text's first blank is the tokenizer's own and not the text's."""
        if self.json["model"].get("type") == "WordPiece":
            return True
        schemes = re.findall(r'"prepend_scheme": "(\w+)"', json.dumps([self.json.get("decoder"), self.json.get("pre_tokenizer")]))
        return self._marked and "ByteLevel" not in self._parts and (bool(set(schemes) - {"never"}) or (not schemes))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; `special` adds what the tokenizer puts around one (a begin-of-text token)."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def text(self, ids: list[int], leading: bool | None = None) -> str:
        """The text of ids; half characters at its end become U+FFFD."""
        writer = Writer(self, self.leading if leading is None else leading)
        return "".join(writer.add(i) for i in ids) + writer.end()


class Writer:
    """Ids to text one after the other: bytes of a character that is not whole yet wait for the rest."""

    def __init__(self, vocabulary: Vocabulary, leading: bool = False) -> None:
        self.pieces, self.strip = vocabulary.pieces, leading
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What the id adds that is certain."""
        text = self.decoder.decode(self.pieces[token] if token < len(self.pieces) else b"")
        if text and self.strip:
            self.strip, text = False, text.removeprefix(" ")
        return text

    def end(self) -> str:
        """What was waiting: U+FFFD for half a character."""
        return self.decoder.decode(b"", final=True)


class Stops:
    """Finds stop strings in a text that comes in pieces; what may be the beginning of one waits."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops, self.waiting = stops, ""

    def add(self, text: str) -> tuple[str, bool]:
        """(text that is certain, whether a stop string was met; the text ends before it)."""
        if not self.stops:
            return text, False
        self.waiting += text
        found = [at for s in self.stops if (at := self.waiting.find(s)) >= 0]
        if found:
            certain, self.waiting = self.waiting[: min(found)], ""
            return certain, True
        keep = max((n for s in self.stops for n in range(1, min(len(s), len(self.waiting) + 1)) if self.waiting.endswith(s[:n])), default=0)
        cut = len(self.waiting) - keep
        certain, self.waiting = self.waiting[:cut], self.waiting[cut:]
        return certain, False

    def end(self) -> str:
        """What waited and came to nothing."""
        rest, self.waiting = self.waiting, ""
        return rest


@lru_cache(maxsize=1)
def _tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
