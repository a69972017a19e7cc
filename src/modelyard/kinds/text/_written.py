"""A text that is to be written, as ids that end in the end-of-text token; exactly what is read back from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part
from modelyard.kinds.text._tokens import BLANK, CONTINUES, END, UNSEEN, Tokens, TokensState, ids_of, ragged, tokenizer_of


@dataclass(frozen=True, kw_only=True)
class WrittenConfig:
    """How texts to write become ids."""

    model: Literal["bpe", "unigram", "word-piece", "bytes", "characters"] = "bpe"
    """As for `tokens`. Characters that training never saw cannot be written, and U+2581 becomes a blank, except with `bytes`."""
    vocabulary: int = 8_000
    """Number of ids, the reserved ones included."""
    max_length: int = 256
    """Tokens kept of a text, the one that ends it included; a text that is cut has no end."""
    lowercase: bool = False
    min_count: int = 2
    """Pairs met less often are not merged."""
    sample: int = 20_000_000
    """Characters kept for training the vocabulary."""
    joint: bool = True
    """One vocabulary for this text and the one it is made from, trained on both: names and numbers look alike on both sides, and a
    net can tie its embeddings. False: each has its own."""


class Written(Encoding):
    """Part `ids`: int64, the tokens of the text and `END`. A state of `Tokens` whose texts can be had back."""

    name = "written"
    Config = WrittenConfig
    State = TokensState

    def start(self, config: WrittenConfig) -> TokensState:
        """No texts yet."""
        return TokensState(
            config.model, config.vocabulary, config.max_length, config.lowercase, config.min_count, config.sample, exact=True,
            joint=config.joint,
        )  # fmt: skip

    def update(self, state: TokensState, column: pl.Series) -> TokensState:
        """Keeps the texts, as `Tokens` does."""
        return Tokens().update(state, column)

    def merge(self, a: TokensState, b: TokensState) -> TokensState:
        """Texts of both."""
        return Tokens().merge(a, b)

    def finish(self, state: TokensState) -> TokensState:
        """Trains the vocabulary."""
        return Tokens().finish(state)

    def joined(self, own: TokensState, other: Any) -> tuple[TokensState, TokensState] | None:
        """One vocabulary for both where `joint` asks for it and the other side is of sub-words too; each keeps its own length."""
        if not own.joint or not isinstance(other, TokensState):
            return None
        state = self.finish(self.merge(own, other))
        return state, replace(state, max_length=other.max_length)

    def parts(self, state: TokensState) -> dict[str, Part]:
        """`ids`."""
        return {"ids": Part((None,), "int64", state.size)}

    def encode(self, column: pl.Series, state: TokensState, context: Context) -> dict[str, Array]:
        """Ragged int64 `ids`; a missing text is an empty one."""
        return {"ids": ragged([[*ids, END][: state.max_length] for ids in ids_of(column, state)], np.int64)}

    def head(self, state: TokensState) -> tuple[str, int]:
        """Nets that write give the sums of the loss as `tokens`, over as many ids."""
        return "tokens", state.size

    def decode(self, arrays: Mapping[str, np.ndarray], state: TokensState, context: Context) -> dict[str, pl.Series]:
        """`ids` (B, T) up to the first `END` as texts. `score` (B,) is the mean log-probability of a text's tokens; `gap` (B,) how far the
        nearest other choice on its way was, so that two backends can tell a tie from a fault."""
        found = {"": pl.Series([text_of(row, state) for row in arrays["ids"]], dtype=pl.String)}
        return found | {name: pl.Series(arrays[name].astype(np.float64)) for name in ("score", "gap") if name in arrays}


def text_of(ids: np.ndarray, state: TokensState) -> str:
    """The text of ids, up to the first `END`."""
    stop = np.flatnonzero(ids == END)
    pieces = _pieces(state.tokenizer, state.model)
    own = [pieces[i] for i in (ids[: stop[0]] if len(stop) else ids).tolist()]
    if state.model == "bytes":
        return b"".join(own).decode("utf-8", "replace")  # type: ignore[arg-type]
    text = "".join(own)  # type: ignore[arg-type]
    return text if state.model == "characters" else text.replace(BLANK, " ").removeprefix(" ")


@lru_cache(maxsize=16)
def _pieces(tokenizer: str, model: str) -> list[str] | list[bytes]:
    """What each id adds to a text: nothing for padding, U+FFFD for what is unseen."""
    known = tokenizer_of(tokenizer)
    names = [known.id_to_token(i) or "" for i in range(known.get_vocab_size())]
    names[0], names[UNSEEN], names[END] = "", "\ufffd", ""
    if model == "bytes":
        value = byte_letters()
        return [n.encode("utf-8") if i <= END else bytes(value[c] for c in n) for i, n in enumerate(names)]
    if model == "word-piece":
        # a mark stands alone and is never continued, so "##" before something is never a text's own
        return [n.removeprefix(CONTINUES) if len(n) > len(CONTINUES) else n for n in names]
    return names


def byte_letters() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level BPE (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}
