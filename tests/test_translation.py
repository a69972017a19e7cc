"""Texts that are written: ids and back, parallel files, the net against a plain Transformer, search against all texts, scores."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from modelyard import metrics
from modelyard.data.batches import Batches
from modelyard.data.source import DataConfig, open_source
from modelyard.errors import ConfigError, DataError, UsageError
from modelyard.kinds._contract import Head, Part, Ragged
from modelyard.kinds.text import KIND, TokensConfig, WrittenConfig
from modelyard.losses.token_nll import loss
from modelyard.nets import seq2seq
from modelyard.nets._dropout import dropout
from modelyard.runtime.answers import Randomness
from modelyard.runtime.programs import beam, generate
from modelyard.runtime.sampling import log_softmax

V = 11
DEFAULTS = {p.name: p.default for p in beam.PARAMS}
TEXTS = [
    "Two men sit.", " leading and  double", "", "tab\tand\nline", "今天天气很好，我们去公园。", "don't ##stop ###", "😀 z\u0301", "ＦＵＬＬ ﬁne", "trailing ",
]  # fmt: skip


# --- ids and back ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["bpe", "unigram", "word-piece", "bytes", "characters"])
def test_texts_come_back_exactly(model: str) -> None:
    coder = KIND.encodings["written"]
    state = coder.fit(pl.Series(TEXTS * 3), WrittenConfig(model=model, vocabulary=400))  # type: ignore[arg-type]
    ids = coder.encode(pl.Series([*TEXTS, None]), state, {})["ids"]
    assert isinstance(ids, Ragged) and ids.values.dtype == np.int64 and ids.values.max() < coder.parts(state)["ids"].cardinality
    rows = [ids.values[a:b] for a, b in itertools.pairwise(ids.offsets)]
    assert all(row[-1] == 2 and 2 not in row[:-1] for row in rows) and rows[-1].tolist() == [2]
    padded = np.full((len(rows), max(map(len, rows)) + 3), 2)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    assert coder.decode({"ids": padded}, state, {})[""].to_list() == [*TEXTS, ""]


def test_what_was_never_seen() -> None:
    coder = KIND.encodings["written"]
    pieces = coder.fit(pl.Series(["abc abc"] * 4), WrittenConfig(vocabulary=30))
    lossless = coder.fit(pl.Series(["abc abc"] * 4), WrittenConfig(vocabulary=300, model="bytes"))
    back = lambda state: coder.decode({"ids": coder.encode(pl.Series(["a龙"]), state, {})["ids"].values[None]}, state, {})[""][0]  # noqa: E731
    assert back(pieces) == "a\ufffd" and back(lossless) == "a龙"


def test_a_text_that_is_cut_has_no_end() -> None:
    coder = KIND.encodings["written"]
    state = coder.fit(pl.Series(["a b c d e f"] * 4), WrittenConfig(model="characters", max_length=5))
    ids = coder.encode(pl.Series(["a b", "a b c d"]), state, {})["ids"]
    assert ids.lengths_B.tolist() == [4, 5] and ids.values[3] == 2 and 2 not in ids.values[4:]


def test_word_pieces_and_characters_as_input() -> None:
    coder = KIND.encodings["tokens"]
    column = pl.Series(["playing played plays"] * 5 + ["今天天气"] * 3)
    state = coder.fit(column, TokensConfig(model="word-piece", vocabulary=60))
    names = {i: w for w, i in json.loads(state.tokenizer)["model"]["vocab"].items()}
    row = coder.encode(pl.Series(["played"]), state, {})["tokens"].values
    assert "".join(names[i].removeprefix("##") for i in row.tolist()) == "▁played" and all(names[i].startswith("##") for i in row[1:].tolist())
    state = coder.fit(column, TokensConfig(model="characters"))
    assert coder.encode(pl.Series(["天 x"]), state, {})["tokens"].lengths_B.tolist() == [3]


def test_both_sides_share_a_vocabulary_where_they_are_asked_to() -> None:
    frame = pl.DataFrame({"en": ["Anna sees 12 dogs"] * 30, "de": ["Anna sieht 12 Hunde"] * 30})
    for joint in (True, False):
        data = DataConfig(path={"train": frame}, inputs={"en": "text"}, outputs={"de": {"kind": "text", "vocabulary": 90, "joint": joint}})
        from modelyard.tasks._binding import bind

        with pytest.raises(DataError, match="only one value"):
            bind(data, "translation", Path())
        mixed = frame.with_columns(pl.concat_str("de", pl.int_range(pl.len()).cast(pl.String)).alias("de"))
        bound = bind(DataConfig(path={"train": mixed}, inputs=data.inputs, outputs=data.outputs), "translation", Path())
        bound.pipeline.inputs[0].encoding = "tokens"
        bound.pipeline.inputs[0].config = TokensConfig()
        bound.pipeline.fit([bound.splits["train"]])
        source, target = bound.pipeline.inputs[0].state, bound.pipeline.outputs[0].state
        assert (source.tokenizer == target.tokenizer) == joint and bound.pipeline.parts()["en"]["tokens"].shared == joint
        net = seq2seq.Network(seq2seq.Config(width=16), bound.pipeline.parts()["en"], bound.pipeline.heads(), "en")
        assert (net.source is net.target) == joint
    with pytest.raises(DataError, match="setting"):
        bind(DataConfig(path={"train": mixed}, inputs=data.inputs, outputs={"de": {"kind": "text", "vocabulery": 9}}), "translation", Path())


# --- data ------------------------------------------------------------------------------------------------------------------


def test_parallel_texts_from_a_list_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("a\n\nc\u2028c\nd\n", encoding="utf-8")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"A\nB\nC\nD"))
    for name in ("val.en", "val.de", "test_2016.en", "test_2016.de", "readme.md"):
        (tmp_path / name).write_text("x\n", encoding="utf-8")
    listed = open_source(DataConfig(path=["train.en", "train.de.gz"]), tmp_path).tables["train"]
    assert listed.data.rows() == [("a", "A"), ("c\u2028c", "C"), ("d", "D")] and list(listed.data.columns) == ["en", "de"]
    assert [(Path(s.file).name, s.line, s.column) for s in listed.set_aside] == [("train.en", 2, "en")] and listed.rows_read == 4
    tables = open_source(DataConfig(path=str(tmp_path)), tmp_path).tables
    assert {name: sorted(t.data.columns) for name, t in tables.items()} == {key: ["de", "en"] for key in ("train", "valid", "test")}
    (tmp_path / "train.en").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 \(train.en\) and 4 \(train.de.gz\)"):
        open_source(DataConfig(path=["train.en", "train.de.gz"]), tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        open_source(DataConfig(path=["train.en", "train.fr"]), tmp_path)
    with pytest.raises(ValueError, match="parallel"):
        DataConfig(path=["train.en"])


def test_rows_of_translation_sets(tmp_path: Path) -> None:
    rows = [{"id": i, "translation": {"en": f"a {i}", "zh": f"甲 {i}"}} for i in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert open_source(DataConfig(path="t.jsonl"), tmp_path).tables["train"].data.columns == ["id", "en", "zh"]


def test_batches_by_tokens_have_equal_sums_and_hold_every_example_once() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 60, 2000)
    text = lambda n: Ragged(np.arange(n.sum()), np.concatenate([[0], np.cumsum(n)]))  # noqa: E731
    batches = Batches({"x.tokens": text(lengths)}, {"y.ids": text(lengths + random.integers(0, 5, 2000))}, batch=1, tokens=1500, seed=3)
    seen, padded, real = Counter[int](), 0, []
    for epoch in (0, 1):
        found = list(batches.epoch(epoch))
        assert len(found) == batches.steps
        for b in found:
            seen.update(b.index.tolist())
            padded += b.inputs["x.tokens"].numel() + b.targets["y.ids"].numel()
            real.append(int(b.inputs["x.length"].sum() + b.targets["y.length"].sum()))
    assert set(seen.values()) == {2} and len(seen) == 2000
    assert min(real) > 0.85 * 1500 and max(real) < 1.15 * 1500 and padded < 1.1 * sum(real)
    again = [b.index.tolist() for b in batches.epoch(1, 4)]
    assert again == [b.index.tolist() for b in found[4:]]


# --- the net ---------------------------------------------------------------------------------------------------------------


def network(**options: Any) -> seq2seq.Network:
    torch.manual_seed(0)
    config = seq2seq.Config(**{"width": 16, "layers": 2, "heads": 2, "dropout": 0.0, **options})
    net = seq2seq.Network(config, {"tokens": Part((None,), "int32", 9)}, [Head("y", "text", "tokens", V)], "x")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.4) if p.ndim > 1 else torch.nn.init.normal_(p, mean=0.3, std=0.2)
    return net.eval()


def pairs(rows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    source, target = random.integers(1, 7, rows), random.integers(1, 6, rows)
    pad = lambda lengths, low, high: torch.tensor(  # noqa: E731
        np.array([[*random.integers(low, high, n), *[0] * (max(lengths) - n)] for n in lengths])
    )
    return {
        "x.tokens": pad(source, 3, 9).int(), "x.length": torch.tensor(source), "y.ids": pad(target, 3, V), "y.length": torch.tensor(target),
    }  # fmt: skip


def norm(x: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()


def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def turned(x: np.ndarray, place: int) -> np.ndarray:
    """A pair (i, i + E/2) as a complex number, turned by place / 10000^(2i/E)."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, sees: Any, rope: bool) -> np.ndarray:
    """Scaled dot products position by position and head by head."""
    out = np.zeros_like(q)
    for h, t in itertools.product(range(heads), range(len(q))):
        part = slice(h * q.shape[1] // heads, (h + 1) * q.shape[1] // heads)
        own = turned(q[t, part], t) if rope else q[t, part]
        at = [j for j in range(len(k)) if sees(t, j)]
        scores = np.array([own @ (turned(k[j, part], j) if rope else k[j, part]) for j in at]) / math.sqrt(len(own))
        weights = np.exp(scores - scores.max())
        out[t, part] = (weights / weights.sum()) @ v[at, part]
    return out


def reference(net: seq2seq.Network, source: list[int], target: list[int]) -> np.ndarray:
    """Log-probabilities (T, V) by loops over one pair."""
    config, width = net.config, net.config.width
    rope = config.positions == "rope"

    def begin(table: torch.nn.Embedding, ids: list[int]) -> np.ndarray:
        x = table.weight.detach().double().numpy()[ids] * math.sqrt(width)
        if rope:
            return x
        angle = np.arange(len(ids))[:, None] * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
        return x + np.concatenate([np.sin(angle), np.cos(angle)], 1)

    def self_attention(x: np.ndarray, layer: seq2seq.SelfAttention, sees: Any) -> np.ndarray:
        q, k, v = np.split(linear(norm(x, layer.norm), layer.qkv), 3, 1)
        return x + linear(attend(q, k, v, config.heads, sees, rope), layer.out)

    def feedforward(x: np.ndarray, layer: seq2seq.Feedforward) -> np.ndarray:
        return x + linear(np.maximum(linear(norm(x, layer.norm), layer.up), 0), layer.down)

    x = begin(net.source, source)
    for layer in net.reader:
        x = feedforward(self_attention(x, layer.attention, lambda t, j: True), layer.feedforward)
    read = norm(x, net.read_norm)
    y = begin(net.target, [0, *target[:-1]])
    for layer in net.writer:
        y = self_attention(y, layer.attention, lambda t, j: j <= t)
        k, v = np.split(linear(read, layer.reading.kv), 2, 1)
        y = y + linear(attend(linear(norm(y, layer.reading.norm), layer.reading.q), k, v, config.heads, lambda t, j: True, False), layer.reading.out)
        y = feedforward(y, layer.feedforward)
    return log_softmax(norm(y, net.norm) @ net.last.weight.detach().double().numpy().T)


@pytest.mark.parametrize(("positions", "tied"), [("rope", True), ("sinusoidal", False)])
def test_the_net_equals_loops(positions: str, tied: bool) -> None:
    net, batch = network(positions=positions, tied=tied), pairs()
    sums, logits = net(batch)["y.tokens"], net.logits(batch)
    for i in range(5):
        source = batch["x.tokens"][i, : batch["x.length"][i]].tolist()
        target = batch["y.ids"][i, : batch["y.length"][i]].tolist()
        p_TV = reference(net, source, target)
        np.testing.assert_allclose(logits[i, : len(target)].log_softmax(-1).detach().numpy(), p_TV, atol=2e-5)
        wanted = [-sum(p_TV[t, token] for t, token in enumerate(target)), len(target), -p_TV.mean(1).sum()]
        assert sums[i].tolist() == pytest.approx(wanted, rel=1e-5)
    value, weight = loss(sums, batch["y.ids"], label_smoothing=0.1)
    flat = logits.transpose(1, 2)
    real = torch.arange(batch["y.ids"].shape[1]) < batch["y.length"][:, None]
    smooth = F.cross_entropy(flat, batch["y.ids"], reduction="none", label_smoothing=0.1)
    assert torch.allclose(value, (smooth * real).sum(1), rtol=1e-5) and weight.tolist() == batch["y.length"].tolist()


def test_training_sees_the_same_as_evaluation_without_dropout() -> None:
    net, batch = network(), pairs()
    whole = net(batch)["y.tokens"]
    assert torch.allclose(net.train()(batch)["y.tokens"], whole, rtol=1e-5)
    equal = {k: v[:1].repeat(3, *[1] * (v.dim() - 1)) for k, v in pairs(1).items()}  # nothing is padded: no mask is made
    assert torch.allclose(net(equal)["y.tokens"][2], net.eval()(pairs(1))["y.tokens"][0], rtol=1e-5)


def test_dropout_keeps_the_share_the_mean_and_the_gradient() -> None:
    torch.manual_seed(1)
    x = torch.ones(400_003, requires_grad=True)
    y = dropout(x, 0.3, True)
    kept = y > 0
    assert abs(1 - kept.double().mean().item() - 77 / 256) < 0.003 and torch.allclose(y[kept], torch.tensor(256 / 179))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) and dropout(x, 0.3, False) is x
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3, True), y)


