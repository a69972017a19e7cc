"""The HTTP application: TensorFlow Serving's predict, health, metrics, OpenAPI and the try-it page. Core packages only."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from modelyard import __version__
from modelyard.errors import UsageError
from modelyard.options import clean
from modelyard.runtime.desk import OWN, Writer
from modelyard.runtime.engine import MEMORY, SLOTS
from modelyard.runtime.model import Model
from modelyard.verbs.serve import inference, openapi, page
from modelyard.verbs.serve.access import Access
from modelyard.verbs.serve.attendance import Attended, Origin, fault_of, numbered
from modelyard.verbs.serve.batching import Batcher
from modelyard.verbs.serve.body import SIGNATURE, SIZE, Refused, Request, check_type, examples, parse, unpack
from modelyard.verbs.serve.chat import Writing, fault
from modelyard.verbs.serve.telemetry import Telemetry, text
from modelyard.verbs.serve.traces import Traces
from modelyard.verbs.serve.workers import Workers

WORKERS = 2
"""Threads that read large bodies and run slow models; the event loop stays free for health checks."""
SMALL = 64 * 1024
"""Bytes of a body that is read on the event loop: 0.3 ms of it."""
WAITING = 4096
"""Rows that may wait for the model."""
PATIENCE = 30.0
"""Seconds that they may wait."""

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

Fault = Callable[[int, str, str | None], dict[str, Any]]
Handler = Callable[[HttpRequest], Awaitable[Response]]
T = TypeVar("T")
Answers = list[dict[str, Any]]
Read = Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]]
Reply = Callable[[int, list[tuple[bytes, bytes]], bytes], None]
"""(status, headers, body)."""


def plain(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as TensorFlow Serving writes it."""
    return {"error": message}


