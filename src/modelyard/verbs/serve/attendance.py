"""One request from its arrival to its answer, over HTTP or gRPC: who asks, its number, its time, and what becomes of errors."""

from __future__ import annotations

import re
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import ClientDisconnect

from modelyard.errors import MachineError, ModelyardError
from modelyard.verbs.serve.access import Caller
from modelyard.verbs.serve.body import Refused

if TYPE_CHECKING:
    from modelyard.verbs.serve.app import Service

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Origin(NamedTuple):
    """Of a request: its number, who asks, when it came (`time.perf_counter`), and its span where there are traces."""

    id: str
    caller: str
    began: float
    span: Any = None


def numbered(given: str) -> str:
    """A request's number: what its caller gave it, or one of ours."""
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def fault_of(error: Exception, request_id: str) -> tuple[int, str, dict[str, str]]:
    """(HTTP status, sentence, headers) of what kept a request from being answered."""
    if isinstance(error, Refused):
        return error.status, error.message, {"WWW-Authenticate": "Bearer"} if error.status == 401 else error.headers
    if isinstance(error, ClientDisconnect):
        return 400, "the client went away", {}
    if isinstance(error, ModelyardError):
        return 503 if isinstance(error, MachineError) else 400, error.message, {}
    print(f"request {request_id} failed:\n{''.join(traceback.format_exception(error))}", file=sys.stderr, flush=True)
    return 500, f"this is a bug in Modelyard ({type(error).__name__}); the server's stderr says more", {}


class Attended:
    """A request while it is answered: `with` counts and times it, and an exception becomes `error`, `status`, `message` and `headers`."""

    def __init__(self, service: Service, label: str, given: Mapping[bytes, bytes], way: str = "") -> None:
        """`label` is that of its route (`access.RIGHTS`), `given` its headers in small letters, `way` goes before its label in the metrics."""
        self.service, self.label, self.given, self.way, self.began = service, label, given, way, time.perf_counter()
        self.id = numbered(given.get(b"x-request-id", b"").decode("latin-1"))
        self.status, self.message = 200, ""
        self.headers: dict[str, str] = {}
        self.error: Exception | None = None
        self.origin = Origin(self.id, "", self.began)

    def admit(self) -> Caller:
        """Who asks. Raises `Refused` where it may not (`Access.admit`)."""
        caller = self.service.access.admit(self.given.get(b"authorization", b""), self.label, self.service.name)
        self.origin = self.origin._replace(caller=caller.name)
        return caller

    def __enter__(self) -> Attended:
        self.service.running += 1
        if self.service.traces is not None:
            self.origin = self.origin._replace(span=self.service.traces.begin(self.service, self.way + self.label, self.id, self.given))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.service.running -= 1
        gone = error is not None and not isinstance(error, Exception)  # a caller who went away cancels its request
        if isinstance(error, Exception):
            self.error = error
            self.status, self.message, self.headers = fault_of(error, self.id)
        if self.service.traces is not None:
            self.service.traces.end(self.origin.span, 499 if gone else self.status)
        if not gone:
            self.service.telemetry.request(self.way + self.label, self.status, time.perf_counter() - self.began)
        return not gone
