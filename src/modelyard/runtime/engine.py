"""Writes many texts at once: they come and go at any time, and every step is one pass over all that run (continuous batching).

Yu et al. 2022 (Orca). A text gets a slot of the decoder's cache, its prompt is read in chunks beside the texts that already write, then
each step adds one token to each. Running texts lie side by side in the first slots, so that the cache is read as a view: a text that
ends changes places with the last one. What a slot holds of a finished text is kept until the slot is needed, and a prompt that begins
with it (the next turn of a conversation) reads only what is new.

One text does not see another: its random numbers are its own, and its logits differ by rounding alone (batches of other sizes).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from modelyard.errors import UsageError
from modelyard.runtime.decoder import Decoder
from modelyard.runtime.sampling import adjust, choose, log_softmax
from modelyard.runtime.vocabulary import Stops, Vocabulary, Writer

CHUNK = 256
"""Tokens of prompts that are read in one step beside the running texts, padding included."""
SLOTS = 16
MEMORY = 2**30
"""Bytes of keys and values where nothing else is said."""
TIE = 1e-4
"""Two logits so close may change places with the size of the batch."""


class Constraint(Protocol):
    """What a text may become; one for each text. See `runtime/constraint.py`."""

    def allowed(self, left: int) -> np.ndarray:
        """(V,) true where a token may follow, given that so many tokens are left; at least one, the ends among them where it may end."""

    def take(self, token: int) -> None:
        """The token was written."""

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing but the end may follow."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One text to write. All caps were checked by whoever asks."""

    prompt: np.ndarray
    """Ids, at least one."""
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    """Added to logits."""
    stop: tuple[str, ...] = ()
    ends: tuple[int, ...] | None = None
    """Ids that end the text; None: the decoder's own."""
    generator: np.random.Generator | None = None
    """Of this text alone; needed where the temperature is above 0."""
    logprobs: int | None = None
    """How many of the most likely tokens are told beside the chosen one."""
    constraint: Constraint | None = None
    judged: bool = False
    """Whether `Text.score` and `Text.gap` are wanted."""

    @property
    def penalised(self) -> bool:
        """Whether what was written counts."""
        return self.repetition != 1 or self.frequency != 0 or self.presence != 0

    @property
    def simple(self) -> bool:
        """Whether the largest logit is the answer."""
        return self.temperature == 0 and not self.penalised and not self.bias and self.constraint is None


@dataclass(frozen=True)
class Said:
    """What one step added to a text."""

    text: str
    token: int | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None
    """`stop`, `length`, `cancelled` or `error` with the last one."""


