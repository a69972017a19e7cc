"""Tables larger than memory: read in pieces, spooled as checked Parquet parts, encoded into memory-mapped files.

Only the pieces in hand are in memory, beside the rows that judge (valid, test) and a sample; the loop gathers its batches from
the memory-mapped arrays. Files are CSV, TSV, JSON lines (gzip too) and Parquet.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import polars as pl

from modelyard.data.read import Reading, _check_names, _records, _suffix, from_records, sniff, typed
from modelyard.data.table import SetAside
from modelyard.errors import DataError, Unsupported
from modelyard.kinds._contract import Array, Ragged

CHUNK = 65_536
"""Rows in hand at once: 30 columns of texts are about 100 MB."""

HELD = 100_000
"""Most rows of valid, of test and of the sample that stands for the training rows."""


@dataclass
class Stream:
    """Checked training rows on disk, in parts."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="modelyard-")))
    parts: list[Path] = field(default_factory=list)
    rows: int = 0

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def add(self, frame: pl.DataFrame) -> None:
        """Spools one piece."""
        path = self.folder / f"part-{len(self.parts):06d}.parquet"
        frame.write_parquet(path)
        self.parts.append(path)
        self.rows += frame.height

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return (pl.read_parquet(path) for path in self.parts)

    def encode(self, encode: Callable[[pl.DataFrame], Mapping[str, Array]], name: str) -> dict[str, Array]:
        """Arrays of all rows, memory-mapped: dense ones are filled in place, ragged ones appended."""
        dense: dict[str, np.ndarray] = {}
        lengths: dict[str, list[np.ndarray]] = {}
        files: dict[str, Any] = {}
        types: dict[str, np.dtype[Any]] = {}
        start = 0
        for frame in self:
            for number, (key, array) in enumerate(encode(frame).items()):
                path = self.folder / f"{name}-{number}.bin"
                if isinstance(array, Ragged):
                    if key not in files:
                        files[key], types[key], lengths[key] = path.open("wb"), array.values.dtype, []
                    array.values.tofile(files[key])
                    lengths[key].append(array.lengths_B)
                else:
                    if key not in dense:
                        dense[key] = np.memmap(path, array.dtype, "w+", shape=(self.rows, *array.shape[1:]))
                    dense[key][start : start + frame.height] = array
            start += frame.height
        found: dict[str, Array] = dict(dense)
        for key, file in files.items():
            file.close()
            offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths[key]))]).astype(np.int64)
            found[key] = Ragged(np.memmap(file.name, types[key], "r"), offsets)
        return found


def chunks(path: Path, reading: Reading) -> Iterator[tuple[pl.DataFrame, list[SetAside]]]:
    """(rows, set aside) of each piece of a file."""
    kind = _suffix(path)
    if kind in ("parquet", "pq"):
        for frame in pl.scan_parquet(path).collect_batches(chunk_size=CHUNK):
            yield frame, []
    elif kind in ("csv", "tsv", "txt", "data", "jsonl", "ndjson"):
        with opened(path, reading.encoding) as file:
            yield from _json(file, path) if kind.startswith(("jsonl", "ndjson")) else _delimited(file, path, reading, kind)
    else:
        raise Unsupported(f"data.stream reads .csv, .tsv, .jsonl (.gz too) and .parquet files, not {path.name}", "not yet")


def opened(path: Path, encoding: str | None) -> TextIO:
    """A text file, unpacked on the way where it is gzip."""
    named = encoding or "utf-8-sig"
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding=named, newline="\n")
    return path.open(encoding=named, newline="\n")


def _lines(file: TextIO, path: Path) -> Iterator[list[str]]:
    """Pieces of about `CHUNK` lines that end where no quoted field is open."""
    try:
        while piece := list(itertools.islice(file, CHUNK)):
            quotes = sum(line.count('"') for line in piece)
            while quotes % 2 and len(piece) < 2 * CHUNK and (more := file.readline()):
                piece.append(more)
                quotes += more.count('"')
            yield [line.rstrip("\r\n") for line in piece]
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read to its end: {error}; name data.encoding, or repair the file") from None


def _delimited(file: TextIO, path: Path, reading: Reading, kind: str) -> Iterator[tuple[pl.DataFrame, list[SetAside]]]:
    names: list[str] = []
    separator, before = reading.separator or ("\t" if kind == "tsv" else ""), 0
    for lines in _lines(file, path):
        first = 0
        if not names:
            separator = separator or sniff(lines[:50])
            head = next(csv.reader([lines[0]], delimiter=separator))
            names = [h.strip() for h in head] if reading.header else [f"column_{i + 1}" for i in range(len(head))]
            first = int(reading.header)
            _check_names(names, f"{path}:1")
        columns, aside = _records(lines, first, len(names), names, separator, str(path))
        moved = [SetAside(s.file, (s.line or 0) + before, s.column, s.reason, s.value) for s in aside]
        before += len(lines)
        texts = (pl.Series(n, c, dtype=pl.String) for n, c in zip(names, columns, strict=True))
        yield pl.DataFrame([typed(text, reading.missing) for text in texts]), moved


def _json(file: TextIO, path: Path) -> Iterator[tuple[pl.DataFrame, list[SetAside]]]:
    before = 0
    for lines in _lines(file, path):
        rows, aside = [], []
        for number, line in enumerate(lines, before + 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                aside.append(SetAside(str(path), number, None, f"is not JSON: {str(error)[:80]}", line[:80]))
                continue
            if isinstance(row, dict):
                rows.append(row)
            elif line.strip():
                aside.append(SetAside(str(path), number, None, "is not a JSON object", line[:80]))
        before += len(lines)
        if rows or aside:
            yield from_records(rows), aside


def fingerprint(path: Path) -> str:
    """sha256 of the file itself: a stream is never whole in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
