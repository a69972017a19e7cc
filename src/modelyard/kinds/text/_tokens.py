"""Sub-words trained on the column itself, by the `tokenizers` library."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged
from modelyard.kinds.text._codes import mix
from modelyard.settings import Between

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

PAD, UNSEEN, END = 0, 1, 2
SPECIAL = ["<pad>", "<unk>", "<end>"]
"""The last one only in vocabularies of texts that are written."""
CONTINUES = "##"
"""Begins a word piece that is not the first of its word."""
BLANK = "▁"
CUT = 16
"""A text is cut to `CUT * max_length` characters before it is split, so that one huge row cannot take seconds."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """How texts become sub-words."""

    model: Literal["bpe", "unigram", "word-piece", "bytes", "characters"] = "bpe"
    """`bpe`: Sennrich 2016; `unigram`: Kudo 2018; `word-piece`: Schuster & Nakajima 2012; `bytes`: BPE over UTF-8 bytes (GPT-2), for
    which nothing is unseen; `characters`: one id for each, blanks included."""
    vocabulary: int = 8_000
    """Number of ids, the reserved ones included."""
    max_length: int = 256
    """Tokens kept of a text; the rest is cut."""
    lowercase: bool = True
    min_count: int = 2
    """Pairs met less often are not merged."""
    sample: int = 20_000_000
    """Characters kept for training the vocabulary; above it texts are drawn by hash (the same whatever the order)."""
    fill: Annotated[int, Between(0)] = 0
    """Tokens to which every text is filled up (and cut) with padding that the net sees like any token. 0: nets never see padding, which
    is faster and makes texts independent of what they are batched with."""
    side: Literal["back", "front", "random"] = "back"
    """Where `fill` puts the padding; random: anywhere while training, so that a net cannot rely on a text's place, and behind it after."""


@dataclass
class TokensState:
    """Texts while fitting; the tokenizer's own JSON afterwards."""

    model: str = "bpe"
    vocabulary: int = 8_000
    max_length: int = 256
    lowercase: bool = True
    min_count: int = 2
    sample: int = 20_000_000
    texts: list[str] = field(default_factory=list)
    tokenizer: str = ""
    size: int = 2
    exact: bool = False
    """Whether a text can be had back from its ids: nothing is normalised, and there is an id that ends it."""
    fill: int = 0
    side: str = "back"
    joint: bool = False
    """Whether the vocabulary is shared with the text that this one is made from."""


class Tokens(Encoding):
    """Part `tokens`: id 0 is padding, 1 an unseen character, the rest trained sub-words.

    Text is cut at blanks and punctuation, never across; between them a run of Chinese is one unit from which frequent
    words are learnt.
    """

    name = "tokens"
    Config = TokensConfig
    State = TokensState

    def start(self, config: TokensConfig) -> TokensState:
        """No texts yet."""
        return TokensState(
            config.model, config.vocabulary, config.max_length, config.lowercase, config.min_count, config.sample, fill=config.fill,
            side=config.side,
        )  # fmt: skip

    def update(self, state: TokensState, column: pl.Series) -> TokensState:
        """Keeps the texts of a `String` column, up to the sample."""
        texts = column.drop_nulls().str.slice(0, CUT * state.max_length).to_list()
        return self.merge(state, replace(state, texts=texts))

    def merge(self, a: TokensState, b: TokensState) -> TokensState:
        """Texts of both; above the sample those with the smallest hashes stay (a bottom-k sketch, Cohen & Kaplan 2007)."""
        return replace(a, texts=_sampled(a.texts + b.texts, a.sample))

    def finish(self, state: TokensState) -> TokensState:
        """Trains the vocabulary; the texts are let go."""
        tokenizer = _train(sorted(state.texts), state)  # sorted, so that merging in another order trains the same vocabulary
        state.texts, state.tokenizer, state.size = [], tokenizer.to_str(), tokenizer.get_vocab_size()
        return state

    def parts(self, state: TokensState) -> dict[str, Part]:
        """`tokens`."""
        return {"tokens": Part((None,), "int32", state.size, shared=state.joint)}

    def encode(self, column: pl.Series, state: TokensState, context: Context) -> dict[str, Array]:
        """Ragged int32 `tokens`, cut to `max_length`; missing and empty texts have length 0."""
        longest = min(state.max_length, state.fill or state.max_length)
        found = [ids[:longest] for ids in ids_of(column, state)]
        if state.fill:
            rest = [[PAD] * (state.fill - len(ids)) for ids in found]
            found = [[*r, *ids] if state.side == "front" else [*ids, *r] for ids, r in zip(found, rest, strict=True)]
        return {"tokens": ragged(found, np.int32)}


