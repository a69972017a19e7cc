"""One request from its arrival to its answer, over HTTP or gRPC: who asks, its number, its time, and what becomes of errors."""

from __future__ import annotations

import re
import secrets
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import ClientDisconnect

from modelyard.errors import MachineError, ModelyardError
from modelyard.verbs.serve.access import Caller
from modelyard.verbs.serve.body import Refused

if TYPE_CHECKING:
    from modelyard.verbs.serve.app import Service

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Origin(NamedTuple):
    """Of a request: its number, who asks, and when it came (`time.perf_counter`)."""

    id: str
    caller: str
    began: float


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

    def __init__(self, service: Service, label: str, given: str) -> None:
        """`label` is that of its route in the metrics, `given` the number that its caller gave it."""
        self.service, self.label, self.began = service, label, time.perf_counter()
        self.id = numbered(given)
        self.origin = Origin(self.id, "", self.began)
        self.status, self.message = 200, ""
        self.headers: dict[str, str] = {}
        self.error: Exception | None = None

    def admit(self, label: str, header: bytes) -> Caller:
        """Who asks. Raises `Refused` where it may not (`Access.admit`)."""
        caller = self.service.access.admit(header, label, self.service.name)
        self.origin = Origin(self.id, caller.name, self.began)
        return caller

    def __enter__(self) -> Attended:
        self.service.running += 1
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.service.running -= 1
        if error is not None and not isinstance(error, Exception):
            return False  # a caller who went away cancels its request
        if error is not None:
            self.error = error
            self.status, self.message, self.headers = fault_of(error, self.id)
        self.service.telemetry.request(self.label, self.status, time.perf_counter() - self.began)
        return True
