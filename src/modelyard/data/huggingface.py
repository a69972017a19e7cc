"""Hugging Face `datasets` objects as tables: by what they have, so that the package is never imported here.

A `Dataset` gives its Arrow table (through its index, where rows were selected or shuffled); a `ClassLabel` becomes its name, an `Image` its
encoded bytes. A `DatasetDict` gives one table per split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from modelyard.errors import DataError

SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "dev": "valid", "test": "test", "unsupervised": "unlabelled",
          "unlabelled": "unlabelled"}  # fmt: skip


def is_dataset(given: Any) -> bool:
    """Whether it is a `datasets.Dataset` (or looks like one: features and an Arrow table)."""
    return hasattr(given, "features") and hasattr(getattr(given, "data", None), "table")


def is_datasets(given: Any) -> bool:
    """Whether it is a `datasets.DatasetDict`."""
    return isinstance(given, Mapping) and bool(given) and all(is_dataset(v) for v in given.values())


def splits(given: Mapping[str, Any]) -> dict[str, pl.DataFrame]:
    """Tables by our split names. Raises `DataError` where a split's name says nothing."""
    strange = [k for k in given if str(k).lower() not in SPLITS]
    if strange:
        raise DataError(f"the dataset has split(s) {', '.join(map(str, strange))}; give one of them, or rename to {', '.join(SPLITS)}")
    return {SPLITS[str(k).lower()]: to_frame(v) for k, v in given.items()}


def to_frame(dataset: Any) -> pl.DataFrame:
    """The rows of a `Dataset`, with names in place of class numbers (-1, which means unknown, is missing)."""
    chosen = getattr(dataset, "_indices", None) is not None
    table = dataset.with_format("arrow")[:] if chosen else dataset.data.table
    frame = pl.DataFrame(pl.from_arrow(table))
    return frame.with_columns(_readable(frame[name], feature) for name, feature in dict(dataset.features).items() if name in frame.columns)


def _readable(column: pl.Series, feature: Any) -> pl.Series:
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and len(feature) == 1 else None)
    if isinstance(names := getattr(feature, "names", None), list) and column.dtype.is_integer():
        return _named(column, names)
    if isinstance(names := getattr(inner, "names", None), list) and isinstance(column.dtype, pl.List | pl.Array):
        lists = [None if row is None else [names[i] for i in row if 0 <= i < len(names)] for row in column.to_list()]
        return pl.Series(column.name, lists, dtype=pl.List(pl.String))
    if isinstance(column.dtype, pl.Struct) and {f.name for f in column.dtype.fields} >= {"bytes", "path"}:
        return pl.Series(column.name, [_picture(v) for v in column.to_list()], dtype=pl.Binary)
    return column


def _named(column: pl.Series, names: list[str]) -> pl.Series:
    return pl.Series(column.name, [names[i] if i is not None and 0 <= i < len(names) else None for i in column.to_list()], dtype=pl.String)


def _picture(value: Any) -> bytes | None:
    if value is None or (value["bytes"] is None and value["path"] is None):
        return None
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    path = Path(value["path"])
    # a path that leads nowhere stays as it is, so that the kind's check sets that row aside
    return path.read_bytes() if path.is_file() else str(path).encode("utf-8")