def ids_of(column: pl.Series, state: TokensState) -> list[list[int]]:
    """Ids of each text of a column, uncut."""
    texts = column.fill_null("").str.slice(0, CUT * state.max_length).to_list()
    return [e.ids for e in tokenizer_of(state.tokenizer).encode_batch_fast(texts, add_special_tokens=False)]


def ragged(lists: list[list[int]], dtype: type) -> Ragged:
    """Lists of ids as one array with offsets."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=offsets[1:])
    return Ragged(np.fromiter(itertools.chain.from_iterable(lists), dtype, int(offsets[-1])), offsets)


@lru_cache(maxsize=16)
def tokenizer_of(text: str) -> Tokenizer:
    """The tokenizer of a stored JSON text (parsing takes milliseconds, so the last 16 are kept)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True  # "<end>" in somebody's text is a text and ends nothing
    return tokenizer


def _sampled(texts: list[str], limit: int) -> list[str]:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if lengths.sum() <= limit:
        return texts
    # Polars' own hash may change between versions; the sum of mixed bytes by position does not.
    order = np.argsort(np.asarray([_hash(t) for t in texts], np.uint64), kind="stable")
    kept = order[np.cumsum(lengths[order]) <= limit]
    return [texts[i] for i in np.sort(kept)]


def _hash(text: str) -> np.uint64:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    place = np.arange(1, len(codes) + 1, dtype=np.uint64) << np.uint64(32)
    return mix(np.asarray([mix(codes + place).sum() + np.uint64(len(codes))], np.uint64))[0]  # type: ignore[no-any-return]


def _train(texts: list[str], state: TokensState) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    made: dict[str, Callable[[], Any]] = {
        "unigram": models.Unigram,
        "bytes": lambda: models.BPE(unk_token=None),
        "bpe": lambda: models.BPE(unk_token=SPECIAL[UNSEEN]),
        "characters": lambda: models.WordLevel(unk_token=SPECIAL[UNSEEN]),
        # the limit is a guard of time against words without end; a run of Chinese is a word here
        "word-piece": lambda: models.WordPiece(unk_token=SPECIAL[UNSEEN], max_input_chars_per_word=1000),
    }
    tokenizer = Tokenizer(made[state.model]())
    steps: list[Any] = [] if state.exact else [normalizers.NFKC()]
    steps += [normalizers.Lowercase()] * state.lowercase
    if state.exact and state.model not in ("bytes", "characters"):
        steps.append(normalizers.Prepend(BLANK))  # one more, whatever the text begins with, so that it can be taken away again
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = _cutter(state)
    special = [AddedToken(s, special=True, normalized=False) for s in SPECIAL[: 3 if state.exact else 2]]
    tokenizer.train_from_iterator(texts, trainer=_trainer(state, special), length=len(texts))
    return tokenizer


def _cutter(state: TokensState) -> Any:
    """What cuts texts into units that no token crosses."""
    from tokenizers import Regex, pre_tokenizers

    if state.model == "bytes":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if state.model == "characters":
        return pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # A blank stays with the word after it as "▁"; punctuation stands alone.
    split = pre_tokenizers.Split(Regex(r"[^\s\p{L}\p{M}\p{N}▁]"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never" if state.exact else "always"), split])


def _trainer(state: TokensState, special: list[AddedToken]) -> Any:
    from tokenizers import pre_tokenizers, trainers

    common: dict[str, Any] = {"vocab_size": state.vocabulary, "special_tokens": special, "show_progress": False}
    if state.model == "unigram":
        return trainers.UnigramTrainer(**common, unk_token=SPECIAL[UNSEEN])
    if state.model == "characters":
        return trainers.WordLevelTrainer(**common)
    letters = max(1, state.vocabulary - len(special))
    if state.model == "word-piece":
        # word pieces know each letter twice, as the first of a word and within one
        return trainers.WordPieceTrainer(
            **common, min_frequency=state.min_count, limit_alphabet=max(1, letters // 2), continuing_subword_prefix=CONTINUES
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if state.model == "bytes" else []
    return trainers.BpeTrainer(
        **common, min_frequency=state.min_count, initial_alphabet=alphabet, max_token_length=16, limit_alphabet=letters
    )
