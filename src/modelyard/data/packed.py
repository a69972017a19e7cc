"""Compressed files with caps: gzip, bzip2, xz and zip are unpacked only as far as the size and the ratio allow.

A gzip bomb of 8 MB holds 8 GB, one of xz far more; a zip can hold the same bytes a thousand times by overlapping entries (Fifield 2019,
"A better zip bomb"). So output is counted while it comes, never trusted from a header, and nothing is ever written to disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from modelyard.errors import DataError, Problem

SIZE_LIMIT = 8 * 2**30
"""Bytes after unpacking above which a file is refused, unless `data.max_bytes` says otherwise."""
RATIO = 300
"""Bytes per packed byte beyond which an output of more than `RATIO_FROM` is refused; tables of numbers and texts shrink 3 to 30 fold."""
RATIO_FROM = 64 * 2**20
PIECE = 2**20
STREAMS: dict[str, tuple[str, Any]] = {".gz": ("gzip", gzip.open), ".bz2": ("bzip2", bz2.open), ".xz": ("xz", lzma.open)}
ARCHIVES = (".zip", ".gz", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz", ".jar", ".xlsx")
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class Cap:
    """Counts bytes that come out of one packed file; raises `DataError` beyond `limit`, or beyond `RATIO` where no limit was named."""

    def __init__(self, path: Path, named: int | None, default: int | None = None) -> None:
        self.path, self.limit, self.named = path, named or default or SIZE_LIMIT, named is not None
        self.packed, self.out = max(1, path.stat().st_size), 0

    def count(self, more: int) -> None:
        """Adds bytes."""
        self.out += more
        if self.out > self.limit:
            raise DataError(f"{self.path} unpacks to more than {self.limit} bytes and was refused; if it is no bomb, set data.max_bytes")
        if not self.named and self.out > RATIO_FROM and self.out > RATIO * self.packed:
            message = f"{self.path} unpacks to more than {RATIO} times its size and was refused; if it is no bomb, set data.max_bytes"
            raise DataError(message)


def unpacked(path: Path, named: int | None = None) -> bytes:
    """Content of a `.gz`, `.bz2` or `.xz` file. Raises `DataError` for a bomb or a file that is not whole."""
    name, opener = STREAMS[path.suffix.lower()]
    cap, out = Cap(path, named), io.BytesIO()
    try:
        with opener(path) as file:
            while piece := file.read(PIECE):
                cap.count(len(piece))
                out.write(piece)
    except DAMAGE as error:
        raise DataError(f"{path} is no whole {name} file: {error}") from None
    return out.getvalue()


@contextmanager
def archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip whose names lead nowhere outside and that holds no further archive; what is damaged becomes a `DataError`."""
    try:
        with zipfile.ZipFile(path) as opened:
            _harmless(path, opened.infolist())
            yield opened
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, *DAMAGE) as error:
        raise DataError(f"{path} is no readable zip file: {error}") from None


def _harmless(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    problems = []
    for info in entries:
        name = info.filename
        outside = ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\")) or PureWindowsPath(name).drive
        if outside:
            problems.append(Problem("leads outside the archive", name[:80]))
        elif stat.S_ISLNK(info.external_attr >> 16):
            problems.append(Problem("is a link", name[:80]))
        elif path.suffix.lower() == ".zip" and PurePosixPath(name).suffix.lower() in ARCHIVES and not info.is_dir():
            problems.append(Problem("is an archive in the archive; unpack it first", name[:80]))
    if problems:
        raise DataError(f"{path} was refused: {len(problems)} entr{'y' if len(problems) == 1 else 'ies'} cannot be trusted", problems[:20])


def entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo, cap: Cap, most: int | None = None) -> bytes | None:
    """Content of one entry, counted by `cap`; None where it holds more than `most` bytes."""
    if most is not None and info.file_size > most:
        return None
    parts: list[bytes] = []
    size = 0
    with opened.open(info) as file:
        while piece := _piece(file):
            cap.count(len(piece))
            size += len(piece)
            if most is not None and size > most:
                return None
            parts.append(piece)
    return b"".join(parts)


def _piece(file: IO[bytes]) -> Any:
    return file.read(PIECE)
