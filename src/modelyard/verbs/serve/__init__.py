"""Serves a model over HTTP: TensorFlow Serving's predict, health, metrics, OpenAPI and a page to try it.

    modelyard serve runs/churn-0001
    modelyard serve runs/churn-0001/exports/onnx serve.port=8080
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from modelyard.errors import UsageError
from modelyard.settings import Between

__all__ = ["Config", "Server", "serve"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = 8000


@dataclass(frozen=True, kw_only=True)
class Config:
    """`serve`: where and for whom."""

    SHORTHAND: ClassVar[str] = "port"

    host: str = "127.0.0.1"
    """Address to listen on; anything but this machine needs a token."""
    port: Annotated[int, Between(0, 65535)] | None = None
    """Port; without it 8000 or the next free one. 0 takes any free one."""
    token: str | None = None
    """Bearer token that requests must carry, best as ${env:NAME}."""
    limit: Annotated[int, Between(1024)] = 64 * 2**20
    """Largest body in bytes, counted after decompression."""
    log: str | None = None
    """File to which requests and answers are appended, one JSON object a line."""
    backend: str | None = None
    """torch, onnx or numpy; without it the model's own."""


class Server:
    """A running server: `with serve(model) as s: s.url`."""

    def __init__(self, folder: str | Path, config: Config, trust_code: bool = False) -> None:
        from modelyard.runtime.model import Model
        from modelyard.verbs.serve.app import Service

        if config.host not in LOOPBACK and not config.token:
            raise UsageError(f"serve.host={config.host} is open to others: set serve.token=${{env:NAME}} (or leave the host at 127.0.0.1)")
        self.model = Model.load(folder, config.backend, trust_code=trust_code)
        self.parity = self.model.replay()
        self.socket = listen(config.host, config.port)
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.url = f"http://{host}:{self.socket.getsockname()[1]}"
        self.service = Service(self.model, config.token, config.limit, Path(config.log) if config.log else None)

    @property
    def curl(self) -> str:
        """A line for a shell that predicts the first stored example."""
        from urllib.parse import quote

        body = json.dumps({"instances": self.model.examples[:1]}, ensure_ascii=False).replace("'", "'\\''")
        return f"curl -s {self.url}/v1/models/{quote(self.model.name)}:predict -H 'Content-Type: application/json' -d '{body}'"

    def engine(self) -> Any:
        """The uvicorn server."""
        import uvicorn

        config = uvicorn.Config(
            self.service.app(), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=10,
            timeout_keep_alive=30, h11_max_incomplete_event_size=64 * 1024, server_header=False, ws="none",
        )  # fmt: skip
        return uvicorn.Server(config)

    def __enter__(self) -> Server:
        self._engine = self.engine()
        self._engine.install_signal_handlers = lambda: None
        self.thread = threading.Thread(target=self._engine.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self._engine.started and self.thread.is_alive():
            threading.Event().wait(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.should_exit = True
        self.thread.join(15)
        self.socket.close()

    def forever(self) -> None:
        """Answer until SIGTERM or Ctrl-C; requests in flight are answered first."""
        engine = self.engine()
        engine.run(sockets=[self.socket])


def serve(model: str | Path, **settings: Any) -> Server:
    """A server for a model folder, started by `with`. `settings` are those of the section `serve`; port 0 takes a free one."""
    return Server(model, Config(**{"port": 0, **settings}))


def listen(host: str, port: int | None) -> socket.socket:
    """A bound socket; without a port 8000 or one of the next 100 that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port is not None else range(PORT, PORT + 100):
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            found.bind((host, candidate))
            found.listen(1024)
            found.set_inheritable(True)
            return found
        except OSError as error:
            found.close()
            if port is not None:
                raise UsageError(f"serve.port={port}: {os.strerror(error.errno or 0)}; choose another, or leave it out") from None
    raise UsageError(f"no free port from {PORT} to {PORT + 99}; name one with serve.port=N")


def run(project: Any, *, model: str | None = None, options: Any) -> None:
    """The verb: serves until it is stopped."""
    from modelyard.store.run import model_folder

    config: Config = project.section("serve")
    server = Server(model_folder(model, project.base / "runs"), config, options.trust_code)
    ready = {"url": server.url, "ready": True, "model": server.model.name, "version": server.model.version}
    if options.emit is not None:
        options.emit(ready)
    else:
        # a line cut in the middle would not run: where the example is long (pixels), the page gives it
        line = server.curl if len(server.curl) <= 2000 else "its page gives the request as curl, Python and JavaScript"
        print(f"{server.model.name} {server.model.version} is served at {server.url} (Ctrl-C stops)\n\n{line}\n", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        server.forever()
    except KeyboardInterrupt:
        return
