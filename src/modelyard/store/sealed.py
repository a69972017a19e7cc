"""Model folders encrypted at rest: AES-256-GCM in chunks, bound to the model's name and version.

A sealed folder is a model folder like any other (manifest, hashes, signature, registry, backup), whose one file `model.sealed` holds all files of the
plain one. Its data key is random and lies in the manifest, wrapped by a key that `MODELYARD_KEY` supplies:

    file:PATH       a file               env:NAME        another environment variable
    command:WORDS   what a command prints, e.g. command:aws kms decrypt --ciphertext-blob fileb://key --query Plaintext --output text

each of them lines of 32 bytes in base64: the first encrypts, all decrypt, so that a key is changed by writing a new line above the old one. The chunks
follow STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015, Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance): the nonce counts
them and marks the last, so that none can be altered, moved, dropped or added; name and version are authenticated with each.

Opening writes the plain files into memory (`/dev/shm`, or the folder that `MODELYARD_UNSEALED` names), readable by this user only, and takes them away with
the model; what a killed process left goes with the next opening.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from modelyard.errors import ArtefactError, MissingExtra, Unsupported, UsageError
from modelyard.store import atomic, signature
from modelyard.store import folder as store

KEY = "MODELYARD_KEY"
"""Environment variable that says where the keys come from."""
UNSEALED = "MODELYARD_UNSEALED"
"""Environment variable with the folder for plain files; without it `/dev/shm`."""
FILE = "model.sealed"
PURPOSE = b"modelyard sealed 1\0"
CHUNK = 2**20
TAG = 16
TOLD = ("name", "tasks", "data", "parents", "seed")
"""What of the plain manifest stands in the clear: what the registry tells of a version."""
LONGEST = 2**28
"""Bytes of the list of files, at most."""


def keygen(path: Path) -> str:
    """Writes a new key (mode 0600); its number."""
    key = os.urandom(32)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
    except FileExistsError:
        raise UsageError(f"{path} exists already; a key is never overwritten") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    return _number(key)


def is_sealed(manifest: dict[str, Any]) -> bool:
    """Whether the folder of the manifest is encrypted."""
    return "sealed" in manifest


def seal(model: Path, target: Path) -> str:
    """Writes the encrypted folder of a plain one; the number of the key. Raises `UsageError` without a key, `ArtefactError` for what is no whole
    plain model."""
    key = _keys()[0]
    manifest = store.read(model)
    if is_sealed(manifest):
        raise ArtefactError(f"{model} is encrypted already; change its key with: modelyard models rewrap {model}")
    version, data_key = store.version(model), os.urandom(32)
    names = [*manifest["files"], *(n for n in (store.MANIFEST, signature.FILE) if (model / n).is_file())]
    sealed = {"version": version, **_wrap(key, data_key, manifest["name"], version)}
    outer = {k: manifest[k] for k in TOLD if k in manifest} | {"model": {"backend": "sealed"}, "sealed": sealed}

    def fill(aside: Path) -> None:
        with (aside / FILE).open("wb") as out:
            for piece in _encrypt(data_key, _bound(manifest["name"], version), _plain(model, names)):
                out.write(piece)

    store.write(target, outer, fill)
    return _number(key)


def forbid_copy(opened: Opened | None, folder: Path) -> None:
    """Raises `Unsupported` where a plain model would be made of an encrypted one without anybody having said so."""
    if opened is not None:
        write = f"modelyard models decrypt {folder} out=FOLDER"
        raise Unsupported(f"{folder} is encrypted, and what comes of this would not be; decrypt it, go on with that, and encrypt the result: {write}", "use")


def rewrap(folder: Path) -> tuple[str, str]:
    """Puts the first key in the place of the one that the folder was sealed with: (old number, new number). Signatures of the sealed folder end."""
    manifest = store.read(folder)
    if not is_sealed(manifest):
        raise ArtefactError(f"{folder} is not encrypted; write: modelyard models encrypt {folder} out=FOLDER")
    name, sealed, key = str(manifest["name"]), manifest["sealed"], _keys()[0]
    data_key, before = _unwrap(sealed, name, folder), str(sealed["key"])
    manifest["sealed"] = {"version": sealed["version"], **_wrap(key, data_key, name, sealed["version"])}
    text = json.dumps(manifest, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    atomic.replace_file(folder / store.MANIFEST, text.encode("utf-8"))
    return before, _number(key)


def unseal(folder: Path, target: Path) -> Path:
    """Writes the plain folder of an encrypted one. Raises `ArtefactError` for a wrong key and for whatever was altered."""
    manifest = store.read(folder)
    if not is_sealed(manifest):
        raise ArtefactError(f"{folder} is not encrypted")
    if target.exists():
        raise ArtefactError(f"{target} exists already and nothing is ever overwritten; choose another name")
    with atomic.whole(target) as aside:
        _open(folder, manifest, aside)
        for path in aside.rglob("*"):
            atomic.sync(path)
    return target


class Opened:
    """The plain files of a sealed folder for as long as this object lives."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        place = _memory(sum(e["size"] for e in manifest["files"].values()))
        _sweep(place)
        own = Path(tempfile.mkdtemp(prefix="modelyard-", dir=place))  # mode 0700
        self._end = weakref.finalize(self, _remove, own, _locked(own), os.getpid())
        self.folder = own / "model"
        try:
            self.folder.mkdir()
            _open(folder, manifest, self.folder)
        except BaseException:
            self._end()
            raise


