"""Files that are texts: a .txt or .md file is one row, a folder of them one row each, in the order of their names."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from modelyard.data.images import SPLITS
from modelyard.data.packed import STREAMS
from modelyard.data.read import Reading, bytes_of, decode
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError

SUFFIXES = (".txt", ".md")


def text_files(path: Path) -> list[Path]:
    """The texts that a path names: itself, or those in a folder (below it too); none where it is something else."""
    if path.is_file():
        return [path] if _is_text(path) else []
    return sorted(p for p in path.rglob("*") if p.is_file() and _is_text(p)) if path.is_dir() else []


def _is_text(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix.lower() in STREAMS else path
    return name.suffix.lower() in SUFFIXES


def read_texts(path: Path, files: list[Path], reading: Reading, name: str) -> dict[str, Table]:
    """Tables with the column `text`; files in folders called train, valid or test go there. An empty or unreadable one is set aside."""
    texts: dict[str, list[str]] = {}
    aside: dict[str, list[SetAside]] = {}
    notes: dict[str, list[str]] = {}
    for file in files:
        parts = [SPLITS[p.lower()] for p in file.relative_to(path).parts[:-1] if p.lower() in SPLITS] if path.is_dir() else []
        key = parts[0] if parts else name
        for group in (texts, aside, notes):
            group.setdefault(key, [])
        try:
            text, told = decode(bytes_of(file, reading.max_bytes), reading.encoding, file)
        except DataError as error:
            aside[key].append(SetAside(str(file), None, "text", error.message))
            continue
        notes[key] += told
        if text.strip():
            texts[key].append(text.replace("\r\n", "\n"))
        else:
            aside[key].append(SetAside(str(file), None, "text", "is empty"))
    if not any(texts.values()):
        first = next(s for s in aside[next(iter(aside))])
        raise DataError(f"{path} holds no text: {first.file} {first.reason}")
    return {k: Table(k, pl.DataFrame({"text": pl.Series("text", found, dtype=pl.String)}), aside[k], notes[k]) for k, found in texts.items()}
