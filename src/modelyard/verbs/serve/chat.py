"""OpenAI's routes: chat, completions and embeddings, whole or as a stream of server-sent events.

What a caller asks for is admitted once it is checked (`wanted.py`); a caller that goes away takes its texts along.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from modelyard.runtime.desk import Desk, Writer, writes
from modelyard.runtime.engine import Said, Text
from modelyard.verbs.serve.body import Refused, check_type, read, unpack
from modelyard.verbs.serve.wanted import Reader, Wanted, Wrong

if TYPE_CHECKING:
    from modelyard.verbs.serve.app import Service
    from modelyard.verbs.serve.attendance import Origin

SIZE = 4 * 2**20
"""Bytes of a body."""
QUEUE = 256
"""Texts that may wait for a slot; beyond it callers are asked to come back."""
INPUTS = 2_048
"""Texts of one call for embeddings, as with OpenAI."""
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 405: "invalid_request_error",
         413: "invalid_request_error", 415: "invalid_request_error", 429: "rate_limit_exceeded"}  # fmt: skip
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class Writing:
    """The routes of one service; `find` gives the service of a model's name and a caller, for a server of several."""

    def __init__(self, service: Service, slots: int, memory: int, writer: Writer) -> None:
        self.service, self.slots, self.memory, self.writer = service, slots, memory, writer
        self.find: Callable[[str, str], Service | None] = lambda name, unit: service if name == service.name else None
        self._desk: Desk | None = None
        if writer.name != "own" and self.able:
            assert self.desk  # another's engine is proven before the first caller comes

    @property
    def able(self) -> bool:
        """Whether the model writes."""
        return writes(self.service.model)

    @property
    def desk(self) -> Desk:
        """Its engine, started by the first who asks."""
        with self.service.lock:
            if self._desk is None:
                self._desk = Desk.of(self.service.model, slots=self.slots, memory=self.memory, writer=self.writer)
        return self._desk

    def facts(self) -> dict[str, Any] | None:
        """What the page asks of a model that writes: whether it knows roles, and how far it reads."""
        if not self.able:
            return None
        model = self.service.model
        roles, length = model.pipeline.inputs[0].kind != "text", model.graphs["decoder"].context  # type: ignore[attr-defined]
        return {"roles": roles, "length": length, "defaults": {"temperature": 0.7} | ({} if roles else {"max_tokens": min(128, length // 2)})}

    def close(self) -> None:
        """Ends the engine."""
        if self._desk is not None:
            self._desk.close()

    def busy(self) -> dict[str, int]:
        """Texts that run and wait, and tokens written so far."""
        engine = None if self._desk is None else self._desk.engine
        return {} if engine is None else {
            "running": len(engine.texts), "waiting": len(engine.waiting), "written": engine.written, "reused": engine.reused, "steps": engine.steps,
        }  # fmt: skip

    async def _asked(self, request: HttpRequest) -> tuple[dict[str, Any], Service]:
        check_type(request.headers.get("content-type", ""))
        raw = await self.service._body(request.receive, SIZE)
        body = read(unpack(raw, request.headers.get("content-encoding", "").strip().lower(), SIZE), '{"model": "…", "messages": […]}')
        name = body.get("model", self.service.name)
        unit = request.headers.get("modelyard-unit") or request.headers.get("x-request-id") or ""
        found = self.find(name, unit) if isinstance(name, str) else None
        if found is None:
            raise Refused(404, f"no model {str(name)[:80]!r} is served here; see /v1/models")
        self.service.access.require(request.state.caller, "predict", found.name)
        return body, found

    async def chat(self, request: HttpRequest) -> Response:
        """`/v1/chat/completions`."""
        return await self._complete(request, True)

    async def completions(self, request: HttpRequest) -> Response:
        """`/v1/completions`."""
        return await self._complete(request, False)

    async def _complete(self, request: HttpRequest, chat: bool) -> Response:
        body, service = await self._asked(request)
        other = service.writing
        if not other.able:
            raise Refused(400, f"{service.name} does not write texts; its answers are at {service.path}")
        loop = asyncio.get_running_loop()
        desk, wanted = await loop.run_in_executor(service.pool, lambda: (other.desk, Reader(body, other.desk, chat).wanted()))
        if len(desk.engine.waiting) + len(wanted.asks) > QUEUE:
            raise Refused(429, f"{QUEUE} texts are waiting already; try again soon", {"Retry-After": "5"})
        return Answer(Call(desk, wanted, service, loop, request.state.origin))

    async def embeddings(self, request: HttpRequest) -> Response:
        """`/v1/embeddings`: vectors of texts, as floats or base64."""
        body, service = await self._asked(request)
        outputs = [c for c in service.model.pipeline.outputs if c.kind == "vector"]
        if not outputs or service.model.pipeline.inputs[0].kind != "text":
            raise Refused(400, f"{service.name} does not embed texts; its answers are at {service.path}")
        problems = [(k, "unknown key") for k in sorted(map(str, set(body) - {"model", "input", "encoding_format", "dimensions", "user"}))]
        texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
        if not isinstance(texts, list) or not 1 <= len(texts) <= INPUTS or not all(isinstance(t, str) and t for t in texts):
            problems.append(("input", f"expected a text, or a list of 1 to {INPUTS} texts that are not empty"))
        form = body.get("encoding_format", "float")
        if form not in ("float", "base64"):
            problems.append(("encoding_format", "expected float or base64"))
        if problems:
            raise Wrong(problems)
        assert texts is not None
        model, column = service.model, service.model.pipeline.inputs[0]
        loop = asyncio.get_running_loop()
        answers, used = await loop.run_in_executor(service.pool, lambda: _embed(model, column, texts))
        if answers.failed:
            raise Wrong([("input", answers.errors[0].reason)])
        vectors = [np.asarray(v, np.float32) for v in answers[outputs[0].name].to_list()]
        wanted = body.get("dimensions")
        if wanted is not None and wanted != len(vectors[0]):
            raise Wrong([("dimensions", f"this model's vectors have {len(vectors[0])} numbers")])
        coded = [base64.b64encode(v.astype("<f4").tobytes()).decode("ascii") if form == "base64" else v.tolist() for v in vectors]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(coded)]
        return JSONResponse({
            "object": "list", "data": data, "model": service.name, "usage": {"prompt_tokens": used, "total_tokens": used},
        })  # fmt: skip


def _embed(model: Any, column: Any, texts: list[str]) -> tuple[Any, int]:
    encoded, _ = model.encode_rows([{column.name: t} for t in texts])
    tokens = encoded.arrays.get(f"{column.name}.tokens")
    return model.predict([{column.name: t} for t in texts]), 0 if tokens is None else len(tokens.values)


class Call:
    """The texts of one request while they are written."""

    def __init__(self, desk: Desk, wanted: Wanted, service: Service, loop: asyncio.AbstractEventLoop, origin: Origin) -> None:
        self.desk, self.wanted, self.service, self.loop = desk, wanted, service, loop
        self.queue: asyncio.Queue[tuple[int, Said]] = asyncio.Queue()
        self.id = f"{'chatcmpl' if wanted.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.origin = origin._replace(id=self.id)
        self.created = int(time.time())
        self.texts: list[Text] = []
        self.words = [Words(desk, wanted) for _ in wanted.asks]

    def begin(self) -> None:
        """Queues all texts."""
        for i, ask in enumerate(self.wanted.asks):
            self.texts.append(self.desk.submit(ask, partial(self._tell, i)))

    def _tell(self, index: int, said: Said) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has the caller
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (index, said))

    def cancel(self) -> None:
        """Ends what still runs; slots are free before the next step."""
        for text in self.texts:
            if text.finish is None:
                self.desk.cancel(text)

    async def said(self) -> AsyncIterator[tuple[int, Said]]:
        """(choice, what it says next) until all have ended."""
        left = len(self.texts)
        while left:
            index, said = await self.queue.get()
            left -= said.finish is not None
            yield index, said

    def failed(self) -> str | None:
        """What kept a text from being written."""
        return next((t.error or "the server is ending" for t in self.texts if t.finish in ("error", "cancelled")), None)

    def note(self, texts: list[str]) -> None:
        """Writes what was said to the log."""
        self.service.note(self.origin, route="chat" if self.wanted.chat else "completions", texts=texts)

    def usage(self) -> dict[str, Any]:
        """Numbers of tokens."""
        read, written = sum(map(len, self.wanted.prompts)), sum(len(t.ids) for t in self.texts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def body(self, choices: list[Any], chunk: bool) -> dict[str, Any]:
        """The envelope."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.wanted.chat else "text_completion"
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.service.name, "choices": choices,
            "system_fingerprint": self.service.model.version,
        }  # fmt: skip

    def choice(self, index: int) -> dict[str, Any]:
        """A whole text."""
        words, n = self.words[index], len(self.wanted.asks) // len(self.wanted.prompts)
        found: dict[str, Any] = {"index": index, "finish_reason": words.finish, "logprobs": words.told()}
        found |= {"token_ids": list(self.texts[index].ids)} if self.wanted.ids else {}
        if self.wanted.chat:
            return found | {"message": {"role": "assistant", "content": words.text, "refusal": None}}
        return found | {"text": (self.wanted.echo[index // n] if self.wanted.echo else "") + words.text}

    def piece(self, index: int, said: Said, first: bool) -> dict[str, Any]:
        """What one step adds."""
        words = self.words[index]
        words.fresh()
        words.add(said)
        found: dict[str, Any] = {"index": index, "finish_reason": said.finish, "logprobs": words.told()}
        found |= {"token_ids": [] if said.token is None else [said.token]} if self.wanted.ids else {}
        if self.wanted.chat:
            start = {"role": "assistant", "content": ""} if first else {}
            return found | {"delta": start | ({"content": said.text} if said.text else {})}
        n = len(self.wanted.asks) // len(self.wanted.prompts)
        return found | {"text": (self.wanted.echo[index // n] if first and self.wanted.echo else "") + said.text}


class Words:
    """One choice: its text and the log-probabilities of its tokens."""

    def __init__(self, desk: Desk, wanted: Wanted) -> None:
        self.desk, self.wanted = desk, wanted
        self.parts: list[str] = []
        self.tokens: list[Said] = []
        self.finish: str | None = None

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self.parts)

    def fresh(self) -> None:
        """Forgets what was told."""
        self.parts, self.tokens = [], []

    def add(self, said: Said) -> None:
        """Takes one step's words."""
        self.parts.append(said.text)
        self.finish = said.finish
        if said.token is not None:
            self.tokens.append(said)

    def told(self) -> dict[str, Any] | None:
        """Log-probabilities in the form of the route."""
        if not self.wanted.logprobs:
            return None
        pieces = self.desk.vocabulary.pieces
        name = lambda token: _letters(pieces, token)  # noqa: E731
        if self.wanted.chat:
            entry = lambda token, value: {"token": name(token), "logprob": _finite(value), "bytes": list(_piece(pieces, token))}  # noqa: E731
            content = [{**entry(s.token, s.logprob), "top_logprobs": [entry(t, v) for t, v in s.top]} for s in self.tokens]
            return {"content": content, "refusal": None}
        offsets = np.cumsum([0, *(len(name(s.token)) for s in self.tokens)]).tolist()[:-1]
        return {
            "tokens": [name(s.token) for s in self.tokens], "token_logprobs": [_finite(s.logprob) for s in self.tokens],
            "top_logprobs": [{name(t): _finite(v) for t, v in s.top} for s in self.tokens], "text_offset": offsets,
        }  # fmt: skip


def _piece(pieces: list[bytes], token: int) -> bytes:
    return pieces[token] if token < len(pieces) else b""


def _letters(pieces: list[bytes], token: int) -> str:
    piece = _piece(pieces, token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:  # half a character, as OpenAI writes it
        return "bytes:" + "".join(f"\\x{b:02x}" for b in piece)


def _finite(value: float) -> float:
    return max(value, -9999.0)  # JSON has no infinity; vLLM and OpenAI write this number


class Answer(Response):
    """Runs a call and answers it; whoever goes away takes the texts along, in a stream and while the whole is written."""

    def __init__(self, call: Call) -> None:
        super().__init__(media_type="text/event-stream" if call.wanted.stream else "application/json")
        self.call = call
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer unless the client leaves first."""
        gone = asyncio.ensure_future(_gone(receive))
        work = asyncio.ensure_future(self._stream(send) if self.call.wanted.stream else self._whole(send))
        service = self.call.service
        service.running += 1
        try:
            self.call.begin()
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            self.call.cancel()
            service.running -= 1
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)

    async def _start(self, send: Send, status: int = 200, **headers: str) -> None:
        self.headers.update({k.replace("_", "-"): v for k, v in headers.items()})
        await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})

    async def _whole(self, send: Send) -> None:
        async for index, said in self.call.said():
            self.call.words[index].add(said)
        failed, status = self.call.failed(), 200
        if failed is None:
            found = self.call.body([self.call.choice(i) for i in range(len(self.call.texts))], False) | {"usage": self.call.usage()}
            self.call.note([w.text for w in self.call.words])
        else:
            status = 400 if any(t.finish == "error" and t.ask.constraint for t in self.call.texts) else 503
            found = fault(status, failed)
        raw = json.dumps(found, ensure_ascii=False).encode("utf-8")
        await self._start(send, status, content_length=str(len(raw)))
        await send({"type": "http.response.body", "body": raw})

    async def _stream(self, send: Send) -> None:
        call = self.call
        await self._start(send, cache_control="no-cache", x_accel_buffering="no")
        first = set(range(len(call.wanted.asks)))
        texts = [""] * len(first)
        async for index, said in call.said():
            texts[index] += said.text
            if said.finish in ("error", "cancelled"):
                break
            if said.text or said.finish or index in first or ((call.wanted.logprobs or call.wanted.ids) and said.token is not None):
                chunk = call.body([call.piece(index, said, index in first)], True)
                first.discard(index)
                await _event(send, chunk | ({"usage": None} if call.wanted.usage else {}))
        if (failed := call.failed()) is not None:
            await _event(send, fault(503, failed))
        else:
            call.note(texts)
            if call.wanted.usage:
                await _event(send, call.body([], True) | {"usage": call.usage()})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _event(send: Send, value: Any) -> None:
    raw = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
    await send({"type": "http.response.body", "body": raw, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def fault(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": CODES.get(status)}}