# --- writing ---------------------------------------------------------------------------------------------------------------


def graphs_of(net: seq2seq.Network) -> dict[str, Any]:
    from modelyard.runtime.backends.torch import graphs

    return graphs(net)


def numpy(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in batch.items() if k.startswith("x.")}


def trim(row: np.ndarray) -> list[int]:
    stop = np.flatnonzero(row == 2)
    return row[: stop[0] + 1 if len(stop) else None].tolist()


def test_steps_equal_the_whole_pass_and_greedy_is_the_best_token_each_time() -> None:
    net, batch = network(), pairs(6, 1)
    found = generate.run(graphs_of(net), numpy(batch), {**DEFAULTS, "max_length": 9}, Randomness(0))
    for i in range(6):
        source = batch["x.tokens"][i, : batch["x.length"][i]].tolist()
        written: list[int] = []
        total = 0.0
        while len(written) < 9 and (not written or written[-1] != 2):
            p_V = reference(net, source, [*written, 0])[-1]
            written.append(int(p_V.argmax()))
            total += p_V.max()
        assert trim(found["y.ids"][i]) == written
        assert found["y.score"][i] == pytest.approx(total / len(written), abs=1e-5)


def test_beam_search_finds_the_best_of_all_texts_when_it_is_wide_enough() -> None:
    net, batch = network(layers=1), pairs(3, 2)
    params = {**DEFAULTS, "beams": 32, "max_length": 2, "length_penalty": 0.6, "early_stop": False}
    found = beam.run(graphs_of(net), numpy(batch), params, Randomness(0))
    for i in range(3):
        source = batch["x.tokens"][i, : batch["x.length"][i]].tolist()
        every = {}
        for first in range(V):
            p_TV = reference(net, source, [first, 0])
            if first == 2:
                every[(2,)] = p_TV[0, 2]
            else:
                every |= {(first, second): (p_TV[0, first] + p_TV[1, second]) / 2**0.6 for second in range(V)}
        best = max(every, key=every.__getitem__)
        assert tuple(found["y.ids"][i][: len(best)].tolist()) == best


