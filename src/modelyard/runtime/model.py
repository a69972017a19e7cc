"""A saved model that predicts: the one path from rows to answers, whatever supplies the graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.errors import ArtefactError, DataError, ParityError, Problem
from modelyard.kinds._contract import Context, Ragged, RowError, part
from modelyard.runtime import post
from modelyard.runtime.answers import Answers, Field, Graph, Param, Parity, Randomness, Signature, compare, kind_of, resolve
from modelyard.runtime.pipeline import Column, Encoded, Pipeline, dense
from modelyard.runtime.quick import Quick
from modelyard.runtime.rows import may_be_absent, to_columns
from modelyard.store import folder as store
from modelyard.store import sealed, signature
from modelyard.store.state import read_arrays

BLOCK = 512
"""Examples that pass through the graphs together; 512 rows of 3 × 64 × 64 pixels are 25 MB in float32."""

SPAN = 16 * BLOCK
"""Examples that are encoded, answered and decoded together: their arrays stay in the cache, and memory does not grow with the rows."""

SMALL = 2**20
"""Bytes of a block of short rows (tables), of which more go together: 60 µs a call of a graph are a fifth of a million rows' time."""

TOLERANCE = {"float32": 1e-5}
"""How far scores (and numbers, in training deviations) may differ between backends."""