class Text:
    """A text that is being written; made by `Engine.submit`."""

    def __init__(self, ask: Ask, listener: Callable[[Said], None] | None, vocabulary: Vocabulary | None, ends: tuple[int, ...]) -> None:
        self.ask, self.listener, self.ends = ask, listener, frozenset(ends if ask.ends is None else ask.ends)
        self.ids: list[int] = []
        self.place = 0
        self.finish: str | None = None
        self.end: int | None = None
        """The id that ended it, which is none of `ids`."""
        self.cancelled = False
        self.score, self.gap = 0.0, np.inf
        self.error: str | None = None
        self.writer = Writer(vocabulary) if vocabulary is not None else None
        self.stops = Stops(ask.stop)
        self.seen: np.ndarray | None = None
        self.read: np.ndarray | None = None

    @property
    def reserved(self) -> int:
        """Tokens that it may need."""
        return len(self.ask.prompt) + self.ask.max_tokens

    def held(self) -> np.ndarray:
        """Ids whose keys and values its slot holds."""
        return np.concatenate([self.ask.prompt, np.asarray(self.ids, np.int64)])[: self.place]

    def judge(self, logits_V: np.ndarray, token: int, logprob: float) -> None:
        """Adds a token's log-probability to `score`; `gap` becomes how near the second choice came."""
        self.score += logprob
        if self.ask.simple and len(logits_V) > 1:
            second = max(logits_V[:token].max(initial=-np.inf), logits_V[token + 1 :].max(initial=-np.inf))
            self.gap = min(self.gap, float(logits_V[token] - second))
        else:
            self.gap = 0.0

    def add(self, token: int, logprob: float = 0.0, top: tuple[tuple[int, float], ...] = ()) -> None:
        """A token that was chosen; the text ends with it where it is an end, completes a stop string or the last that was asked for."""
        if token in self.ends:
            self.end = token
            self.complete("stop")
            return
        self.ids.append(token)
        if self.seen is not None:
            self.seen[token] += 1
        finish, rule = "length" if len(self.ids) >= self.ask.max_tokens else None, self.ask.constraint
        if rule is not None:
            rule.take(token)
            if rule.exhausted or (finish and rule.complete):
                finish = "stop"
        piece, stopped = self.stops.add(self.writer.add(token)) if self.writer is not None else ("", False)
        if not stopped and not finish:
            self.say(Said(piece, token, logprob, top))
            return
        if not stopped and self.writer is not None:
            more, stopped = self.stops.add(self.writer.end())
            piece += more
        self.complete("stop" if stopped else str(finish), Said(piece, token, logprob, top), stopped)

    def complete(self, finish: str, last: Said | None = None, stopped: bool = False) -> None:
        """The last words: what waited for the rest of a stop string or a character comes now."""
        piece = "" if last is None else last.text
        if self.writer is not None and last is None:
            more, met = self.stops.add(self.writer.end())
            piece, stopped = piece + more, stopped or met
        piece += "" if stopped else self.stops.end()
        last = last or Said("")
        self.finish = finish
        self.say(Said(piece, last.token, last.logprob, last.top, finish))

    def close(self, finish: str) -> None:
        """Ends it without more words, unless it has ended."""
        if self.finish is None:
            self.finish = finish
            self.say(Said("", finish=finish))

    def say(self, said: Said) -> None:
        """Tells the listener; a listener that fails ends its own text only."""
        if self.listener is not None:
            try:
                self.listener(said)
            except Exception:
                self.listener, self.cancelled = None, True


