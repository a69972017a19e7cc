# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""Text generation from rows to a saved folder: what is read, what counts, what is cut; equal to `transformers`, killed and resumed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

import modelyard
from modelyard.data import stream as streaming
from modelyard.data.blocks import Blocks
from modelyard.data.frames import language
from modelyard.data.source import DataConfig
from modelyard.errors import ArtefactError, DataError
from modelyard.kinds._contract import Head, Part, Ragged
from modelyard.kinds.messages import KIND, Conversation, written
from modelyard.kinds.text._language import CHATML, Language, LanguageConfig, LanguageState, reader
from modelyard.losses import token_nll
from modelyard.nets import _dropout, _kernels, causal
from modelyard.nets._huggingface import from_settings
from modelyard.runtime.model import Model
from modelyard.runtime.programs import complete
from modelyard.tasks._binding import bind
from modelyard.verbs.train import learner, optimisers, texts
from modelyard.verbs.train.config import TrainConfig, resolve
from modelyard.verbs.train.loop import Fit, Term

SMALL = {"name": "causal", "width": 32, "layers": 2, "heads": 2, "context": 48, "tokenizer": "characters"}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TALK = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "three"}]
SOURCE = str(Path(modelyard.__file__).parent.parent)


def frame(rows: list[dict[str, Any]], **config: Any) -> pl.DataFrame:
    return language.examples(pl.DataFrame(rows), language.Config(**config), training=True)[0]


def sums(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 5, (rows, 2)).tolist()
    return [{"prompt": f"{WORDS[a]} and {WORDS[b]} is ", "completion": WORDS[a + b]} for a, b in pairs]


# -- rows -------------------------------------------------------------------------------------------------------------------


