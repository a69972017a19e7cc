"""Writes a fitted pipeline and its graphs as a model folder, with examples answered by the very object that is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.runtime.answers import Graph
from modelyard.runtime.model import Model
from modelyard.store import folder as store
from modelyard.store.run import now, versions
from modelyard.store.state import write_arrays
from modelyard.tasks._binding import Bound
from modelyard.verbs.train import calibrate, examples
from modelyard.verbs.train.card import card
from modelyard.verbs.train.config import TrainConfig

EXAMPLES_SEED = 0
WRITTEN_ROWS = 6
"""Rows that a language model answers as examples: they are written again whenever it is loaded."""
SERIES_ROWS = 400
"""Raw rows stored as examples of frames whose example spans many rows."""


def save(
    folder: Path,
    name: str,
    bound: Bound,
    model: Mapping[str, Any],
    graphs: dict[str, Graph],
    weights: Mapping[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    facts: dict[str, Any],
    config: TrainConfig | None = None,
    rows: list[dict[str, Any]] | None = None,
    held: Mapping[str, calibrate.Evidence] | None = None,
    beside: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Make the model folder; `rows` are the stored examples, chosen here where none are given, and `held` out-of-fold outputs to
    calibrate on where there are no validation rows.

    `beside` are files that lie at the folder's root with the weights, by name (Hugging Face's layout), or below it.
    `model` is the manifest's section (backend, net or estimator, program, params); `weights` a net's parameters, `arrays`
    an estimator's; `facts` what else the manifest tells (parents, metrics, training). With `config` what it asks for after training is
    fitted (calibration, coverage), stored as post steps and told in `facts["promises"]`.
    """
    states: dict[str, np.ndarray] = {}
    pipeline = bound.pipeline.pack(states)
    task = next(iter(bound.tasks.values()))
    manifest = {
        "name": name,
        "tasks": {output: t.name for output, t in bound.tasks.items()},
        "frame": bound.frame,
        "pipeline": pipeline,
        "model": {"program": task.program, "params": [asdict(p) for p in task.params], **({"layout": "huggingface"} if beside else {}), **model},
        "post": [],
        "parents": [],
        "data": {"fingerprint": bound.source.fingerprint, "rows": bound.rows},
        "created": now(),
        "versions": versions(),
        **facts,
    }
    fitted = Model(folder, manifest, bound.pipeline, graphs, str(model["backend"]), "unsaved")
    if config is not None:
        manifest["post"], told = calibrate.promise(fitted, bound, config, held)
        manifest |= told
        facts |= told
    split = next((s for s in ("test", "valid", "train") if s in bound.splits and bound.splits[s].height), "train")
    stored = answered(fitted, example_rows(bound, fitted, split, task.shown) if rows is None else rows, task.shown)

    def fill(target: Path) -> None:
        for file, content in (("model.safetensors", weights), ("arrays.safetensors", arrays), ("states.safetensors", states)):
            if content:
                write_arrays(target / file, dict(content), {"format": "pt"} if beside and file == "model.safetensors" else None)
        for file, text in (beside or {}).items():
            (target / file).parent.mkdir(exist_ok=True)
            (target / file).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        write_examples(target, stored)
        (target / "README.md").write_text(card(manifest, fitted.signature), encoding="utf-8")

    return store.write(folder, manifest, fill)


def example_rows(bound: Bound, fitted: Model, split: str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Rows that cover the split; for frames whose example is many rows, the raw rows of a few whole examples.

    A model that writes answers a few rows only, as somebody would ask it.
    """
    if not fitted.by_row:
        raw: pl.DataFrame = bound.source.tables["train"].frame()
        return [dict(row) for row in raw.head(SERIES_ROWS).to_dicts()]
    frames = registry.load("data/frames", bound.frame["name"])
    rows = bound.splits[split]
    if "decoder" in fitted.graphs:
        rows = rows.head(WRITTEN_ROWS)
    rows = frames.asked(rows) if hasattr(frames, "asked") else rows
    return examples.choose(bound.pipeline, rows, lambda some: fitted.predict(some, params), EXAMPLES_SEED)


def answered(fitted: Model, rows: list[dict[str, Any]], params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of `examples.json`."""
    settings = fitted.signature.resolve(params)
    rows = json.loads(json.dumps(rows, ensure_ascii=False, default=str))
    answers = fitted.predict(rows, settings, EXAMPLES_SEED)
    return {"rows": rows, "params": settings, "seed": EXAMPLES_SEED, "answers": answers.to_json()}


def write_examples(target: Path, stored: Mapping[str, Any]) -> None:
    """`examples.json`, one row a line so that people can read it."""
    lines = {k: json.dumps(stored[k], ensure_ascii=False) for k in ("params", "seed")}
    rows = ",\n  ".join(json.dumps(r, ensure_ascii=False) for r in stored["rows"])
    answers = ",\n  ".join(json.dumps(a, ensure_ascii=False) for a in stored["answers"])
    text = f'{{"params": {lines["params"]}, "seed": {lines["seed"]},\n "rows": [\n  {rows}],\n "answers": [\n  {answers}]}}\n'
    (target / "examples.json").write_text(text, encoding="utf-8")
