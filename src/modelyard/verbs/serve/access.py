"""Who may do what on a server: one token, keys from a file, or bearer tokens of an OpenID provider.

Every route has a right (`RIGHTS`), every role a set of rights (`ROLES`), and every caller a role for each model. Secrets are never kept: of a
key the file holds a SHA-256, which is enough for 256 random bits (slow hashes are for what people can remember), and what was
admitted once is remembered by the hash of its header.
"""

from __future__ import annotations

import hmac
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from modelyard.errors import UsageError
from modelyard.store.keys import EVERY, ROLES, entries_of, roles_of
from modelyard.verbs.serve.body import Refused

RIGHTS = {
    "page": None, "static": None, "health": None, "ready": None,
    "predict": "predict", "infer": "predict", "chat": "predict", "completions": "predict", "embeddings": "predict",
    "data": "read", "openapi": "read", "models": "read", "metadata": "read", "status": "read", "server": "read",
    "metrics": "watch",
}  # fmt: skip
"""Right that a route's label needs; None: anybody. A route whose label is not here is refused to everybody."""

ALL = frozenset({"metrics"})
"""Labels of what tells of all models: a role for all of them is needed."""
SOME = frozenset({"models", "server", "chat", "completions", "embeddings"})
"""Labels of what belongs to no model by its address: a role for any will do, and the model that the body names is looked at then."""

KEY = re.compile(r"my_([0-9a-f]{12})_([\w-]{43})")
REMEMBERED = 10_000
"""Callers that are remembered; beyond it all are checked again."""
STALE = 1.0
"""Seconds for which a key file is taken as unchanged."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the names of its roles by model's name or `*`."""

    name: str
    roles: Mapping[str, tuple[str, ...]]
    rate: float | None = None
    """Requests a second, and as many at once."""
    until: float = float("inf")
    """Time (seconds since 1970) after which it is somebody unknown."""

    def may(self, right: str, model: str | None) -> bool:
        """Whether one of its roles for the model has the right."""
        return any(right in ROLES[role] for name in (model, EVERY) if name is not None for role in self.roles.get(name, ()))


ANYBODY = Caller("anybody", {EVERY: ("admin",)})