class Service:
    """One model behind HTTP."""

    def __init__(
        self, model: Model, name: str | None = None, access: Access | None = None, limit: int = SIZE, log: Path | None = None,
        workers: Workers | None = None, slots: int = SLOTS, memory: int = MEMORY, writer: Writer = OWN,
    ) -> None:  # fmt: skip
        """`access` says who may do what (without it everybody everything); `workers` are processes that predict instead of this one; `slots`,
        `memory` and `writer` are a language model's."""
        self.model, self.limit, self.name = model, limit, name or model.name
        self.path = f"/v1/models/{quote(self.name, safe='')}:predict"
        stem = f"/v1/models/{self.name}"
        self.paths = {f"{stem}:predict", f"{stem}/versions/1:predict", f"{stem}/versions/{model.version}:predict"}
        self.access = access or Access()
        self.outputs = {f.name for f in model.signature.outputs}
        self.files = frozenset(f.name for f in model.signature.inputs if f.kind == "image")
        self.telemetry = Telemetry(self.name, model.version)
        self.telemetries: Callable[[], list[Telemetry]] = lambda: [self.telemetry]
        self.listed: Callable[[], list[dict[str, Any]]] = lambda: [
            {"id": self.name, "object": "model", "created": 0, "owned_by": "modelyard", "version": model.version}
        ]
        """What `/metrics` and `/v1/models` tell; a fleet tells of all its models."""
        self.copies: Callable[[Request, Origin], None] = lambda asked, origin: None
        """Gives what was asked to a shadow, where a fleet has one."""
        self.repeat: Callable[[Mapping[bytes, bytes], bytes, str], None] = lambda given, raw, caller: None
        """The same with the headers and body of a prediction."""
        self.traces: Traces | None = None
        self.running = 0
        """Requests that have begun and not ended."""
        lanes = len(workers.all) if workers else 1
        self.pool = ThreadPoolExecutor(WORKERS + lanes - 1, thread_name_prefix="predict")
        self.workers = workers
        here = lambda rows: self.model.predict(rows).to_json()  # noqa: E731
        self.batcher = Batcher(workers.predict if workers else here, self.pool, WAITING, PATIENCE, lanes)
        # examples of many rows are found among the rows that came, and programs draw by a row's place in the call
        self.merges = model.frame["name"] == "rows" and model.manifest["model"]["program"] == "once"
        self.stamps = [
            (b"modelyard-model", _ascii(self.name).encode("ascii")), (b"modelyard-version", model.version.encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
        ]  # fmt: skip
        self.lock = threading.Lock()
        self.writing = Writing(self, slots, memory, writer)
        self.ready = True
        try:
            self.log = log.open("a", encoding="utf-8") if log else None
        except OSError as error:
            raise UsageError(f"serve.log={log} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Ends the threads and the log."""
        self.writing.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        if self.workers is not None:
            self.workers.close()
        if self.log is not None:
            self.log.close()

    def app(self) -> ASGIApp:
        """The ASGI application: predictions are answered here, all else by Starlette's routes."""
        rest = self._routes()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] in self.paths and scope["method"] == "POST":
                await self._predict(scope, receive, send)
            else:
                await rest(scope, receive, send)

        return app

    def _routes(self) -> Starlette:
        name = r"{name:str}"
        routes = [
            self._route("/", "page", self.try_it),
            self._route("/page.json", "data", self.page_data),
            self._route("/static/{file:str}", "static", self.static),
            self._route("/healthz", "health", self.live),
            self._route("/v2/health/live", "health", self.live),
            self._route("/v2/health/ready", "health", self.is_ready),
            self._route("/metrics", "metrics", self.metrics),
            self._route("/openapi.json", "openapi", self.description),
            self._route("/v1/models", "models", self.models),
            self._route("/v1/chat/completions", "chat", self.writing.chat, "POST", fault=fault),
            self._route("/v1/completions", "completions", self.writing.completions, "POST", fault=fault),
            self._route("/v1/embeddings", "embeddings", self.writing.embeddings, "POST", fault=fault),
            *(
                self._route(f"/v1/models/{name}{version}:{method}", "predict", handler, "POST")
                for version in ("/versions/{version:str}", "")
                for method, handler in (("classify", self.classify), ("regress", self.regress))
            ),
            self._route(f"/v1/models/{name}/versions/{{version:str}}:predict", "predict", self.elsewhere, "POST"),
            self._route(f"/v1/models/{name}/versions/{{version:str}}/metadata", "metadata", self.metadata),
            self._route(f"/v1/models/{name}/versions/{{version:str}}", "status", self.status),
            self._route(f"/v1/models/{name}:predict", "predict", self.elsewhere, "POST"),
            self._route(f"/v1/models/{name}/metadata", "metadata", self.metadata),
            self._route(f"/v1/models/{name}", "status", self.status),
            self._route("/v2", "server", self.about),
            self._route(f"/v2/models/{name}/versions/{{version:str}}/infer", "infer", self.infer, "POST"),
            self._route(f"/v2/models/{name}/versions/{{version:str}}/ready", "ready", self.model_ready),
            self._route(f"/v2/models/{name}/versions/{{version:str}}", "metadata", self.tensors),
            self._route(f"/v2/models/{name}/infer", "infer", self.infer, "POST"),
            self._route(f"/v2/models/{name}/ready", "ready", self.model_ready),
            self._route(f"/v2/models/{name}", "metadata", self.tensors),
        ]
        return Starlette(routes=routes, exception_handlers={404: self._missing, 405: self._method})

    def _route(
        self, path: str, label: str, handler: Handler, method: str = "GET", fault: Fault = plain
    ) -> Route:  # fmt: skip
        allowed = ("GET", "HEAD") if method == "GET" else (method,)

        async def call(request: HttpRequest) -> Response:
            with Attended(self, label, dict(request.scope["headers"])) as seen:
                if request.method not in allowed:
                    raise Refused(405, f"{request.method} is not taken here; use {method}")
                request.state.caller = seen.admit()
                request.state.origin = seen.origin
                response = await handler(request)
                seen.status = response.status_code
            if seen.error is not None:
                response = JSONResponse(fault(seen.status, seen.message, getattr(seen.error, "param", None)), seen.status, seen.headers)
                if seen.status == 405:
                    response.headers["Allow"] = ", ".join(allowed)
            self._stamp(seen.id, response)
            return response

        return Route(path, call, methods=METHODS)

    def _stamp(self, request_id: str, response: Response) -> None:
        response.headers["Modelyard-Request-Id"] = request_id
        response.headers["Modelyard-Model"] = _ascii(self.name)
        response.headers["Modelyard-Version"] = self.model.version
        response.headers["X-Content-Type-Options"] = "nosniff"

    async def _missing(self, request: HttpRequest, error: Exception) -> Response:
        return self._unknown(404, f"no such route; predict is POST {self.path}")

    async def _method(self, request: HttpRequest, error: Exception) -> Response:
        return self._unknown(405, "that route does not take this method")

    def _unknown(self, code: int, message: str) -> Response:
        self.telemetry.request("unknown", code, 0.0)
        response = _error(code, message)
        self._stamp(secrets.token_hex(8), response)
        return response

    def _named(self, request: HttpRequest) -> None:
        self.named(request.path_params["name"], request.path_params.get("version"))

    def named(self, name: str, version: str | None) -> None:
        """Raises `Refused` (404) unless this model and version are what a request names."""
        if name != self.name:
            there = ", ".join(dict.fromkeys(repr(e["id"]) for e in self.listed()))
            raise Refused(404, f"no model {name[:80]!r} is served here; there is {there}")
        if version not in (None, "1", self.model.version):
            raise Refused(404, f"no version {version[:40]!r} is served here; there is {self.model.version}")

    async def elsewhere(self, request: HttpRequest) -> Response:
        """A prediction by a model or version that is not here."""
        self._named(request)
        raise AssertionError("a served model's address is answered before the routes are looked at")

    def begin(self, given: Mapping[bytes, bytes], raw: bytes, reply: Reply, caller: str | None = None) -> str | None:
        """Answers a prediction: TensorFlow Serving's row and column forms; a failed row is `{"error": {…}}` in its place.

        `reply` is called once, on the event loop. `caller` is one who was let in already; returned is who asked, or None where nobody was let
        in. No objects of Starlette are made, nor a task of asyncio: they cost 0.2 of the 0.3 ms that a small table's row takes.
        """
        began = time.perf_counter()
        request_id = numbered(given.get(b"x-request-id", b"").decode("latin-1"))
        self.running += 1
        span = None if self.traces is None else self.traces.begin(self, "predict", request_id, given)

        def finish(found: bytes | Exception) -> None:
            self.running -= 1
            headers: dict[str, str] = {}
            status, body = 200, found
            if isinstance(body, Exception):
                status, message, headers = fault_of(body, request_id)
                body = _dumps({"error": message}).encode("utf-8")
            self.telemetry.request("predict", status, time.perf_counter() - began)
            if self.traces is not None:
                self.traces.end(span, status)
            sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *self.stamps]
            sent.append((b"modelyard-request-id", request_id.encode("ascii")))
            sent += [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
            reply(status, sent, body)

        def told(asked: Request, answers: list[dict[str, Any]] | Exception) -> None:
            try:
                finish(answers if isinstance(answers, Exception) else self._reply(asked, answers, origin))
            except Exception as error:
                finish(error)

        try:
            caller = caller or self.access.admit(given.get(b"authorization", b""), "predict", self.name).name
            origin = Origin(request_id, caller, began, span)
            self.batcher.turn_away()
            check_type(given.get(b"content-type", b"").decode("latin-1"))
            encoding = given.get(b"content-encoding", b"").strip().lower().decode("latin-1")
            if len(raw) > SMALL or encoding not in ("", "identity"):
                self._in_thread(lambda: self._apart(raw, encoding, origin), finish)
                return caller
            asked = parse(raw, self.files)
            if asked.rows and self.merges and asked.params is None:
                self.batcher.submit(asked.rows, lambda answers: told(asked, answers))
            else:
                self._in_thread(lambda: self._reply(asked, self._answers(asked), origin), finish)
        except Exception as error:
            finish(error)
        return caller

    def _in_thread(self, work: Callable[[], bytes], finish: Callable[[bytes | Exception], None]) -> None:
        def done(found: asyncio.Future[bytes]) -> None:
            error = found.exception()
            finish(found.result() if error is None else error if isinstance(error, Exception) else RuntimeError(repr(error)))

        asyncio.get_running_loop().run_in_executor(self.pool, work).add_done_callback(done)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`begin` for servers and connections that speak ASGI."""
        try:
            raw = await self._body(receive)
        except Exception as error:
            status, message, _ = fault_of(error, "")
            response = JSONResponse({"error": message}, status)
            self.telemetry.request("predict", status, 0.0)
            self._stamp(secrets.token_hex(8), response)
            await response(scope, receive, send)
            return
        answer: asyncio.Future[tuple[int, list[tuple[bytes, bytes]], bytes]] = asyncio.get_running_loop().create_future()
        given = dict(scope["headers"])
        caller = self.begin(given, raw, lambda *found: None if answer.done() else answer.set_result(found))
        if caller is not None:
            self.repeat(given, raw, caller)
        status, headers, body = await answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _body(self, receive: Receive, limit: int | None = None) -> bytes:
        limit = self.limit if limit is None else min(limit, self.limit)
        pieces, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > limit:
                raise Refused(413, f"the body is larger than {limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def _apart(self, raw: bytes, encoding: str, origin: Origin) -> bytes:
        asked = parse(unpack(raw, encoding, self.limit), self.files)
        return self._reply(asked, self._answers(asked), origin)

    def _answers(self, asked: Request) -> list[dict[str, Any]]:
        if self.workers is not None and self.merges and asked.params is None and asked.rows:
            return self.workers.predict(asked.rows)
        return self.model.predict(asked.rows, asked.params, asked.seed).to_json() if asked.rows else []

    def _reply(self, asked: Request, answers: list[dict[str, Any]], origin: Origin) -> bytes:
        self._checked(asked, answers, origin)
        body = {"outputs": self._columns(answers)} if asked.columnar else {"predictions": self._plain(answers)}
        return _dumps(body).encode("utf-8")

    def _checked(self, asked: Request, answers: Answers, origin: Origin) -> None:
        """Counts and logs the answers. Raises `Refused` (400) where rows failed and none may."""
        bad = self._told(asked, answers, origin)
        if bad and asked.strict:
            more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise Refused(400, "; ".join(f"row {i}: {e['column']} {e['reason']}" for i, e in bad[:5]) + more)

    def _told(self, asked: Request, answers: list[dict[str, Any]], origin: Origin) -> list[tuple[int, dict[str, str]]]:
        """Counts and logs the answers; (row, error) of the rows that have none."""
        bad = [] if "error" in self.outputs else [(i, a["error"]) for i, a in enumerate(answers) if "error" in a]
        self.telemetry.answered(len(answers), len(bad))
        if origin.span is not None:
            origin.span.set_attributes({"modelyard.rows": len(answers), "modelyard.row_errors": len(bad)})
        self.note(origin, rows=asked.rows, answers=answers)
        return bad

    def note(self, origin: Origin, **said: Any) -> None:
        """A line of the log."""
        if self.log is not None:
            entry = {"time": time.time(), "request": origin.id, "caller": origin.caller, "version": self.model.version}
            line = _dumps({**entry, "seconds": time.perf_counter() - origin.began, **said}, ascii_only=True)
            with self.lock:
                self.log.write(line + "\n")
                self.log.flush()

    def _plain(self, answers: list[dict[str, Any]]) -> list[Any]:
        """Bare values where the model has one output and nothing beside it, as in TensorFlow Serving."""
        if len(self.outputs) != 1:
            return answers
        return [next(iter(a.values())) if set(a) == self.outputs else a for a in answers]

    def _columns(self, answers: list[dict[str, Any]]) -> Any:
        """A list for one column of answers, else an object of columns; a failed row is its error in each of them."""
        failed = set() if "error" in self.outputs else {i for i, a in enumerate(answers) if "error" in a}
        names = list(dict.fromkeys(key for i, a in enumerate(answers) if i not in failed for key in a)) or sorted(self.outputs)
        columns = {name: [a if i in failed else a.get(name) for i, a in enumerate(answers)] for name in names}
        return columns[names[0]] if len(names) == 1 and len(self.outputs) == 1 else columns

    async def classify(self, request: HttpRequest) -> Response:
        """TensorFlow Serving: pairs of label and score of each example, the likeliest first."""
        name, answers = await self._examined(request, "classify", [f.name for f in self.model.signature.outputs if f.labels])
        scores = [a[f"{name}.scores"] for a in answers]
        return JSONResponse({"results": [sorted(map(list, s.items()), key=lambda pair: -pair[1]) for s in scores]})

    async def regress(self, request: HttpRequest) -> Response:
        """TensorFlow Serving: a number of each example."""
        name, answers = await self._examined(request, "regress", [f.name for f in self.model.signature.outputs if f.kind == "number"])
        return JSONResponse({"results": [a[name] for a in answers]})

    async def _examined(self, request: HttpRequest, method: str, outputs: list[str]) -> tuple[str, list[dict[str, Any]]]:
        """(output, answers) of examples. There is no error of a row in this form, so one that fails is an error of the request."""
        self._named(request)
        check_type(request.headers.get("content-type", ""))
        raw = unpack(await self._body(request.receive), request.headers.get("content-encoding", "").strip().lower(), self.limit)
        rows, name = examples(raw, method, outputs, self.files)
        asked = Request(rows, False, None, None, True)
        answers = await self.answered(asked)
        if bad := self._told(asked, answers, request.state.origin):
            raise Refused(400, "; ".join(f"example {i}: {e['column']} {e['reason']}" for i, e in bad[:5]))
        return name, answers

    async def models(self, request: HttpRequest) -> Response:
        """The models served here."""
        seen = [entry for entry in self.listed() if request.state.caller.may("read", entry["id"])]
        return JSONResponse({"object": "list", "data": seen, "models": seen})

    async def status(self, request: HttpRequest) -> Response:
        """TensorFlow Serving's status of a model, with OpenAI's keys beside it."""
        self._named(request)
        state = {
            "version": self.model.version,
            "state": "AVAILABLE" if self.ready else "UNLOADING",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return JSONResponse({"model_version_status": [state], "id": self.name, "object": "model", "owned_by": "modelyard"})

    async def metadata(self, request: HttpRequest) -> Response:
        """The signature."""
        self._named(request)
        spec = {"name": self.name, "signature_name": SIGNATURE, "version": self.model.version}
        return JSONResponse(
            {"model_spec": spec, "metadata": {"signature_def": self.model.signature.to_json()}, "backend": self.model.backend}
        )

    async def about(self, request: HttpRequest) -> Response:
        """Open Inference Protocol: the server."""
        return JSONResponse({"name": "modelyard", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def tensors(self, request: HttpRequest) -> Response:
        """Open Inference Protocol: the model's tensors."""
        self._named(request)
        return JSONResponse(inference.metadata(self.model, self.name))

    async def model_ready(self, request: HttpRequest) -> Response:
        """Open Inference Protocol: whether the model answers."""
        self._named(request)
        return JSONResponse({"name": self.name, "ready": self.ready}, 200 if self.ready else 503)

    async def infer(self, request: HttpRequest) -> Response:
        """Open Inference Protocol: named tensors in, named tensors out."""
        self._named(request)
        self.batcher.turn_away()
        encoding = request.headers.get("content-encoding", "").strip().lower()
        header = request.headers.get("inference-header-content-length", "")
        raw = await self._body(request.receive)
        body, head = await self.inferred(
            lambda: inference.rows_of(unpack(raw, encoding, self.limit), header, self.model.signature.inputs),
            lambda answers, asked: inference.answer(answers, asked, self.model, self.name),
            len(raw) if encoding in ("", "identity") else SMALL + 1, request.state.origin,
        )  # fmt: skip
        if head is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={"Inference-Header-Content-Length": str(head)})

    async def inferred(self, read: Read, write: Callable[[Answers, Mapping[str, Any]], T], size: int, origin: Origin) -> T:
        """From a request of the Open Inference Protocol to its answer, whatever carries them: `read` gives rows and what is asked for, `write`
        makes the answer; both run in a thread where the body has many bytes (`size`). `parameters` hold the model's own, and `strict`.

        Raises what they raise, and `Refused`.
        """
        rows, asked = await self._beside(read, size)
        given = asked.get("parameters") or {}
        if not isinstance(strict := given.get("strict", False), bool):
            raise Refused(400, "strict must be true or false")
        params = {k: v for k, v in given.items() if k in {p.name for p in self.model.signature.params}}
        request = Request(rows, False, params or None, None, strict)
        answers = await self.answered(request)
        self._checked(request, answers, origin)
        self.copies(request, origin)
        return await self._beside(lambda: write(answers, asked), size)

    async def _beside(self, work: Callable[[], T], size: int) -> T:
        return work() if size <= SMALL else await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def shadowed(self, asked: Request, origin: Origin) -> None:
        """What another version was asked, for this one's log and metrics."""
        with Attended(self, "infer", {b"x-request-id": origin.id.encode("ascii")}) as seen:
            self._told(asked, await self.answered(asked), origin._replace(span=seen.origin.span))

    async def answered(self, asked: Request) -> list[dict[str, Any]]:
        """Answers to rows, in a batch with others where they fit one."""
        loop = asyncio.get_running_loop()
        if not asked.rows or not self.merges or asked.params is not None:
            return await loop.run_in_executor(self.pool, self._answers, asked)
        answer: asyncio.Future[list[dict[str, Any]]] = loop.create_future()

        def done(found: list[dict[str, Any]] | Exception) -> None:
            if not answer.done():
                answer.set_exception(found) if isinstance(found, Exception) else answer.set_result(found)

        self.batcher.submit(asked.rows, done)
        return await answer

    async def live(self, request: HttpRequest) -> Response:
        """The process lives."""
        return JSONResponse({"live": True})

    async def is_ready(self, request: HttpRequest) -> Response:
        """Requests are answered."""
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def metrics(self, request: HttpRequest) -> Response:
        """Prometheus text."""
        return Response(text(self.telemetries()), media_type="text/plain; version=0.0.4")

    async def description(self, request: HttpRequest) -> Response:
        """OpenAPI."""
        return JSONResponse(openapi.document(self.model, self.name, self.access.closed))

    async def try_it(self, request: HttpRequest) -> Response:
        """The page; where a token is needed its data comes by `/page.json`, since examples are rows of real data."""
        data = None if self.access.closed else page.data(self.model, self.name, self.writing.facts())
        response = Response(page.html(self.name, data), media_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = POLICY
        return response

    async def page_data(self, request: HttpRequest) -> Response:
        """Signature and examples for the page."""
        return JSONResponse(page.data(self.model, self.name, self.writing.facts()))

    async def static(self, request: HttpRequest) -> Response:
        """The page's script and style."""
        found = page.static(request.path_params["file"])
        if found is None:
            raise Refused(404, "no such file")
        return Response(found[0], media_type=found[1])


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


def _dumps(value: Any, ascii_only: bool = False) -> str:
    """Strict JSON; NaN and infinity, which only a copied input or a broken model holds, become null."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(clean(value), ensure_ascii=ascii_only, allow_nan=False)


def _ascii(text: str) -> str:
    return quote(text, safe=" -_.~")
