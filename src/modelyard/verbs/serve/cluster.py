"""The service as replicas on a Ray cluster, behind Ray Serve's proxies: the same project file, routes, checks and answers, past one machine.

Each replica loads the models (which replay their stored examples) and answers by the same ASGI application as the server here; Ray's proxy takes the
connections, spreads requests, and replaces replicas that die. What belongs to a server's own socket (https, gRPC, worker processes) stays with
what stands before the cluster and is refused here. Rates and batches are those of a replica.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import MachineError, MissingExtra, Problem, Unsupported
from modelyard.verbs.serve import Config, Served, listen

if TYPE_CHECKING:
    from modelyard.runtime.model import Model

ONGOING = 256
"""Requests that a replica may hold at once; its own queue answers 429 and 503 before that."""
DRAIN = 30.0
"""Seconds that a replica has for what it has begun."""
TRIES = 3
"""Times that a replica is started before that is told as a failure."""


class Cluster(Served):
    """`Server` on Ray: `with serve(model, engine="ray", replicas=4) as s: s.url`."""

    def __init__(self, model: Model | str | Path | None, config: Config, trust_code: bool = False) -> None:
        """Loads and proves the models here first. Raises `MissingExtra`, `Unsupported` for what a cluster has no place for."""
        self.ray = library()
        refuse(config)
        super().__init__(model, config, trust_code)
        folder = None if config.models else Path(self.model.folder).resolve()
        sent = replace(config, engine="local", replicas=1, models=placed(config.models), keys=whole(config.keys), log=whole(config.log))
        self.app = application(folder, sent, trust_code)
        self.name = config.name or self.service.name
        self.own = False

    def begin(self) -> None:
        """Starts the replicas, and waits until they answer. Raises `MachineError` with what kept them."""
        from ray import serve

        held = listen(self.config.host, self.config.port)
        self.port = int(held.getsockname()[1])
        held.close()
        self.own = not self.ray.is_initialized()
        if self.own:
            logging.getLogger("ray").setLevel(logging.WARNING)
            here = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
            self.ray.init(log_to_driver=False, configure_logging=False, **here)
        serve.start(http_options={"host": self.config.host, "port": self.port})
        deployed = serve.deployment(
            name="service", num_replicas=self.config.replicas, max_ongoing_requests=ONGOING,
            graceful_shutdown_timeout_s=DRAIN, max_constructor_retry_count=TRIES, ray_actor_options={"num_cpus": 1},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )  # fmt: skip
        try:
            serve.run(deployed(serve.ingress(self.app)(_Replica)).bind(), name=self.name, route_prefix="/")
        except Exception as error:  # Ray tells what kept a replica from starting in classes of its own
            self.close()
            raise MachineError(f"Ray does not serve {self.name}: {' '.join(str(error).split())[-400:]}") from None
        self.url = f"http://{self.config.host}:{self.port}"

    def __enter__(self) -> Cluster:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def swap(self, model: str | Path, name: str | None = None, label: str = "champion") -> str:
        """Refused: a cluster changes its models by being served anew, replica by replica."""
        reason = "serve the other model under the same name, and Ray replaces one replica after the other"
        raise Unsupported(f"replicas on Ray are not swapped by hand; {reason}", "use")

    def close(self) -> None:
        """Ends the replicas, which answer what they have begun, and Ray where it was started here."""
        from ray import serve

        with contextlib.suppress(Exception):  # what is gone already needs no ending
            serve.delete(self.name)
        if self.own and self.ray.is_initialized():
            if "RAY_ADDRESS" not in os.environ:
                serve.shutdown()
            self.ray.shutdown()
        super().close()

    def forever(self, ready: Any = None) -> None:
        """Answer until SIGTERM or Ctrl-C."""
        stopped, heeded = threading.Event(), (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: stopped.set()) for number in heeded}
        try:
            self.begin()
            for number in heeded:  # once more: Ray's own handler of SIGTERM, set meanwhile, prints a stack
                signal.signal(number, lambda *_: stopped.set())
            if ready is not None:
                ready()
            stopped.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()


class _Replica:
    """What Ray makes on each node; its routes are those of the application."""


def library() -> Any:
    """Ray with Serve. Raises `MissingExtra`."""
    try:
        import ray
        import ray.serve  # noqa: F401
    except ImportError:
        raise MissingExtra("ray[serve]", "ray") from None
    return ray


def refuse(config: Config) -> None:
    """Raises `Unsupported` with every setting that belongs to a server's own socket or processes."""
    wrong = [
        ("tls", config.tls is not None, "end https in front of the cluster, as at its load balancer"),
        ("grpc", config.grpc is not None, "gRPC is served by one machine; leave serve.engine out for it"),
        ("workers", config.workers > 0, "replicas are the processes: serve.replicas"),
    ]  # fmt: skip
    problems = [Problem("has no place on a Ray cluster", f"serve.{name}", hint) for name, given, hint in wrong if given]
    if problems:
        raise Unsupported(f"serve.engine=ray: {', '.join(p.where for p in problems)}", "use", problems)


def application(folder: Path | None, config: Config, trust_code: bool) -> Callable[[], Any]:
    """What a replica calls once for its ASGI application."""

    def build() -> Any:
        from modelyard.verbs.serve import Served

        return Served(folder, config, trust_code).fleet

    return build


def placed(models: dict[str, Any] | None) -> dict[str, Any] | None:
    """`serve.models` with folders that any process of this machine, or of one that shares its disk, finds; references of a registry stay."""
    from modelyard.store.run import model_folder

    def one(given: Any) -> Any:
        if isinstance(given, dict):
            return {k: one(v) if k == "model" or not isinstance(v, int | float) else v for k, v in given.items()}
        text = str(given)
        return text if text.startswith("models:") else str(model_folder(text, Path("runs")).resolve())

    return None if models is None else {name: one(given) for name, given in models.items()}


def whole(path: str | None) -> str | None:
    """A file's absolute path."""
    return None if path is None else str(Path(path).resolve())
