"""Several models, and several versions of one, behind one address: shares by sticky hash, shadows, and swaps without a lost request.

A name has arms, each a version with a share of the callers. Which arm answers is a function of the name and the caller's unit
(`Modelyard-Unit`: a user, a session), so that a caller stays with a version for as long as the shares stay; without a unit the request
decides by its own number. A shadow gets a copy of what the others answer and its own answers are only logged and counted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from modelyard.errors import Problem, UsageError
from modelyard.verbs.serve.app import Reply, Service
from modelyard.verbs.serve.attendance import Origin
from modelyard.verbs.serve.body import Request

DRAIN = 30.0
"""Seconds that a version which was swapped out may still need for what it has begun."""


@dataclass
class Arm:
    """One version of a model."""

    label: str
    service: Service
    share: float = 1.0
    """Of the callers; 0 answers only those who name its version or label."""
    app: ASGIApp = field(init=False)

    def __post_init__(self) -> None:
        self.app = self.service.app()


@dataclass
class Endpoint:
    """One name. `arms` is replaced as a whole, never changed: a request sees the shares of before a swap or of after it."""

    name: str
    arms: tuple[Arm, ...]
    shadow: Arm | None = None

    def pick(self, unit: str) -> Arm:
        """The arm of a caller: where its hash falls on the line of shares."""
        total = sum(a.share for a in self.arms)
        point = int.from_bytes(sha256(f"{self.name}\0{unit}".encode()).digest()[:8], "big") / 2**64 * total
        for arm in self.arms:
            point -= arm.share
            if point < 0:
                return arm
        return next(a for a in reversed(self.arms) if a.share > 0)

    def named(self, version: str) -> Arm | None:
        """The arm of a version or a label."""
        known = [*self.arms, *([self.shadow] if self.shadow else [])]
        return next((a for a in known if version in (a.label, a.service.model.version)), None)


class Fleet:
    """All endpoints; an ASGI application, and the short way for predictions of `protocol.Protocol`."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self.endpoints = dict(endpoints)
        problems = [
            Problem(f"the shares {[a.share for a in e.arms]} are none that callers could fall on", f"serve.models.{e.name}")
            for e in self.endpoints.values()
            if min((a.share for a in e.arms), default=-1.0) < 0 or sum(a.share for a in e.arms) <= 0
        ]
        if problems:
            raise UsageError(f"{len(problems)} model(s) cannot be shared out", problems)
        self.short: dict[bytes, Callable[[Mapping[bytes, bytes], bytes, Reply], None]] = {}
        for name in self.endpoints:
            self.short[f"/v1/models/{quote(name, safe='')}:predict".encode("ascii")] = self._begin(name)
        self.count = 0
        for arm in self.all():
            self._join(arm.service)
        self.copying: set[asyncio.Task[None]] = set()

    def _join(self, service: Service) -> None:
        service.telemetries = lambda: [a.service.telemetry for a in self.all()]
        service.listed = lambda: [self._entry(e, a) for e in self.endpoints.values() for a in e.arms]
        service.copies = lambda asked, origin: self._copy(service, asked, origin)
        service.repeat = lambda given, raw, caller: self._repeat(service, given, raw, caller)
        service.writing.find = lambda name, unit: self.endpoints[name].pick(unit or self._unit({})).service if name in self.endpoints else None

    def _shadow(self, service: Service) -> Service | None:
        """Who gets a copy of what `service` answers."""
        shadow = self.endpoints[service.name].shadow
        return None if shadow is None or shadow.service is service else shadow.service

    def _copy(self, service: Service, asked: Request, origin: Origin) -> None:
        shadow = self._shadow(service)
        if shadow is not None:
            task = asyncio.get_running_loop().create_task(shadow.shadowed(asked, origin))
            self.copying.add(task)  # the loop itself keeps tasks weakly
            task.add_done_callback(self.copying.discard)

    def _repeat(self, service: Service, given: Mapping[bytes, bytes], raw: bytes, caller: str) -> None:
        shadow = self._shadow(service)
        if shadow is not None:
            asyncio.get_running_loop().call_soon(shadow.begin, given, raw, lambda *found: None, caller)

    def chosen(self, name: str, version: str, given: Mapping[bytes, bytes]) -> Service:
        """Who answers for a name and a version, label or "" outside of HTTP; the first model where there is no such name, for it says what there is."""
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            return next(iter(self.endpoints.values())).arms[0].service
        return (endpoint.named(version) or endpoint.pick(self._unit(given))).service

    def _begin(self, name: str) -> Callable[[Mapping[bytes, bytes], bytes, Reply], None]:
        def begin(given: Mapping[bytes, bytes], raw: bytes, reply: Reply) -> None:
            service = self.endpoints[name].pick(self._unit(given)).service
            caller = service.begin(given, raw, reply)
            if caller is not None:
                self._repeat(service, given, raw, caller)

        return begin

    def _unit(self, given: Mapping[bytes, bytes]) -> str:
        unit = given.get(b"modelyard-unit") or given.get(b"x-request-id")
        if unit:
            return unit.decode("latin-1")
        self.count += 1
        return str(self.count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Routes by the name in the address; what belongs to no model is answered by the first, which knows of the others."""
        if scope["type"] == "http":
            await self._for(scope["path"], dict(scope["headers"]))(scope, receive, send)

    def _for(self, path: str, given: Mapping[bytes, bytes]) -> ASGIApp:
        rest = next((path[len(stem) :] for stem in ("/v1/models/", "/v2/models/") if path.startswith(stem)), None)
        # the longest name: "a" must not answer for "a/b"
        name = max((n for n in self.endpoints if rest is not None and rest.startswith(n) and rest[len(n) :][:1] in ("", ":", "/")), key=len, default=None)
        if rest is None or name is None:
            return next(iter(self.endpoints.values())).arms[0].app
        endpoint = self.endpoints[name]
        for way in ("/versions/", "/labels/"):
            if rest[len(name) :].startswith(way):
                version = rest[len(name) + len(way) :].partition("/")[0].partition(":")[0]
                if (arm := endpoint.named(version)) is not None:
                    return _as_version(arm, way, version)
        return endpoint.pick(self._unit(given)).app

    @staticmethod
    def _entry(endpoint: Endpoint, arm: Arm) -> dict[str, Any]:
        version = arm.service.model.version
        return {
            "id": endpoint.name, "object": "model", "created": 0, "owned_by": "modelyard", "version": version, "label": arm.label,
            "share": arm.share,
        }  # fmt: skip

    def all(self) -> list[Arm]:
        """Every arm and shadow."""
        return [a for e in self.endpoints.values() for a in (*e.arms, *([e.shadow] if e.shadow else []))]

    def swap(self, name: str, label: str, service: Service) -> None:
        """The arm `label` answers with `service` from the next request on; what the old one has begun it ends, and then it is closed.

        Called from the event loop or from any thread. Raises `UsageError` where there is no such arm.
        """
        endpoint = self.endpoints.get(name)
        old = endpoint.named(label) if endpoint else None
        if endpoint is None or old is None:
            there = ", ".join(f"{e.name}/{a.label}" for e in self.endpoints.values() for a in e.arms)
            raise UsageError(f"no arm {name}/{label} is served here; there is {there}")
        new = Arm(old.label, service, old.share)
        self._join(service)
        self.endpoints[name] = Endpoint(
            name, tuple(new if a is old else a for a in endpoint.arms), new if endpoint.shadow is old else endpoint.shadow
        )
        threading.Thread(target=_retire, args=(old.service,), daemon=True, name="retire").start()

    def ready(self, ready: bool) -> None:
        """Of every version."""
        for arm in self.all():
            arm.service.ready = ready

    def close(self) -> None:
        """Ends all threads and logs."""
        for arm in self.all():
            arm.service.close()


def _as_version(arm: Arm, way: str, version: str) -> ASGIApp:
    """The arm's application, for which a label in the address is its own version."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].replace(f"{way}{version}", f"/versions/{arm.service.model.version}", 1)
        await arm.app({**scope, "path": path}, receive, send)

    return app


def _retire(service: Service) -> None:
    time.sleep(1.0)  # a request that chose this version is counted as soon as its route begins
    until = time.monotonic() + DRAIN
    while service.running and time.monotonic() < until:
        time.sleep(0.01)
    service.close()
