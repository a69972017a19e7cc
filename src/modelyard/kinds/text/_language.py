"""Texts for a causal language model: one tokenizer for what is read and what is written, in Hugging Face's own form.

The tokenizer is that of a base (`tokenizer.json`, kept as it came) or trained on both columns together. Ours are exact: the text is had
back from its ids, nothing is normalised, and for `bytes` nothing is unseen. `<|endoftext|>` ends a text and stands where there is none
before; `<|im_start|>` and `<|im_end|>` are for conversations (ChatML), so that a model of plain text can be taught to chat.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from modelyard.errors import ArtefactError
from modelyard.kinds._contract import Array, Context, Encoding, Part
from modelyard.kinds.text._tokens import _sampled, ragged

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
END, TURN, TURN_END, UNSEEN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
SPECIAL = [END, TURN, TURN_END, UNSEEN]
LIMIT = 64 * 2**20
"""Bytes of a tokenizer.json that is read; that of 250,000 pieces has 17 MB."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The chat template of models that came without one (OpenAI's ChatML, as Qwen writes it)."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Where the tokenizer comes from."""

    model: Literal["bytes", "unigram", "characters"] = "bytes"
    """`bytes`: BPE over UTF-8 bytes (Radford et al. 2019), for which nothing is unseen; `unigram`: Kudo 2018; `characters`: one id each."""
    vocabulary: int = 8_000
    """Number of ids at most, the four reserved ones included."""
    min_count: int = 2
    """Pairs met less often are not merged."""
    sample: int = 20_000_000
    """Characters kept for training the vocabulary; above it texts are drawn by hash."""
    base: str | None = None
    """Folder with tokenizer.json; a net with a base sets it."""
    template: str | None = None
    """Chat template (Jinja) in place of the base's, or of ChatML."""
    target: bool = False
    """Whether the column is what is written."""


@dataclass
class LanguageState:
    """Texts while fitting; the tokenizer's own files afterwards."""

    model: str = "bytes"
    vocabulary: int = 8_000
    min_count: int = 2
    sample: int = 20_000_000
    target: bool = False
    texts: list[str] = field(default_factory=list)
    tokenizer: str = ""
    """tokenizer.json."""
    settings: str = ""
    """tokenizer_config.json."""
    template: str = CHATML
    ends: list[int] = field(default_factory=list)
    """Ids after which nothing is written; the first one is put behind texts and, where nothing stands before them, in front."""
    size: int = 0


