"""Sub-words trained on the column itself, by the `tokenizers` library."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged
from modelyard.kinds.text._codes import mix

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNSEEN = 0, 1
SPECIAL = ["<pad>", "<unk>"]
CUT = 16
"""A text is cut to `CUT * max_length` characters before it is split, so that one huge row cannot take seconds."""


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """How texts become sub-words."""

    model: Literal["bpe", "unigram", "bytes"] = "bpe"
    """`bpe`: Sennrich 2016; `unigram`: Kudo 2018; `bytes`: BPE over UTF-8 bytes (GPT-2), for which nothing is unseen."""
    vocabulary: int = 8_000
    """Number of ids, the two reserved ones included."""
    max_length: int = 256
    """Tokens kept of a text; the rest is cut."""
    lowercase: bool = True
    min_count: int = 2
    """Pairs met less often are not merged."""
    sample: int = 20_000_000
    """Characters kept for training the vocabulary; above it texts are drawn by hash (the same whatever the order)."""


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
            config.model, config.vocabulary, config.max_length, config.lowercase, config.min_count, config.sample
        )

    def update(self, state: TokensState, column: pl.Series) -> TokensState:
        """Keeps the texts of a `String` column, up to the sample."""
        texts = column.drop_nulls().str.slice(0, CUT * state.max_length).to_list()
        return self.merge(state, _with(state, texts))

    def merge(self, a: TokensState, b: TokensState) -> TokensState:
        """Texts of both; above the sample those with the smallest hashes stay (a bottom-k sketch, Cohen & Kaplan 2007)."""
        return _with(a, _sampled(a.texts + b.texts, a.sample))

    def finish(self, state: TokensState) -> TokensState:
        """Trains the vocabulary; the texts are let go."""
        tokenizer = _train(sorted(state.texts), state)  # sorted, so that merging in another order trains the same vocabulary
        state.texts, state.tokenizer, state.size = [], tokenizer.to_str(), tokenizer.get_vocab_size()
        return state

    def parts(self, state: TokensState) -> dict[str, Part]:
        """`tokens`."""
        return {"tokens": Part((None,), "int32", state.size)}

    def encode(self, column: pl.Series, state: TokensState, context: Context) -> dict[str, Array]:
        """Ragged int32 `tokens`, cut to `max_length`; missing and empty texts have length 0."""
        texts = column.fill_null("").str.slice(0, CUT * state.max_length).to_list()
        found = [e.ids for e in tokenizer_of(state.tokenizer).encode_batch_fast(texts, add_special_tokens=False)]
        found = [ids[: state.max_length] for ids in found]
        offsets = np.zeros(len(found) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, found), np.int64, len(found)), out=offsets[1:])
        ids = np.fromiter(itertools.chain.from_iterable(found), np.int32, int(offsets[-1]))
        return {"tokens": Ragged(ids, offsets)}


@lru_cache(maxsize=16)
def tokenizer_of(text: str) -> Tokenizer:
    """The tokenizer of a stored JSON text (parsing takes milliseconds, so the last 16 are kept)."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def _with(state: TokensState, texts: list[str]) -> TokensState:
    return TokensState(
        state.model, state.vocabulary, state.max_length, state.lowercase, state.min_count, state.sample, texts
    )


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
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    steps = [normalizers.NFKC()] + [normalizers.Lowercase()] * state.lowercase
    if state.model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=None if state.model == "bytes" else SPECIAL[UNSEEN]))
    tokenizer.normalizer = normalizers.Sequence(steps)
    if state.model == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        # A blank stays with the word after it as "▁"; punctuation stands alone.
        split = pre_tokenizers.Split(Regex(r"[^\s\p{L}\p{M}\p{N}▁]"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), split])
    special = [AddedToken(s, special=True, normalized=False) for s in SPECIAL]
    if state.model == "unigram":
        trainer: trainers.Trainer = trainers.UnigramTrainer(
            vocab_size=state.vocabulary, special_tokens=special, unk_token=SPECIAL[UNSEEN], show_progress=False
        )
    else:
        alphabet = pre_tokenizers.ByteLevel.alphabet() if state.model == "bytes" else []
        trainer = trainers.BpeTrainer(
            vocab_size=state.vocabulary, min_frequency=state.min_count, special_tokens=special, show_progress=False,
            initial_alphabet=alphabet, max_token_length=16, limit_alphabet=max(1, state.vocabulary - len(SPECIAL)),
        )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer=trainer, length=len(texts))
    return tokenizer
