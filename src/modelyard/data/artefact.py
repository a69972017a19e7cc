"""Data artefacts: folders that `prepare` makes and `data:` names. Parquet files, and `data.json` with what they are made of.

```
prepared/churn-4f1c09ab/
  data.json        tables with rows and sha256, kinds, roles, parents with fingerprints, steps with counts, rows set aside, seed, key
  train.parquet    … valid, test, unlabelled
```
Written aside, hashed and renamed, so that a folder is whole or not there; read only where every file matches its hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.data.table import Table
from modelyard.errors import ArtefactError, Problem
from modelyard.store import atomic

FORMAT = 1
FILE = "data.json"
NAMES = ("train", "valid", "test", "unlabelled")
LIMIT = 256 * 2**20


@dataclass(frozen=True)
class Made:
    """What `data.json` says."""

    key: str
    """sha256 of settings, parents and versions: the same key is the same data."""
    tables: dict[str, dict[str, Any]]
    """Table → `rows`, `sha256`, `size`."""
    roles: dict[str, Any] = field(default_factory=dict)
    """Keys of the `data` section that describe the columns (target, inputs with kinds, weight …), used where the project names none."""
    split: bool = False
    """The rows are split: nothing more is cut from train."""
    resampled: bool = False
    """train holds copies, or rows made from others: folds of it would have them on both sides."""
    columns: dict[str, str] = field(default_factory=dict)
    parents: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    rows_in: int = 0
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    set_aside_count: int = 0
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)


def made(folder: Path) -> Made | None:
    """The facts of a data artefact; None for any other folder. Raises `ArtefactError` for a damaged or newer one."""
    path = folder / FILE
    if not path.is_file():
        return None
    if path.stat().st_size > LIMIT:
        raise ArtefactError(f"{path} is larger than {LIMIT} bytes")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(body, dict) or "format" not in body:
            return None  # somebody else's data.json
        version = body.pop("format")
        if version == FORMAT and all(isinstance(e["sha256"], str) and isinstance(e["size"], int) for e in body["tables"].values()):
            return Made(**body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error!r}") from None
    raise ArtefactError(f"{path} has the format {version!r}; this version reads up to {FORMAT}: upgrade Modelyard")


def tables(folder: Path) -> dict[str, Table]:
    """Its tables. Raises `ArtefactError` naming every file that is missing or altered."""
    facts = made(folder)
    if facts is None:
        raise ArtefactError(f"{folder} is no data artefact: it has no {FILE}")
    problems = []
    for name, entry in facts.tables.items():
        path = folder / f"{name}.parquet"
        if name not in NAMES:
            problems.append(Problem(f"is no table; there are {', '.join(NAMES)}", name))
        elif path.is_symlink() or not path.is_file():
            problems.append(Problem("is missing", path.name))
        elif path.stat().st_size != entry["size"] or atomic.sha256(path) != entry["sha256"]:
            problems.append(Problem("is not the file that was written (its hash differs)", path.name))
    if problems:
        raise ArtefactError(f"{folder} is damaged or was altered; make it again with: modelyard prepare", problems)
    return {name: Table(name, pl.read_parquet(folder / f"{name}.parquet")) for name in facts.tables}


def write(folder: Path, frames: Mapping[str, pl.DataFrame], facts: Made) -> Path:
    """Makes the folder; it appears whole or not at all, and an existing one is never overwritten."""
    if folder.exists():
        raise ArtefactError(f"{folder} exists already and nothing is ever overwritten; choose another prepare.out")
    with atomic.whole(folder) as aside:
        entries = {}
        for name, frame in frames.items():
            path = aside / f"{name}.parquet"
            frame.write_parquet(path)
            atomic.sync(path)
            entries[name] = {"rows": frame.height, "sha256": atomic.sha256(path), "size": path.stat().st_size}
        body = {"format": FORMAT, **asdict(facts), "tables": entries}
        atomic.write_file(aside / FILE, (json.dumps(body, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode("utf-8"))
    return folder