def test_beams_follow_a_slow_search() -> None:
    """The same rules written as a loop over dictionaries: candidates sorted, ends among the first K put down, K others go on."""
    net, batch = network(), pairs(4, 3)
    with torch.no_grad():
        net.last.weight[2] += 0.4  # texts that end
    beams, limit, penalty = 3, 7, 1.0
    found = beam.run(graphs_of(net), numpy(batch), {**DEFAULTS, "beams": beams, "max_length": limit}, Randomness(0))
    for i in range(4):
        source = batch["x.tokens"][i, : batch["x.length"][i]].tolist()
        live: list[tuple[float, list[int]]] = [(0.0, [])]
        ended: list[tuple[float, list[int]]] = []
        for _ in range(limit):
            every = [(total + p, [*ids, v]) for total, ids in live for v, p in enumerate(reference(net, source, [*ids, 0])[-1])]
            every.sort(key=lambda c: -c[0])
            ended += [(total / len(ids) ** penalty, ids) for total, ids in every[:beams] if ids[-1] == 2]
            live = [c for c in every if c[1][-1] != 2][:beams]
            if len(ended) >= beams:
                break
        if len(ended) < beams:
            ended += [(total / len(ids) ** penalty, ids) for total, ids in live]
        assert trim(found["y.ids"][i]) == max(ended)[1]


