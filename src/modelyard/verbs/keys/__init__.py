"""Keys of a server's callers: makes one (shown once), lists them, takes one back.

modelyard keys create name=shop role=caller
modelyard keys create name=billing role=caller models=churn,credit rate=50 expires=90d
modelyard keys
modelyard keys revoke 3f9c1a7be204

The file (`path=keys.json`) is what `serve.keys` names; a running server sees changes within a second. It holds no key, only SHA-256 sums.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from modelyard.errors import Problem, UsageError
from modelyard.options import Options
from modelyard.settings import Between, Duration, parse
from modelyard.store import keys

NEEDS_PROJECT = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a key."""

    rate: Annotated[float, Between(0.001, 1e9)] | None = None
    """Requests a second."""
    expires: Duration | None = None
    """Time from now after which the key opens nothing."""


@dataclass
class Created:
    """A new key."""

    id: str
    key: str
    """What callers send as `Authorization: Bearer KEY`; it cannot be shown again."""
    path: str

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """The key."""
        return f"{self.key}\n\nkept nowhere: copy it now. {self.path} holds its sum; serve with serve.keys={self.path}"


@dataclass
class Listing:
    """The keys of a file, without what opens."""

    path: str
    keys: list[dict[str, Any]] = field(default_factory=list)
    """`{id, name, roles, rate, created, expires}`; times in seconds since 1970."""
    revoked: str | None = None
    """Id of the key that was taken back."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """A line a key."""
        lines = [f"{self.revoked} is taken back; servers see it within a second"] if self.revoked else []
        for key in self.keys:
            roles = ", ".join(f"{m}: {'+'.join(r) if isinstance(r, list) else r}" for m, r in key["roles"].items())
            ends = f", until {time.strftime('%Y-%m-%d', time.localtime(key['expires']))}" if key.get("expires") else ""
            rate = f", {key['rate']:g}/s" if key.get("rate") else ""
            lines.append(f"{key['id']}  {key['name']}  {roles}{rate}{ends}")
        return "\n".join(lines) or f"no keys in {self.path}; make one with: modelyard keys create name=NAME"


def run(project: None, *, model: str | None, options: Options) -> Created | Listing:
    """Raises `UsageError` with every mistake."""
    args, values = options.args or ["list"], dict(options.values)
    path = Path(str(values.pop("path", "keys.json")))
    if args[0] == "create" and len(args) == 1:
        return _create(path, values)
    if values or args[0] not in ("list", "revoke") or len(args) != (2 if args[0] == "revoke" else 1):
        raise UsageError("keys takes: create name=NAME [role= models= rate= expires=], list, or revoke ID; each with path=FILE")
    entries = keys.entries_of(path) if path.exists() else []
    if args[0] == "revoke":
        if args[1] not in [e["id"] for e in entries]:
            raise UsageError(f"{path} has no key {args[1]}; there are {', '.join(e['id'] for e in entries) or 'none'}")
        entries = [e for e in entries if e["id"] != args[1]]
        keys.write(path, entries)
    shown = [{k: v for k, v in e.items() if k != "sha256"} for e in entries]
    return Listing(str(path), shown, args[1] if args[0] == "revoke" else None)


def _create(path: Path, values: dict[str, Any]) -> Created:
    problems: list[Problem] = []
    unknown = sorted(set(values) - {"name", "role", "models", "rate", "expires"})
    problems += [Problem("is no key of keys create; expected name, role, models, rate, expires", key) for key in unknown]
    name = values.get("name")
    if not isinstance(name, str) or not name.strip():
        problems.append(Problem("who gets it? write name=NAME", "name"))
    models = values.get("models", keys.EVERY)
    models = [m.strip() for m in models.split(",")] if isinstance(models, str) else [str(m) for m in models]
    role = values.get("role", "caller")
    roles = dict.fromkeys(models, role)
    problems += [Problem(text, "role") for text in keys.wrong_roles(roles)]
    limits = parse(Limits, {k: values[k] for k in ("rate", "expires") if k in values}, "", problems)
    if problems:
        raise UsageError(f"{len(problems)} setting(s) of keys create are wrong", problems)
    ends = None if limits.expires is None else round(time.time() + limits.expires)
    number, key = keys.create(path, str(name), roles, limits.rate, ends)
    return Created(number, key, str(path))
