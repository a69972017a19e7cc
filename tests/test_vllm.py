# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""Texts written by another engine behind our routes. vLLM itself does not install beside this torch: `Stand` speaks its words (0.33: keywords,
deltas, an end among the ids, aborts) and chooses by `transformers` from the folder that it is given."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import modelyard
from modelyard.errors import MachineError, ParityError, Unsupported
from modelyard.runtime import constraint, vllm
from modelyard.runtime.desk import Desk, Writer
from modelyard.runtime.engine import Ask, Text
from modelyard.runtime.model import Model
from test_adapted import ASKED, SMALL, fit, greedy, sums

KINDS = Enum("KINDS", "CUMULATIVE DELTA FINAL_ONLY")


@dataclass
class Wishes:
    """`vllm.SamplingParams`: these keywords and no others."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float] | None
    seed: int | None
    logprobs: int | None
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool
    structured_outputs: Any
    output_kind: Any


@dataclass
class Structured:
    """`StructuredOutputsParams`."""

    json: str | None = None
    regex: str | None = None
    json_object: bool | None = None


@dataclass
class Arguments:
    """`vllm.AsyncEngineArgs`."""

    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    kv_cache_memory_bytes: int
    generation_config: str
    enable_log_requests: bool
    disable_log_stats: bool
    trust_remote_code: bool
    tensor_parallel_size: int
    pipeline_parallel_size: int


class Stand:
    """`vllm.AsyncLLMEngine` for one core."""

    made: list[Stand]
    shift = 0.0
    """Added to the logit of one token: an engine that computes otherwise."""

    def __init__(self, args: Arguments) -> None:
        if args.max_num_seqs == 13:
            raise RuntimeError("no accelerator")
        self.args, self.asked, self.aborted, self.ended = args, list[Wishes](), 0, False
        self.net = transformers.AutoModelForCausalLM.from_pretrained(args.model).eval()
        self.made.append(self)

    @classmethod
    def from_engine_args(cls, args: Arguments) -> Stand:
        return cls(args)

    async def generate(self, prompt: dict[str, list[int]], wishes: Wishes, request_id: str) -> AsyncIterator[Any]:
        self.asked.append(wishes)
        ids, left = list(prompt["prompt_token_ids"]), wishes.max_tokens
        finish = None
        try:
            while finish is None:
                await asyncio.sleep(0.001)
                with torch.no_grad():
                    logits = self.net(torch.tensor([ids])).logits[0, -1].double()
                known = logits.log_softmax(0)  # before wishes
                logits[5] += self.shift
                for token, bias in (wishes.logit_bias or {}).items():
                    logits[token] += bias
                token = int(logits.argmax()) if not wishes.temperature else int((logits / wishes.temperature).softmax(0).multinomial(1))
                ids.append(token)
                left -= 1
                finish = "stop" if token in wishes.stop_token_ids else "length" if not left else None
                best = [] if wishes.logprobs is None else [token, *known.topk(wishes.logprobs).indices.tolist()]
                told = [{k: SimpleNamespace(logprob=float(known[k])) for k in best}] if best else None
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token], logprobs=told, finish_reason=finish)])
        finally:
            self.aborted += finish is None

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stand]]:
    module, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vars(module).update(AsyncLLMEngine=Stand, AsyncEngineArgs=Arguments, SamplingParams=Wishes, sampling_params=params)
    vars(params).update(RequestOutputKind=KINDS, StructuredOutputsParams=Structured)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    monkeypatch.setattr(Stand, "made", [], raising=False)
    yield Stand
    assert all(s.ended for s in Stand.made)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("vllm")
    return fit(folder, sums(300), {**SMALL, "tokenizer": "characters"}, "texts", epochs=3, lr=5e-3).model


def test_the_same_client_gets_the_same_answers(written: Path, stand: type[Stand]) -> None:
    openai = pytest.importorskip("openai")
    rows, expected = ASKED[:8], greedy(Model.load(written))[:8]
    found: dict[str, Any] = {}
    for writer in ("own", "vllm"):
        with modelyard.serve(str(written), slots=4, writer=writer) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
            ask = lambda i, c=client, **more: c.completions.create(  # noqa: E731
                model="texts", prompt=rows[i]["prompt"], max_tokens=8, temperature=0, **more
            )
            assert [ask(i).choices[0].text for i in range(8)] == expected
            stopped, cut = ask(0, stop=expected[0][1]).choices[0], ask(0, logit_bias={str(i): -100 for i in range(4)}, logprobs=2).choices[0]
            stream = "".join(piece.choices[0].text for piece in ask(1, stream=True) if piece.choices)
            top = [{k: round(v, 4) for k, v in sorted(t.items())} for t in cut.logprobs.top_logprobs]
            found[writer] = (stopped.text, stopped.finish_reason, cut.finish_reason, cut.text, stream, [round(x, 4) for x in cut.logprobs.token_logprobs], top)
    assert found["own"] == found["vllm"] and found["vllm"][1:3] == ("stop", "length") and found["vllm"][4] == expected[1]
    engine = stand.made[0]
    assert (engine.args.max_num_seqs, engine.args.max_model_len, engine.args.trust_remote_code) == (4, 48, False) and engine.aborted >= 1  # the stop string


def test_rules_seeds_and_those_who_leave_reach_it(written: Path, stand: type[Stand]) -> None:
    model = Model.load(written)
    desk = Desk.of(model, slots=2, writer=Writer("vllm", 2, 3))
    try:
        rule = desk.rule("regex", json.dumps("[fi]+"), lambda whole: constraint.regex("[fi]+", whole))  # the vocabulary has no brackets for objects
        assert (stand.made[0].args.tensor_parallel_size, stand.made[0].args.pipeline_parallel_size) == (2, 3)
        prompt = desk.prompt("one and two is ")
        ask = Ask(prompt=prompt, max_tokens=3, temperature=0.5, generator=np.random.default_rng(3), constraint=rule.text(desk.vocabulary.pieces))
        text, _ = desk.write(ask)
        wishes = stand.made[0].asked[-1]
        assert wishes.structured_outputs == Structured(regex="[fi]+") and wishes.seed == np.random.default_rng(3).integers(2**63) and len(text.ids) <= 3
        assert wishes.stop_token_ids == sorted(desk.decoder.ends) and wishes.ignore_eos and not wishes.detokenize
        before = stand.made[0].aborted
        gone: list[Text] = [desk.submit(Ask(prompt=prompt, max_tokens=20, ends=()), lambda said: None) for _ in range(5)]
        for text in gone:
            desk.cancel(text)
        limit = time.monotonic() + 10
        while (desk.engine.texts or any(t.finish is None for t in gone)) and time.monotonic() < limit:
            time.sleep(0.005)
        assert not desk.engine.texts and all(t.finish == "cancelled" for t in gone) and stand.made[0].aborted <= before + 5
    finally:
        desk.close()


def test_what_is_not_equal_or_not_there_is_refused(written: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Stand, "shift", 30.0)
    with pytest.raises(ParityError, match="stored examples otherwise"):
        modelyard.serve(str(written), writer="vllm")
    with pytest.raises(MachineError, match="does not start: RuntimeError: no accelerator"):
        modelyard.serve(str(written), writer="vllm", slots=13)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MachineError, match="pip install vllm"):
        modelyard.serve(str(written), writer="vllm")
    assert vllm._wish("schema", '{"type": "object"}') == {"json": '{"type": "object"}'} and vllm._wish("object", "null") == {"json_object": True}
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"a": np.random.default_rng(0).normal(size=60), "y": ["n", "y"] * 30}).write_csv("t.csv")
    plain = modelyard.train(data="t.csv", target="y", model="linear", quiet=True)
    with pytest.raises(Unsupported, match="divides a language model over several"):
        modelyard.serve(str(written), tensor_parallel=2)
    with pytest.raises(Unsupported, match="no model here does"):
        modelyard.serve(str(plain.model), writer="vllm")