def test_layouts_of_conversations_are_read_as_one() -> None:
    whole = [*TALK, {"role": "assistant", "content": "3"}]
    shared = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in whole]
    rows = [
        frame([{"messages": whole}]), frame([{"conversations": shared}]), frame([{"messages": json.dumps(whole)}]),
        frame([{"prompt": TALK, "completion": whole[-1:]}]),
    ]  # fmt: skip
    for found in rows:
        assert json.loads(found["messages"][0]) == TALK and found["completion"].to_list() == ["3"]
    told = frame([{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Sing.", "input": "", "output": "la"}])
    assert [json.loads(m)[0]["content"] for m in told["messages"]] == ["Add.\n\n1 and 2", "Sing."] and told["completion"].to_list() == ["3", "la"]
    named = frame([{"q": "a", "a": "b", "n": 1}], prompt="q", completion="a")
    assert named.columns == ["prompt", "completion", "n"]
    with pytest.raises(DataError, match="instruction, input and output"):
        frame([{"x": 1.0, "y": 2.0}])


def test_a_long_text_is_divided_by_position_and_nothing_is_lost() -> None:
    text = "".join(f"line {i} of the text\n" for i in range(1000))
    found = frame([{"text": text}])
    parts = {p: "".join(found.filter(pl.col("part") == p)["completion"]) for p in ("train", "valid")}
    assert parts["train"] == text[: int(0.9 * len(text))] and parts["train"] + parts["valid"] == text
    assert found["prompt"].to_list() == ["", *[None] * (found.height - 1)] and found["completion"].str.len_chars().max() <= language.PIECE
    many = frame([{"text": f"text {i}"} for i in range(50)])
    assert "part" not in many.columns and many["prompt"].unique().to_list() == [""]


def test_what_is_no_conversation_is_told_row_by_row() -> None:
    good = [{"role": "user", "content": "hi"}]
    values = [good, "[]", "no json", [{"role": "user"}], [{"role": 1, "content": "x"}], None, [1]]
    clean, errors = KIND.check(pl.Series("m", [v if isinstance(v, str | None) else json.dumps(v) for v in values]))
    assert clean.to_list() == [json.dumps(good), *[None] * 6] and [e.row for e in errors] == [1, 2, 3, 4, 6]
    assert KIND.to_json(clean)[0] == good and "<b>user</b> hi" in KIND.draw(clean[0])


# -- tokens -----------------------------------------------------------------------------------------------------------------

TEXTS = ["ünï 你好 end", "tabs\tand\n\nlines  ", " a leading blank", "x", "🚂 rare", "the same words the same words"]


def state_of(model: str, texts: list[str] = TEXTS, **config: Any) -> tuple[LanguageState, LanguageState]:
    coder = Language()
    states = [coder.update(coder.start(LanguageConfig(model=model, target=t, **config)), pl.Series(texts)) for t in (True, False)]  # type: ignore[arg-type]
    joined = coder.joined(*states)
    assert joined is not None
    return joined


@pytest.mark.parametrize("model", ["bytes", "unigram", "characters"])
def test_texts_come_back_from_their_ids_exactly(model: str) -> None:
    own, read = state_of(model)
    assert own.tokenizer == read.tokenizer and own.target and not read.target
    ids = Language().encode(pl.Series(TEXTS), own, {})["ids"]
    assert isinstance(ids, Ragged) and all(ids.values[e - 1] == own.ends[0] for e in ids.offsets[1:])
    padded = np.full((len(TEXTS), int(ids.lengths_B.max())), own.ends[0])
    for row, low, high in zip(padded, ids.offsets, ids.offsets[1:], strict=False):
        row[: high - low] = ids.values[low:high]
    assert Language().decode({"ids": padded}, own, {})[""].to_list() == TEXTS
    tokens = Language().encode(pl.Series(["", None, "x"]), read, {})["tokens"]
    assert isinstance(tokens, Ragged) and tokens.lengths_B[:2].tolist() == [1, 0] and tokens.values[0] == own.ends[0]


def test_a_piece_that_is_continued_has_no_end() -> None:
    own, read = state_of("characters")
    context: dict[str, Any] = {}
    Language().encode(pl.Series(["", None, ""]), read, context)
    ids = Language().encode(pl.Series(["x", "e", "a"]), own, context)["ids"]
    assert isinstance(ids, Ragged) and ids.lengths_B.tolist() == [1, 2, 2]


def conversation_state() -> LanguageState:
    coder = Conversation()
    found = coder.finish(coder.update(coder.start(LanguageConfig()), pl.Series([json.dumps(TALK)])))
    return found


def test_earlier_answers_count_and_questions_do_not() -> None:
    state, context = conversation_state(), {}
    parts = Conversation().encode(pl.Series([json.dumps(TALK)]), state, context)
    tokens, mask = parts["tokens"], parts["mask"]
    assert isinstance(tokens, Ragged) and isinstance(mask, Ragged)
    known = reader(state.tokenizer)
    counted = known.decode(tokens.values[mask.values > 0].tolist(), skip_special_tokens=False)
    assert counted == "2<|im_end|>\n" and context["tails"] == ["<|im_end|>\n"]
    whole = known.decode(tokens.values.tolist(), skip_special_tokens=False)
    assert whole == "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"


def test_masks_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    state = conversation_state()
    marked = CHATML.replace(
        "message['content'] + '<|im_end|>' + '\\n' }}",
        "'' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}",
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=reader(state.tokenizer))
    theirs.chat_template = marked
    found = theirs.apply_chat_template(TALK, add_generation_prompt=True, return_assistant_tokens_mask=True, return_dict=True)
    for template in (marked, CHATML):
        state.template = template
        ours = Conversation().encode(pl.Series([json.dumps(TALK)]), state, {})
        assert ours["tokens"].values.tolist() == found["input_ids"], template  # type: ignore[union-attr]
        assert ours["mask"].values.tolist() == found["assistant_masks"], template  # type: ignore[union-attr]


def test_a_template_that_rewrites_answers_leaves_them_uncounted() -> None:
    forgets = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] if loop.last else '…' }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    whole, tail, spans = written(forgets, TALK)
    assert whole == "user:…;assistant:…;user:three;assistant:" and tail == ";" and spans == []


# -- batches ----------------------------------------------------------------------------------------------------------------


def test_blocks_hold_every_token_once_and_repeat_by_seed(tmp_path: Path) -> None:
    values = np.arange(1003, dtype=np.int64)
    np.save(tmp_path / "ids.npy", values)
    on_disk = np.load(tmp_path / "ids.npy", mmap_mode="r")
    ids = Ragged(on_disk, np.array([0, len(values)]))
    judged = Blocks(ids, "y", length=10, batch=7, shuffle=False)
    seen: list[int] = []
    for batch in judged.epoch(0):
        lengths = batch.targets.get("y.length", torch.full((len(batch),), 11))
        for row, n in zip(batch.targets["y.ids"], lengths.tolist(), strict=True):
            seen += row[1:n].tolist()
    assert seen == values[1:].tolist()
    taught = Blocks(ids, "y", length=10, batch=7, seed=3)
    starts = []
    for epoch in (0, 1):
        rows = torch.cat([b.targets["y.ids"] for b in taught.epoch(epoch)])
        assert (rows.diff(dim=1) == 1).all() and len(set(rows[:, 0].tolist())) == len(rows) and "y.length" not in next(taught.epoch(0)).targets
        assert len(rows) >= (1003 - 20) // 10 // 7 * 7
        starts.append(set((rows[:, 0] % 10).tolist()))
        again = torch.cat([b.targets["y.ids"] for b in Blocks(ids, "y", length=10, batch=7, seed=3).epoch(epoch, 5)])
        assert torch.equal(again, rows[35:])
    assert all(len(s) == 1 for s in starts) and starts[0] != starts[1]


def rows_of(lengths: list[tuple[int, int]], v: int = 40) -> tuple[Ragged, Ragged]:
    random = np.random.default_rng(0)
    draw = lambda n: random.integers(3, v, n).tolist()  # noqa: E731
    return Ragged.from_lists([draw(a) for a, _ in lengths], np.int32), Ragged.from_lists([draw(b) for _, b in lengths], np.int64)


def test_rows_are_prompt_and_text_and_what_is_too_long_loses_its_prompt_first() -> None:
    prompts, ids = rows_of([(3, 2), (6, 4), (0, 12), (1, 3)])
    rows = texts.joined(prompts, ids, None, 8)
    whole = [[*prompts.values[a:b], *ids.values[c:d]] for a, b, c, d in zip(prompts.offsets, prompts.offsets[1:], ids.offsets, ids.offsets[1:], strict=False)]
    kept = [whole[0], whole[1][2:], whole[2][:8], whole[3]]
    assert [rows.ids.values[a:b].tolist() for a, b in zip(rows.ids.offsets, rows.ids.offsets[1:], strict=False)] == kept
    marks = [rows.mask.values[a:b].tolist() for a, b in zip(rows.mask.offsets, rows.mask.offsets[1:], strict=False)]
    assert marks == [[0, 0, 0, 1, 1], [0] * 4 + [1] * 4, [0] + [1] * 7, [0, 1, 1, 1]] and rows.cut == 2


def test_packing_leaves_nobody_out_and_little_empty() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 500)
    bins = texts.bins_of(lengths, 128)
    assert sorted(i for b in bins for i in b) == list(range(500)) and all(lengths[b].sum() <= 128 for b in bins)
    assert len(bins) <= 1.05 * lengths.sum() / 128


