"""Bearer tokens of an OpenID provider: JSON Web Tokens checked against its published keys.

RFC 7519, 8725 (best current practice): the algorithm is chosen from a list of asymmetric ones that the server sets and must be that of the
key; a token names a key by `kid` and never brings one along; issuer, audience and times are required. Signatures are checked
by PyJWT and `cryptography` (`pip install 'modelyard[access]'`).
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelyard.errors import MissingExtra, Problem, UsageError
from modelyard.store.keys import roles_of, wrong_roles
from modelyard.verbs.serve.access import Caller
from modelyard.verbs.serve.body import Refused

if TYPE_CHECKING:
    from modelyard.verbs.serve import OidcConfig

AGAIN = 30.0
"""Seconds between two looks for keys that are not known, so that forged tokens do not make the server ask its provider."""
FRESH = 600.0
"""Seconds after which the keys are fetched again."""
LARGEST = 1 << 20
"""Bytes of a set of keys."""
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


class Provider:
    """Callers of tokens. Making one fetches the keys; later they are fetched in a thread of their own."""

    def __init__(self, config: OidcConfig) -> None:
        try:
            import jwt
        except ImportError:
            raise MissingExtra("serve.oidc checks signatures with PyJWT", "access") from None
        self.jwt, self.config = jwt, config
        problems = [
            Problem(text, f"serve.oidc.roles.{group}") for group, roles in config.roles.items() for text in wrong_roles(roles)
        ]
        if not config.roles:
            problems.append(Problem("no group has a role, so nobody could come in", "serve.oidc.roles", "Write group: {'*': caller}."))
        if problems:
            raise UsageError(f"{len(problems)} setting(s) of serve.oidc are wrong", problems)
        self.keys: dict[str, Mapping[str, Any]] = {}
        self.fetched = 0.0
        self.lock = threading.Lock()
        self.fetching = False
        try:
            self._fetch()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"the keys of {config.issuer} cannot be fetched ({str(error)[:200]}); set serve.oidc.jwks to their address or file") from None

    def identify(self, token: str) -> Caller | None:
        """The caller of a token; None where it is no good. Raises `Refused` (503) while keys that it may need are fetched."""
        jwt, config = self.jwt, self.config
        try:
            header = jwt.get_unverified_header(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if algorithm not in config.algorithms or not isinstance(kid, str) or header.get("crit") is not None or header.get("b64") is False:
                return None
            if time.monotonic() - self.fetched > FRESH:
                self._refresh()
            key = self.keys.get(kid)
            if key is None:
                if time.monotonic() - self.fetched > AGAIN and self._refresh():
                    raise Refused(503, "the provider's keys are being fetched; try again", {"Retry-After": "1"})
                return None
            if not _fits(key, algorithm):
                return None
            claims = jwt.decode(
                token, jwt.PyJWK(dict(key), algorithm).key, algorithms=[algorithm], audience=config.audience, issuer=config.issuer,
                leeway=config.leeway, options={"require": ["exp", "iss", "aud", "sub"]},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
            return None
        roles = self._roles(claims)
        return Caller(f"{claims['sub']}", roles, None, float(claims["exp"]) + config.leeway) if roles else None

    def _roles(self, claims: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        value: Any = claims
        for part in self.config.claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        groups = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
        found: dict[str, tuple[str, ...]] = {}
        for group in groups:
            for model, roles in roles_of(self.config.roles.get(group, {})).items() if isinstance(group, str) else ():
                found[model] = (*found.get(model, ()), *roles)
        return found

    def _refresh(self) -> bool:
        """Starts to fetch the keys unless somebody does."""
        with self.lock:
            if self.fetching:
                return True
            self.fetching = True

        def work() -> None:
            try:
                self._fetch()
            except (OSError, ValueError, KeyError, TypeError):
                self.fetched = time.monotonic()  # the old keys stay; the next look comes later
            finally:
                self.fetching = False

        threading.Thread(target=work, daemon=True, name="jwks").start()
        return True

    def _fetch(self) -> None:
        source = self.config.jwks
        if source is None:
            source = json.loads(_read(self.config.issuer.rstrip("/") + "/.well-known/openid-configuration"))["jwks_uri"]
        found = json.loads(_read(source))["keys"]
        self.keys = {k["kid"]: k for k in found if isinstance(k, dict) and isinstance(k.get("kid"), str) and k.get("use", "sig") == "sig"}
        self.fetched = time.monotonic()


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    """Whether the key is one of the algorithm's."""
    if key.get("alg", algorithm) != algorithm:
        return False
    kind = key.get("kty")
    if algorithm in CURVES:
        return kind == "EC" and key.get("crv") == CURVES[algorithm]
    if algorithm == "EdDSA":
        return kind == "OKP" and key.get("crv") in ("Ed25519", "Ed448")
    return kind == "RSA"


def _read(source: str) -> bytes:
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        data = Path(source).read_bytes()
    elif parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(f"{source} is not https: anybody between could put in keys of their own")
    else:
        with urllib.request.urlopen(source, timeout=5) as response:
            data = response.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{source} is larger than {LARGEST} bytes")
    return data
