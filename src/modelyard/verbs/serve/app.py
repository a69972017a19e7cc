"""The HTTP application: TensorFlow Serving's predict, health, metrics, OpenAPI and the try-it page. Core packages only."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelyard.errors import ModelyardError
from modelyard.runtime.model import Model
from modelyard.verbs.serve import openapi, page
from modelyard.verbs.serve.body import SIZE, Refused, Request, parse, unpack
from modelyard.verbs.serve.telemetry import Telemetry

WORKERS = 2
"""Threads that predict; the event loop stays free for health checks."""

REQUEST_ID = re.compile(r"[\w.:-]{1,128}")

POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; form-action 'none'; base-uri 'none'"

Handler = Callable[[HttpRequest], Awaitable[Response]]


class Service:
    """One model behind HTTP."""

    def __init__(self, model: Model, token: str | None = None, limit: int = SIZE, log: Path | None = None) -> None:
        self.model, self.limit = model, limit
        self.token = sha256(token.encode("utf-8")).digest() if token else None
        self.telemetry = Telemetry(model.name, model.version)
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="predict")
        self.log = log.open("a", encoding="utf-8") if log else None
        self.ready = True

    def app(self) -> Starlette:
        """The ASGI application."""
        name = r"{name:str}"
        routes = [
            self._route("/", "page", self.try_it, public=True),
            self._route("/static/{file:str}", "static", self.static, public=True),
            self._route("/healthz", "health", self.live, public=True),
            self._route("/v2/health/live", "health", self.live, public=True),
            self._route("/v2/health/ready", "health", self.is_ready, public=True),
            self._route("/metrics", "metrics", self.metrics),
            self._route("/openapi.json", "openapi", self.description),
            self._route("/v1/models", "models", self.models),
            self._route(f"/v1/models/{name}:predict", "predict", self.predict, "POST"),
            self._route(f"/v1/models/{name}/versions/{{version:str}}:predict", "predict", self.predict, "POST"),
            # without these a GET would reach the status route and be told that no model `NAME:predict` exists
            self._route(f"/v1/models/{name}:predict", "predict", self._post_only),
            self._route(f"/v1/models/{name}/versions/{{version:str}}:predict", "predict", self._post_only),
            self._route(f"/v1/models/{name}/metadata", "metadata", self.metadata),
            self._route(f"/v1/models/{name}/versions/{{version:str}}", "status", self.status),
            self._route(f"/v1/models/{name}", "status", self.status),
        ]
        return Starlette(routes=routes, exception_handlers={404: self._missing, 405: self._method})

    def _route(self, path: str, label: str, handler: Handler, method: str = "GET", public: bool = False) -> Route:
        async def call(request: HttpRequest) -> Response:
            began = time.perf_counter()
            try:
                if not public:
                    self._authorise(request)
                response = await handler(request)
            except Refused as refused:
                response = _error(refused.status, refused.message)
            except ClientDisconnect:
                response = _error(400, "the client went away")
            except ModelyardError as error:
                response = _error(400, error.message)
            except Exception as error:
                response = _error(500, f"this is a bug in Modelyard ({type(error).__name__})")
            self.telemetry.request(label, response.status_code, time.perf_counter() - began)
            self._stamp(request, response)
            return response

        return Route(path, call, methods=[method])

    def _authorise(self, request: HttpRequest) -> None:
        if self.token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(sha256(given.strip().encode("utf-8")).digest(), self.token):
            raise Refused(401, "a bearer token is needed: Authorization: Bearer TOKEN")

    def _stamp(self, request: HttpRequest, response: Response) -> None:
        given = request.headers.get("x-request-id", "")
        response.headers["Modelyard-Request-Id"] = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        response.headers["Modelyard-Model"] = _ascii(self.model.name)
        response.headers["Modelyard-Version"] = self.model.version
        response.headers["X-Content-Type-Options"] = "nosniff"

    async def _missing(self, request: HttpRequest, error: Exception) -> Response:
        self.telemetry.request("unknown", 404, 0.0)
        return _error(404, f"no such route; predict is POST /v1/models/{self.model.name}:predict")

    async def _method(self, request: HttpRequest, error: Exception) -> Response:
        self.telemetry.request("unknown", 405, 0.0)
        return _error(405, "that route does not take this method")

    async def _post_only(self, request: HttpRequest) -> Response:
        raise Refused(405, "predict takes POST")

    def _named(self, request: HttpRequest) -> None:
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self.model.name:
            raise Refused(404, f"no model {name[:80]!r} is served here; there is {self.model.name!r}")
        if version not in (None, "1", self.model.version):
            raise Refused(404, f"no version {version[:40]!r} is served here; there is {self.model.version}")

    async def predict(self, request: HttpRequest) -> Response:
        """TensorFlow Serving's row and column forms; a failed row is `{"error": {…}}` in its place."""
        self._named(request)
        if not self.ready:
            raise Refused(503, "the server is shutting down")
        asked = parse(unpack(await self._body(request), request.headers.get("content-encoding", "").lower(), self.limit))
        loop = asyncio.get_running_loop()
        text, failures = await loop.run_in_executor(self.pool, self._answer, asked)
        if failures and asked.strict:
            raise Refused(400, failures)
        return Response(text, media_type="application/json")

    async def _body(self, request: HttpRequest) -> bytes:
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > self.limit:
                raise Refused(413, f"the body is larger than {self.limit} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def _answer(self, asked: Request) -> tuple[bytes, str]:
        began = time.perf_counter()
        if not asked.rows:
            answers: list[dict[str, Any]] = []
        else:
            found = self.model.predict(asked.rows, asked.params, asked.seed)
            answers = found.to_json()
        bad = [(i, a["error"]) for i, a in enumerate(answers) if isinstance(a.get("error"), dict)]
        self.telemetry.answered(len(answers), len(bad))
        if self.log is not None:
            entry = {"time": time.time(), "version": self.model.version, "seconds": time.perf_counter() - began, "rows": asked.rows, "answers": answers}
            self.log.write(json.dumps(entry, ensure_ascii=True) + "\n")
            self.log.flush()
        plain = {f.name for f in self.model.signature.outputs}
        shown = [next(iter(a.values())) if len(plain) == 1 and set(a) == plain else a for a in answers]
        body: dict[str, Any] = {"outputs": shown} if asked.columnar else {"predictions": shown}
        sentence = "; ".join(f"row {i}: {e['column']} {e['reason']}" for i, e in bad[:5])
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8"), sentence

    async def models(self, request: HttpRequest) -> Response:
        """The models served here."""
        entry = {"id": self.model.name, "object": "model", "owned_by": "modelyard", "version": self.model.version}
        return JSONResponse({"object": "list", "data": [entry], "models": [entry]})

    async def status(self, request: HttpRequest) -> Response:
        """TensorFlow Serving's status of a model, with OpenAI's keys beside it."""
        self._named(request)
        state = {"version": self.model.version, "state": "AVAILABLE" if self.ready else "UNLOADING", "status": {"error_code": "OK", "error_message": ""}}
        return JSONResponse({"model_version_status": [state], "id": self.model.name, "object": "model", "owned_by": "modelyard"})

    async def metadata(self, request: HttpRequest) -> Response:
        """The signature."""
        self._named(request)
        spec = {"name": self.model.name, "signature_name": "serving_default", "version": self.model.version}
        return JSONResponse({"model_spec": spec, "metadata": {"signature_def": self.model.signature.to_json()}, "backend": self.model.backend})

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
        return JSONResponse(openapi.document(self.model))

    async def try_it(self, request: HttpRequest) -> Response:
        """The page."""
        response = Response(page.html(self.model), media_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = POLICY
        return response

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


def _ascii(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe=" -_.~")