def network(v: int = 40, **config: Any) -> causal.Network:
    torch.manual_seed(0)
    net = causal.Network(causal.Config(width=32, layers=2, heads=2, context=64, **config), {}, [Head("y", "text", "tokens", v)], "x")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2) if p.ndim > 1 else torch.nn.init.normal_(p, mean=0.7, std=0.2)
    return net


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_apart(arch: str) -> None:
    prompts, ids = rows_of([(5, 7), (0, 9), (11, 3), (2, 2), (1, 20), (8, 1)])
    found = []
    for pack in (False, True):
        net = network(architecture=arch)
        config = TrainConfig(batch=8, pack=pack)
        made, notes = texts.arrange(({"x.tokens": prompts}, {"y.ids": ids}), "x", "y", 31, config)
        total = sum(net({**b.inputs, **b.targets})["y.tokens"].sum(0) for b in made.epoch(0))
        total[0].backward()
        found.append((total.detach(), [p.grad for p in net.parameters()], made.rows))
        assert bool(notes) == pack
    assert found[0][0].tolist() == pytest.approx(found[1][0].tolist(), rel=1e-5) and found[1][2] < found[0][2]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_loss_and_gradients_of_fine_tuning_equal_those_of_transformers(arch: str) -> None:
    """The same net, prompts with label -100, mean over the counted tokens of the batch: what TRL's SFTTrainer minimises."""
    transformers = pytest.importorskip("transformers")
    from modelyard.nets._huggingface import to_settings

    net = network(architecture=arch)
    settings = to_settings(net.config, 40, {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0})
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings), attn_implementation="sdpa")
    theirs.load_state_dict({**net.stored(), "lm_head.weight": net.lm_head.weight}, strict=True)
    prompts, ids = rows_of([(5, 7), (1, 9), (11, 3), (2, 2)])
    made, _ = texts.arrange(({"x.tokens": prompts}, {"y.ids": ids}), "x", "y", 63, TrainConfig(batch=4))
    batch = next(iter(made.epoch(0)))
    total = net({**batch.inputs, **batch.targets})["y.tokens"].sum(0)
    loss = total[0] / total[1]
    loss.backward()
    tokens, mask = batch.targets["y.ids"], batch.inputs["y.mask"]
    real = (torch.arange(tokens.shape[1]) < batch.targets["y.length"][:, None]).long()
    said = theirs(input_ids=tokens, attention_mask=real, labels=torch.where(mask > 0, tokens, -100))
    said.loss.backward()
    assert loss.item() == pytest.approx(said.loss.item(), abs=1e-5)
    grads = {k: p.grad for k, p in theirs.named_parameters()}
    mine = causal.Network(net.config, {}, [Head("y", "text", "tokens", 40)], "x")
    mine.load_state_dict({k: p.grad for k, p in net.named_parameters()}, strict=False)
    for name, value in mine.stored().items():
        assert torch.allclose(value, grads[name], atol=1e-5), name


