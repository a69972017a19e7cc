"""Signatures of model folders: Ed25519 (RFC 8032) over the manifest, which hashes every other file.

`signature.json` lies beside the manifest: `{"signatures": [{"key", "signature"}]}`, `key` being the first 16 hexadecimal digits of the SHA-256
of the public key. What is signed is `modelyard model 1`, a zero byte and the manifest's SHA-256, so that a signature is good for nothing else. Where
`MODELYARD_TRUST` names a file or folder of public keys (PEM), a model without a signature by one of them does not load.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, MissingExtra, UsageError
from modelyard.store import atomic

FILE = "signature.json"
TRUST = "MODELYARD_TRUST"
PURPOSE = b"modelyard model 1\0"
LARGEST = 64 * 1024


def keygen(path: Path) -> tuple[str, Path]:
    """Writes a new private key (mode 0600) and its public half beside it (`.pub`): (number of the key, public file)."""
    ed25519, serialization = _primitives()
    if path.exists():
        raise UsageError(f"{path} exists already; a key is never overwritten")
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    beside = path.with_suffix(".pub")
    beside.write_bytes(public)
    return _number(key.public_key()), beside


def sign(folder: Path, key: Path) -> str:
    """Adds a signature by the private key to a model folder; the number of the key."""
    ed25519, serialization = _primitives()
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{key} is no private key of Ed25519 ({error}); make one with: modelyard models keygen") from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{key} is no private key of Ed25519; make one with: modelyard models keygen")
    number = _number(private.public_key())
    signature = base64.b64encode(private.sign(_signed(folder))).decode("ascii")
    kept = [s for s in _read(folder) if s["key"] != number]
    body = {"signatures": [*kept, {"key": number, "signature": signature}]}
    atomic.replace_file(folder / FILE, (json.dumps(body, indent=1) + "\n").encode("utf-8"))
    return number


def signed_by(folder: Path, trusted: Path) -> list[str]:
    """Numbers of the trusted keys (a PEM file, or a folder of them) by which the folder is signed; [] for none."""
    from cryptography.exceptions import InvalidSignature

    keys = _trusted(trusted)
    message, found = _signed(folder), []
    for entry in _read(folder):
        key = keys.get(entry["key"])
        if key is None:
            continue
        try:
            key.verify(base64.b64decode(entry["signature"], validate=True), message)
        except (InvalidSignature, ValueError):
            continue
        found.append(entry["key"])
    return found


def require(folder: Path, plain: Path | None = None) -> None:
    """Raises `ArtefactError` where keys are trusted and none of them has signed the folder, nor the plain one that came out of it."""
    trusted = os.environ.get(TRUST)
    if trusted and not any(signed_by(f, Path(trusted)) for f in dict.fromkeys((folder, plain or folder))):
        raise ArtefactError(f"{folder} is not signed by a key of {TRUST}={trusted}; sign it with: modelyard models sign {folder} key=FILE")


def _signed(folder: Path) -> bytes:
    return PURPOSE + bytes.fromhex(atomic.sha256(folder / "manifest.json"))


def _read(folder: Path) -> list[dict[str, str]]:
    path = folder / FILE
    if not path.is_file() or path.is_symlink():
        return []
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))["signatures"]
        return [{"key": str(s["key"]), "signature": str(s["signature"])} for s in found][:100]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error!r}") from None


def _trusted(path: Path) -> dict[str, Any]:
    ed25519, serialization = _primitives()
    files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    found = {}
    for file in files:
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} is no public key ({error}); {TRUST} names the .pub file of modelyard models keygen, or a folder of such") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise UsageError(f"{file} is no public key of Ed25519")
        found[_number(key)] = key
    if not found:
        raise UsageError(f"{path} holds no public key (.pub), so nothing could be trusted")
    return found


def _number(key: Any) -> str:
    _, serialization = _primitives()
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _primitives() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtra("signatures of models need cryptography", "access") from None
    return ed25519, serialization
