"""Puts fitted models together as one: a folder with `parts/<name>/` and the rule that combines them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.runtime.composite import Composite, joined
from modelyard.runtime.model import Model
from modelyard.store import folder as store
from modelyard.store.run import now, versions
from modelyard.store.state import write_arrays
from modelyard.tasks._binding import Bound
from modelyard.verbs.train import calibrate
from modelyard.verbs.train.card import card
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.save import answered, write_examples


def compose(
    target: Path, name: str, folders: Mapping[str, Path], rule: Mapping[str, Any], facts: dict[str, Any], bound: Bound | None = None,
    config: TrainConfig | None = None, held: Mapping[str, calibrate.Evidence] | None = None,
) -> Path:
    """The composite of complete model folders, copied whole; its examples are the first part's, answered by all. With `bound` and
    `config` the whole is calibrated and gives its promises as one model does, on out-of-fold outputs `held` where there are any.

    Raises `ArtefactError` where the parts predict different things, `Unsupported` where their answers cannot be combined.
    """
    parts = {label: Model.load(folder, trust_code=True) for label, folder in folders.items()}
    first = next(iter(parts.values()))
    pipeline = joined([part.pipeline for part in parts.values()])
    states: dict[str, np.ndarray] = {}
    manifest = {
        **{k: first.manifest[k] for k in ("tasks", "frame", "data")},
        "name": name,
        "pipeline": pipeline.pack(states),
        "model": {"backend": "composite", "parts": list(parts), "program": "once", "params": [], **rule},
        "post": [],
        "parents": [{"version": part.version, "relation": f"part {label}"} for label, part in parts.items()],
        "created": now(),
        "versions": versions(),
        **facts,
    }
    whole = Composite(target, manifest, pipeline, {}, "composite", "unsaved", parts=list(parts.values()))
    if bound is not None and config is not None:
        manifest["post"], told = calibrate.promise(whole, bound, config, held)
        manifest |= told
        facts |= told
    rows = json.loads((next(iter(folders.values())) / "examples.json").read_text(encoding="utf-8"))["rows"]
    stored = answered(whole, rows)

    def fill(aside: Path) -> None:
        for label, folder in folders.items():
            shutil.copytree(folder, aside / "parts" / label)
        if states:
            write_arrays(aside / "states.safetensors", states)
        write_examples(aside, stored)
        (aside / "README.md").write_text(card(manifest, whole.signature), encoding="utf-8")

    return store.write(target, manifest, fill)
