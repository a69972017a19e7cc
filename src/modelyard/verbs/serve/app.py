"""The HTTP application: TensorFlow Serving's predict, health, metrics, OpenAPI and the try-it page. Core packages only."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelyard.errors import MachineError, ModelyardError, UsageError
from modelyard.options import clean
from modelyard.runtime.model import Model
from modelyard.verbs.serve import openapi, page
from modelyard.verbs.serve.body import SIGNATURE, SIZE, Refused, check_type, parse, unpack
from modelyard.verbs.serve.telemetry import Telemetry

WORKERS = 2
"""Threads that read bodies and predict; the event loop stays free for health checks."""

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

Handler = Callable[[HttpRequest], Awaitable[Response]]


class Service:
    """One model behind HTTP."""

    def __init__(self, model: Model, name: str | None = None, token: str | None = None, limit: int = SIZE, log: Path | None = None) -> None:
        self.model, self.limit, self.name = model, limit, name or model.name
        self.path = f"/v1/models/{quote(self.name, safe='')}:predict"
        self.token = sha256(token.encode("utf-8")).digest() if token else None
        self.outputs = {f.name for f in model.signature.outputs}
        self.telemetry = Telemetry(self.name, model.version)
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="predict")
        self.lock = threading.Lock()
        self.ready = True
        try:
            self.log = log.open("a", encoding="utf-8") if log else None
        except OSError as error:
            raise UsageError(f"serve.log={log} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Ends the threads and the log."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        if self.log is not None:
            self.log.close()

    def app(self) -> Starlette:
        """The ASGI application."""
        name = r"{name:str}"
        routes = [
            self._route("/", "page", self.try_it, public=True),
            self._route("/page.json", "page", self.page_data),
            self._route("/static/{file:str}", "static", self.static, public=True),
            self._route("/healthz", "health", self.live, public=True),
            self._route("/v2/health/live", "health", self.live, public=True),
            self._route("/v2/health/ready", "health", self.is_ready, public=True),
            self._route("/metrics", "metrics", self.metrics),
            self._route("/openapi.json", "openapi", self.description),
            self._route("/v1/models", "models", self.models),
            self._route(f"/v1/models/{name}/versions/{{version:str}}:predict", "predict", self.predict, "POST"),
            self._route(f"/v1/models/{name}/versions/{{version:str}}/metadata", "metadata", self.metadata),
            self._route(f"/v1/models/{name}/versions/{{version:str}}", "status", self.status),
            self._route(f"/v1/models/{name}:predict", "predict", self.predict, "POST"),
            self._route(f"/v1/models/{name}/metadata", "metadata", self.metadata),
            self._route(f"/v1/models/{name}", "status", self.status),
        ]
        return Starlette(routes=routes, exception_handlers={404: self._missing, 405: self._method})

    def _route(self, path: str, label: str, handler: Handler, method: str = "GET", public: bool = False) -> Route:
        allowed = ("GET", "HEAD") if method == "GET" else (method,)

        async def call(request: HttpRequest) -> Response:
            began = time.perf_counter()
            given = request.headers.get("x-request-id", "")
            request.state.id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
            try:
                if request.method not in allowed:
                    raise Refused(405, f"{request.method} is not taken here; use {method}")
                if not public:
                    self._authorise(request)
                response = await handler(request)
            except Refused as refused:
                response = _error(refused.status, refused.message)
                if refused.status == 405:
                    response.headers["Allow"] = ", ".join(allowed)
            except ClientDisconnect:
                response = _error(400, "the client went away")
            except MachineError as error:
                response = _error(503, error.message)
            except ModelyardError as error:
                response = _error(400, error.message)
            except Exception as error:
                print(f"request {request.state.id} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                response = _error(500, f"this is a bug in Modelyard ({type(error).__name__}); the server's stderr says more")
            self.telemetry.request(label, response.status_code, time.perf_counter() - began)
            self._stamp(request.state.id, response)
            return response

        return Route(path, call, methods=METHODS)

    def _authorise(self, request: HttpRequest) -> None:
        if self.token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(sha256(given.strip().encode("latin-1")).digest(), self.token):
            raise Refused(401, "a bearer token is needed: Authorization: Bearer TOKEN")

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
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self.name:
            raise Refused(404, f"no model {name[:80]!r} is served here; there is {self.name!r}")
        if version not in (None, "1", self.model.version):
            raise Refused(404, f"no version {version[:40]!r} is served here; there is {self.model.version}")

    async def predict(self, request: HttpRequest) -> Response:
        """TensorFlow Serving's row and column forms; a failed row is `{"error": {…}}` in its place."""
        self._named(request)
        check_type(request.headers.get("content-type", ""))
        raw = await self._body(request)
        encoding = request.headers.get("content-encoding", "").strip().lower()
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self.pool, self._answer, raw, encoding, request.state.id)
        return Response(text, media_type="application/json")

    async def _body(self, request: HttpRequest) -> bytes:
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > self.limit:
                raise Refused(413, f"the body is larger than {self.limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def _answer(self, raw: bytes, encoding: str, request_id: str) -> bytes:
        """The JSON answer to a body; runs in a thread."""
        began = time.perf_counter()
        asked = parse(unpack(raw, encoding, self.limit))
        answers = self.model.predict(asked.rows, asked.params, asked.seed).to_json() if asked.rows else []
        bad = [] if "error" in self.outputs else [(i, a["error"]) for i, a in enumerate(answers) if "error" in a]
        self.telemetry.answered(len(answers), len(bad))
        if self.log is not None:
            seconds = time.perf_counter() - began
            entry = {"time": time.time(), "request": request_id, "version": self.model.version, "seconds": seconds}
            line = _dumps({**entry, "rows": asked.rows, "answers": answers}, ascii_only=True)
            with self.lock:
                self.log.write(line + "\n")
                self.log.flush()
        if bad and asked.strict:
            more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
            raise Refused(400, "; ".join(f"row {i}: {e['column']} {e['reason']}" for i, e in bad[:5]) + more)
        body = {"outputs": self._columns(answers)} if asked.columnar else {"predictions": self._plain(answers)}
        return _dumps(body).encode("utf-8")

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

    async def models(self, request: HttpRequest) -> Response:
        """The models served here."""
        entry = {"id": self.name, "object": "model", "owned_by": "modelyard", "version": self.model.version}
        return JSONResponse({"object": "list", "data": [entry], "models": [entry]})

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

    async def live(self, request: HttpRequest) -> Response:
        """The process lives."""
        return JSONResponse({"live": True})

    async def is_ready(self, request: HttpRequest) -> Response:
        """Requests are answered."""
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def metrics(self, request: HttpRequest) -> Response:
        """Prometheus text."""
        return Response(self.telemetry.text(), media_type="text/plain; version=0.0.4")

    async def description(self, request: HttpRequest) -> Response:
        """OpenAPI."""
        return JSONResponse(openapi.document(self.model, self.name, self.token is not None))

    async def try_it(self, request: HttpRequest) -> Response:
        """The page; where a token is needed its data comes by `/page.json`, since examples are rows of real data."""
        data = None if self.token else page.data(self.model, self.name)
        response = Response(page.html(self.name, data), media_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = POLICY
        return response

    async def page_data(self, request: HttpRequest) -> Response:
        """Signature and examples for the page."""
        return JSONResponse(page.data(self.model, self.name))

    async def static(self, request: HttpRequest) -> Response:
        """The page's script and style."""
        found = page.static(request.path_params["file"])
        if found is None:
            raise Refused(404, "no such file")
        return Response(found[0], media_type=found[1])


def _error(status: int, message: str) -> Response:
    response = JSONResponse({"error": message}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _dumps(value: Any, ascii_only: bool = False) -> str:
    """Strict JSON; NaN and infinity, which only a copied input or a broken model holds, become null."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(clean(value), ensure_ascii=ascii_only, allow_nan=False)


def _ascii(text: str) -> str:
    return quote(text, safe=" -_.~")