@dataclass
class Model:
    """Made by `Model.load`; immutable.

    `backend` is `torch`, `onnx` or `numpy`: who supplied the graphs.
    """

    folder: Path
    manifest: dict[str, Any]
    pipeline: Pipeline
    graphs: dict[str, Graph]
    backend: str
    version: str
    parity: Parity | None = None
    """How the stored examples were answered when it was loaded."""
    opened: Any = None
    """What keeps the plain files of an encrypted model while it is used; `folder` lies there."""

    @classmethod
    def load(
        cls, folder: str | Path, backend: str | None = None, *, trust_code: bool = False, replay: bool = True, **options: Any
    ) -> Model:
        """Read a model folder after checking every file's hash, and predict its stored examples again.

        `backend` chooses who runs the graphs when the folder has more than one; `trust_code` allows a user's own module to
        be imported from its source file; `replay` false is for parts of a model that is replayed as a whole. Raises `ArtefactError` for
        damaged folders and for encrypted ones without their key, `ParityError` where a stored example is answered differently,
        `MissingExtra` where the backend's package is absent.
        """
        folder = Path(folder)
        manifest = store.read(folder)
        given, opened = folder, None
        if sealed.is_sealed(manifest):
            opened = sealed.Opened(folder, manifest)
            folder = opened.folder
            manifest = store.read(folder)
        if replay:  # parts are covered by the manifest of the whole
            signature.require(given, folder)
        arrays: dict[str, np.ndarray] = {}
        for name in manifest["files"]:
            if name in ("states.safetensors", "arrays.safetensors"):
                arrays |= read_arrays(folder / name)
        pipeline = Pipeline.unpack(manifest["pipeline"], arrays)
        chosen = backend or manifest["model"]["backend"]
        options |= {"trust_code": trust_code}
        if chosen == "composite":
            from modelyard.runtime.composite import Composite

            parts = [cls.load(folder / "parts" / name, trust_code=trust_code, replay=False) for name in manifest["model"]["parts"]]
            model: Model = Composite(folder, manifest, pipeline, {}, chosen, store.version(folder), parts=parts)
        else:
            graphs = registry.load("runtime/backends", chosen).load(folder, manifest, pipeline, arrays, options)
            model = cls(folder, manifest, pipeline, graphs, chosen, store.version(folder))
        model.opened = opened
        if replay:
            model.parity = model.replay()
        return model

    @property
    def name(self) -> str:
        """The name given in the project."""
        return str(self.manifest["name"])

    @property
    def tasks(self) -> dict[str, str]:
        """Task of each output."""
        return dict(self.manifest["tasks"])

    @property
    def frame(self) -> dict[str, Any]:
        """Which rows make an example."""
        return dict(self.manifest["frame"])

    @property
    def by_row(self) -> bool:
        """Whether an example is one row of what comes, as opposed to many (a series)."""
        return not hasattr(registry.load("data/frames", str(self.frame["name"])), "columns")

    @cached_property
    def reads(self) -> str:
        """What two models share that encode rows alike: their encodings with all states."""
        states = self.manifest.get("files", {}).get("states.safetensors", {})
        pipeline = self.manifest["pipeline"]
        return json.dumps([pipeline["inputs"], pipeline.get("imputation"), states], sort_keys=True, default=str)

    @property
    def signature(self) -> Signature:
        """Names and kinds of inputs and outputs, and the parameters of a call."""
        inputs = [
            Field(c.name, c.kind, not may_be_absent(c), getattr(c.state, "labels", None), c.summary)
            for c in self.pipeline.inputs
        ]
        promised = {s["output"]: s["coverage"] for s in self.manifest.get("post", []) if s["step"] in post.PROMISE}
        outputs = [
            Field(c.name, c.kind, True, getattr(c.state, "labels", None), {"coverage": promised[c.name]} if c.name in promised else {}, c.of)
            for c in self.pipeline.outputs
        ]
        return Signature(inputs, outputs, self._params)

    @property
    def _params(self) -> list[Param]:
        return [Param(**p) for p in self.manifest["model"].get("params", [])]

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The stored example rows, as JSON values."""
        return list(self._examples()["rows"])

    def predict(self, rows: Any, params: Mapping[str, Any] | None = None, seed: int | None = None) -> Answers:
        """Answers for rows of any shape: dict, list of dicts, Polars, pandas, Arrow, NumPy.

        A row that cannot be used gets an error and nulls; its neighbours are unaffected. `seed` (default 0) fixes every
        random number of programs that draw any.
        """
        settings = resolve(self._params, params)
        if type(rows) is list and 0 < len(rows) <= BLOCK and self.quick is not None and (arrays := self.quick.encode(rows)) is not None:
            outputs = self.run(Encoded(arrays, {}, len(rows)), settings, seed or 0)
            return self._answers(self.decode_rows(post.apply(outputs, self.manifest.get("post", [])), {}), [], len(rows))
        examples, keys, failures = self._examples_of(rows)
        return self._answer(examples, keys, failures, settings, seed)

    @cached_property
    def quick(self) -> Quick | None:
        """What encodes the plain rows of a request, where there is such a way."""
        return Quick.of(self.pipeline) if type(self) is Model and self.frame["name"] == "rows" else None

    def predict_examples(self, examples: pl.DataFrame, params: Mapping[str, Any] | None = None, seed: int | None = None) -> Answers:
        """Answers for examples that were framed before (training and evaluation); one row each."""
        checked, failures = self.pipeline.check(examples)
        return self._answer(checked, {}, failures, resolve(self._params, params), seed)

    def _answer(
        self, examples: pl.DataFrame, keys: Mapping[str, pl.Series], failures: list[RowError], settings: Mapping[str, Any], seed: int | None
    ) -> Answers:
        bad = {e.row for e in failures}
        good = np.setdiff1d(np.arange(examples.height), np.fromiter(bad, np.int64, len(bad))) if bad else np.arange(examples.height)
        clean = examples if len(good) == examples.height else examples[good]
        answers = self._block(clean, good, settings, seed or 0) if 0 < len(good) <= SPAN else {}
        if len(good) > SPAN:
            spans = [slice(i, i + SPAN) for i in range(0, len(good), SPAN)]
            found = [pl.DataFrame(list(self._block(clean[s], good[s], settings, seed or 0).values())) for s in spans]
            answers = dict(pl.concat(found, how="vertical_relaxed").to_dict())
        return self._answers({**keys, **self._scatter(answers, good, examples.height)}, failures, examples.height)

    def _block(self, examples: pl.DataFrame, index: np.ndarray, settings: Mapping[str, Any], seed: int) -> dict[str, pl.Series]:
        """Answer columns of checked examples without failures."""
        outputs, contexts = self.outputs(examples, settings, seed, index)
        return self.decode_rows(post.apply(outputs, self.manifest.get("post", [])), contexts)

    def _answers(self, columns: Mapping[str, pl.Series], failures: list[RowError], rows: int) -> Answers:
        kinds = {c.name: c.kind for c in self.pipeline.outputs}
        return Answers(pl.DataFrame(list(columns.values())), failures, rows, self.name, self.version, kinds)

    def outputs(
        self, examples: pl.DataFrame, params: Mapping[str, Any] | None = None, seed: int = 0, index: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], Mapping[str, Context]]:
        """(graph outputs before the stored steps, contexts) of checked examples without failures."""
        module = registry.load("data/frames", str(self.frame["name"]))
        if hasattr(module, "cut"):  # an example is read in slices
            config = module.Config(**self.frame["config"])
            slices, owner = module.cut(examples, config)
            found = self.run(self.pipeline.encode(slices), params, seed)
            return module.merge(found, owner, {c.name: c.kind for c in self.pipeline.outputs}, config.merge), {}
        encoded = self.pipeline.encode(examples)
        return self.run(encoded, params, seed, index), encoded.contexts

    def encode_rows(self, rows: Any) -> tuple[Encoded, list[RowError]]:
        """Arrays by graph name for the usable rows, and the errors of the others."""
        examples, _, failures = self._examples_of(rows)
        bad = {e.row for e in failures}
        good = [i for i in range(examples.height) if i not in bad]
        return self.pipeline.encode(examples[good]), failures

    def run(
        self,
        encoded: Encoded,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        index: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Graph outputs (`y.logits`, …) of encoded examples, block by block; `index` numbers them for the random generator."""
        program = registry.load("runtime/programs", self.manifest["model"]["program"])
        settings = resolve(self._params, params) if params is None else params
        known = {"facts": program.facts(self.pipeline)} if hasattr(program, "facts") else {}
        blocks: list[dict[str, np.ndarray]] = []
        step = _together(encoded)
        for start in range(0, encoded.rows, step):
            end = min(start + step, encoded.rows)
            batch = dense({name: part(array, start, end) for name, array in encoded.arrays.items()})
            random = Randomness(seed, start, None if index is None else index[start:end])
            blocks.append(program.run(self.graphs, batch, settings, random, **known))
        return join(blocks)

    def decode_rows(self, outputs: Mapping[str, np.ndarray], contexts: Mapping[str, Context]) -> dict[str, pl.Series]:
        """Answer columns of graph outputs."""
        return self.pipeline.decode(outputs, contexts)

    def replay(self, tolerance: float | None = None) -> Parity:
        """Predict the stored examples again and compare; raises `ParityError` where an answer differs."""
        stored = self._examples()
        now = self.predict(stored["rows"], stored["params"], stored["seed"])
        then = answers_from_json(stored["answers"], now)
        limit = TOLERANCE["float32"] if tolerance is None else tolerance
        parity = compare(then, now, self.pipeline.scales(), limit)
        if not parity.ok:
            problems = [
                Problem(f"stored {stored['answers'][i]!r}; now {now.to_json()[i]!r}"[:400], f"example {i}")
                for i in parity.differing[:5]
            ]
            message = f"{len(parity.differing)} of {parity.rows} stored examples are answered differently by {self.backend}"
            raise ParityError(message, problems, parity)
        return parity

    def _examples(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / "examples.json").read_text(encoding="utf-8"))
            if not found["rows"] or not found["answers"]:
                raise ValueError(f"{len(found['rows'])} rows and {len(found['answers'])} answers")
            return {key: found[key] for key in ("rows", "answers", "params", "seed")}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtefactError(f"the stored examples of {self.folder} cannot be read ({error!r}); nothing vouches for the model") from None

    def _examples_of(self, rows: Any) -> tuple[pl.DataFrame, dict[str, pl.Series], list[RowError]]:
        """(checked examples, key columns that name them, errors by example).

        With the frame `rows` an example is a row. Other frames make examples of many rows, which must all be whole.
        """
        module = registry.load("data/frames", str(self.frame["name"]))
        if not hasattr(module, "columns"):
            raw, broken = to_columns(rows, self.pipeline.inputs)
            checked, errors = self.pipeline.check(raw)
            bad = {e.row for e in broken}
            return checked, {}, sorted([*broken, *(e for e in errors if e.row not in bad)], key=lambda e: e.row)
        config = module.Config(**self.frame["config"])
        needed = [Column(name, kind, next(iter(kind_of(kind).encodings))) for name, kind in module.columns(config).items()]
        raw, broken = to_columns(rows, needed)
        whole, errors = self.pipeline.check(raw, columns=needed)
        if broken or errors:
            problems = [Problem(e.reason, f"row {e.row + 1}, {e.column}") for e in [*broken, *errors][:20]]
            raise DataError(f"{len(broken) + len(errors)} row(s) of the series cannot be used", problems)
        examples, _ = module.examples(whole, config, training=False)
        checked, failures = self.pipeline.check(examples)
        names = {c.name for c in self.pipeline.inputs}
        return checked, {c: examples[c] for c in examples.columns if c not in names}, failures

    def _scatter(self, answers: Mapping[str, pl.Series], good: np.ndarray, rows: int) -> dict[str, pl.Series]:
        if len(good) == rows:
            return dict(answers)
        place = np.full(rows, -1, np.int64)
        place[good] = np.arange(len(good))
        index = pl.Series(place).set(pl.Series(place) < 0, None).cast(pl.UInt32)
        if not answers:
            return {c.name: pl.Series(c.name, [None] * rows, dtype=pl.Null) for c in self.pipeline.outputs}
        return {name: series.gather(index) for name, series in answers.items()}


