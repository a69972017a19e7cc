"""A named table in memory that accounts for every row it read: kept, or set aside with line and reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl


@dataclass(frozen=True)
class SetAside:
    """A row that was read and cannot be used."""

    file: str
    """File or table it came from."""
    line: int | None
    """Physical line of the file, or row number of the table, from 1."""
    column: str | None
    reason: str
    value: str = ""
    """What stood there, shortened to 80 characters."""


@dataclass
class Table:
    """Rows with a name. `rows_read == rows + len(set_aside)` always."""

    name: str
    data: pl.DataFrame
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows kept."""
        return self.data.height

    @property
    def rows_read(self) -> int:
        """Rows kept and set aside."""
        return self.rows + len(self.set_aside)

    @property
    def columns(self) -> dict[str, pl.DataType]:
        """Column types by name."""
        return dict(self.data.schema)

    def frame(self) -> pl.DataFrame:
        """All kept rows."""
        return self.data

    def chunks(self, size: int = 65_536) -> Iterator[pl.DataFrame]:
        """The rows in pieces of at most `size`."""
        for start in range(0, max(1, self.rows), size):
            yield self.data.slice(start, size)

    def take(self, index: np.ndarray) -> Table:
        """The rows named by `index`."""
        return Table(self.name, self.data[index], [], list(self.notes))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of schema and content; independent of path, format and time of the file."""
        digest = hashlib.sha256(repr(sorted(self.data.schema.items(), key=lambda kv: kv[0])).encode("utf-8"))
        for name in sorted(self.data.columns):
            digest.update(name.encode("utf-8"))
            _digest(self.data[name], digest)
        return digest.hexdigest()


def _digest(column: pl.Series, digest: hashlib._Hash) -> None:
    """Adds values and missing marks; what lies in memory under a missing value does not count."""
    digest.update(column.is_null().to_numpy().tobytes())
    dtype = column.dtype
    if isinstance(dtype, pl.List):
        digest.update(column.list.len().fill_null(0).to_numpy().tobytes())
        _digest(column.explode(empty_as_null=False), digest)
    elif isinstance(dtype, pl.Struct):
        for part in column.struct.unnest().get_columns():
            _digest(part, digest)
    elif dtype in (pl.String, pl.Binary) or isinstance(dtype, pl.Categorical | pl.Enum):
        whole = column.cast(pl.Binary if dtype == pl.Binary else pl.String).cast(pl.Binary).fill_null(b"")
        digest.update(whole.bin.size().to_numpy().tobytes())
        digest.update(b"".join(whole.to_list()))
    elif isinstance(dtype, pl.Array):
        digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    else:
        digest.update(np.ascontiguousarray(column.to_physical().fill_null(0).to_numpy()).tobytes())
