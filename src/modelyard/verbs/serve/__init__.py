"""Serves a model over HTTP: TensorFlow Serving's predict, health, metrics, OpenAPI and a page to try it.

    modelyard serve runs/churn-0001
    modelyard serve runs/churn-0001/exports/onnx serve.port=8080

From Python, beside a notebook or in a test:

    with modelyard.serve("runs/churn-0001") as server:
        print(server.url, server.curl)
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import signal
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from modelyard.errors import MachineError, ModelyardError, Problem, Unsupported, UsageError
from modelyard.settings import Between

if TYPE_CHECKING:
    import ssl

    from modelyard.runtime.model import Model
    from modelyard.verbs.serve.access import Access
    from modelyard.verbs.serve.app import Service
    from modelyard.verbs.serve.cluster import Cluster
    from modelyard.verbs.serve.fleet import Endpoint
    from modelyard.verbs.serve.rpc import Rpc

__all__ = ["Config", "Server", "serve"]

PORT = 8000
NEXT = 100
"""How many ports after `PORT` are tried when none was asked for."""
SHADOW = "shadow"
DRAIN = 10
"""Seconds that requests in flight get when the server is told to stop."""
RENEWED = 2.0
"""Seconds between two looks at the files of a certificate."""
LINGER = 0.25
"""Seconds for which it still takes connections, while answers say that it closes them and the health check that it is not ready."""


@dataclass(frozen=True, kw_only=True)
class OidcConfig:
    """`serve.oidc`: an OpenID provider whose bearer tokens are taken."""

    issuer: str
    """`iss` of the tokens; without `jwks` its keys are found at /.well-known/openid-configuration."""
    audience: str
    """`aud` that they must have."""
    jwks: str | None = None
    """Address (https) or file of the keys."""
    algorithms: list[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]] = field(
        default_factory=lambda: ["RS256", "ES256", "EdDSA"]
    )
    """Signatures that are taken. There are no symmetric ones: whoever reads the public keys could sign with them."""
    claim: str = "roles"
    """Claim with the names of the caller's groups: a text or a list, or dotted (realm_access.roles)."""
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    """group → model (or *) → a role or a list of them: reader, caller, watcher, admin."""
    leeway: Annotated[float, Between(0, 300)] = 30.0
    """Seconds by which clocks may differ."""


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """`serve.tls`: https. The files are read again when they change; connections that stand keep what they have."""

    cert: str
    """File with the certificate and its chain (PEM)."""
    key: str
    """File with its key (PEM)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`serve`: where and for whom."""

    SHORTHAND: ClassVar[str] = "port"

    host: str = "127.0.0.1"
    """Address to listen on; anything but this machine needs keys, a provider or a token."""
    port: Annotated[int, Between(0, 65535)] | None = None
    """Port; without it 8000 or the next free one. 0 takes any free one."""
    grpc: Annotated[int, Between(0, 65535)] | None = None
    """Port of the Open Inference Protocol over gRPC (`pip install 'modelyard[grpc]'`); without it there is none. 0 takes any free one."""
    name: str | None = None
    """Name in the addresses; without it the model's own."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests must carry, best as ${env:NAME}; who has it may do everything."""
    keys: str | None = None
    """File of callers' keys with their roles, made by `modelyard keys create`; read again when it changes."""
    oidc: OidcConfig | None = None
    """An OpenID provider whose bearer tokens are taken."""
    rate: Annotated[float, Between(0.001, 1e9)] | None = None
    """Requests a second of a caller (and as many at once), unless its key says otherwise."""
    tls: TlsConfig | None = None
    """https."""
    limit: Annotated[int, Between(1024)] = 64 * 2**20
    """Largest body in bytes, counted after decompression."""
    log: str | None = None
    """File to which requests and answers are appended, one JSON object a line."""
    traces: str | None = None
    """Address of an OpenTelemetry collector, e.g. http://localhost:4318, that gets a span for each request (`pip install
    'modelyard[otel]'`); without it OTEL_EXPORTER_OTLP_ENDPOINT, without both there are none."""
    backend: str | None = None
    """torch, onnx or numpy; without it the model's own."""
    slots: Annotated[int, Between(1, 256)] = 16
    """Texts that a language model writes at the same time."""
    memory: Annotated[int, Between(2**20)] = 2**30
    """Bytes of a language model's keys and values; where they do not do for its whole context, texts are shorter."""
    writer: Literal["own", "vllm"] = "own"
    """What chooses a language model's tokens: our engine, or vLLM where it is installed, once both have written the stored examples alike."""
    tensor_parallel: Annotated[int, Between(1, 64)] = 1
    """Accelerators between which vLLM divides each matrix (and heads) of a language model that is too large for one."""
    pipeline_parallel: Annotated[int, Between(1, 64)] = 1
    """Accelerators, or groups of them, between which vLLM divides the layers."""
    engine: Literal["local", "ray"] = "local"
    """local: a server on this machine; ray: the same service as replicas on a Ray cluster (RAY_ADDRESS, else one that is started here)."""
    replicas: Annotated[int, Between(1, 1024)] = 1
    """Copies of the service on the cluster, each a process with one core."""
    workers: Annotated[int, Between(0, 64)] = 0
    """Processes for each model beside the server's own; 0 predicts in the server. One that dies is replaced, and its work done by another."""
    models: dict[str, Any] | None = None
    """Several models in one server: name → model (a folder, run folder or run), or name → label → model or {model, share}: versions that
    share the callers, e.g. `churn: {champion: runs/churn-0003, challenger: {model: runs/churn-0004, share: 0.1}}`. What is labelled
    `shadow` answers nobody: it gets a copy of every request, for its log and its metrics."""


