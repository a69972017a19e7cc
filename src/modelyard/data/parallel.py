"""Parallel texts: a file for each language, line i of one belongs to line i of the other (`train.en`, `train.de`, each `.gz` too)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.data.read import TEXTS, Reading, _newlines, bytes_of, decode
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError, Problem

LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
PACKED = (".gz", ".bz2", ".xz")
OTHER = (*TEXTS, "md", "pq", "zip", "npz", "npy", "png", "jpg", "bmp", "gif", "tif", "idx", "pdf", "doc", "xls", "log", "yml", "ini", "cfg", "py", "bin")
"""Suffixes as short as a language that are none."""
SPLITS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""Names of files, before the language, that say which split they hold."""


def is_parallel(given: Any) -> bool:
    """Whether it is a list of paths."""
    return isinstance(given, list | tuple) and len(given) > 1 and all(isinstance(p, str | Path) for p in given)


def read_parallel(paths: Sequence[Path], reading: Reading, name: str) -> Table:
    """A column for each file, called by its language (the last suffix), or by its name where two would be called alike.

    A line that is empty in one file is set aside in all. Raises `DataError` naming every file's number of lines where they differ.
    """
    if missing := [p for p in paths if not p.is_file()]:
        raise DataError(f"{' and '.join(map(str, missing))} do not exist" if len(missing) > 1 else f"{missing[0]} does not exist")
    languages = [_language(p) for p in paths]
    names = languages if all(languages) and len(set(languages)) == len(paths) else [p.name.split(".")[0] for p in paths]
    if len(set(names)) < len(names):
        raise DataError(f"the parallel files {', '.join(map(str, paths))} are called alike; end their names in the language, as train.en")
    notes: list[str] = []
    lines: list[list[str]] = []
    for path in paths:
        text, told = decode(bytes_of(path, reading.max_bytes), reading.encoding, path)
        lines.append(_newlines(text))
        notes += told
    if len({len(found) for found in lines}) > 1:
        details = [Problem(f"has {len(found)} lines", str(path)) for path, found in zip(paths, lines, strict=True)]
        counts = " and ".join(f"{len(found)} ({path.name})" for path, found in zip(paths, lines, strict=True))
        raise DataError(f"parallel texts need a line for each line; {name} has {counts}", details)
    frame = pl.DataFrame({n: pl.Series(n, found, dtype=pl.String) for n, found in zip(names, lines, strict=True)})
    empty = {n: (frame[n].str.strip_chars() == "").to_list() for n in names}
    aside = [
        SetAside(str(paths[k]), i + 1, n, "is an empty line")
        for i in range(frame.height)
        for k, n in enumerate(names)
        if empty[n][i] and not any(empty[other][i] for other in names[:k])
    ]
    kept = frame.filter(~pl.any_horizontal(pl.col(n).str.strip_chars() == "" for n in names)) if aside else frame
    return Table(name, kept, aside, notes)


def in_folder(folder: Path) -> dict[str, list[Path]]:
    """Parallel files of a folder by split: names such as `train.en`, `val.de.gz`, `test_2016.en` that come in more than one language.

    Of several tests the one called `test`, else the first, is taken.
    """
    groups: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and _language(p)):
        groups.setdefault(_stem(path), []).append(path)
    found: dict[str, list[Path]] = {}
    for stem, files in sorted(groups.items()):
        split = SPLITS.get(stem.lower()) or next((s for word, s in SPLITS.items() if re.match(rf"{word}[._-]", stem.lower())), None)
        if split and len(files) > 1 and (split not in found or stem.lower() in SPLITS):
            found[split] = files
    return found if "train" in found else {}


def unnested(frame: pl.DataFrame) -> pl.DataFrame:
    """`translation: {en, de}` (the rows of translation sets on the Hugging Face hub) as the columns `en` and `de`."""
    column = frame.schema.get("translation")
    if not isinstance(column, pl.Struct) or not all(f.dtype == pl.String for f in column.fields):
        return frame
    return frame.unnest("translation")


def _plain(path: Path) -> str:
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in PACKED else path.name


def _language(path: Path) -> str:
    """The last suffix where it looks like a language, else nothing."""
    last = Path(_plain(path)).suffix.removeprefix(".")
    return last if LANGUAGE.fullmatch(last) and last not in OTHER else ""


def _stem(path: Path) -> str:
    plain = _plain(path)
    return plain.removesuffix(Path(plain).suffix)
