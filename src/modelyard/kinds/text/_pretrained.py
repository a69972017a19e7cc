"""Sub-words in Hugging Face's form, special tokens included: those of a base's `tokenizer.json`, or word pieces trained on the column.

The tokenizer is stored as it came, so that a model folder holds the very file that other programs read.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard.errors import ArtefactError
from modelyard.kinds._contract import Array, Context, Encoding, Part, Ragged
from modelyard.kinds.text._codes import LETTER, class_of
from modelyard.kinds.text._tokens import CUT, _sampled

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
"""Roles of special tokens, as `tokenizer_config.json` calls them, and BERT's names for them."""
LIMIT = 64 * 2**20
"""Bytes of a tokenizer.json that is read; that of 250,000 pieces has 17 MB."""


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Where the tokenizer comes from, and how long a text may be."""

    base: str | None = None
    """Folder with tokenizer.json; a net with a base sets it. Without one word pieces are trained on the column (Schuster & Nakajima 2012)."""
    max_length: int = 256
    """Tokens kept of a text, the special ones included; the rest is cut."""
    vocabulary: int = 8_000
    """Number of ids where the tokenizer is trained here."""
    lowercase: bool = True
    """Of a tokenizer that is trained here."""
    min_count: int = 2
    """Pairs met less often are not merged."""
    sample: int = 20_000_000
    """Characters kept for training the vocabulary."""


@dataclass
class PretrainedState:
    """Texts while fitting; the tokenizer's own files afterwards."""

    max_length: int = 256
    vocabulary: int = 8_000
    lowercase: bool = True
    min_count: int = 2
    sample: int = 20_000_000
    texts: list[str] = field(default_factory=list)
    tokenizer: str = ""
    """tokenizer.json."""
    settings: str = ""
    """tokenizer_config.json."""
    size: int = 0
    """Number of ids, added tokens included."""
    special: dict[str, int] = field(default_factory=dict)
    """Role → id of the special tokens that it has (`mask_token` …)."""


class Pretrained(Encoding):
    """Part `tokens`: ids of a tokenizer with its special tokens around the text, cut to `max_length`; never empty where it has any."""

    name = "pretrained"
    Config = PretrainedConfig
    State = PretrainedState

    def start(self, config: PretrainedConfig) -> PretrainedState:
        """The base's tokenizer, or no texts yet."""
        state = PretrainedState(config.max_length, config.vocabulary, config.lowercase, config.min_count, config.sample)
        return state if config.base is None else _read(Path(config.base), state)

    def update(self, state: PretrainedState, column: pl.Series) -> PretrainedState:
        """Keeps the texts of a `String` column, up to the sample; nothing where the tokenizer is given."""
        if state.tokenizer:
            return state
        texts = column.drop_nulls().str.slice(0, CUT * state.max_length).to_list()
        return _with(state, _sampled(state.texts + texts, state.sample))

    def merge(self, a: PretrainedState, b: PretrainedState) -> PretrainedState:
        """Texts of both."""
        return a if a.tokenizer else _with(a, _sampled(a.texts + b.texts, a.sample))

    def finish(self, state: PretrainedState) -> PretrainedState:
        """Trains the word pieces where no tokenizer came with a base; the texts are let go."""
        if not state.tokenizer:
            tokenizer = _train(sorted(state.texts), state)
            roles = {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": state.max_length}
            state.texts, state.tokenizer, state.settings = [], tokenizer.to_str(), json.dumps(roles)
            state.size, state.special = _facts(tokenizer, roles)
        return state

    def kept(self, config: PretrainedConfig) -> PretrainedConfig:
        """Without the folder of the base: its tokenizer is in the state."""
        return replace(config, base=None)

    def parts(self, state: PretrainedState) -> dict[str, Part]:
        """`tokens`."""
        return {"tokens": Part((None,), "int32", state.size)}

    def encode(self, column: pl.Series, state: PretrainedState, context: Context) -> dict[str, Array]:
        """Ragged int32 `tokens`; a missing text is an empty one. The context holds them too, and the state, for answers about tokens."""
        texts = column.fill_null("").str.slice(0, CUT * state.max_length).to_list()
        found = [e.ids for e in reader(state.tokenizer, state.max_length).encode_batch_fast(texts)]
        offsets = np.zeros(len(found) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, found), np.int64, len(found)), out=offsets[1:])
        ids = Ragged(np.fromiter(itertools.chain.from_iterable(found), np.int32, int(offsets[-1])), offsets)
        context |= {"tokens": ids, "reader": state}
        return {"tokens": ids}


