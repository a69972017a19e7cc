"""Columns to arrays and graph outputs back to columns: the same object in training, prediction, export and the server."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from modelyard.errors import ArtefactError
from modelyard.kinds._contract import Array, Context, Encoding, Head, Kind, Part, Ragged, RowError, pad
from modelyard.kinds._missing import Missing
from modelyard.runtime.answers import kind_of
from modelyard.runtime.imputation import Imputation
from modelyard.store.state import pack, restore

TABLE = "table"
"""The block that stacks all scalar inputs (docs/explanation/contract.md)."""


@dataclass
class Column:
    """One input or output: its kind, encoding and fitted state."""

    name: str
    kind: str
    encoding: str
    config: Any = None
    state: Any = None
    of: str | None = None
    """For outputs aligned to an input (tags of a text): that input, whose context decodes them."""
    summary: dict[str, Any] = field(default_factory=dict)
    missing: Missing = field(default_factory=Missing)
    """What an input does with values that are not there."""
    monotone: int = 0
    """1 or -1: the answer may only rise or fall with this number."""

    def __post_init__(self) -> None:
        self.config = self.coder.Config() if self.config is None else self.config

    @property
    def rules(self) -> Kind:
        """The kind object."""
        return kind_of(self.kind)

    @property
    def coder(self) -> Encoding:
        """The encoding object."""
        found = self.rules.encodings.get(self.encoding)
        if found is None:
            raise ArtefactError(f"{self.name}: the kind {self.kind} has no encoding {self.encoding!r}")
        return found

    def pack(self, arrays: dict[str, np.ndarray], side: str) -> dict[str, Any]:
        """JSON form; arrays of the state go to `arrays`."""
        state = pack(self.state, f"{side}/{self.name}", arrays)
        return {
            "name": self.name, "kind": self.kind, "encoding": self.encoding, "config": asdict(self.coder.kept(self.config)), "state": state,
            "of": self.of, "summary": self.summary, "missing": asdict(self.missing), "monotone": self.monotone,
        }  # fmt: skip

    @classmethod
    def unpack(cls, entry: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Column:
        """The column as it was saved."""
        bare = cls(entry["name"], entry["kind"], entry["encoding"], of=entry["of"], summary=dict(entry["summary"]))
        bare.missing, bare.monotone = Missing(**entry.get("missing", {})), entry.get("monotone", 0)
        bare.config = restore(bare.coder.Config, entry["config"], arrays)
        bare.state = restore(bare.coder.State, entry["state"], arrays)
        return bare


@dataclass
class Encoded:
    """Arrays by graph name (`column.part`), per-column contexts for decoding, and their number of examples."""

    arrays: dict[str, Array]
    contexts: dict[str, Context]
    rows: int


@dataclass
class Pipeline:
    """All columns of a model, in order."""

    inputs: list[Column]
    outputs: list[Column]
    imputation: Imputation | None = None
    """What fills missing values; fitted where a column asks for it."""

    def fit(self, chunks: Iterable[pl.DataFrame]) -> None:
        """Fit every state on checked chunks of training examples: one pass, or two where missing values are filled."""
        columns = [*self.inputs, *(c for c in self.outputs)]
        self.imputation = None
        if any(c.missing.method not in ("keep", "delete") for c in self.inputs):
            chunks = list(chunks) if isinstance(chunks, Iterator) else chunks
            self.imputation = Imputation.fit(self.inputs, chunks)
        states = [c.coder.start(c.config) for c in columns]
        for whole in chunks:
            chunk = self.filled(whole)
            for i, column in enumerate(columns):
                if column.name in chunk.columns:
                    states[i] = column.coder.update(states[i], chunk[column.name])
                    for more in column.coder.beside(chunk[column.name]):
                        at = next(k for k, c in enumerate(self.inputs) if c.name == column.of)
                        states[at] = self.inputs[at].coder.update(states[at], more)
        joined = self._join(columns, states)
        for i, (column, state) in enumerate(zip(columns, states, strict=True)):
            if i in joined:
                column.state = joined[i]
            elif column.state is None or column in self.inputs:  # actions of an environment were fitted by binding
                column.state = column.coder.finish(state)

    def _join(self, columns: list[Column], states: list[Any]) -> dict[int, Any]:
        """Finished states, by position, of outputs that share one with an input, and of that input."""
        found: dict[int, Any] = {}
        for i in range(len(self.inputs), len(columns)):
            for k in range(len(self.inputs)):
                if k not in found and (pair := columns[i].coder.joined(states[i], states[k])) is not None:
                    found[i], found[k] = pair
                    break
        return found

    def filled(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Checked rows with their missing values filled, as the encodings see them."""
        return frame if self.imputation is None else self.imputation.fill(frame, self.inputs)

    def check(
        self, frame: pl.DataFrame, side: str = "inputs", columns: Iterable[Column] | None = None
    ) -> tuple[pl.DataFrame, list[RowError]]:
        """Canonical columns and one `RowError` per bad value, missing ones included where a kind needs a value."""
        checked: list[pl.Series] = []
        errors: list[RowError] = []
        for column in columns if columns is not None else getattr(self, side):
            clean, found = column.rules.check(frame[column.name])
            errors += found
            deleted = column.missing.method == "delete"
            if (column.rules.needs_value or deleted) and clean.null_count():
                bad = {e.row for e in found}
                absent = np.flatnonzero(clean.is_null().to_numpy())
                why = ", since rows without one are left out (missing: delete)" if deleted else ""
                reason = f"is missing; send a value of kind {column.kind}{why}"
                errors += [RowError(int(r), column.name, reason) for r in absent if int(r) not in bad]
            checked.append(clean.alias(column.name))
        return pl.DataFrame(checked), sorted(errors, key=lambda e: e.row)

    def encode(self, frame: pl.DataFrame) -> Encoded:
        """Arrays of checked inputs; scalars stacked into the block `table`."""
        arrays: dict[str, Array] = {}
        numbers: list[np.ndarray] = []
        categories: list[np.ndarray] = []
        contexts: dict[str, Context] = {}
        complete = self.filled(frame)
        for column in self.inputs:
            context: Context = {}
            parts = column.coder.parts(column.state)
            encoded = column.coder.encode(complete[column.name], column.state, context)
            contexts[column.name] = context
            if column.rules.scalar:
                for name, array in encoded.items():
                    assert isinstance(array, np.ndarray)
                    block = numbers if parts[name].cardinality is None else categories
                    block.append(array.reshape(len(array), -1))
                if column.missing.indicator:
                    numbers.append(frame[column.name].is_null().to_numpy().astype(np.float32)[:, None])
            else:
                arrays |= {f"{column.name}.{name}": array for name, array in encoded.items()}
        if numbers:
            arrays[f"{TABLE}.numbers"] = np.concatenate(numbers, axis=1).astype(np.float32, copy=False)
        if categories:
            arrays[f"{TABLE}.categories"] = np.concatenate(categories, axis=1).astype(np.int32, copy=False)
        return Encoded(arrays, contexts, frame.height)

    def targets(self, frame: pl.DataFrame, contexts: Mapping[str, Context]) -> dict[str, Array]:
        """Arrays of checked targets by name (`churned.index`); an aligned one is encoded in the context of its input."""
        out: dict[str, Array] = {}
        for column in self.outputs:
            if column.name in frame.columns:
                context = contexts.get(column.of, {}) if column.of else {}
                if column.of:  # texts beside the input are encoded as it is
                    context["column"] = next(c for c in self.inputs if c.name == column.of)
                encoded = column.coder.encode(frame[column.name], column.state, context)
                out |= {f"{column.name}.{part}": array for part, array in encoded.items()}
        return out

    def decode(self, outputs: Mapping[str, np.ndarray], contexts: Mapping[str, Context]) -> dict[str, pl.Series]:
        """Answer columns (`y`, `y.scores`, …) of graph outputs (`y.logits`)."""
        answers: dict[str, pl.Series] = {}
        for column in self.outputs:
            mine = {k.removeprefix(f"{column.name}."): v for k, v in outputs.items() if k.startswith(f"{column.name}.")}
            context = contexts.get(column.of, {}) if column.of else {}
            for suffix, series in column.coder.decode(mine, column.state, context).items():
                name = f"{column.name}.{suffix}" if suffix else column.name
                answers[name] = series.alias(name)
        return answers

    def parts(self) -> dict[str, dict[str, Part]]:
        """What a network is built from: parts by input name; all scalars as `table`."""
        found = {c.name: c.coder.parts(c.state) for c in self.inputs if not c.rules.scalar}
        groups = [len(list(same)) for _, same in itertools.groupby(self.numbers())]
        cardinalities = self.cardinalities()
        table = {"numbers": Part((sum(groups),), "float32", groups=tuple(groups))} if groups else {}
        if cardinalities:
            table["categories"] = Part((len(cardinalities),), "int32", max(cardinalities))
        return ({TABLE: table} if table else {}) | found

    def numbers(self) -> list[tuple[str, str]]:
        """(column, part) of each number of `table.numbers`; the part `indicator` is 1 where the value was missing."""
        found: list[tuple[str, str]] = []
        for column in (c for c in self.inputs if c.rules.scalar):
            for name, part in column.coder.parts(column.state).items():
                if part.cardinality is None:
                    found += [(column.name, name)] * int(np.prod([s or 1 for s in part.shape]))
            found += [(column.name, "indicator")] if column.missing.indicator else []
        return found

    def cardinalities(self) -> list[int]:
        """Number of ids of each column of `table.categories`."""
        scalars = (c for c in self.inputs if c.rules.scalar)
        found = (p.cardinality for c in scalars for p in c.coder.parts(c.state).values())
        return [n for n in found if n is not None]

    def encodings(self) -> dict[str, str]:
        """The encoding that each network input uses; the block is called `table`."""
        return {TABLE if c.rules.scalar else c.name: TABLE if c.rules.scalar else c.encoding for c in self.inputs}

    def heads(self) -> list[Head]:
        """What a model must produce."""
        return [Head(c.name, c.kind, *c.coder.head(c.state), ends=tuple(getattr(c.state, "ends", ()))) for c in self.outputs]

    def scales(self) -> dict[str, float]:
        """Unit of each numeric output, for comparing answers."""
        return {c.name: float(getattr(c.state, "scale", 1.0)) for c in self.outputs}

    def pack(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """JSON form for the manifest."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        more = {} if self.imputation is None else {"imputation": pack(self.imputation, "imputation", arrays)}
        return {side: [c.pack(arrays, side) for c in columns] for side, columns in sides.items()} | more

    @classmethod
    def unpack(cls, entry: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Pipeline:
        """The pipeline as it was saved."""
        inputs, outputs = ([Column.unpack(c, arrays) for c in entry[side]] for side in ("inputs", "outputs"))
        imputation = restore(Imputation, entry["imputation"], arrays) if "imputation" in entry else None
        return cls(inputs, outputs, imputation)


def dense(arrays: Mapping[str, Array], multiple: int = 1) -> dict[str, np.ndarray]:
    """A batch that graphs can take: ragged arrays padded at the back with zeros, `<column>.length` beside them."""
    out: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if isinstance(array, Ragged):
            out[name], out[f"{name.rsplit('.', 1)[0]}.length"] = pad(array, multiple=multiple)
        else:
            out[name] = array
    return out
