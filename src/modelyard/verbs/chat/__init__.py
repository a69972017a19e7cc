"""Talks with a language model in the terminal; the answer appears as it is written, the same text that the server gives.

modelyard chat runs/assistant-0001
modelyard chat runs/assistant-0001 chat.system="Answer in one sentence." chat.temperature=0
echo "What is 3 plus 4?" | modelyard chat runs/assistant-0001 chat.seed=1
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from modelyard.errors import ModelyardError, UsageError
from modelyard.settings import Between

if TYPE_CHECKING:
    import numpy as np

    from modelyard.runtime.desk import Desk

HELP = "/reset begins anew · /quit ends · Ctrl-C stops an answer"


@dataclass(frozen=True, kw_only=True)
class Config:
    """`chat`: how answers are drawn; the names and defaults of OpenAI's interface."""

    SHORTHAND: ClassVar[str] = "system"

    system: str | None = None
    """What the model is told before the conversation."""
    max_tokens: Annotated[int, Between(1, 100_000)] = 1_024
    """Tokens of an answer at most."""
    temperature: Annotated[float, Between(0, 5)] = 1.0
    """0 takes the most likely token each time."""
    top_p: Annotated[float, Between(0, 1)] = 1.0
    """Draw among the fewest tokens whose probabilities reach this sum."""
    top_k: Annotated[int, Between(0, 1_000_000)] = 0
    """Draw among so many most likely tokens; 0: among all."""
    min_p: Annotated[float, Between(0, 1)] = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition: Annotated[float, Between(0.1, 10)] = 1.0
    """Above 1, tokens that were written already become less likely."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer."""
    seed: Annotated[int, Between(0)] | None = None
    """Fixes the draws of every answer; without it they differ each time."""
    memory: Annotated[int, Between(2**20)] = 2**30
    """Bytes for keys and values; where they do not do for the model's whole context, conversations are shorter."""
    backend: str | None = None
    """Who runs the graphs; without it the model's own."""


@dataclass
class Talked:
    """A conversation that was held without a terminal."""

    model: str
    version: str
    messages: list[dict[str, str]]
    """`{role, content}` of every turn, `user` and `assistant`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self)


class Conversation:
    """Messages so far, and how the next answer comes about. A model of texts without roles goes on with each line instead."""

    def __init__(self, desk: Desk, config: Config, roles: bool = True) -> None:
        self.desk, self.config, self.roles = desk, config, roles
        self.messages: list[dict[str, str]] = []
        self.all: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forgets everything but what the model is told first."""
        self.messages = [{"role": "system", "content": self.config.system}] if self.config.system else []

    def answer(self, line: str, say: Callable[[str], None], notice: Callable[[str], None] = lambda text: None) -> str:
        """The answer to a line; `say` gets its pieces as they are written. Ctrl-C ends it early: what was said stays."""
        said: list[str] = []
        self.messages.append({"role": "user", "content": line})
        try:
            prompt, room = self._room(notice)
            for piece in self._write(prompt, room):
                said.append(piece)
                say(piece)
        except ModelyardError:
            self.messages.pop()  # the next line may fare better
            raise
        except KeyboardInterrupt:
            notice("stopped")
        self.messages.append({"role": "assistant", "content": "".join(said)})
        self.all += self.messages[-2:]
        return "".join(said)

    def _room(self, notice: Callable[[str], None]) -> tuple[np.ndarray, int]:
        """(ids, tokens that the answer may have); the oldest turns are left out when the conversation has grown too long."""
        left_out = 0
        while True:
            prompt = self.desk.conversation(self.messages) if self.roles else self.desk.prompt(self.messages[-1]["content"])
            room = self.desk.length - len(prompt)
            first = 1 if self.messages[0]["role"] == "system" else 0
            if room >= min(self.config.max_tokens, self.desk.length // 4) or (room > 0 and len(self.messages) - first <= 1):
                break
            if len(self.messages) - first <= 1:
                raise UsageError(f"that has {len(prompt)} tokens; the model reads {self.desk.length}, its answer included")
            del self.messages[first : first + 2]
            left_out += 1
        if left_out:
            notice(f"the {left_out} oldest turn(s) no longer fit and were left out")
        return prompt, min(room, self.config.max_tokens)

    def _write(self, prompt: np.ndarray, room: int) -> Iterator[str]:
        import queue

        from modelyard.runtime.answers import Randomness
        from modelyard.runtime.engine import Ask, Said

        c = self.config
        random = Randomness(secrets.randbits(63) if c.seed is None else c.seed)
        ask = Ask(
            prompt=prompt, max_tokens=room, temperature=c.temperature, top_p=c.top_p, top_k=c.top_k, min_p=c.min_p, repetition=c.repetition,
            stop=tuple(c.stop), generator=random.generator(0),
        )  # fmt: skip
        pieces: queue.SimpleQueue[Said] = queue.SimpleQueue()
        text = self.desk.submit(ask, pieces.put)
        try:
            while True:
                said = pieces.get()
                yield said.text
                if said.finish is not None:
                    break
        finally:
            self.desk.cancel(text)
        if text.finish == "error":
            raise UsageError(f"the answer could not be written: {text.error}")


def run(project: Any, *, model: str | None = None, options: Any) -> Talked | None:
    """The verb."""
    from modelyard.runtime.desk import Desk
    from modelyard.runtime.model import Model
    from modelyard.store.run import model_folder

    config: Config = project.section("chat")
    if any(not s for s in config.stop):
        raise UsageError("chat.stop holds an empty text; leave it out")
    loaded = Model.load(
        model_folder(model, project.base / "runs"), config.backend, trust_code=options.trust_code,
        **({"device": options.device} if options.device else {}),
    )  # fmt: skip
    desk = Desk.of(loaded, slots=1, memory=config.memory)
    try:
        roles = loaded.pipeline.inputs[0].kind != "text"
        conversation = Conversation(desk, config, roles)
        person = sys.stdin.isatty() and not options.json
        if person:
            options.notice(f"{loaded.name} {loaded.version}, {desk.length} tokens. {HELP}")
        write = (lambda text: None) if options.json else _writer()
        talk(conversation, _lines(person), write, options.notice)
        return Talked(loaded.name, loaded.version, conversation.all) if options.json else None
    finally:
        desk.close()


def talk(conversation: Conversation, lines: Iterable[str], write: Callable[[str], None], notice: Callable[[str], None]) -> None:
    """Answers line after line until there are no more, or `/quit`."""
    for line in lines:
        words = line.strip()
        if words == "/quit":
            return
        if words == "/reset":
            conversation.reset()
            notice("the conversation begins anew")
        elif words.startswith("/") and " " not in words and len(words) < 20:
            notice(f"{words} is no command. {HELP}")
        elif words:
            try:
                conversation.answer(words, write, notice)
                write("\n")
            except ModelyardError as error:
                notice(error.message)


def _lines(person: bool) -> Iterator[str]:
    """What is typed, or the lines of a file or a pipe."""
    if not person:
        yield from sys.stdin
        return
    with_history()
    while True:
        try:
            print("\n› ", end="", file=sys.stderr, flush=True)
            yield input()
        except EOFError:
            return


def with_history() -> None:
    """Arrow keys and earlier lines, where the platform has them."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _writer() -> Callable[[str], None]:
    """To the real stdout: while a verb runs `sys.stdout` is stderr, so that nothing but results goes there."""
    out = sys.__stdout__ or sys.stdout

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    return write