@dataclass
class Bucket:
    """A token bucket: `rate` a second, at most `rate` (or one) at once."""

    rate: float
    left: float
    at: float

    def take(self, now: float) -> float:
        """0 where a request may pass, else the seconds until one may."""
        self.left = min(max(1.0, self.rate), self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.rate


@dataclass
class Access:
    """The door of a server. Nothing set: everybody on this machine may do everything."""

    token: InitVar[str | None] = None
    keys: Keys | None = None
    provider: Any = None
    """`oidc.Provider`."""
    rate: float | None = None
    """Of callers that have none of their own."""
    digest: bytes | None = None
    """Of the token."""
    known: dict[bytes, Caller] = field(default_factory=dict)
    buckets: dict[str, Bucket] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self, token: str | None) -> None:
        self.digest = None if token is None else sha256(token.encode("utf-8")).digest()
        self.generation = self.keys.generation if self.keys else 0

    @property
    def closed(self) -> bool:
        """Whether callers must say who they are."""
        return self.digest is not None or self.keys is not None or self.provider is not None

    def admit(self, header: bytes, label: str, model: str) -> Caller:
        """The caller of a request to a route. Raises `Refused`: 401 unknown, 403 not allowed, 429 too fast."""
        if label not in RIGHTS:
            raise Refused(403, "nobody may use this address")
        right = RIGHTS[label]
        if right is None:
            return ANYBODY
        caller = self._caller(header) if self.closed else ANYBODY
        models: list[str | None] = [None] if label in ALL else list(caller.roles) if label in SOME else [model]
        if not any(caller.may(right, m) for m in models):
            raise Refused(403, f"{caller.name} may not {right} {'all models' if label in ALL else model}")
        self._slow_down(caller)
        return caller

    @staticmethod
    def require(caller: Caller, right: str, model: str) -> None:
        """The same for a model that the body names. Raises `Refused` (403)."""
        if not caller.may(right, model):
            raise Refused(403, f"{caller.name} may not {right} {model}")

    def _caller(self, header: bytes) -> Caller:
        if self.keys is not None and self.keys.generation != self.generation:
            self.generation = self.keys.generation
            self.known.clear()
        mark = sha256(header).digest()
        found = self.known.get(mark)
        if found is not None and found.until > time.time() and (self.keys is None or not self.keys.changed()):
            return found
        kind, _, given = header.decode("latin-1").partition(" ")
        found = self._identify(given.strip()) if kind.lower() == "bearer" and len(given) <= 16_384 else None
        if found is None or found.until <= time.time():
            raise Refused(401, "a key or a bearer token is needed: Authorization: Bearer TOKEN")
        if len(self.known) >= REMEMBERED:
            self.known.clear()
        self.known[mark] = found
        return found

    def _identify(self, given: str) -> Caller | None:
        if self.digest is not None and hmac.compare_digest(sha256(given.encode("latin-1")).digest(), self.digest):
            return Caller("the token", {EVERY: ("admin",)})
        if self.keys is not None and (match := KEY.fullmatch(given)):
            return self.keys.find(match[1], match[2])
        return self.provider.identify(given) if self.provider is not None and given.count(".") == 2 else None

    def _slow_down(self, caller: Caller) -> None:
        rate = caller.rate if caller.rate is not None else self.rate
        if rate is None:
            return
        now = time.monotonic()
        with self.lock:
            bucket = self.buckets.get(caller.name)
            if bucket is None or bucket.rate != rate:
                bucket = self.buckets[caller.name] = Bucket(rate, max(1.0, rate), now)
            wait = bucket.take(now)
        if wait:
            raise Refused(429, f"{caller.name} may ask {rate:g} times a second", {"Retry-After": str(max(1, round(wait + 0.5)))})


class Keys:
    """A file of keys, read again when it changes: `{"keys": [{"id", "name", "sha256", "roles", "rate", "created", "expires"}]}`."""

    def __init__(self, path: Path) -> None:
        self.path, self.generation, self.looked = path, 0, 0.0
        self.entries: dict[str, dict[str, Any]] = {}
        self.stamp: tuple[int, int, int] | None = None
        self.lock = threading.Lock()
        self._read(first=True)

    def changed(self) -> bool:
        """Looks at the file again, at most once a second; whether its keys are others now."""
        now = time.monotonic()
        if now - self.looked < STALE:
            return False
        before = self.generation
        self._read()
        return self.generation != before

    def find(self, number: str, secret: str) -> Caller | None:
        """The caller of a key."""
        self.changed()
        entry = self.entries.get(number)
        # the same work for a key that is not there, so that time does not tell which numbers exist
        digest = entry["sha256"] if entry else "0" * 64
        same = hmac.compare_digest(sha256(secret.encode("ascii")).hexdigest(), digest)
        if entry is None or not same:
            return None
        return Caller(entry["name"], roles_of(entry["roles"]), entry.get("rate"), entry.get("expires") or float("inf"))

    def _read(self, first: bool = False) -> None:
        with self.lock:
            self.looked = time.monotonic()
            try:
                found = self.path.stat()
                stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
                if stamp == self.stamp:
                    return
                entries = entries_of(self.path)
            except UsageError:
                if first:
                    raise
                entries, stamp = [], (0, 0, 0)  # a broken or missing file lets nobody in: keys that were revoked in it must not live on
            except OSError as error:
                if first:
                    raise UsageError(f"serve.keys={self.path} cannot be read: {error.strerror}; make one with: modelyard keys create") from None
                entries, stamp = [], (0, 0, 0)
            self.entries = {e["id"]: e for e in entries}
            self.stamp = stamp
            self.generation += 1
