"""Text encodings against slow per-row references that share no code with them."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.kinds import text as kind
from modelyard.kinds._contract import Ragged
from modelyard.kinds.text import KIND, BagConfig, BagState, CharsConfig, TokensConfig
from modelyard.store.state import pack, restore

TEXTS = [
    "Where is my parcel? It's 3 days late!!",
    "  where\tIS\n\nmy   parcel ",
    "free entry: win £1000 now!! txt WIN to 80082",
    "味道很好，送餐也快。下次还会点",
    "送餐太慢了，味道一般 ok",
    "ＦＵＬＬ ｗｉｄｔｈ ﬁne ①",
    "مرحبا بالعالم שלום עולם",
    "👩‍👩‍👧 ❤️ great 👍👍",
    "नमस्ते दुनिया",
    "a", "", "   ", "!!!", "...?", "x\u200by \ufeffz", "ΣΑΣ İstanbul ǅ", "e\u0301cole école", "𠮷野家 𠮷", "a\u0000b",
]  # fmt: skip


def ragged_rows(array: Ragged) -> list[np.ndarray]:
    return [array.values[a:b] for a, b in zip(array.offsets[:-1], array.offsets[1:], strict=True)]


# --- a bag written from its docstring: Python integers, strings and dictionaries -------------------------------------------

M = 2**64
B = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % M
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % M
    return x ^ (x >> 31)


def clean(text: str | None, lowercase: bool) -> str:
    out = unicodedata.normalize("NFKC", text or "")
    return out.lower() if lowercase else out


def kind_of(c: str) -> str:
    ranges = [(0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
              (0x20000, 0x323AF)]  # fmt: skip
    if any(a <= ord(c) <= b for a, b in ranges):
        return "alone"
    category = unicodedata.category(c)
    if category.startswith("Z") or category == "Cc":
        return "blank"
    return "letter" if category[0] in "LMN" else "mark"


def reference_words(text: str, marks: bool) -> list[str]:
    words: list[str] = []
    run = ""
    for c in [*text, " "]:
        k = kind_of(c)
        if k == "letter":
            run += c
            continue
        if run:
            words.append(run)
            run = ""
        if k == "alone" or (marks and k == "mark"):
            words.append(c)
    return words


def word_hash(word: str) -> int:
    return mix((sum(mix(ord(c) + 1) * pow(B, k, M) for k, c in enumerate(word)) + len(word)) % M)


def key(hashes: list[int], family: int) -> int:
    value = 0
    for h in hashes:
        value = (value * B + h) % M
    return mix((value + 0xD1B54A32D192ED03 * (2 * len(hashes) + family)) % M)


def reference_grams(text: str | None, config: BagConfig) -> Counter[tuple[int, tuple[str, ...], int]]:
    """Counts by (family, gram, fingerprint)."""
    text = clean(text, config.lowercase)
    found: Counter[tuple[int, tuple[str, ...], int]] = Counter()
    words = reference_words(text, config.marks)
    for n in range(config.words[0], config.words[1] + 1) if config.words else ():
        for i in range(len(words) - n + 1):
            gram = tuple(words[i : i + n])
            found[0, gram, key([word_hash(w) for w in gram], 0)] += 1
    blocks = "".join(" " if kind_of(c) == "blank" else c for c in text).split(" ")
    for n in range(config.chars[0], config.chars[1] + 1) if config.chars else ():
        for block in filter(None, blocks):
            padded = f" {block} "
            for i in range(len(padded) - n + 1):
                gram = tuple(padded[i : i + n])
                if gram != (" ",):
                    found[1, gram, key([mix(ord(c) + 1) for c in gram], 1)] += 1
    return found


def reference_bag(texts: list[str | None], train: list[str | None], config: BagConfig) -> list[dict[int, float]]:
    present = [t for t in train if t is not None]
    df: Counter[int] = Counter()
    for t in present:
        df.update({k % config.buckets if config.buckets else k for _, _, k in reference_grams(t, config)})
    kept = [k for k, n in df.items() if n >= config.min_count or config.buckets]
    if config.max_features and not config.buckets:
        kept = sorted(kept, key=lambda k: (-df[k], k))[: config.max_features]
    ids = {k: k if config.buckets else i for i, k in enumerate(sorted(kept))}
    if config.buckets:
        ids = {k: k for k in range(config.buckets)}
    out = []
    for t in texts:
        counts: Counter[tuple[int, int]] = Counter()
        for (family, _, k), n in reference_grams(t, config).items():
            k = k % config.buckets if config.buckets else k
            if k in ids:
                counts[family, k] += n
        weights: dict[tuple[int, int], float] = {}
        for (family, k), n in counts.items():
            tf = 1 + math.log(n) if config.sublinear else n
            weights[family, k] = tf * (math.log((1 + len(present)) / (1 + df[k])) + 1 if config.idf else 1.0)
        total: dict[int, float] = {}
        for family in (0, 1):
            norm = math.sqrt(sum(w * w for (f, _), w in weights.items() if f == family))
            for (f, k), w in weights.items():
                if f == family:
                    total[ids[k]] = total.get(ids[k], 0.0) + w / norm
        norm = math.sqrt(sum(w * w for w in total.values()))
        out.append({k: w / norm for k, w in total.items()})
    return out


def assert_bag(texts: list[str | None], train: list[str | None], config: BagConfig) -> None:
    coder = KIND.encodings["bag"]
    state = coder.fit(pl.Series(train, dtype=pl.String), config)
    arrays = coder.encode(pl.Series(texts, dtype=pl.String), state, {})
    rows = zip(ragged_rows(arrays["grams"]), ragged_rows(arrays["weights"]), strict=True)
    expected = reference_bag(texts, train, config)
    for text, (grams, weights), want in zip(texts, rows, expected, strict=True):
        assert grams.tolist() == sorted(want), repr(text)
        np.testing.assert_allclose(weights, [want[g] for g in sorted(want)], atol=1e-6, err_msg=repr(text))
    assert arrays["grams"].values.max(initial=0) < coder.parts(state)["grams"].cardinality


@pytest.mark.parametrize("config", [
    BagConfig(), BagConfig(words=(1, 3), chars=None, marks=False), BagConfig(words=None, chars=(1, 3)), BagConfig(min_count=2),
    BagConfig(words=(2, 2), chars=(4, 6), sublinear=False, idf=False, lowercase=False), BagConfig(max_features=40),
    BagConfig(buckets=64), BagConfig(words=None, chars=None),
], ids=str)  # fmt: skip
def test_bag_equals_the_reference(config: BagConfig) -> None:
    assert_bag([*TEXTS, None, "new words entirely 龙"], [*TEXTS, None, *TEXTS[:5]], config)


LETTERS = "ab Z9!\t，中国ﬁß👍é\u0301\u200d\u3000"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | st.text(alphabet=st.sampled_from(LETTERS), max_size=12), max_size=5))
def test_bag_equals_the_reference_on_any_text(texts: list[str | None]) -> None:
    assert_bag(texts, ["ab zz 中国 !", *texts], BagConfig(words=(1, 2), chars=(1, 3)))


@pytest.mark.parametrize("config", [BagConfig(min_count=2, max_features=60), BagConfig(buckets=97)], ids=str)
def test_a_bag_fitted_in_pieces_is_the_same(config: BagConfig) -> None:
    coder, column = KIND.encodings["bag"], pl.Series(TEXTS * 2)
    whole = coder.fit(column, config)
    parts = [coder.update(coder.start(config), column[i : i + 7]) for i in range(0, len(column), 7)]
    merged = coder.start(config)
    for part in reversed(parts):
        merged = coder.merge(part, merged)
    merged = coder.finish(merged)
    for name in ("keys", "counts", "families", "idf"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(merged, name))


def test_cutting_into_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    coder, column = KIND.encodings["bag"], pl.Series(TEXTS)
    whole = coder.fit(column)
    before = coder.encode(column, whole, {})
    monkeypatch.setattr(kind._bag, "CHUNK", 30)
    pieces = coder.fit(column)
    np.testing.assert_array_equal(whole.keys, pieces.keys)
    np.testing.assert_array_equal(whole.counts, pieces.counts)
    after = coder.encode(column, pieces, {})
    for name in before:
        np.testing.assert_array_equal(before[name].values, after[name].values)
        np.testing.assert_array_equal(before[name].offsets, after[name].offsets)


def test_a_full_vocabulary_forgets_rare_grams_and_keeps_common_ones() -> None:
    coder = KIND.encodings["bag"]
    texts = ["common words here"] * 5 + [f"rare{i} item{i}" for i in range(200)]
    state = coder.start(BagConfig(words=(1, 1), chars=None, limit=50))
    for i in range(0, len(texts), 20):
        state = coder.update(state, pl.Series(texts[i : i + 20]))
    assert len(state.keys) <= 50 + 40
    common = {key([word_hash(w)], 0) for w in ("common", "words", "here")}
    assert common <= set(state.keys.tolist())


def test_scale_of_weights_and_empty_rows() -> None:
    coder = KIND.encodings["bag"]
    column = pl.Series([*TEXTS, None])
    arrays = coder.encode(column, coder.fit(column), {})
    for text, weights in zip([*TEXTS, None], ragged_rows(arrays["weights"]), strict=True):
        blank = not (text or "").strip("\u0000 \t\n")
        assert len(weights) == 0 if blank else abs(float(weights @ weights) - 1) < 1e-5, repr(text)


# --- tokens --------------------------------------------------------------------------------------------------------------


def pieces_of(text: str) -> list[str]:
    """Blanks become "▁" in front of the next run; each mark stands alone."""
    text = text.replace(" ", "▁")
    if not text:
        return []
    text = text if text.startswith("▁") else "▁" + text
    out: list[str] = []
    for c in text:
        category = unicodedata.category(c)
        if c == "▁":
            out.append(c)
        elif not (c.isspace() or category[0] in "LMN"):
            out.append(c)
            out.append("")
        elif out:
            out[-1] += c
        else:
            out.append(c)
    return [p for p in out if p]


def bpe(piece: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    parts = list(piece)
    while True:
        pairs = enumerate(itertools.pairwise(parts))
        best = min(((ranks[pair], i) for i, pair in pairs if pair in ranks), default=None)
        if best is None:
            return [vocabulary.get(p, 1) for p in parts]
        i = best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def viterbi(piece: str, scores: dict[str, float], vocabulary: dict[str, int]) -> list[int]:
    unseen = min(scores.values()) - 10.0
    best: list[tuple[float, int]] = [(0.0, 0)] + [(-math.inf, 0)] * len(piece)
    for i in range(len(piece)):
        for j in range(i + 1, len(piece) + 1):
            score = scores.get(piece[i:j], unseen if j == i + 1 else -math.inf)
            if best[i][0] + score > best[j][0]:
                best[j] = (best[i][0] + score, i)
    out: list[int] = []
    end = len(piece)
    while end:
        start = best[end][1]
        out.append(vocabulary.get(piece[start:end], 1))
        end = start
    ids = out[::-1]
    return [t for k, t in enumerate(ids) if not (t == 1 and k and ids[k - 1] == 1)]  # neighbours unseen are one token


CORPUS = [t for t in TEXTS[:5] for _ in range(4)] + ["the parcel is late", "the day is free", "味道不错 味道好"] * 3


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_tokens_equal_the_reference(model: str) -> None:
    coder = KIND.encodings["tokens"]
    state = coder.fit(pl.Series(CORPUS), TokensConfig(model=model, vocabulary=180, max_length=40))  # type: ignore[arg-type]
    assert state.texts == [] and coder.parts(state)["tokens"].cardinality <= 180
    stored = json.loads(state.tokenizer)["model"]
    texts = [" ".join(t.split()) for t in (*TEXTS, *CORPUS, "parcel 龙 zzz")]
    found = ragged_rows(coder.encode(pl.Series(texts), state, {})["tokens"])
    for text, ids in zip(texts, found, strict=True):
        if model == "bpe":
            ranks = {tuple(pair): i for i, pair in enumerate(stored["merges"])}
            want = [t for p in pieces_of(clean(text, True)) for t in bpe(p, stored["vocab"], ranks)]
        else:
            names = {w: i for i, (w, _) in enumerate(stored["vocab"])}
            scores = dict(map(tuple, stored["vocab"]))
            want = [t for p in pieces_of(clean(text, True)) for t in viterbi(p, scores, names)]
        assert ids.tolist() == want[:40], repr(text)


def test_byte_tokens_lose_nothing() -> None:
    coder = KIND.encodings["tokens"]
    state = coder.fit(pl.Series(CORPUS), TokensConfig(model="bytes", vocabulary=400, lowercase=False))
    names = {i: w for w, i in json.loads(state.tokenizer)["model"]["vocab"].items()}
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's printable stand-ins for bytes
    letters = {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in plain)}
    texts = [*TEXTS, "龙 never seen 🦜"]
    for text, ids in zip(texts, ragged_rows(coder.encode(pl.Series(texts), state, {})["tokens"]), strict=True):
        raw = bytes(letters[c] for i in ids.tolist() for c in names[i])
        assert raw.decode("utf-8") == unicodedata.normalize("NFKC", text)


def test_tokens_do_not_depend_on_the_order_of_pieces() -> None:
    coder, column = KIND.encodings["tokens"], pl.Series(CORPUS)
    config = TokensConfig(vocabulary=150, sample=300)
    a, b = (coder.update(coder.start(config), c) for c in (column[:13], column[13:]))
    first, second = coder.finish(coder.merge(a, b)), coder.finish(coder.merge(b, a))
    assert first.tokenizer == second.tokenizer
    assert coder.fit(column, config).tokenizer == first.tokenizer


# --- characters, the kind itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CharsConfig(), CharsConfig(lowercase=True, max_length=7, max_values=20)], ids=str)
def test_chars_equal_the_reference(config: CharsConfig) -> None:
    coder, train = KIND.encodings["chars"], [*TEXTS[:9], None]
    state = coder.fit(pl.Series(train), config)
    counts = Counter(c for t in train for c in clean(t, config.lowercase)[: config.max_length])
    order = sorted(counts, key=lambda c: (-counts[c], c))[: config.max_values]
    ids = {c: i + 2 for i, c in enumerate(order)}
    found = ragged_rows(coder.encode(pl.Series([*TEXTS, None]), state, {})["tokens"])
    for text, row in zip([*TEXTS, None], found, strict=True):
        assert row.tolist() == [ids.get(c, 1) for c in clean(text, config.lowercase)[: config.max_length]]


@pytest.mark.parametrize("name", ["bag", "tokens", "chars"])
def test_a_stored_state_encodes_the_same(name: str) -> None:
    coder, column = KIND.encodings[name], pl.Series([*TEXTS, None])
    state = coder.fit(column)
    arrays: dict[str, np.ndarray] = {}
    entry = json.loads(json.dumps(pack(state, "inputs/t", arrays)))
    back = restore(coder.State, entry, arrays)
    assert coder.parts(state) == coder.parts(back)
    for part, array in coder.encode(column, state, {}).items():
        np.testing.assert_array_equal(array.values, coder.encode(column, back, {})[part].values)


@pytest.mark.parametrize("name", ["bag", "tokens", "chars"])
def test_a_row_is_encoded_the_same_alone_and_nothing_or_a_megabyte_is_fine(name: str) -> None:
    coder, texts = KIND.encodings[name], [*TEXTS, None, "word " * 40_000, "x" * 1_000_000]
    state = coder.fit(pl.Series(TEXTS))
    together = coder.encode(pl.Series(texts), state, {})
    for i, text in enumerate(texts):
        alone = coder.encode(pl.Series([text], dtype=pl.String), state, {})
        for part in together:
            np.testing.assert_array_equal(ragged_rows(together[part])[i], alone[part].values)
    nothing = coder.encode(pl.Series([], dtype=pl.String), state, {})
    assert all(len(a) == 0 and len(a.values) == 0 for a in nothing.values())
    never = coder.fit(pl.Series([None, None], dtype=pl.String))
    assert all(len(a) == 1 for a in coder.encode(pl.Series(["a b"]), never, {}).values())


def test_check_takes_what_readers_and_json_hold() -> None:
    column = KIND.from_json(["a\ud800b", None, 3, True, [1], {"x": 1}, "ok", ""])
    clean_column, errors = KIND.check(column.alias("note"))
    assert clean_column.to_list() == ["a\ufffdb", None, "3", "true", None, None, "ok", ""]
    assert [(e.row, e.column) for e in errors] == [(4, "note"), (5, "note")]
    numbers, none = KIND.check(pl.Series([1, 2]))
    assert numbers.to_list() == ["1", "2"] and none == []
    raw, errors = KIND.check(pl.Series([b"caf\xc3\xa9", b"\xff"]))
    assert raw.to_list() == ["café", None] and [e.row for e in errors] == [1]


def test_fits_tells_sentences_from_labels() -> None:
    assert KIND.fits(pl.Series([t for t in TEXTS if len(t) > 15])) > 0.8
    assert KIND.fits(pl.Series(["yes", "no"] * 50)) < 0.1
    assert KIND.fits(pl.Series([1.0, 2.0])) == 0.0


def test_summary_counts() -> None:
    found = KIND.summary(pl.Series(["中文 ab", "", None, ""]))
    assert (found["count"], found["missing"], found["empty"], found["distinct"]) == (4, 1, 2, 2)
    assert found["han"] == 0.4 and found["words"]["max"] == 2
    assert KIND.summary(pl.Series([], dtype=pl.String))["count"] == 0


def test_the_bag_state_holds_no_text() -> None:
    state = KIND.encodings["bag"].fit(pl.Series(["secret name"]))
    arrays: dict[str, np.ndarray] = {}
    assert "secret" not in json.dumps(pack(state, "x", arrays)) and isinstance(state, BagState)
