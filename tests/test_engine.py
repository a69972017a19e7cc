"""The engine: texts as written one by one, whatever else runs; slots come back; prompts in pieces; stops across tokens."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from modelyard.kinds._contract import Head, Part
from modelyard.nets import causal
from modelyard.nets._slots import Slots
from modelyard.runtime.answers import Randomness, resolve
from modelyard.runtime.engine import TIE, Ask, Engine, Said, fitting
from modelyard.runtime.programs import complete

V = 61


def decoder(arch: str = "qwen3", seed: int = 0, context: int = 64) -> Slots:
    torch.manual_seed(seed)
    config = causal.Config(architecture=arch, width=32, layers=2, heads=4, kv_heads=2, context=context)  # type: ignore[arg-type]
    net = causal.Network(config, {"tokens": Part((None,), "int32", V)}, [Head("y", "text", "tokens", V)], "x")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.normal_(p, mean=0.5, std=0.2)
    net.ends = (2,)  # type: ignore[assignment]
    return Slots(net.eval())


def slowly(net: Slots, prompt: list[int], most: int) -> tuple[list[int], float]:
    """Greedy by the whole text anew for every token; the smallest gap between the two best."""
    ids, gap = list(prompt), np.inf
    for _ in range(most):
        with torch.inference_mode():
            row = net.network.logits(torch.tensor([ids]))[0, -1].numpy()
        best = np.sort(row)
        gap = min(gap, float(best[-1] - best[-2]))
        if int(row.argmax()) == 2:
            break
        ids.append(int(row.argmax()))
    return ids[len(prompt) :], gap


def prompts(n: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(3, V, random.integers(1, longest)).tolist() for _ in range(n)]


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_greedy_texts_are_those_written_one_by_one(arch: str) -> None:
    net = decoder(arch)
    some = prompts(23)
    room = np.random.default_rng(1).integers(1, 30, len(some)).tolist()
    engine = Engine(net, slots=5, chunk=7)  # more texts than slots, prompts longer than a chunk
    texts = [engine.submit(Ask(prompt=np.array(p), max_tokens=n, judged=True)) for p, n in zip(some, room, strict=True)]
    engine.run()
    ties = 0
    for prompt, n, text in zip(some, room, texts, strict=True):
        expected, gap = slowly(net, prompt, n)
        ties += gap < TIE
        assert text.ids == expected or gap < TIE
        assert text.finish == ("length" if len(expected) == n else "stop")
        assert text.gap == pytest.approx(gap, abs=1e-3)
    assert ties <= 1 and not engine.texts and engine.running == 0


@pytest.mark.filterwarnings("ignore")
def test_greedy_texts_are_those_of_transformers(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    import json

    from safetensors.torch import save_file

    from modelyard.nets._huggingface import to_settings

    net = decoder("llama")
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(to_settings(net.network.config, V, ids)), encoding="utf-8")
    save_file({k: v.contiguous().clone() for k, v in net.network.stored().items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    some = prompts(6, seed=3)
    engine = Engine(net, slots=3)
    texts = [engine.submit(Ask(prompt=np.array(p), max_tokens=20, judged=True)) for p in some]
    engine.run()
    for prompt, text in zip(some, texts, strict=True):
        with torch.inference_mode():
            found = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, len(prompt) :].tolist()
        assert [i for i in found if i != 2] == text.ids or text.gap < TIE


def test_a_drawn_text_does_not_depend_on_its_neighbours() -> None:
    net = decoder()
    some = prompts(9, seed=5)
    settings: dict[str, Any] = {
        "temperature": 0.8, "top_p": 0.9, "repetition": 1.2, "frequency": 0.3, "presence": 0.2, "bias": {7: 2.0},
    }  # fmt: skip

    def written(slots: int, chunk: int) -> list[list[int]]:
        engine = Engine(net, slots=slots, chunk=chunk)
        asks = [Ask(prompt=np.array(p), max_tokens=20, generator=Randomness(11).generator(i), **settings) for i, p in enumerate(some)]
        texts = [engine.submit(a) for a in asks]
        engine.run()
        return [t.ids for t in texts]

    alone = written(1, 64)
    assert alone == written(9, 5) == written(4, 16)
    assert len({tuple(t) for t in alone}) == 9


def test_the_program_answers_a_batch_as_the_engine() -> None:
    net = decoder()
    some = [*prompts(4, seed=7), []]
    length_B = np.array([len(p) for p in some])
    tokens_BL = np.stack([np.pad(np.array(p, np.int64), (0, 30 - len(p))) for p in some])
    out = complete.run({"decoder": net}, {"x.tokens": tokens_BL, "x.length": length_B}, resolve(complete.PARAMS, {"max_tokens": 12}), Randomness(0))
    for row, prompt in zip(out["y.ids"], [*some[:4], [2]], strict=True):
        expected, _ = slowly(net, prompt, 12)
        assert row.tolist() == expected + [2] * (len(row) - len(expected))
    assert (out["y.score"] < 0).all() and (out["y.gap"] > 0).all()
    long = np.tile(np.arange(3, 53), (1, 4))[:, :200]  # longer than the context: its beginning is left out
    out = complete.run({"decoder": net}, {"x.tokens": long, "x.length": np.array([200])}, resolve(complete.PARAMS, {"max_tokens": 12}), Randomness(0))
    assert out["y.ids"][0][:-1].tolist() == slowly(net, long[0, -52:].tolist(), 12)[0]


def test_cancelled_texts_free_their_slot_at_once() -> None:
    net = decoder()
    engine = Engine(net, slots=2)
    said: list[Said] = []
    long = [engine.submit(Ask(prompt=np.array([5 + i]), max_tokens=60, ends=()), said.append if i == 1 else None) for i in range(2)]
    behind = engine.submit(Ask(prompt=np.array([9, 8, 7]), max_tokens=5, ends=()))
    gone = engine.submit(Ask(prompt=np.array([9, 8, 7]), max_tokens=5, ends=()))
    engine.cancel(gone)  # before it had a slot
    for _ in range(3):
        engine.step()
    assert len(engine.texts) == 2 and not behind.ids and gone.finish == "cancelled"
    engine.cancel(long[0])
    engine.step()
    assert long[0].finish == "cancelled" and behind in engine.texts
    engine.cancel(long[1])
    engine.run()
    assert said[-1].finish == "cancelled" and behind.finish == "length"
    assert behind.ids == slowly_without_end(net, [9, 8, 7], 5)
    assert not engine.texts and not engine.busy


def slowly_without_end(net: Slots, prompt: list[int], most: int) -> list[int]:
    ids = list(prompt)
    for _ in range(most):
        with torch.inference_mode():
            ids.append(int(net.network.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_the_next_turn_reads_only_what_is_new() -> None:
    net = decoder()
    engine = Engine(net, slots=3)
    first = engine.submit(Ask(prompt=np.arange(3, 23), max_tokens=6, ends=()))
    other = engine.submit(Ask(prompt=np.arange(30, 40), max_tokens=9, ends=()))
    engine.run()
    turn = np.concatenate([np.arange(3, 23), first.ids[:5], [50, 51]])
    again = engine.submit(Ask(prompt=turn, max_tokens=8, ends=()))
    engine.run()
    assert engine.reused == 25 and again.ids == slowly_without_end(net, turn.tolist(), 8)
    same = engine.submit(Ask(prompt=np.arange(30, 40), max_tokens=9, ends=()))
    engine.run()
    assert engine.reused == 34 and same.ids == other.ids


def test_many_texts_that_come_and_go_from_other_threads() -> None:
    net = decoder()
    engine = Engine(net, slots=4, chunk=16)
    some = prompts(60, seed=9, longest=20)
    texts: dict[int, Any] = {}
    random = np.random.default_rng(2)
    cancelled = set(random.choice(60, 20, replace=False).tolist())

    def send(first: int) -> None:
        for i in range(first, 60, 3):
            texts[i] = engine.submit(Ask(prompt=np.array(some[i]), max_tokens=10, judged=True))
            if i in cancelled:
                engine.cancel(texts[i])

    threads = [threading.Thread(target=send, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads) or engine.busy:
        engine.step()
    for i, text in texts.items():
        assert text.finish in (("cancelled",) if i in cancelled and text.finish == "cancelled" else ("stop", "length"))
        if text.finish != "cancelled":
            assert text.ids == slowly(net, some[i], 10)[0] or text.gap < TIE
    assert not engine.texts and not engine.waiting


def test_a_failing_decoder_ends_its_texts() -> None:
    net = decoder()
    engine = Engine(net, slots=2)
    text = engine.submit(Ask(prompt=np.array([5]), max_tokens=5))
    engine.decoder.feed = lambda *a: (_ for _ in ()).throw(MemoryError("no room"))  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        engine.step()
    assert text.finish == "error" and "no room" in str(text.error) and not engine.texts


def test_the_cache_fits_the_memory() -> None:
    net = decoder(context=1000)
    each = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    shape = fitting(net, 16, each * 1001 * 6)
    assert shape == {"slots": 6, "length": 1000}
    assert fitting(net, 16, each * 1000)["length"] < 1000
    engine = Engine(net, **shape)
    assert net.memory() <= each * 1001 * 6 and engine.length == 1000
    with pytest.raises(ValueError, match="do not fit"):
        engine.submit(Ask(prompt=np.arange(990) % V, max_tokens=11))
