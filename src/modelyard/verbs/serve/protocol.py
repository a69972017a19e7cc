"""uvicorn's HTTP protocol with an end to its patience, and a short way for predictions.

Heads are bounded and a request must arrive in a time that fits its size: else 1,300 clients that send a byte now and then would hold 1,300
connections for as long as they like (Slowloris). A prediction whose whole body has come goes straight to the service and its answer
straight to the socket, without ASGI's task, messages and events: 60 of 110 µs. All else, and what is pipelined behind an unanswered
request, takes uvicorn's way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

Reply = Callable[[int, list[tuple[bytes, bytes]], bytes], None]
Begin = Callable[[Mapping[bytes, bytes], bytes, Reply], Any]
"""(headers, body, reply): `Service.begin`."""

HEAD = 64 * 1024
"""Bytes of the address and headers of a request."""
PATIENCE = 20.0
"""Seconds until a request, or the first one of a connection, has come."""
SLOWEST = 64 * 1024
"""Bytes a second that a large body must keep up beyond that."""
GRACE = 0.25
"""Seconds that an idle connection stays open when the server is told to stop: what its caller has sent before it could know is answered."""


class Protocol(HttpToolsProtocol):
    """One connection. Made into a class of one server by `of`."""

    short: Mapping[bytes, Begin]
    """Addresses that take the short way, and who answers them."""
    limit = 0
    """Bytes of a body."""
    draining = False
    """Whether the server is about to stop: every answer then ends its connection."""

    clock: asyncio.TimerHandle | None = None
    began = 0.0
    size = 0
    body: list[bytes] | None = None
    """Of a request on the short way that is still coming."""
    pending = False
    """Whether one is being answered."""
    ending = False
    """Whether the connection closes after that answer."""

    @classmethod
    def of(cls, short: Mapping[bytes, Begin], limit: int) -> type[Protocol]:
        """The protocol of one server."""
        return type("Protocol", (cls,), {"short": short, "limit": limit})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock for the first request."""
        super().connection_made(transport)
        self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops it."""
        self._stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.size = 0
        if self.clock is None:
            self._wind()

    def on_url(self, url: bytes) -> None:
        """A piece of its address."""
        super().on_url(url)
        self._head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        super().on_header(name, value)
        self._head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Which way it takes."""
        quiet = self.cycle is None or self.cycle.response_complete
        straight = self.url in self.short and quiet and not self.pending and not self.expect_100_continue
        if straight and self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1" and not self.parser.should_upgrade():
            self.body, self.ending = [], self.ending or self.draining or not self.parser.should_keep_alive()
        else:
            super().on_headers_complete()
            if self.ending or self.draining:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self.size += len(body)
        if self.body is None:
            super().on_body(body)
            return
        self.body.append(body)
        if self.size > self.limit + HEAD and not self.transport.is_closing():
            self.body.clear()
            self._refuse(413, f"the body is larger than {self.limit} bytes")

    def on_message_complete(self) -> None:
        """It has come whole."""
        self._stop()
        if self.body is None:
            super().on_message_complete()
            return
        raw, self.body = b"".join(self.body), None
        if not self.transport.is_closing():
            self.pending = True
            self.short[self.url](dict(self.headers), raw, self._reply)

    def _reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.pending = False
        if self.transport.is_closing():
            return
        pieces = [STATUS_LINE[status]]
        for name, value in [*self.server_state.default_headers, *headers]:
            pieces += (name, b": ", value, b"\r\n")
        pieces += (b"connection: close\r\n\r\n" if self.ending else b"\r\n", body)
        self.transport.write(b"".join(pieces))
        if self.ending:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """What was pipelined behind an unanswered prediction waits for its turn."""
        if self.pending:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """An answer that is owed is given first, and what was sent before the caller could know is one."""
        self.ending = True
        if not self._idle():
            if self.body is None and not self.pending:
                super().shutdown()
        else:
            self.loop.call_later(GRACE, self._leave)

    def _idle(self) -> bool:
        return not self.pending and self.body is None and (self.cycle is None or self.cycle.response_complete)

    def _leave(self) -> None:
        if self._idle() and not self.transport.is_closing():
            self.transport.close()

    def _head(self, more: int) -> None:
        self.size += more
        if self.size > HEAD:
            self.send_400_response(f"The head of a request may have {HEAD} bytes.")

    def _wind(self) -> None:
        self.began = self.loop.time()
        self.clock = self.loop.call_later(PATIENCE, self._ring)

    def _stop(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None

    def _ring(self) -> None:
        due = self.began + PATIENCE + self.size / SLOWEST
        if self.loop.time() < due:
            self.clock = self.loop.call_at(due + 0.1, self._ring)
        else:
            self.clock = None
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Says in JSON what is wrong, and closes; a connection that is closing says nothing more."""
        if not self.transport.is_closing():
            self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode("utf-8")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