@pytest.mark.parametrize("params", [{"beams": 3}, {"beams": 1}, {"beams": 1, "temperature": 1.0, "top_k": 5, "repetition": 1.2}])
def test_a_text_is_the_same_alone_and_in_a_batch(params: dict[str, Any]) -> None:
    net, batch = network(), pairs(7, 4)
    graphs, settings = graphs_of(net), {**DEFAULTS, "max_length": 12, **params}
    together = beam.run(graphs, numpy(batch), settings, Randomness(5))
    for i in range(7):
        length = int(batch["x.length"][i])
        one = {"x.tokens": batch["x.tokens"][i : i + 1, :length].numpy(), "x.length": np.array([length])}
        alone = beam.run(graphs, one, settings, Randomness(5, i))
        assert trim(alone["y.ids"][0]) == trim(together["y.ids"][i])
        assert alone["y.score"][0] == pytest.approx(together["y.score"][i], abs=1e-5)


def test_no_parameters_make_a_block_too_large() -> None:
    from modelyard.runtime.programs._writing import PLACES, ROWS, blocks

    sizes = []

    def read(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append((len(inputs["x.tokens"]), inputs["x.tokens"].shape[1]))
        return {"y.logits": np.zeros((len(inputs["x.tokens"]), V)), "end": np.full(len(inputs["x.tokens"]), 2)}

    random = np.random.default_rng(0)
    inputs = {"x.tokens": np.ones((600, 40), np.int32), "x.length": random.integers(1, 41, 600)}
    most = {p.name: p.high for p in beam.PARAMS}
    for longest, beams in ((128, 4), (16, 1), (int(most["max_length"] or 0), int(most["beams"] or 0))):
        sizes.clear()
        seen = np.concatenate([b.example_R for b in blocks({"read": read, "step": read}, inputs, longest, beams)])
        assert sorted(seen.tolist()) == list(range(600)) and (np.diff(inputs["x.length"][seen]) >= 0).all()
        assert max(n for n, _ in sizes) * beams <= ROWS and max(n for n, _ in sizes) * beams * longest <= PLACES
        assert [w for _, w in sizes] == [int(inputs["x.length"][seen[s:][: sizes[0][0]]].max()) for s in range(0, 600, sizes[0][0])]


@pytest.mark.parametrize(("width", "count"), [(11, 5), (640, 2), (6001, 9), (64, 64)])
def test_the_largest_logits_are_found_without_sorting_all(width: int, count: int) -> None:
    from modelyard.runtime.programs._writing import top

    x = np.random.default_rng(width).normal(size=(7, width)).astype(np.float32)
    assert (np.sort(top(x, count), 1) == np.sort(np.argsort(-x, axis=1)[:, :count], 1)).all()


def test_drawing_and_beams_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="beams=1"):
        beam.run(graphs_of(network()), numpy(pairs()), {**DEFAULTS, "temperature": 1.0}, Randomness(0))


