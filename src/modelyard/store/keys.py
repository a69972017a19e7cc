"""Files of keys: who may ask a server, without what would let anybody in.

`{"keys": [{"id", "name", "sha256", "roles", "rate", "created", "expires"}]}`. A key is 256 random bits; its SHA-256 is enough to know it again
(slow hashes are for what people can remember).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from modelyard.errors import Problem, UsageError

ROLES = {
    "reader": frozenset({"read"}),
    "caller": frozenset({"read", "predict"}),
    "watcher": frozenset({"watch"}),
    "admin": frozenset({"read", "predict", "watch"}),
}
"""Rights of a role."""

EVERY = "*"
"""In the place of a model's name: all models. What belongs to no model (metrics) needs a role for all of them."""


def entries_of(path: Path) -> list[dict[str, Any]]:
    """The checked entries of a key file. Raises `UsageError` with every mistake, `OSError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        entries = found["keys"]
        if not isinstance(entries, list):
            raise TypeError("keys is no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no file of keys ({error}); make one with: modelyard keys create") from None
    problems: list[Problem] = []
    for i, entry in enumerate(entries):
        problems += [Problem(text, f"keys[{i}]") for text in _mistakes(entry)]
    if problems:
        raise UsageError(f"{path} has {len(problems)} mistake(s)", problems)
    return entries


def _mistakes(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"is {entry!r}; an entry is an object"]
    found = []
    if not isinstance(entry.get("id"), str) or not re.fullmatch(r"[0-9a-f]{12}", entry["id"]):
        found.append(f"id is {entry.get('id')!r}; expected 12 hexadecimal digits")
    if not isinstance(entry.get("name"), str) or not entry["name"]:
        found.append("has no name")
    if not isinstance(entry.get("sha256"), str) or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        found.append("sha256 is no SHA-256 in hexadecimal digits")
    found += wrong_roles(entry.get("roles"))
    for name in ("rate", "expires"):
        value = entry.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            found.append(f"{name} is {value!r}; expected a number above 0")
    return found


def wrong_roles(roles: Any) -> list[str]:
    """What is wrong with a mapping of models to a role or a list of roles."""
    if not isinstance(roles, Mapping) or not roles:
        return [f"roles are {roles!r}; expected model (or *) → {', '.join(ROLES)}"]
    pairs = [(model, role) for model, given in roles.items() for role in (given if isinstance(given, list) else [given])]
    return [f"{model}: {role!r} is no role; expected {', '.join(ROLES)}" for model, role in pairs if not isinstance(role, str) or role not in ROLES]


def roles_of(given: Mapping[str, str | list[str]]) -> dict[str, tuple[str, ...]]:
    """Checked roles as a caller has them."""
    return {model: (role,) if isinstance(role, str) else tuple(role) for model, role in given.items()}


def create(path: Path, name: str, roles: Mapping[str, str | list[str]], rate: float | None = None, expires: float | None = None) -> tuple[str, str]:
    """Adds a key to the file (made with mode 0600 where there is none): (id, key). The key is nowhere else."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    entries = entries_of(path) if path.exists() else []
    entry = {"id": number, "name": name, "sha256": sha256(secret.encode("ascii")).hexdigest(), "roles": dict(roles), "created": round(time.time())}
    write(path, [*entries, entry | ({"rate": rate} if rate is not None else {}) | ({"expires": expires} if expires is not None else {})])
    return number, f"my_{number}_{secret}"


def write(path: Path, entries: list[dict[str, Any]]) -> None:
    """Replaces the file as a whole, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"keys": entries}, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