class Language(Encoding):
    """Input part `tokens` (int32), target part `ids` (int64): the text and the token that ends it.

    Where there is nothing to read, the end of the text before is read: an empty prompt is one token. A missing prompt has none: the
    text goes on from that of the row before (a corpus cut into pieces), which then has no end.
    """

    name = "language"
    Config = LanguageConfig
    State = LanguageState

    def start(self, config: LanguageConfig) -> LanguageState:
        """The base's tokenizer, or no texts yet."""
        state = LanguageState(config.model, config.vocabulary, config.min_count, config.sample, config.target)
        state = state if config.base is None else read(Path(config.base), state)
        return state if config.template is None else replace(state, template=config.template)

    def kept(self, config: LanguageConfig) -> LanguageConfig:
        """Without the folder of the base: its tokenizer is in the state."""
        return replace(config, base=None)

    def update(self, state: LanguageState, column: pl.Series) -> LanguageState:
        """Keeps texts, up to the sample; nothing where the tokenizer is given."""
        return state if state.tokenizer else replace(state, texts=_sampled(state.texts + self.texts(column), state.sample))

    def texts(self, column: pl.Series) -> list[str]:
        """What a column says."""
        return [t for t in column.drop_nulls().to_list() if t]

    def merge(self, a: LanguageState, b: LanguageState) -> LanguageState:
        """Texts of both."""
        return a if a.tokenizer else replace(a, texts=_sampled(a.texts + b.texts, a.sample))

    def finish(self, state: LanguageState) -> LanguageState:
        """Trains the tokenizer where none came with a base; the texts are let go."""
        return state if state.tokenizer else _trained(state)

    def joined(self, own: LanguageState, other: Any) -> tuple[LanguageState, LanguageState] | None:
        """One tokenizer for what is written and what is read, trained on both unless the reader has one."""
        if not isinstance(other, LanguageState):
            return None
        shared = self.finish(other if other.tokenizer else self.merge(other, own))
        return replace(shared, target=True), replace(shared, target=False)

    def parts(self, state: LanguageState) -> dict[str, Part]:
        """`ids` of a target, else `tokens`."""
        return {"ids": Part((None,), "int64", state.size)} if state.target else {"tokens": Part((None,), "int32", state.size, shared=True)}

    def encode(self, column: pl.Series, state: LanguageState, context: Context) -> dict[str, Array]:
        """Ragged ids; a target's in the `context` of its input, which knows what follows an answer (the end of a turn)."""
        known = reader(state.tokenizer)
        if not state.target:
            ids = [e.ids for e in known.encode_batch_fast(column.fill_null("").to_list(), add_special_tokens=True)]
            context["goes_on"] = column.is_null().to_list()
            return {"tokens": ragged([i or ([] if n else state.ends[:1]) for i, n in zip(ids, context["goes_on"], strict=True)], np.int32)}
        texts = column.fill_null("").to_list()
        if "tails" in context:
            texts = [text + tail for text, tail in zip(texts, context["tails"], strict=True)]
            return {"ids": ragged([e.ids for e in known.encode_batch_fast(texts, add_special_tokens=False)], np.int64)}
        ids = [e.ids for e in known.encode_batch_fast(texts, add_special_tokens=False)]
        after = [*context.get("goes_on", [False] * len(ids))[1:], False]
        return {"ids": ragged([i if more else [*i, state.ends[0]] for i, more in zip(ids, after, strict=True)], np.int64)}

    def head(self, state: LanguageState) -> tuple[str, int]:
        """Nets that write give the sums of the loss as `tokens`, over as many ids."""
        return "tokens", state.size

    def decode(self, arrays: Mapping[str, np.ndarray], state: LanguageState, context: Context) -> dict[str, pl.Series]:
        """`ids` (B, T) up to the first that ends a text, as texts; `score` and `gap` (B,) as in `Written.decode`."""
        known, ends = reader(state.tokenizer), np.array(state.ends)
        found = {"": pl.Series([_text(known, row, ends) for row in arrays["ids"]], dtype=pl.String)}
        return found | {name: pl.Series(arrays[name].astype(np.float64)) for name in ("score", "gap") if name in arrays}


def _text(known: Tokenizer, ids: np.ndarray, ends: np.ndarray) -> str:
    stop = np.flatnonzero(np.isin(ids, ends))
    return str(known.decode((ids[: stop[0]] if len(stop) else ids).tolist(), skip_special_tokens=True))


