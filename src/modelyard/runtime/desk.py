"""A language model that answers many callers: its engine in one thread, its tokenizer and chat template beside it."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl

from modelyard.errors import Unsupported
from modelyard.kinds._contract import Ragged
from modelyard.runtime import chat_template
from modelyard.runtime._grammar import Grammar, Rule, Tokens
from modelyard.runtime.decoder import Decoder
from modelyard.runtime.engine import MEMORY, SLOTS, Ask, Engine, Said, Text, fitting
from modelyard.runtime.vocabulary import Vocabulary

RULES = 32
"""Grammars that are kept with their masks: clients send the same schema again and again."""


@dataclass(frozen=True)
class Writer:
    """Who chooses the tokens: our engine on one device, or vLLM on as many as its two numbers say."""

    name: str = "own"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


OWN = Writer()


class Writing(Protocol):
    """What writes the texts of a desk, called from any thread: `Stepping` here, or `runtime/vllm.py`."""

    length: int
    """Tokens of a text, its prompt included."""
    texts: list[Text]
    waiting: deque[Text]
    steps: int
    written: int
    reused: int

    def submit(self, ask: Ask, listener: Callable[[Said], None] | None = None) -> Text:
        """Queues a text; the listener is called by the engine's thread and must not block."""

    def cancel(self, text: Text) -> None:
        """Ends a text."""

    def close(self) -> None:
        """Ends the thread; texts that still run are cancelled."""


class Stepping(Engine):
    """Our engine in a thread of its own."""

    def __init__(self, decoder: Decoder, **settings: Any) -> None:
        super().__init__(decoder, **settings)
        self.wake, self.closing = threading.Condition(), False
        self.thread = threading.Thread(target=self._work, name="write", daemon=True)
        self.thread.start()

    def submit(self, ask: Ask, listener: Callable[[Said], None] | None = None) -> Text:
        """`Engine.submit`; the thread wakes."""
        text = super().submit(ask, listener)
        with self.wake:
            self.wake.notify()
        return text

    def cancel(self, text: Text) -> None:
        """`Engine.cancel`; the thread wakes."""
        super().cancel(text)
        with self.wake:
            self.wake.notify()

    def close(self) -> None:
        """Ends the thread; texts that still run are cancelled."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        self.thread.join(30)

    def _work(self) -> None:
        while True:
            with self.wake:
                while not self.busy and not self.closing:
                    self.wake.wait()
                if self.closing:
                    for text in [*self.texts, *self.waiting]:
                        text.cancelled = True
            try:
                self.step()
            except Exception:  # every text was told; the next ones may fare better
                traceback.print_exc(file=sys.stderr)
            if self.closing and not self.busy:
                return


class Desk:
    """Takes texts to write from any thread; `close` ends it."""

    def __init__(
        self, decoder: Decoder, tokenizer: str, *, template: str | None = None, special: Mapping[str, str] | None = None,
        read: Callable[[str], np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        self.decoder, self.vocabulary, self.template = decoder, Vocabulary(tokenizer), template
        self.special = dict(special or {})
        """`bos_token` and the like."""
        self.read = read
        self.engine: Writing
        self.rules: OrderedDict[tuple[str, str], Rule] = OrderedDict()
        self.making = threading.Lock()

    @classmethod
    def of(cls, model: Any, *, slots: int = SLOTS, memory: int = MEMORY, writer: Writer = OWN) -> Desk:
        """The desk of a loaded model (`runtime/model.Model`). Raises `Unsupported` where it does not write."""
        if not writes(model):
            raise Unsupported(f"{model.name} does not write: it has no decoder; use modelyard predict", "use")
        column, state = model.pipeline.inputs[0], model.pipeline.outputs[0].state
        read = None
        if column.kind == "text":

            def read(text: str) -> np.ndarray:
                tokens = column.coder.encode(pl.Series([text], dtype=pl.String), column.state, {})["tokens"]
                assert isinstance(tokens, Ragged)
                return np.asarray(tokens.values, np.int64)

        desk = cls(
            model.graphs["decoder"].fresh(), state.tokenizer, template=getattr(state, "template", None) or None,
            special=_special(getattr(state, "settings", "")), read=read,
        )  # fmt: skip
        if writer.name == "vllm":
            from modelyard.runtime import vllm

            desk.engine = vllm.start(model, desk, slots, memory, writer)
        else:
            desk.engine = Stepping(desk.decoder, vocabulary=desk.vocabulary, **fitting(desk.decoder, slots, memory))
        return desk

    @property
    def length(self) -> int:
        """Tokens of a text, its prompt included."""
        return self.engine.length

    def prompt(self, text: str) -> np.ndarray:
        """Ids of a text to go on with, as the model's own encoding reads it; at least one."""
        ids = np.asarray(self.vocabulary.encode(text), np.int64) if self.read is None else self.read(text)
        return ids if len(ids) else np.array(self.decoder.ends[:1], np.int64)

    def conversation(self, messages: Sequence[Mapping[str, Any]], **values: Any) -> np.ndarray:
        """Ids of messages up to where the assistant answers. Raises `TemplateError`, and `Unsupported` where there is no template."""
        if self.template is None:
            raise Unsupported("this model has no chat template: it continues texts; ask /v1/completions", "use")
        text = chat_template.render(self.template, messages, **{"add_generation_prompt": True, **self.special, **values})
        ids = np.asarray(self.vocabulary.encode(text), np.int64)
        return ids if len(ids) else np.array(self.decoder.ends[:1], np.int64)

    @cached_property
    def tokens(self) -> Tokens:
        """The vocabulary as grammars walk it."""
        return Tokens(self.vocabulary.pieces, self.decoder.vocabulary, self.decoder.ends)

    def rule(self, kind: str, text: str, make: Callable[[frozenset[bytes]], Grammar]) -> Rule:
        """The rule of a schema or expression; made once while it is asked for. Raises `GrammarError`."""
        with self.making:
            found = self.rules.pop((kind, text), None) or Rule(make(self.tokens.whole), self.tokens)
            self.rules[kind, text] = found
            while len(self.rules) > RULES:
                self.rules.popitem(last=False)
        return found

    def submit(self, ask: Ask, listener: Callable[[Said], None]) -> Text:
        """`Writing.submit`."""
        return self.engine.submit(ask, listener)

    def cancel(self, text: Text) -> None:
        """Ends a text; its slot is free before the next step."""
        self.engine.cancel(text)

    def write(self, ask: Ask) -> tuple[Text, str]:
        """Writes one text to its end: (what was written, its text). For callers that wait."""
        parts: list[str] = []
        done = threading.Event()

        def listen(said: Said) -> None:
            parts.append(said.text)
            if said.finish is not None:
                done.set()

        text = self.submit(ask, listen)
        try:
            done.wait()
        except BaseException:
            self.cancel(text)
            raise
        return text, "".join(parts)

    def close(self) -> None:
        """Ends the engine; texts that still run are cancelled."""
        self.engine.close()


def writes(model: Any) -> bool:
    """Whether a model continues texts token by token."""
    return "decoder" in model.graphs and hasattr(model.pipeline.outputs[0].state, "tokenizer")


def _special(settings: str) -> dict[str, str]:
    """Role → token of a tokenizer_config.json text, where they stand as texts or as objects."""
    found = json.loads(settings or "{}")
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in found.items() if k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {k: v for k, v in named.items() if isinstance(v, str)}