@pytest.mark.parametrize("shape", [(2, 3, 17, 8), (1, 2, 5, 4)])
def test_kernels_by_hand_equal_those_of_torch(shape: tuple[int, ...]) -> None:
    """Values and all gradients, in float64 where the kernel takes it."""
    torch.manual_seed(0)
    made = lambda *s: torch.randn(*s, dtype=torch.float64, requires_grad=True)  # noqa: E731
    x, weight = made(*shape), made(shape[-1])
    assert torch.autograd.gradcheck(lambda x, w: _kernels.root_norm(x, w, 1e-5), (x, weight))
    assert torch.allclose(_kernels.root_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x, (shape[-1],), weight, 1e-5))
    angle = torch.rand(shape[2], shape[3] // 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: _kernels.rotate(x, angle.cos(), angle.sin()), (x,))
    with torch.no_grad():
        plain = _kernels.rotate(x, angle.cos(), angle.sin())  # torch's own
    assert torch.allclose(_kernels.rotate(x, angle.cos(), angle.sin()), plain)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    found = _kernels._Attention.apply(q, k, v, 0)
    assert torch.allclose(found, expected, atol=1e-6)
    g = torch.randn(shape)
    for a, b in zip(torch.autograd.grad(found, (q, k, v), g), torch.autograd.grad(expected, (q, k, v), g), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_dropped_weights_of_attention_are_dropped_backwards_too() -> None:
    """The kernel with its own mask against the formula written out; the mean over many draws is what nothing dropped gives."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 2, 9, 4, requires_grad=True) for _ in range(3))
    state = torch.get_rng_state()
    found = _kernels.attention(q, k, v, None, 0.25)
    torch.set_rng_state(state)
    scores = (q @ k.transpose(2, 3) / 2).masked_fill(torch.ones(9, 9).triu(1) > 0, -torch.inf).softmax(-1)
    keep = _dropout.kept(scores.flatten(0, 1), 64).view_as(scores)
    expected = (scores * keep) @ v
    assert torch.allclose(found, expected, atol=1e-6) and 0.15 < (keep == 0).float().mean() < 0.35
    for a, b in zip(torch.autograd.grad(found.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), (q, k, v)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_checkpointing_accumulating_and_bfloat16_make_the_same_step(arch: str) -> None:
    """Gradients of one batch: computed again layer by layer and cut in four parts to 1e-6, in bfloat16 to its rounding."""
    prompts, ids = rows_of([(5, 7), (0, 9), (11, 3), (2, 2), (1, 20), (8, 1), (3, 3), (4, 9)])
    found: dict[str, list[Any]] = {}
    for name, shape, settings in (
        ("plain", {}, {}), ("again", {"checkpointing": True}, {}), ("parts", {}, {"accumulate": 4}), ("bf16", {}, {"precision": "bf16"}),
        ("dropped", {"dropout": 0.2}, {}), ("dropped again", {"dropout": 0.2, "checkpointing": True}, {}),
    ):  # fmt: skip
        config = resolve(TrainConfig(batch=8, lr=1e-3, **settings), causal.TRAIN)[0]
        made, _ = texts.arrange(({"x.tokens": prompts}, {"y.ids": ids}), "x", "y", 31, config)
        fit = Fit(network(architecture=arch, **shape), [Term("y.tokens", "y.ids", token_nll.loss)], made, None, config)
        fit.network.train()
        fit._seed()
        fit._backward(next(made.epoch(0)), 0)
        found[name] = [p.grad for p in fit.network.parameters()]
    for name, like, tolerance in (("again", "plain", 1e-6), ("parts", "plain", 1e-5), ("dropped again", "dropped", 1e-6)):
        assert all(torch.allclose(a, b, atol=tolerance) for a, b in zip(found[name], found[like], strict=True)), name
    flat = {k: torch.cat([g.flatten() for g in v]) for k, v in found.items()}
    assert 1e-6 < (flat["bf16"] - flat["plain"]).norm() / flat["plain"].norm() < 0.05
    assert (flat["dropped"] - flat["plain"]).norm() > 0.1 * flat["plain"].norm()


def test_muon_turns_what_lies_between_hidden_states_and_nothing_else() -> None:
    """Tables and norms take the steps of torch's own Adam at a tenth of the rate; the others steps of full rank and equal lengths."""
    config = resolve(TrainConfig(lr=0.02, optimiser="muon", weight_decay=0.0), causal.TRAIN)[0]
    net, twin = network(tied=False), network(tied=False)
    mine = optimisers.make(net, config)
    plain = {id(p) for g in mine.param_groups if g["plain"] for p in g["params"]}
    named = {n for n, p in net.named_parameters() if id(p) in plain}
    assert named == {n for n, p in net.named_parameters() if p.ndim == 1 or n in ("model.embed_tokens.weight", "lm_head.weight")}
    adam = torch.optim.Adam([p for n, p in twin.named_parameters() if n in named], lr=0.002, betas=(0.9, 0.99))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for step in range(3):
        torch.manual_seed(step)
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        adam.step()
    others = dict(twin.named_parameters())
    for name, p in net.named_parameters():
        if name in named:
            assert torch.allclose(p, others[name], atol=1e-6), name
        else:
            moved = torch.linalg.svdvals((p - before[name]).detach() / 0.02 / max(1.0, p.shape[0] / p.shape[1]) ** 0.5)
            assert 0.3 < moved.median() < 4, name


# -- whole runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(path: str, model: dict[str, Any], **settings: Any) -> Any:
    return modelyard.train(data=path, task="text-generation", model=model, **{"epochs": 1, "threads": 1, "smoke": False, **settings})


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.mark.filterwarnings("ignore")
def test_prompts_are_learnt_and_the_folder_is_hugging_faces(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    result = train(write(folder / "sums.jsonl", sums(400)), SMALL, epochs=30, lr=0.01, batch=20)
    model = Model.load(result.model)
    asked = [{"prompt": f"{a} and {b} is "} for a in WORDS[:5] for b in WORDS[:5]]
    truth = [WORDS[a + b] for a in range(5) for b in range(5)]
    assert model.predict(asked, {"max_tokens": 8})["completion"].to_list() == truth
    # a prompt is kept where less room for the answer would do; a longer one leaves half of the context
    assert [complete.room(n, 128, 80) for n in (0, 1, 12, 40, 60, 500)] == [79, 79, 68, 40, 40, 40] and complete.room(500, 7, 80) == 7
    much = model.predict([asked[7], {"prompt": "one and " * 20}], {"max_tokens": 1000})["completion"].to_list()
    assert much[0] == truth[7] and len(much[1]) <= SMALL["context"]  # type: ignore[operator]
    assert result.metrics["test"]["token_accuracy"]["value"] > 0.99 and result.metrics["test"]["perplexity"]["value"] < 1.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.model)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(result.model, output_loading_info=True)
    assert not any(told.values())
    ids = tokenizer(asked[7]["prompt"])["input_ids"]
    tokens = model.encode_rows(asked[7:8])[0].arrays["prompt.tokens"]
    assert isinstance(tokens, Ragged) and tokens.values.tolist() == ids
    ours = model.graphs["decoder"].network.logits(torch.tensor([ids]))  # type: ignore[attr-defined]
    assert torch.allclose(ours, theirs(torch.tensor([ids])).logits, atol=1e-5)
    written_on = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert tokenizer.decode(written_on, skip_special_tokens=True) == truth[7]
    assert tokenizer.apply_chat_template(TALK[:1], tokenize=False) == "<|im_start|>user\ntwo<|im_end|>\n"


def test_a_corpus_is_judged_as_a_slow_loop_judges_it(folder: Path) -> None:
    (folder / "c.txt").write_text("to be or not to be, that is the question\n" * 120, encoding="utf-8")
    result = train("c.txt", SMALL, epochs=2, batch=4)
    model = Model.load(result.model)
    text = (folder / "c.txt").read_text(encoding="utf-8")
    valid = text[int(0.9 * len(text)) :]
    net, known = model.graphs["decoder"].network, reader(model.pipeline.outputs[0].state.tokenizer)  # type: ignore[attr-defined]
    ids = [*known.encode(valid).ids, model.pipeline.outputs[0].state.ends[0]]
    total = 0.0
    for start in range(0, len(ids) - 1, 48):
        block = torch.tensor([ids[start : start + 49]])
        logs = net.logits(block[:, :-1]).log_softmax(-1)
        total -= logs.gather(2, block[:, 1:, None]).sum().item()
    found = result.metrics["valid"]
    assert found["nats_per_token"]["value"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found["bits_per_byte"]["value"] == pytest.approx(total / np.log(2) / len(valid.encode()), rel=1e-5)
    events = [json.loads(x) for x in (result.run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert next(e for e in reversed(events) if "valid_loss" in e)["valid_loss"] == pytest.approx(found["nats_per_token"]["value"], rel=1e-4)
    again = modelyard.evaluate(result.model.parent)
    assert again.metrics["valid"]["perplexity"]["value"] == pytest.approx(found["perplexity"]["value"])


@pytest.mark.filterwarnings("ignore")
def test_a_base_goes_on_with_its_tokenizer_and_keeps_every_tensor(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    whole = [[*TALK, {"role": "assistant", "content": WORDS[i % 10]}] for i in range(30)]
    path = write(folder / "talk.jsonl", [{"messages": w} for w in whole])
    first = train(path, {**SMALL, "tokenizer": "bytes", "context": 96})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(first.model)
    theirs.to(torch.bfloat16).save_pretrained("base", max_shard_size="20KB")
    transformers.AutoTokenizer.from_pretrained(first.model).save_pretrained("base")
    assert len(list(Path("base").glob("*.safetensors"))) > 1
    second = train(path, {"name": "causal", "base": "base"}, lr=0.0)
    kept = transformers.AutoModelForCausalLM.from_pretrained(second.model).state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(kept[name].float(), value.float()), name
    manifest = json.loads((second.model / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["net"]["nets"]["messages"]["config"]["base"] is None
    answer = Model.load(second.model).predict([{"messages": TALK}], {"max_tokens": 4})
    assert answer.failed == 0 and isinstance(answer["completion"][0], str)


RUN = """
import sys, modelyard
modelyard.train(data="sums.jsonl", task="text-generation", model={model!r}, epochs=3, batch=8, threads=1, smoke=False,
                pack={pack}, ema=0.9, checkpoint_every=0, **({{"resume": True}} if len(sys.argv) > 1 else {{}}))
"""


def test_fine_tuning_that_is_killed_ends_in_the_same_bits(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    runs = {}
    for name in ("straight", "killed"):
        (folder / name).mkdir()
        write(folder / name / "sums.jsonl", sums(120))
        (folder / name / "go.py").write_text(RUN.format(model={**SMALL, "dropout": 0.1}, pack=True), encoding="utf-8")
        runs[name] = subprocess.Popen([sys.executable, "go.py"], cwd=folder / name, **quiet)
    place, limit = folder / "killed", time.monotonic() + 120
    while not list(place.glob("runs/*/checkpoints/step-00000000[3-9]")):
        assert runs["killed"].poll() is None and time.monotonic() < limit, "it ended before it could be killed"
        time.sleep(0.002)
    runs["killed"].send_signal(signal.SIGKILL)
    runs["killed"].wait()
    assert not list(place.glob("runs/*/model"))
    subprocess.run([sys.executable, "go.py", "resume"], cwd=place, check=True, **quiet)
    assert runs["straight"].wait() == 0
    weights = [next((folder / name).glob("runs/*/model/model.safetensors")).read_bytes() for name in runs]
    assert weights[0] == weights[1]


def test_what_counts_is_coloured(folder: Path) -> None:
    """The preview of plan and report is the mask of the loss: earlier answers and the last one, never what was asked."""
    whole = [[*TALK, {"role": "assistant", "content": f"<{WORDS[i % 10]}>"}] for i in range(30)]
    write(folder / "talk.jsonl", [{"messages": w} for w in whole])
    model = {**SMALL, "context": 96}
    planned = modelyard.plan(data="talk.jsonl", task="text-generation", model=model)
    assert len(planned.preview) == 3
    for row in planned.preview:
        text = "".join(t for t, _ in row)
        assert text.startswith("<|im_start|>user⏎two".replace("⏎", "\n")) and text.count("<|im_end|>") == 4
        counted = "".join(t for t, mark in row if mark)
        assert counted.startswith("2<|im_end|>\n<") and counted.count("<|im_end|>") == 2 and "user" not in counted and "three" not in text[-20:]
    assert "⟦2<|im_end|>⏎⟧" in str(planned)
    result = train("talk.jsonl", model)
    page = (result.run / "report.html").read_text(encoding="utf-8")
    assert "<mark>2</mark><mark>&lt;|im_end|&gt;</mark>" in page and "<span>t</span><span>w</span><span>o</span>" in page
    shown = json.loads((result.run / "samples" / "evaluation.json").read_text(encoding="utf-8"))["valid"]["completion"]["samples"]
    assert shown and all(s["prediction"] not in ("None", "") for s in shown)


OFFLINE = """
import sys
def hook(event, args):
    if event.startswith("socket.") and event not in ("socket.gethostname",):
        print("SOCKET", event, args); sys.stdout.flush()
sys.addaudithook(hook)
from modelyard.cli import main
code = 0
try:
    code = main(["train", "task=text-generation", "data=sums.jsonl", "model={name: causal, base: no-such/model-at-all}", "--offline"])
except SystemExit as stop:
    code = stop.code
print("CODE", code)
"""


def test_offline_opens_no_socket_and_names_the_command(folder: Path) -> None:
    write(folder / "sums.jsonl", sums(30))
    environment = {**os.environ, "PYTHONPATH": SOURCE, "HF_HOME": str(folder / "empty")}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True)
    assert "SOCKET" not in done.stdout and "CODE 0" not in done.stdout
    assert "hf download no-such/model-at-all" in done.stdout + done.stderr


def test_a_hub_name_is_found_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(write(folder / "sums.jsonl", sums(30)), SMALL)
    entry = folder / "hub" / "models--org--small"
    snapshot = entry / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc", encoding="utf-8")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).write_bytes((first.model / name).read_bytes())
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    second = train("sums.jsonl", {"name": "causal", "base": "org/small"}, lr=0.0)
    assert (second.model / "model.safetensors").read_bytes() == (first.model / "model.safetensors").read_bytes()
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match="save_pretrained"):
        train("sums.jsonl", {"name": "causal", "base": "org/small"})


QWEN = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
"""config.json of Qwen/Qwen3-0.6B."""


def test_the_shape_of_qwen3_is_read_from_its_config(folder: Path) -> None:
    Path("qwen").mkdir()
    Path("qwen/config.json").write_text(json.dumps(QWEN), encoding="utf-8")
    config = causal.settled(causal.Config(base="qwen", checkpointing=True))
    assert config == from_settings(QWEN, "qwen", checkpointing=True) and config.row == 1024 and config.each == 128
    with torch.device("meta"):
        net = causal.Network(config, {"tokens": Part((None,), "int32", 151936)}, [Head("y", "text", "tokens", 151936)], "x")
    assert sum(p.numel() for p in net.parameters()) == 596_049_920
    assert len(net.stored()) == 310 and net.lm_head.weight is net.model.embed_tokens.weight


def test_every_row_of_a_file_is_accounted_for(folder: Path) -> None:
    good = [{"messages": [*TALK, {"role": "assistant", "content": WORDS[i % 10]}]} for i in range(30)]
    lines = [json.dumps(r) for r in good] + ["{broken", json.dumps({"messages": [{"role": "assistant", "content": "alone"}]})]
    Path("talk.jsonl").write_text("\n".join(lines), encoding="utf-8")
    result = train("talk.jsonl", SMALL)
    facts = json.loads((result.run / "run.json").read_text(encoding="utf-8"))["data"]
    assert facts["rows_in"] == 32 and sum(facts["rows"].values()) == 30 and facts["set_aside_count"] == 2


def test_folders_of_texts_go_by_their_names(folder: Path) -> None:
    for split, count in (("train", 3), ("valid", 1)):
        Path("books", split).mkdir(parents=True)
        for i in range(count):
            Path("books", split, f"{i}.txt").write_text(f"{split} text number {i}. " * 40, encoding="utf-8")
    Path("books", "train", "none.txt").write_text(" \n", encoding="utf-8")
    result = train("books", {**SMALL, "tokenizer": "bytes"})
    facts = json.loads((result.run / "run.json").read_text(encoding="utf-8"))["data"]
    assert facts["set_aside_count"] == 1 and set(result.metrics) == {"valid"}


# -- larger than memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.txt", "c.txt.gz"])
def test_a_text_in_pieces_is_the_text_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = "".join(f"line {i} of a text, {'ünï' * (i % 5)}\r\n" for i in range(4000))
    raw = text.encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    monkeypatch.setattr(language, "READ", 10_000)
    whole = bind(DataConfig(path=name), "text-generation", folder)
    found = bind(DataConfig(path=name, stream=True), "text-generation", folder)
    assert found.stream is not None and len(found.stream.parts) > 5
    for part, rows in (("train", pl.concat(list(found.stream))), ("valid", found.splits["valid"])):
        assert "".join(rows["completion"]) == "".join(whole.splits[part]["completion"]), part
        assert rows["prompt"].is_null().sum() >= rows.height - 1
    learner.set_encodings(learner.choose(SMALL, found.pipeline, found.tasks, 10), found.pipeline)
    found.pipeline.fit(found.stream)
    ids = found.stream.encode(lambda f: found.pipeline.targets(f, found.pipeline.encode(f).contexts), "target")["completion.ids"]
    assert isinstance(ids, Ragged) and isinstance(ids.values, np.memmap)
    state = found.pipeline.outputs[0].state
    kept = ids.values[~np.isin(ids.values, state.ends)]
    assert reader(state.tokenizer).decode(kept.tolist()) == "".join(whole.splits["train"]["completion"])
    assert len(ids.values) - len(kept) == len(found.stream.parts)  # a piece on disk ends like a text: once in 4 million characters


def test_rows_in_pieces_teach_as_rows_in_memory_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 64)
    write(folder / "t.jsonl", [{"text": f"{r['prompt']}{r['completion']}."} for r in sums(300)])
    data = {"path": "t.jsonl", "stream": True}
    result = modelyard.train(data=data, task="text-generation", model=SMALL, epochs=8, lr=0.01, batch=4, threads=1, smoke=False)
    scores = result.metrics["test"]
    assert scores["token_accuracy"]["value"] > 0.7 and scores["nats_per_token"]["value"] < 1.2  # 3.2 before


MEMORY = """
import dataclasses, resource
from pathlib import Path
import torch, tokenizers
import modelyard.data.frames.language as language
from modelyard.data.blocks import Blocks
from modelyard.data.source import DataConfig
from modelyard.tasks._binding import bind
from modelyard.verbs.train import learner
language.READ, language.HELD = 2**17, 50
model = {"name": "causal", "tokenizer": "characters", "width": 32, "layers": 1, "heads": 2, "context": 64}
def run(name):
    found = bind(DataConfig(path=name, stream=True), "text-generation", Path())
    learner.set_encodings(learner.choose(model, found.pipeline, found.tasks, 10), found.pipeline)
    for column in (*found.pipeline.outputs, *found.pipeline.inputs):
        column.config = dataclasses.replace(column.config, sample=100_000)
    found.pipeline.fit(found.stream)
    found.stream.encode(lambda f: found.pipeline.encode(f).arrays, "input")
    ids = found.stream.encode(lambda f: found.pipeline.targets(f, found.pipeline.encode(f).contexts), "target")["completion.ids"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # pages of the map that batches touch are the system's to drop
    assert len(list(zip(range(3), Blocks(ids, "completion", length=64, batch=16).epoch(0)))) == 3
    return peak, len(ids.values)
small, large = run("small.txt")[0], run("large.txt")
print(large[1], (large[0] - small) * 1024)
"""


def test_memory_does_not_grow_with_the_corpus(folder: Path) -> None:
    """Eight times the text, whose ids alone are 24 MB, is encoded in less than a third of that above what the small one took."""
    for name, count in (("small.txt", 5_000), ("large.txt", 40_000)):
        lines = (f"{i} It was the best of times, it was the worst of times, it was the age of wisdom.\n" for i in range(count))
        (folder / name).write_text("".join(lines), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", MEMORY], env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    ids, grown = map(int, done.stdout.split())
    assert ids > 3_000_000 and grown < 8 * ids / 3, f"{grown / 2**20:.0f} MB for ids of {8 * ids / 2**20:.0f} MB"