@lru_cache(maxsize=16)
def reader(text: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json; it neither cuts nor pads."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise ArtefactError(f"{TOKENIZER} cannot be read: {' '.join(str(error).split())[:200]}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def files(state: LanguageState) -> dict[str, str]:
    """The tokenizer's files by name, as Hugging Face's layout has them; the chat template stands in the settings and by itself."""
    settings = {**json.loads(state.settings or "{}"), "chat_template": state.template}
    return {TOKENIZER: state.tokenizer, SETTINGS: json.dumps(settings, ensure_ascii=False, indent=2) + "\n", TEMPLATE: state.template}


def names(state: LanguageState) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id`, `pad_token_id` as config.json and generation_config.json have them."""
    named, known = roles(state.settings), reader(state.tokenizer)
    ids = {f"{role}_id": known.token_to_id(named[role]) if role in named else None for role in ("bos_token", "eos_token", "pad_token")}
    return ids | {"eos_token_id": ids["eos_token_id"] if ids["eos_token_id"] is not None else state.ends[0]}


def read(folder: Path, state: LanguageState) -> LanguageState:
    """The state with the tokenizer, the template and the ends of a base. Raises `ArtefactError` naming what lacks."""
    path = folder / TOKENIZER
    if not path.is_file():
        hint = f"python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
        raise ArtefactError(f"{folder} has no {TOKENIZER}; where it has another form of tokenizer, write one with: {hint}")
    if path.stat().st_size > LIMIT:
        raise ArtefactError(f"{path} is larger than {LIMIT} bytes")
    text = path.read_text(encoding="utf-8")
    settings = (folder / SETTINGS).read_text(encoding="utf-8") if (folder / SETTINGS).is_file() else "{}"
    known = reader(text)
    size = max((int(i) for i in known.get_vocab(with_added_tokens=True).values()), default=-1) + 1
    size = max(size, int(_json(folder / "config.json").get("vocab_size") or 0))  # tables are often padded to a round number
    ends = _ends(folder, roles(settings), known)
    return replace(state, tokenizer=text, settings=settings, template=_template(folder, settings), ends=ends, size=size)


def _ends(folder: Path, special: Mapping[str, str], known: Tokenizer) -> list[int]:
    """Of the tokenizer first, then those that generation_config.json adds."""
    named = [known.token_to_id(special["eos_token"])] if "eos_token" in special else []
    for name in ("generation_config.json", "config.json"):
        given = _json(folder / name).get("eos_token_id")
        named += given if isinstance(given, list) else [given]
    named += [known.token_to_id(t) for t in (END, TURN_END, "</s>")]
    found = [int(i) for i in dict.fromkeys(named) if isinstance(i, int)]
    if not found:
        raise ArtefactError(f"the tokenizer in {folder} has no token that ends a text; name its eos_token in {SETTINGS}")
    return found


def _template(folder: Path, settings: str) -> str:
    beside = folder / TEMPLATE
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = json.loads(settings).get("chat_template")
    if isinstance(found, list):  # several by name, as old files have them
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else CHATML


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def roles(settings: str) -> dict[str, str]:
    """Role → token of tokenizer_config.json, where they stand as texts or as objects."""
    try:
        found = json.loads(settings or "{}")
    except ValueError as error:
        raise ArtefactError(f"{SETTINGS} cannot be read: {error}") from None
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in found.items() if k.endswith("_token")}
    return {k: v for k, v in named.items() if isinstance(v, str)}


def _trained(state: LanguageState) -> LanguageState:
    tokenizer = _characters(state) if state.model == "characters" else _sub_words(state)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END, "clean_up_tokenization_spaces": False}
    settings |= {"unk_token": UNSEEN} if state.model != "bytes" else {}
    ends = [SPECIAL.index(t) for t in (END, TURN_END)]  # reserved ids come first, in their order
    size = tokenizer.get_vocab_size()
    return replace(state, texts=[], tokenizer=tokenizer.to_str(), settings=json.dumps(settings), ends=ends, size=size)


def _characters(state: LanguageState) -> Tokenizer:
    """One id for each character, the most frequent ones if there are too many, in the order of Unicode."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    counts = Counter(itertools.chain.from_iterable(state.texts))
    kept = sorted(sorted(counts, key=lambda c: (-counts[c], c))[: max(1, state.vocabulary - len(SPECIAL))])
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*SPECIAL, *kept])}, unk_token=UNSEEN))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    tokenizer.add_special_tokens(_special())
    return tokenizer


def _sub_words(state: LanguageState) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    common: dict[str, Any] = {"vocab_size": state.vocabulary, "special_tokens": _special(), "show_progress": False}
    if state.model == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(**common, min_frequency=state.min_count, initial_alphabet=alphabet, max_token_length=16)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(**common, unk_token=UNSEEN)
    # sorted, so that merging in another order trains the same vocabulary
    tokenizer.train_from_iterator(sorted(state.texts), trainer=trainer, length=len(state.texts))
    return tokenizer


def _special() -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(t, special=True, normalized=False) for t in SPECIAL]