class Engine:
    """Schedules texts over the slots of a decoder. `submit` and `cancel` may be called by any thread, `step` by one."""

    def __init__(
        self, decoder: Decoder, *, slots: int = SLOTS, length: int | None = None, tokens: int | None = None, chunk: int = CHUNK,
        vocabulary: Vocabulary | None = None,
    ) -> None:  # fmt: skip
        self.decoder, self.slots, self.chunk, self.vocabulary = decoder, slots, chunk, vocabulary
        self.length = decoder.context if length is None else min(length, decoder.context)
        self.tokens = slots * self.length if tokens is None else tokens
        decoder.reserve(slots, self.length)
        self.texts: list[Text] = []
        """By slot: those that write, then those whose prompt is still read."""
        self.running = 0
        self.remembered: list[np.ndarray] = [np.zeros(0, np.int64)] * slots
        """What the slots behind hold of finished texts."""
        self.left = [0] * slots
        """Step in which their texts ended."""
        self.waiting: deque[Text] = deque()
        self.lock = threading.Lock()
        self.steps = self.written = self.reused = 0

    def submit(self, ask: Ask, listener: Callable[[Said], None] | None = None) -> Text:
        """Queues a text. Raises `ValueError` where it can never fit: callers check that first."""
        text = Text(ask, listener, self.vocabulary, self.decoder.ends)
        if not len(ask.prompt) or ask.max_tokens < 1 or text.reserved > min(self.length, self.tokens):
            raise ValueError(f"{len(ask.prompt)} + {ask.max_tokens} tokens do not fit a slot of {self.length}")
        with self.lock:
            self.waiting.append(text)
        return text

    def cancel(self, text: Text) -> None:
        """The text ends and its slot is free before the next step."""
        text.cancelled = True

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.texts or self.waiting)

    def step(self) -> bool:
        """Admits what fits, reads a chunk of prompts, adds a token to each running text. False where there was nothing to do."""
        self._leave()
        self._admit()
        if not self.texts:
            return False
        self.steps += 1
        try:
            self._read()
            self._leave()  # one whose first token was its last: what writes lies side by side again
            self._write()
        except Exception as error:  # the decoder ran out of memory, or has a fault: nobody waits for ever
            for text in [*self.texts]:
                text.error = f"{type(error).__name__}: {error}"
                text.close("error")
            self._leave()
            raise
        self._leave()
        return True

    def run(self) -> None:
        """Steps until nothing is left."""
        while self.step():
            pass

    def _admit(self) -> None:
        while self.waiting and len(self.texts) < self.slots:
            with self.lock:
                text = self.waiting[0]
                if text.cancelled or text.reserved + sum(t.reserved for t in self.texts) <= self.tokens:
                    self.waiting.popleft()
                else:
                    return
            if text.cancelled:
                text.close("cancelled")
                continue
            at = len(self.texts)
            shared = {i: _common(self.remembered[i], text.ask.prompt) for i in range(at, self.slots)}
            best = max(shared, key=lambda i: (shared[i], -self.left[i]))  # else the slot whose text ended longest ago
            text.place = min(shared[best], len(text.ask.prompt) - 1)  # the last token is always read: its logits are needed
            self.reused += text.place
            if best != at:
                self._swap(at, best)
            self.texts.append(text)

    def _swap(self, a: int, b: int) -> None:
        self.decoder.swap(a, b)
        self.remembered[a], self.remembered[b] = self.remembered[b], self.remembered[a]
        self.left[a], self.left[b] = self.left[b], self.left[a]

    def _move(self, a: int, b: int) -> None:
        """Two texts change places."""
        if a != b:
            self._swap(a, b)
            self.texts[a], self.texts[b] = self.texts[b], self.texts[a]

    def _leave(self) -> None:
        """Takes out those that ended, keeping running texts, then reading ones, side by side."""
        for i in range(len(self.texts) - 1, -1, -1):
            text = self.texts[i]
            if text.cancelled and text.finish is None:
                text.close("cancelled" if text.error is None else "error")
            if text.finish is None:
                continue
            if i < self.running:
                self.running -= 1
                self._move(i, self.running)
                i = self.running
            self._move(i, len(self.texts) - 1)
            self.texts.pop()
            self.remembered[len(self.texts)], self.left[len(self.texts)] = text.held(), self.steps
        for text in [t for t in list(self.waiting) if t.cancelled]:
            with self.lock:
                if text in self.waiting:
                    self.waiting.remove(text)
            text.close("cancelled")

    def _read(self) -> None:
        """One chunk of prompts: as many texts as fit when padded to the longest piece."""
        reading = self.texts[self.running :]
        if not reading:
            return
        pieces: list[np.ndarray] = []
        for text in reading:
            piece = text.ask.prompt[text.place : text.place + self.chunk]
            if pieces and max(len(piece), max(map(len, pieces))) * (len(pieces) + 1) > self.chunk:
                break
            pieces.append(piece)
        some = reading[: len(pieces)]
        length_B = np.array([len(p) for p in pieces], np.int64)
        tokens_BT = np.zeros((len(pieces), int(length_B.max())), np.int64)
        for row, piece in zip(tokens_BT, pieces, strict=True):
            row[: len(piece)] = piece
        slot_B = np.arange(self.running, self.running + len(pieces))
        logits_BV = self.decoder.feed(tokens_BT, length_B, slot_B, np.array([t.place for t in some], np.int64))
        for text, n in zip(some, length_B.tolist(), strict=True):
            text.place += n
        whole = [i for i, t in enumerate(some) if t.place == len(t.ask.prompt)]
        if whole:
            self._draw([some[i] for i in whole], logits_BV[whole])
        for text in [some[i] for i in whole]:
            self._move(self.running, self.texts.index(text))
            self.running += 1

    def _write(self) -> None:
        texts = self.texts[: self.running]
        if not texts:
            return
        tokens_B1 = np.array([[t.ids[-1]] for t in texts], np.int64)
        place_B = np.array([t.place for t in texts], np.int64)
        logits_BV = self.decoder.feed(tokens_B1, np.ones(len(texts), np.int64), np.arange(len(texts)), place_B)
        for text in texts:
            text.place += 1
        self._draw(texts, logits_BV)

    def _draw(self, texts: Sequence[Text], logits_BV: np.ndarray) -> None:
        """Chooses the next token of each text and tells it."""
        ids_B = np.argmax(logits_BV, axis=1)
        hard = [i for i, t in enumerate(texts) if not t.ask.simple]
        if hard:
            ids_B[hard] = self._choose([texts[i] for i in hard], logits_BV[hard])
        told = [i for i, t in enumerate(texts) if t.ask.logprobs is not None or t.ask.judged]
        known = dict(zip(told, log_softmax(logits_BV[told]), strict=True)) if told else {}
        for i in (i for i in told if texts[i].ask.judged):
            texts[i].judge(logits_BV[i], int(ids_B[i]), float(known[i][ids_B[i]]))
        for i, (text, token) in enumerate(zip(texts, ids_B.tolist(), strict=True)):
            self._add(text, token, known.get(i))

    def _choose(self, texts: Sequence[Text], logits_BV: np.ndarray) -> np.ndarray:
        asks = [t.ask for t in texts]
        rows = np.array(logits_BV, np.float64)
        for row, text in zip(rows, texts, strict=True):
            for token, value in text.ask.bias.items():
                row[token] += value
            if text.ask.constraint is not None:
                try:
                    row[~text.ask.constraint.allowed(text.ask.max_tokens - len(text.ids))] = -np.inf
                except UsageError as error:  # a hostile grammar met its cap
                    text.error, text.cancelled = error.message, True
            if text.ask.penalised and text.seen is None:
                text.seen, text.read = np.zeros(len(row), np.int32), np.zeros(len(row), bool)
                text.read[text.ask.prompt] = True
        counted = any(a.penalised for a in asks)
        none = np.zeros(rows.shape[1], bool)
        pick = lambda name: np.array([getattr(a, name) for a in asks])  # noqa: E731
        heat_B = pick("temperature")
        out = adjust(
            rows, temperature=heat_B, top_k=pick("top_k"), top_p=pick("top_p"), min_p=pick("min_p"), repetition=pick("repetition"),
            frequency=pick("frequency"), presence=pick("presence"),
            seen=np.stack([none if t.seen is None else t.seen for t in texts]) if counted else None,
            prompt=np.stack([none if t.read is None else t.read for t in texts]) if counted else None,
        )  # fmt: skip
        return choose(out, heat_B, [a.generator for a in asks])

    def _add(self, text: Text, token: int, logprobs_V: np.ndarray | None) -> None:
        value, top = (0.0, ()) if logprobs_V is None else (float(logprobs_V[token]), _top(logprobs_V, text.ask.logprobs or 0))
        self.written += token not in text.ends
        text.add(token, value, top)

def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Ids at the beginning that are equal."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _top(logprobs_V: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    best = np.argpartition(-logprobs_V, min(count, len(logprobs_V) - 1))[:count]
    best = best[np.argsort(-logprobs_V[best], kind="stable")]
    return tuple((int(i), float(logprobs_V[i])) for i in best)


def fitting(decoder: Decoder, slots: int = SLOTS, memory: int = MEMORY, length: int | None = None) -> dict[str, Any]:
    """`slots` and `length` of an engine whose cache takes at most `memory` bytes: fewer slots first, then shorter ones."""
    decoder.reserve(1, min(64, decoder.context))
    each = decoder.memory() / (min(64, decoder.context) + 1)
    length = min(decoder.context, length or decoder.context)
    fewest = min(slots, 4)
    length = max(min(length, 16), min(length, int(memory / each / fewest) - 1))
    return {"slots": max(1, min(slots, int(memory / each / (length + 1)))), "length": length}