class Served:
    """Models behind their routes, before any port: loading one replays its stored examples (`ParityError` where an answer differs)."""

    def __init__(self, model: Model | str | Path | None, config: Config, trust_code: bool = False) -> None:
        from modelyard.runtime.model import Model
        from modelyard.verbs.serve.fleet import Arm, Endpoint, Fleet
        from modelyard.verbs.serve.traces import Traces

        if not is_loopback(config.host) and not (config.token or config.keys or config.oidc):
            hint = "Write serve.keys=FILE (modelyard keys create), serve.oidc or serve.token=${env:NAME}, or leave serve.host at 127.0.0.1."
            raise UsageError(
                f"serve.host={config.host} is open to others, so callers must say who they are", [Problem("no keys are set", "serve.keys", hint)]
            )
        if config.token is not None and not re.fullmatch(r"[!-~]+", config.token):
            raise UsageError("serve.token holds blanks or letters that headers cannot carry; use letters, digits and signs of ASCII")
        if config.name is not None and (not config.name.isprintable() or not config.name or "/" in config.name):
            raise UsageError(f"serve.name={config.name!r} cannot stand in an address; use letters, digits and - _ . without /")
        if config.writer == "own" and config.tensor_parallel * config.pipeline_parallel > 1:
            reason = "our engine writes on one device; serve.writer=vllm divides a language model over several, and serve.workers copies a small one"
            raise Unsupported(f"serve.tensor_parallel and serve.pipeline_parallel divide a model: {reason}", "use")
        self.config, self.trust_code = config, trust_code
        self.access = door(config)
        self.traces = Traces.wanted(config.traces)
        self.context = None if config.tls is None else secured(config.tls)
        if config.models:
            self.fleet = Fleet(self._endpoints(config.models))
        else:
            loaded = model if isinstance(model, Model) else self._load(model or "")
            loaded.parity = loaded.replay() if loaded is model or loaded.parity is None else loaded.parity
            self.fleet = Fleet({s.name: Endpoint(s.name, (Arm("champion", s),)) for s in [self._service(loaded, config.name)]})
        if config.writer != "own" and not any(e.service.writing.able for e in self.fleet.all()):
            self.fleet.close()
            raise Unsupported(f"serve.writer={config.writer} writes texts, and no model here does; leave it out", "use")
        self.service: Service = self.fleet.all()[0].service
        self.model = self.service.model
        assert self.model.parity is not None
        self.parity = self.model.parity
        self.rpc: Rpc | None = None
        self.url, self.port = "", 0

    def _load(self, model: str | Path) -> Model:
        from modelyard.runtime.model import Model
        from modelyard.store.run import model_folder

        folder = model if (Path(model) / "manifest.json").is_file() else model_folder(str(model), Path("runs"))
        return Model.load(folder, self.config.backend, trust_code=self.trust_code)

    def _service(self, model: Model, name: str | None) -> Service:
        from modelyard.runtime.desk import Writer
        from modelyard.verbs.serve.app import Service
        from modelyard.verbs.serve.workers import Workers

        count = self.config.workers
        workers = Workers(model.folder, count, self.config.backend or "", self.trust_code) if count else None
        log = Path(self.config.log) if self.config.log else None
        writer = Writer(self.config.writer, self.config.tensor_parallel, self.config.pipeline_parallel)
        made = Service(model, name, self.access, self.config.limit, log, workers, self.config.slots, self.config.memory, writer)
        made.traces = self.traces
        return made

    def _endpoints(self, models: Mapping[str, Any]) -> dict[str, Endpoint]:
        from modelyard.verbs.serve.fleet import Arm, Endpoint

        problems: list[Problem] = []
        wanted = {name: shares(name, given, problems) for name, given in models.items()}
        if problems:
            raise UsageError(f"{len(problems)} model(s) of serve.models cannot be served", problems)
        found = {}
        for name, arms in wanted.items():
            made = [Arm(label, self._service(self._load(model), name), share) for label, model, share in arms]
            found[name] = Endpoint(name, tuple(a for a in made if a.label != SHADOW), next((a for a in made if a.label == SHADOW), None))
        return found

    def swap(self, model: str | Path, name: str | None = None, label: str = "champion") -> str:
        """Loads a model, replays its examples and puts it in the place of `name`'s arm `label` without losing a request; its version."""
        loaded = self._load(model)
        name = name or self.service.name
        self.fleet.swap(name, label, self._service(loaded, name))
        return loaded.version

    @property
    def curl(self) -> str:
        """Lines for a shell that predict the first stored example; a long row is fed by a here-document, not an argument."""
        from modelyard.verbs.serve.page import curl

        body = json.dumps({"instances": self.model.examples[:1]}, ensure_ascii=False)
        return curl(self.url + self.service.path, body, self.access.closed)

    def close(self) -> None:
        """Ends the threads and the log."""
        self.fleet.close()
        if self.traces is not None:
            self.traces.close()