def test_ties_are_told_from_faults() -> None:
    answer = lambda text, gap, score=-1.0: {"": pl.Series([text]), "gap": pl.Series([gap]), "score": pl.Series([score])}  # noqa: E731
    agree = lambda a, b: [bool(x[0]) for x in KIND.agree(a, b, 1.0, 1e-5)[1:]]  # noqa: E731
    assert agree(answer("a", 1.0), answer("a", 1.0)) == [True, False]
    assert agree(answer("a", 1.0), answer("b", 1e-6)) == [True, True]
    assert agree(answer("a", 1.0), answer("b", 0.5)) == [False, False]
    assert agree(answer("a", 1.0), answer("a", 1.0, -1.01)) == [False, False]


# --- scores ----------------------------------------------------------------------------------------------------------------

TRUE = ["The cat sat on the mat.", "It is raining today", "He said: yes!", "a b c d e f g", "", "ja"]
SAID = ["The cat sat on a mat.", "It rains today", "He said yes!", "a b c d e f g", "x", ""]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_bleu_and_chrf_equal_sacrebleu(language: str) -> None:
    scores = pytest.importorskip("sacrebleu.metrics")
    true, said = (TRUE, SAID) if language == "en" else (["今天天气很好", "我们去公园吧"], ["今天天气好", "我们去了公园"])
    arrays = [np.array([*x, None], object)[:-1] for x in (true, said)]
    found = metrics.evaluate_output("text", *arrays, ["bleu", "chrf"])  # type: ignore[arg-type]
    bleu = scores.BLEU(tokenize="zh" if language == "zh" else "13a")
    assert found["bleu"]["value"] == pytest.approx(bleu.corpus_score(said, [true]).score, abs=1e-9)
    assert found["bleu"]["signature"] == bleu.get_signature().format() and f"tok:{bleu.tokenizer.signature()}" in found["bleu"]["signature"]
    assert found["chrf"]["value"] == pytest.approx(scores.CHRF().corpus_score(said, [true]).score, abs=1e-9)
    for entry in found.values():
        assert entry["low"] <= entry["value"] <= entry["high"]
    nothing = np.array(["", ""], object)
    assert metrics.evaluate_output("text", arrays[0][:2], nothing, ["bleu"])["bleu"]["value"] == 0.0