def _together(encoded: Encoded) -> int:
    """Examples of a block: `BLOCK`, or more where all arrays are dense and a row is short."""
    if not encoded.rows or any(isinstance(a, Ragged) for a in encoded.arrays.values()):
        return BLOCK
    row = sum(a.nbytes for a in encoded.arrays.values() if isinstance(a, np.ndarray)) // encoded.rows
    return max(BLOCK, min(SPAN, SMALL // max(1, row)))


def join(blocks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Blocks of outputs one after the other; a variable axis is padded with zeros to the longest block."""
    if len(blocks) == 1:
        return blocks[0]
    out = {}
    for name in blocks[0]:
        arrays = [b[name] for b in blocks]
        if arrays[0].ndim > 1 and len({a.shape[1] for a in arrays}) > 1:
            width = max(a.shape[1] for a in arrays)
            rest = [(0, 0)] * (arrays[0].ndim - 2)
            arrays = [np.pad(a, [(0, 0), (0, width - a.shape[1]), *rest]) for a in arrays]
        out[name] = np.concatenate(arrays)
    return out


def answers_from_json(stored: Sequence[Mapping[str, Any]], like: Answers) -> Answers:
    """Stored JSON answers in the columns of `like`, for comparing."""
    failed = [i for i, a in enumerate(stored) if "error" in a and "error" not in like.kinds]
    columns = {}
    for name, series in zip(like.columns.columns, like.columns.get_columns(), strict=True):
        values = [None if i in set(failed) else a.get(name) for i, a in enumerate(stored)]
        columns[name] = pl.Series(name, values, dtype=series.dtype, strict=False)
    errors = [RowError(i, stored[i]["error"]["column"], stored[i]["error"]["reason"]) for i in failed]
    return Answers(pl.DataFrame(columns), errors, len(stored), like.model, "stored", like.kinds)