def _open(folder: Path, manifest: dict[str, Any], target: Path) -> None:
    """Decrypts into an empty folder and holds what comes out against name and version."""
    sealed, name = manifest["sealed"], str(manifest["name"])
    data_key = _unwrap(sealed, name, folder)
    with (folder / FILE).open("rb") as file:
        _unpack(_Reader(_decrypt(data_key, _bound(name, sealed["version"]), file, folder)), target, folder)
    inner = store.read_manifest(target)
    if store.plain_version(target) != sealed["version"] or inner["name"] != name or is_sealed(inner):
        raise _altered(folder)


def _plain(model: Path, names: list[str]) -> Iterator[bytes]:
    """Length and list of the files, then their bytes."""
    index = json.dumps([[n, (model / n).stat().st_size] for n in names], ensure_ascii=False).encode("utf-8")
    yield len(index).to_bytes(8, "big") + index
    for name in names:
        with (model / name).open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece


def _unpack(read: _Reader, target: Path, folder: Path) -> None:
    length = int.from_bytes(read(8), "big")
    if length > LONGEST:
        raise _altered(folder)
    for name, size in json.loads(read(length)):
        path = target / name
        if not path.resolve().is_relative_to(target.resolve()) or not isinstance(size, int):
            raise _altered(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while size:
                piece = read(min(size, CHUNK))
                file.write(piece)
                size -= len(piece)
    if not read.ended():
        raise _altered(folder)


class _Reader:
    """Exact numbers of bytes out of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.rest = pieces, b""

    def __call__(self, count: int) -> bytes:
        while len(self.rest) < count:
            piece = next(self.pieces, None)
            if piece is None:
                raise ArtefactError("the encrypted files end too early; use a copy that is whole")
            self.rest += piece
        found, self.rest = self.rest[:count], self.rest[count:]
        return found

    def ended(self) -> bool:
        """Whether nothing is left."""
        return not self.rest and next(self.pieces, None) is None


def _encrypt(data_key: bytes, bound: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    gcm, rest, count = _gcm(data_key), b"", 0
    for piece in pieces:
        rest += piece
        while len(rest) > CHUNK:  # not ≥: the last chunk is marked, so one is always left
            yield gcm.encrypt(_nonce(count, False), rest[:CHUNK], bound)
            rest, count = rest[CHUNK:], count + 1
    yield gcm.encrypt(_nonce(count, True), rest, bound)


def _decrypt(data_key: bytes, bound: bytes, file: IO[bytes], folder: Path) -> Iterator[bytes]:
    from cryptography.exceptions import InvalidTag

    gcm, count, piece = _gcm(data_key), 0, file.read(CHUNK + TAG)
    while True:
        following = file.read(CHUNK + TAG)
        try:
            yield gcm.decrypt(_nonce(count, not following), piece, bound)
        except (InvalidTag, ValueError):
            raise _altered(folder) from None
        if not following:
            return
        piece, count = following, count + 1


def _nonce(count: int, last: bool) -> bytes:
    return count.to_bytes(11, "big") + bytes([last])


def _bound(name: str, version: str) -> bytes:
    return PURPOSE + name.encode("utf-8") + b"\0" + version.encode("ascii")


def _altered(folder: Path) -> ArtefactError:
    return ArtefactError(f"{folder} is not what was encrypted: its contents, its name or its version were altered; use a copy that is whole")


# -- keys ---------------------------------------------------------------------------------------------------------------


def _wrap(key: bytes, data_key: bytes, name: str, version: str) -> dict[str, str]:
    nonce = os.urandom(12)
    wrapped = nonce + _gcm(key).encrypt(nonce, data_key, b"key\0" + _bound(name, version))
    return {"key": _number(key), "wrapped": base64.b64encode(wrapped).decode("ascii")}


def _unwrap(sealed: dict[str, Any], name: str, folder: Path) -> bytes:
    from cryptography.exceptions import InvalidTag

    keys = _keys()
    key = next((k for k in keys if _number(k) == sealed.get("key")), None)
    if key is None:
        raise ArtefactError(f"{folder} is encrypted with the key {sealed.get('key')}; {KEY} supplies {', '.join(map(_number, keys))}")
    try:
        wrapped = base64.b64decode(sealed["wrapped"], validate=True)
        return bytes(_gcm(key).decrypt(wrapped[:12], wrapped[12:], b"key\0" + _bound(name, sealed["version"])))
    except (InvalidTag, ValueError, KeyError, TypeError, AttributeError):
        raise _altered(folder) from None


def _keys() -> list[bytes]:
    """All that `MODELYARD_KEY` supplies, the one that encrypts first. What a source gives is never shown."""
    source = os.environ.get(KEY, "")
    way, _, rest = source.partition(":")
    if not rest or way not in ("file", "env", "command"):
        raise UsageError(f"{KEY} must be file:PATH, env:NAME or command:WORDS; make a key with: modelyard models keygen for=encryption")
    try:
        if way == "file":
            text = Path(rest).read_text(encoding="ascii")
        elif way == "env":
            text = os.environ[rest]
        else:
            text = subprocess.run(shlex.split(rest), capture_output=True, check=True, timeout=60, encoding="ascii").stdout
        keys = [base64.b64decode(line, validate=True) for line in text.split()]
    except KeyError:
        raise UsageError(f"{KEY}=env:{rest}, but the variable {rest} is not set") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"the command of {KEY} ended with {error.returncode}: {error.stderr.strip()[:300]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{KEY}={way}: gives no key: {error}"[:400]) from None
    except (binascii.Error, ValueError):
        keys = []
    if not keys or any(len(k) != 32 for k in keys):
        raise UsageError(f"{KEY}={way}: must give lines of 32 bytes in base64; make one with: modelyard models keygen for=encryption")
    return keys


def _number(key: bytes) -> str:
    """What names a key without giving it away."""
    return hashlib.sha256(PURPOSE + b"number\0" + key).hexdigest()[:16]


def _gcm(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise MissingExtra("encrypted models need cryptography", "access") from None
    return AESGCM(key)


# -- plain files in memory ------------------------------------------------------------------------------------------------


def _memory(size: int) -> Path:
    """The folder for plain files, with room for them."""
    place = Path(os.environ.get(UNSEALED) or "/dev/shm")
    if not place.is_dir():
        raise ArtefactError(f"there is no {place} for the plain files of an encrypted model; set {UNSEALED} to a folder in memory")
    if shutil.disk_usage(place).free < size:
        raise ArtefactError(f"{place} has no room for the {size / 2**20:.0f} MiB of an encrypted model; enlarge it, or set {UNSEALED} to another folder")
    return place


LOCK = ".lock"
YOUNG = 60.0
"""Seconds within which a folder is left alone."""


def _locked(folder: Path) -> IO[bytes]:
    """Held while the process lives; a lock also tells of processes of other containers that share the place, where a process number would not."""
    file = (folder / LOCK).open("wb")
    _flock(file)
    return file


def _flock(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: nothing is ever swept there
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(place: Path) -> None:
    """Takes away what processes left that were killed; not what is just being made, whose lock may not be held yet."""
    for left in place.glob("modelyard-*"):
        try:
            with (left / LOCK).open("rb") as file:
                told = left.stat()
                if told.st_uid == os.getuid() and time.time() - told.st_mtime > YOUNG and _flock(file):
                    shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue


def _remove(folder: Path, lock: IO[bytes], owner: int) -> None:
    lock.close()
    if os.getpid() == owner:  # a forked child ends without taking its parent's files
        shutil.rmtree(folder, ignore_errors=True)