@lru_cache(maxsize=16)
def reader(text: str, max_length: int) -> Tokenizer:
    """The tokenizer of a tokenizer.json, set to cut at `max_length` tokens and not to pad."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise ArtefactError(f"{TOKENIZER} cannot be read: {' '.join(str(error).split())[:200]}") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def files(state: PretrainedState) -> dict[str, str]:
    """The tokenizer's files by name, as Hugging Face's layout has them."""
    return {TOKENIZER: state.tokenizer, SETTINGS: state.settings}


def _read(folder: Path, state: PretrainedState) -> PretrainedState:
    path = folder / TOKENIZER
    if not path.is_file():
        hint = f'python -c "from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(\'{folder}\').save_pretrained(\'{folder}\')"'
        raise ArtefactError(f"{folder} has no {TOKENIZER}; where it has another form of tokenizer, write one with: {hint}")
    if path.stat().st_size > LIMIT:
        raise ArtefactError(f"{path} is larger than {LIMIT} bytes")
    text = path.read_text(encoding="utf-8")
    beside = folder / SETTINGS
    settings = beside.read_text(encoding="utf-8") if beside.is_file() else "{}"
    try:
        roles = json.loads(settings)
        roles = roles if isinstance(roles, dict) else {}
    except ValueError as error:
        raise ArtefactError(f"{beside} cannot be read: {error}") from None
    state.tokenizer, state.settings = text, settings
    state.size, state.special = _facts(reader(text, state.max_length), roles)
    return state


def _facts(tokenizer: Tokenizer, roles: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """(number of ids, role → id of special tokens); roles that the settings leave open are looked for under the usual names."""
    usual = {**{k: (v, f"<{v[1:-1].lower()}>") for k, v in SPECIAL.items()}, "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>")}
    found: dict[str, int] = {}
    for role, names in usual.items():
        named = roles.get(role)
        named = named.get("content") if isinstance(named, dict) else named
        ids = [tokenizer.token_to_id(n) for n in ([named] if isinstance(named, str) else names)]
        if known := [i for i in ids if i is not None]:
            found[role] = known[0]
    size = max((int(i) for i in tokenizer.get_vocab(with_added_tokens=True).values()), default=-1) + 1
    return size, found


def _with(state: PretrainedState, texts: list[str]) -> PretrainedState:
    return PretrainedState(state.max_length, state.vocabulary, state.lowercase, state.min_count, state.sample, texts)


def _train(texts: list[str], state: PretrainedState) -> Tokenizer:
    """Word pieces as BERT's: punctuation and Chinese characters stand alone, the rest of a word begins with `##`.

    The library numbers `##a`, `##b` … as a hash table yields them, and breaks ties of frequency by number: the same texts would train
    another vocabulary each time. Given as special tokens they have fixed numbers; the tokenizer is then made anew without that mark.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = list(SPECIAL.values())
    normalizer = normalizers.BertNormalizer(lowercase=state.lowercase)
    counts = Counter(c for t in texts for c in normalizer.normalize_str(t) if not c.isspace())
    most = sorted(counts, key=lambda c: (-counts[c], c))[: max(1, (state.vocabulary - len(special)) // 2)]
    inner = [f"##{c}" for c in sorted(most) if class_of(ord(c)) == LETTER]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=state.vocabulary, min_frequency=state.min_count, special_tokens=[*special, *inner], show_progress=False,
        initial_alphabet=sorted(most), limit_alphabet=len(most),
    )  # fmt: skip
    trained.train_from_iterator(texts, trainer=trainer, length=len(texts))
    tokenizer = Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = trained.normalizer, trained.pre_tokenizer, decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    ends = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends)
    return tokenizer