def test_without_sacrebleu_the_score_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("sacrebleu.metrics.bleu", "sacrebleu.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    entry = metrics.evaluate_output("text", np.array(["a"], object), np.array(["a"], object), ["bleu"])["bleu"]
    assert math.isnan(entry["value"]) and "pip install sacrebleu" in entry["note"]


def test_rouge_of_lins_examples() -> None:
    """Lin 2004, section 3: "police killed the gunman" against "police kill the gunman" (L = 3/4) and "the gunman kill police" (L = 2/4)."""
    from modelyard.metrics._rouge import rouge

    true = "police killed the gunman"
    assert rouge(true, "police kill the gunman", None) == 0.75 and rouge(true, "the gunman kill police", None) == 0.5
    assert rouge(true, "police kill the gunman", 2) == rouge(true, "the gunman kill police", 2) == pytest.approx(1 / 3)
    assert rouge("the cat the dog", "the the the", 1) == pytest.approx(2 * 2 / 7)  # each word counts as often as both have it
    assert rouge("我们去公园", "我们公园", None) == pytest.approx(2 * 4 / 9) and rouge("a", "", 1) == rouge("", "", None) == 0.0
    random = np.random.default_rng(0)
    for _ in range(30):
        a, b = ("".join(random.choice(list("abc"), 7)) for _ in range(2))
        longest = max(n for n in range(8) for s in itertools.combinations(a, n) if _inside(s, b))
        assert rouge(" ".join(a), " ".join(b), None) == pytest.approx(longest / 7)


def _inside(some: tuple[str, ...], text: str) -> bool:
    rest = iter(text)
    return all(c in rest for c in some)


def test_exact_match_counts() -> None:
    found = metrics.evaluate_output("text", np.array(TRUE, object), np.array(SAID, object), ["exact_match", "rouge_l"])
    assert found["exact_match"]["value"] == pytest.approx(1 / 6) and found["exact_match"]["low"] < 1 / 6 < found["exact_match"]["high"]
    assert found["rouge_l"]["low"] <= found["rouge_l"]["value"] <= found["rouge_l"]["high"]


# --- the product -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of torch's exporter
def test_from_rows_to_an_export_that_writes_the_same(tmp_path: Path) -> None:
    from modelyard.runtime.model import Model
    from modelyard.tasks.translation import toy
    from modelyard.verbs.export import export
    from modelyard.verbs.train import train
    from modelyard.verbs.train.config import TrainConfig

    made = toy(160, 1)
    data = DataConfig(path=made.tables, inputs={"en": "text"}, outputs={"fr": {"kind": "text", "vocabulary": 60}})
    net = {"name": "seq2seq", "width": 32, "layers": 1, "dropout": 0.0}
    found = train(data, "translation", net, TrainConfig(epochs=12, batch_tokens=300, lr=1e-2, ema=0.9), base=tmp_path)
    test = found.metrics["test"]
    assert test["chrf"]["value"] > 60 and "signature" in test["bleu"] and "Sample answers" in (found.run / "report.html").read_text("utf-8")
    model = Model.load(found.model)
    drawn = {"beams": 1, "temperature": 1.5}
    rows = model.examples[:6]
    some = model.predict(rows, drawn, seed=3)["fr"].to_list()
    assert some == model.predict(rows, drawn, seed=3)["fr"].to_list() != model.predict(rows, drawn, seed=4)["fr"].to_list()
    with pytest.raises(UsageError, match="beams"):
        model.predict(rows, {"beams": 99})
    written = Model.load(export(found.model).folder)
    assert written.backend == "onnx" and written.predict(rows, drawn, seed=3)["fr"].to_list() == some


def test_settings_that_cannot_be_are_refused() -> None:
    from modelyard.tasks._binding import bind
    from modelyard.tasks.translation import toy
    from modelyard.verbs.train import learner

    bound = bind(DataConfig(path=toy(40, 0).tables, target="fr", inputs={"en": "text"}), "translation", Path())
    with pytest.raises(ConfigError, match="heads"):
        learner.choose({"name": "seq2seq", "width": 30, "heads": 4}, bound.pipeline, bound.tasks, 30)


# --- padding that a net sees -----------------------------------------------------------------------------------------------


def test_texts_are_filled_up_at_the_side_asked_for() -> None:
    from modelyard.verbs.train.shift import shifted

    coder, column = KIND.encodings["tokens"], pl.Series(["a b c", "a", "", "a b c a b c a b c"])
    rows = {}
    for side in ("back", "front", "random"):
        state = coder.fit(column, TokensConfig(model="characters", fill=8, side=side))  # type: ignore[arg-type]
        found = coder.encode(column, state, {})["tokens"]
        assert found.lengths_B.tolist() == [8] * 4
        rows[side] = found.values.reshape(4, 8)
    plain = coder.encode(column, coder.fit(column, TokensConfig(model="characters")), {})["tokens"]
    for i, n in enumerate([5, 1, 0, 8]):
        own = plain.values[plain.offsets[i] :][:n].tolist()
        assert rows["back"][i].tolist() == rows["random"][i].tolist() == own + [0] * (8 - n)
        assert rows["front"][i].tolist() == [0] * (8 - n) + own
    torch.manual_seed(0)
    starts = Counter[int]()
    for _ in range(400):
        moved = shifted({"x.tokens": torch.from_numpy(rows["random"])}, ["x"])["x.tokens"].numpy()
        starts[int(np.flatnonzero(moved[0])[0])] += 1
        for i, n in enumerate([5, 1, 0, 8]):
            at = np.flatnonzero(moved[i])
            assert moved[i][at].tolist() == rows["back"][i][:n].tolist() and (n == 0 or at[-1] - at[0] == n - 1)
    assert set(starts) == {0, 1, 2, 3} and min(starts.values()) > 60


def test_random_padding_is_for_training_alone(tmp_path: Path) -> None:
    from modelyard.verbs.train import train
    from modelyard.verbs.train.config import TrainConfig

    words = ["good fine nice day", "bad sad poor night"]
    frame = pl.DataFrame({"text": [f"{words[i % 2]} {i}" for i in range(80)], "label": ["yes", "no"] * 40})
    text = {"kind": "text", "encoding": "tokens", "vocabulary": 60, "fill": 24, "side": "random"}
    data = DataConfig(path={"train": frame}, target="label", inputs={"text": text})
    found = train(data, "classification", "text-cnn", TrainConfig(epochs=2, batch=16), base=tmp_path)
    from modelyard.runtime.model import Model

    model = Model.load(found.model)
    tokens = model.encode_rows([{"text": "good fine"}])[0].arrays["text.tokens"]
    assert len(tokens.values) == 24 and tokens.values[0] != 0 and model.replay().ok


def test_a_special_token_in_somebodys_text_is_a_text() -> None:
    coder = KIND.encodings["written"]
    state = coder.fit(pl.Series(["an <end> of <pad> it <unk>"] * 5), WrittenConfig(vocabulary=80))
    ids = coder.encode(pl.Series(["an <end> of <pad> it <unk>"]), state, {})["ids"].values
    assert np.flatnonzero(ids <= 2).tolist() == [len(ids) - 1]
    assert coder.decode({"ids": ids[None]}, state, {})[""][0] == "an <end> of <pad> it <unk>"