class Server(Served):
    """A model behind a bound socket: `with serve(model) as s: s.url`. Connections are answered inside `with` (a thread) or in `forever` (this thread)."""

    def __init__(self, model: Model | str | Path | None, config: Config, trust_code: bool = False) -> None:
        super().__init__(model, config, trust_code)
        try:
            if config.grpc is not None:
                from modelyard.verbs.serve.rpc import Rpc

                self.rpc = Rpc(self.fleet, config)
            self.socket = listen(config.host, config.port)
        except ModelyardError:
            self.fleet.close()
            if self.rpc is not None:
                self.rpc.close()
            raise
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.port = int(self.socket.getsockname()[1])
        self.url = f"{'http' if config.tls is None else 'https'}://{host}:{self.port}"

    def engine(self) -> Any:
        """The uvicorn server; it stops accepting, answers what is in flight, and ends."""
        import asyncio

        import uvicorn

        from modelyard.verbs.serve.protocol import Protocol

        fleet, rpc, protocol = self.fleet, self.rpc, Protocol.of(self.fleet.short, self.config.limit)

        class Engine(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                if rpc is not None:
                    await rpc.start()
                await super().startup(sockets)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                fleet.ready(False)
                protocol.draining = True
                await asyncio.sleep(LINGER)
                for listening in sockets or []:
                    listening.listen(0)  # nobody new; those in the queue are let in, whom closing it would send away
                await asyncio.sleep(LINGER / 5)
                ending = asyncio.create_task(rpc.stop(DRAIN)) if rpc is not None else None
                await super().shutdown(sockets)
                if ending is not None:
                    await ending

        config = uvicorn.Config(
            fleet, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=DRAIN,
            timeout_keep_alive=30, http=protocol, server_header=False, ws="none",
        )  # fmt: skip
        config.load()
        config.ssl = self.context
        return Engine(config)

    def __enter__(self) -> Server:
        self._engine = self.engine()
        self.thread = threading.Thread(target=self._engine.run, kwargs={"sockets": [self.socket]}, daemon=True, name="serve")
        self.thread.start()
        while not self._engine.started:
            if not self.thread.is_alive():
                self.close()
                raise MachineError("the server ended before it answered; its message is on stderr")
            time.sleep(0.002)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.should_exit = True
        self.thread.join(DRAIN + 5)
        self.close()

    def close(self) -> None:
        """Frees the port, the threads and the log."""
        self.socket.close()
        if self.rpc is not None:
            self.rpc.close()
        super().close()

    def forever(self, ready: Any = None) -> None:
        """Answer until SIGTERM or Ctrl-C; requests in flight are answered first. `ready()` is called once signals are heeded."""
        engine = self.engine()
        # uvicorn raises a caught signal again when it has drained: with the default handler that would kill the process
        before = {number: signal.signal(number, engine.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if ready is not None:
                ready()
            engine.run(sockets=[self.socket])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()


def door(config: Config) -> Access:
    """Who may do what. Raises `UsageError`, `MissingExtra`."""
    from modelyard.verbs.serve.access import Access, Keys
    from modelyard.verbs.serve.oidc import Provider

    keys = Keys(Path(config.keys)) if config.keys else None
    return Access(config.token, keys, Provider(config.oidc) if config.oidc else None, config.rate)


def secured(config: TlsConfig) -> ssl.SSLContext:
    """The certificate of a server, TLS 1.2 or newer; a thread looks every few seconds whether its files have changed."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    files = Path(config.cert), Path(config.key)
    stamp = lambda: [(f.stat().st_mtime_ns, f.stat().st_ino) for f in files]  # noqa: E731
    try:
        context.load_cert_chain(*files)
        last = stamp()
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"serve.tls: {config.cert} and {config.key} are no certificate with its key: {error}") from None
    kept = weakref.ref(context)

    def watch() -> None:
        nonlocal last
        while (alive := kept()) is not None:
            with contextlib.suppress(OSError):  # half a renewal: the old certificate stays until both files fit
                if (now := stamp()) != last:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)  # a pair that does not fit would leave the old one broken
                    alive.load_cert_chain(*files)
                    last = now
            del alive
            time.sleep(RENEWED)

    threading.Thread(target=watch, daemon=True, name="certificate").start()
    return context


def shares(name: str, given: Any, problems: list[Problem]) -> list[tuple[str, str, float]]:
    """(label, model, share) of each arm of one entry of `serve.models`; those without a share divide what is left."""
    where = f"serve.models.{name}"
    arms = {"champion": given} if isinstance(given, str) else given
    if not isinstance(arms, Mapping) or not arms or not set(arms) - {SHADOW}:
        problems.append(Problem(f"got {given!r}, expected a model, or labels with a model each", where))
        return []
    read: list[tuple[str, str, float | None]] = []
    for label, entry in arms.items():
        entry = {"model": entry} if isinstance(entry, str) else entry
        share = entry.get("share") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str) or set(entry) - {"model", "share"}:
            problems.append(Problem(f"got {entry!r}, expected a model, or {{model, share}}", f"{where}.{label}"))
        elif share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1):
            problems.append(Problem(f"got {share!r}, expected a share from 0 to 1", f"{where}.{label}.share"))
        else:
            read.append((str(label), entry["model"], 0.0 if label == SHADOW else share))
    left = 1.0 - sum(s for _, _, s in read if s is not None)
    open_ = sum(s is None for _, _, s in read)
    if left < -1e-9 or (not open_ and left > 1e-9):
        problems.append(Problem(f"the shares add up to {1 - left:g}; they must add up to 1, or leave one label without a share", where))
    return [(label, model, left / open_ if share is None else share) for label, model, share in read]


def serve(model: Any = None, settings: Mapping[str, Any] | None = None, *, trust_code: bool = False, **keys: Any) -> Server | Cluster:
    """A server for a model (loaded, or a model folder, run folder or run's name), started by `with`.

    Keywords are those of the section `serve`; unless `port` is given a free one is taken.
    Raises `UsageError` with every wrong setting.
    """
    from modelyard import settings as reader
    from modelyard.store.run import model_folder

    problems: list[Problem] = []
    config = reader.parse(Config, {"port": 0, **(settings or {}), **keys}, "serve", problems)
    if config is None:
        raise UsageError(f"{len(problems)} setting(s) of serve are wrong", problems)
    if not config.models and (isinstance(model, str | Path) or model is None):
        model = model_folder(model, Path("runs"))
    return server_of(model, config, trust_code)


def server_of(model: Model | str | Path | None, config: Config, trust_code: bool = False) -> Server | Cluster:
    """The server that `serve.engine` asks for."""
    if config.engine == "ray":
        from modelyard.verbs.serve.cluster import Cluster

        return Cluster(model, config, trust_code)
    if config.replicas > 1:
        raise Unsupported("serve.replicas are copies on a Ray cluster; set serve.engine=ray, or serve.workers for processes on this machine", "use")
    return Server(model, config, trust_code)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    from ipaddress import ip_address

    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int | None, setting: str = "serve.port") -> socket.socket:
    """A bound socket; without a port 8000 or one of the next 99 that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port is not None else range(PORT, PORT + NEXT):
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            found.bind((host, candidate))
            found.listen(1024)
            return found
        except OSError as error:
            found.close()
            if port is None and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise UsageError(
                f"serve cannot listen at {host}:{candidate}: {error.strerror or error}; choose another {setting}, or leave it out"
            ) from None
    raise UsageError(f"no free port from {PORT} to {PORT + NEXT - 1}; name one with serve.port=N")


def run(project: Any, *, model: str | None = None, options: Any) -> None:
    """The verb: serves until it is stopped."""
    from modelyard.store.run import model_folder

    config: Config = project.section("serve")
    server = server_of(None if config.models else model_folder(model, project.base / "runs"), config, options.trust_code)
    if config.port is None and server.port != PORT:
        options.notice(f"port {PORT} is taken; serving at {server.port}")
    server.forever(lambda: announce(server, options))


def announce(server: Served, options: Any) -> None:
    """One JSON object, or a few lines for people."""
    service = server.service
    if options.emit is not None:
        more = {} if server.rpc is None else {"grpc": server.rpc.address}
        options.emit({"url": server.url, **more, "ready": True, "model": service.name, "version": server.model.version})
        return
    curl = server.curl if len(server.curl) <= 2000 else "(the row is long; the page has the curl lines)"
    rpc = "" if server.rpc is None else f"  grpc     {server.rpc.address}\n"
    print(
        f"{service.name} {server.model.version} is served; {server.parity.rows} stored examples are answered as before.\n\n"
        f"  page     {server.url}/\n  predict  {server.url}{service.path}\n{rpc}  stop     Ctrl-C\n\n{curl}\n",
        flush=True,
    )
