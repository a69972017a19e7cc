"""Texts written by vLLM behind the same desk: same prompts, ends, stop strings, caps and words; only the tokens are chosen there.

Kwon et al. 2023 (arXiv 2309.06180). A folder of ours is one of `transformers`, so vLLM reads it as it lies. It gets ids and gives ids: prompts,
texts, stop strings and ends are ours, so that an answer differs by its arithmetic alone. Before the first caller the stored examples are
written by both; a text that differs though no two logits came within `TIE` is refused. Written against vLLM 0.33.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import MachineError, ParityError
from modelyard.runtime.engine import TIE, Ask, Engine, Said, Text

if TYPE_CHECKING:
    from modelyard.runtime.desk import Desk, Writer

PROVEN = 32
"""Stored examples that both write before anybody is answered."""
LENGTH = 24
"""Tokens of each."""


def start(model: Any, desk: Desk, slots: int, memory: int, writer: Writer) -> Vllm:
    """The engine of a loaded model, proven equal. Raises `MachineError` where vLLM is absent or does not start, `ParityError`."""
    engine = Vllm(str(model.folder), desk, slots, memory, writer)
    try:
        _prove(model, desk, engine)
    except BaseException:
        engine.close()
        raise
    return engine


class Vllm:
    """`runtime/desk.Writing` over vLLM's asynchronous engine, whose loop runs in a thread of its own."""

    def __init__(self, folder: str, desk: Desk, slots: int, memory: int, writer: Writer) -> None:
        try:
            import vllm
        except ModuleNotFoundError:
            message = "vllm is not installed. It brings its own torch, so give the server an environment of its own: pip install vllm modelyard"
            raise MachineError(message) from None
        self.vllm, self.desk, self.length = vllm, desk, desk.decoder.context
        self.texts: list[Text] = []
        self.waiting: deque[Text] = deque()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.steps = self.written = self.reused = 0
        self.numbers = itertools.count()
        self.loop, self.ready = asyncio.new_event_loop(), threading.Event()
        self.failed: Exception | None = None
        # "auto" is what the folder says: float32 as we compute, or the half precision of a base that came so
        settings = vllm.AsyncEngineArgs(
            model=folder, dtype="auto", max_model_len=self.length, max_num_seqs=slots, kv_cache_memory_bytes=memory, generation_config="vllm",
            enable_log_requests=False, disable_log_stats=True, trust_remote_code=False,
            tensor_parallel_size=writer.tensor_parallel, pipeline_parallel_size=writer.pipeline_parallel,
        )  # fmt: skip
        self.thread = threading.Thread(target=self._run, args=(settings,), name="vllm", daemon=True)
        self.thread.start()
        self.ready.wait()
        if self.failed is not None:
            raise MachineError(f"vLLM does not start: {type(self.failed).__name__}: {str(self.failed)[:300]}") from self.failed

    def _run(self, settings: Any) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.engine = self.vllm.AsyncLLMEngine.from_engine_args(settings)
        except Exception as error:  # no accelerator, too little memory, a net it does not know: its own classes, all meaning: not here
            self.failed = error
        self.ready.set()
        if self.failed is None:
            self.loop.run_forever()
        self.loop.close()

    def submit(self, ask: Ask, listener: Callable[[Said], None] | None = None) -> Text:
        """Queues a text. Raises `ValueError` where it can never fit: callers check that first."""
        text = Text(replace(ask, constraint=None), listener, self.desk.vocabulary, self.desk.decoder.ends)  # vLLM keeps the rule
        if not len(ask.prompt) or ask.max_tokens < 1 or text.reserved > self.length:
            raise ValueError(f"{len(ask.prompt)} + {ask.max_tokens} tokens do not fit {self.length}")
        self.loop.call_soon_threadsafe(self._begin, text, self._asked(ask, text))
        return text

    def _begin(self, text: Text, asked: Any) -> None:
        self.texts.append(text)
        self.tasks[id(text)] = task = self.loop.create_task(self._write(text, asked))
        task.add_done_callback(lambda task: self._ended(text, task))  # a task that is cancelled before its first step runs no line of its own

    def _ended(self, text: Text, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            text.error = f"{type(error).__name__}: {error}"
            text.close("error")
        text.close("cancelled")
        self.texts.remove(text)
        del self.tasks[id(text)]

    async def _write(self, text: Text, asked: Any) -> None:
        """Takes tokens until our text has ended, which may be before vLLM's: leaving its generator aborts it."""
        prompt = {"prompt_token_ids": text.ask.prompt.tolist()}
        async with contextlib.aclosing(self.engine.generate(prompt, asked, f"modelyard-{next(self.numbers)}")) as answers:
            async for answer in answers:
                self.steps += 1
                self._take(text, answer.outputs[0])
                if text.cancelled or text.finish is not None:
                    return

    def _take(self, text: Text, output: Any) -> None:
        """What a step added."""
        for i, token in enumerate(output.token_ids):
            known = output.logprobs[i] if output.logprobs else {}
            best = sorted(((k, v.logprob) for k, v in known.items()), key=lambda kv: -kv[1])[: text.ask.logprobs or 0]
            self.written += token not in text.ends
            text.add(int(token), known[token].logprob if token in known else 0.0, tuple(best))
            if text.finish is not None:
                return
        if output.finish_reason is not None:
            text.complete("length" if output.finish_reason == "length" else "stop")

    def _asked(self, ask: Ask, text: Text) -> Any:
        """vLLM's words for what is asked. It tells every token as it comes, and ends where our ends are and nowhere else."""
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        rule = next((key for key, rule in self.desk.rules.items() if rule is getattr(ask.constraint, "rule", None)), None)
        wish = None if rule is None else _wish(*rule)
        return self.vllm.SamplingParams(
            max_tokens=ask.max_tokens, temperature=ask.temperature, top_k=ask.top_k, top_p=ask.top_p, min_p=ask.min_p,
            repetition_penalty=ask.repetition, frequency_penalty=ask.frequency, presence_penalty=ask.presence,
            logit_bias=dict(ask.bias) or None, seed=None if ask.generator is None else int(ask.generator.integers(2**63)),
            logprobs=ask.logprobs, stop_token_ids=sorted(text.ends), ignore_eos=True, detokenize=False,
            structured_outputs=None if wish is None else StructuredOutputsParams(**wish), output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip

    def cancel(self, text: Text) -> None:
        """Ends a text, in vLLM too."""
        text.cancelled = True
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has the text
            self.loop.call_soon_threadsafe(lambda: task.cancel() if (task := self.tasks.get(id(text))) else None)

    def close(self) -> None:
        """Ends all texts and vLLM's processes."""
        with contextlib.suppress(RuntimeError, TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(30)
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)

    async def _end(self) -> None:
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.engine.shutdown()


def _wish(kind: str, text: str) -> dict[str, Any]:
    """A rule's wish (`Desk.rule`) in vLLM's words."""
    return {"json_object": True} if kind == "object" else {"json": text} if kind == "schema" else {"regex": json.loads(text)}


def _prove(model: Any, desk: Desk, engine: Vllm) -> None:
    """Both write the stored examples, greedily."""
    encoded, _ = model.encode_rows(model.examples[:PROVEN])
    tokens = encoded.arrays[f"{desk.decoder.column}.tokens"]
    room = min(LENGTH, engine.length // 2)
    prompts = [np.asarray(tokens.values[a:b], np.int64)[-(engine.length - room) :] for a, b in itertools.pairwise(tokens.offsets.tolist())]
    asks = [Ask(prompt=p if len(p) else np.array(desk.decoder.ends[:1], np.int64), max_tokens=room, judged=True) for p in prompts]
    own = Engine(desk.decoder.fresh(), slots=min(8, len(asks)))
    mine = [own.submit(ask) for ask in asks]
    own.run()
    done = threading.Semaphore(0)
    theirs = [engine.submit(ask, lambda said: done.release() if said.finish is not None else None) for ask in asks]
    for _ in theirs:
        done.acquire()
    if (failed := next((t for t in theirs if t.finish == "error"), None)) is not None:
        raise MachineError(f"vLLM does not write: {str(failed.error)[:300]}")
    differing = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a.ids != b.ids and a.gap >= TIE]
    if differing:
        raise ParityError(
            f"vLLM writes {len(differing)} of {len(asks)} stored examples otherwise, the first as {desk.vocabulary.text(theirs[differing[0]].ids)[:60]!r} "
            f"instead of {desk.vocabulary.text(mine[differing[0]].ids)[:60]!r}; leave serve.writer out to be answered by our own engine"
        )
