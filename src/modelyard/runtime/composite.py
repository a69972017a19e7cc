"""A model made of models: complete folders under `parts/`, each fed the raw examples, and a rule that combines their answers.

`mean` averages probabilities (and numbers), `weights` does so with stored weights, `vote` counts labels, `stack` is a linear model
over the parts' graph outputs (Σ_p w_p z_p + b for each output). Every part keeps its own encodings, because raw rows are the
currency between models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from modelyard.errors import ArtefactError, Unsupported
from modelyard.kinds._contract import Context
from modelyard.kinds.category import softmax
from modelyard.runtime import post
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column, Encoded, Pipeline

RULES = ("mean", "weights", "vote")
"""What a project file may ask for by name; `stack` needs out-of-fold answers, so a search makes it (`train.ensemble: stack`)."""
SMALLEST = 1e-7
"""Probabilities are kept from zero before their logarithm is taken: float32 has 1e-7 around one."""


@dataclass
class Composite(Model):
    """Answers as a `Model` does; its graphs are those of its parts."""

    parts: list[Model] = field(default_factory=list)

    def outputs(
        self, examples: pl.DataFrame, params: Mapping[str, Any] | None = None, seed: int = 0, index: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], Mapping[str, Context]]:
        """Those of the parts, after their own steps, combined; there are no contexts."""
        found = []
        shared: dict[str, Encoded] = {}  # parts of one search read the rows in two or three ways, not in ten
        for part in self.parts:
            if part.reads not in shared:
                shared[part.reads] = part.pipeline.encode(examples.select([c.name for c in part.pipeline.inputs]))
            found.append(post.apply(part.run(shared[part.reads], None, seed, index), part.manifest.get("post", [])))
        return combine(found, self.pipeline.outputs, self.manifest["model"]), {}


def combine(found: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Column], rule: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Graph outputs of the whole from those of the parts."""
    name = rule["combine"]
    weights_P = np.asarray(rule.get("weights") or np.ones(len(found)), np.float64)  # a stack has weights of its own
    weights_P = weights_P / weights_P.sum()
    out = {}
    for column in outputs:
        part, _ = column.coder.head(column.state)
        key = f"{column.name}.{part}"
        stacked = np.stack([f[key].astype(np.float64) for f in found])
        if name == "stack":
            learnt = rule["stack"][key]
            out[key] = (np.tensordot(np.asarray(learnt["weights"]), stacked, 1) + np.asarray(learnt["shifts"])).astype(np.float32)
            continue
        if part == "logits":
            scores = np.stack([_scores(s, column.kind, name == "vote") for s in stacked])
            mean = np.tensordot(weights_P, scores, 1).clip(SMALLEST, 1 - SMALLEST)
            value = np.log(mean) if column.kind == "category" else np.log(mean / (1 - mean))
        elif part == "value" and name != "vote":
            value = np.tensordot(weights_P, stacked, 1)
        else:
            raise Unsupported(f"{column.name}: parts that answer {part} cannot be combined by {name}", "never")
        out[key] = value.astype(np.float32)
    return out


def _scores(logits_BK: np.ndarray, kind: str, votes: bool) -> np.ndarray:
    """Probabilities, or for votes one for the chosen labels and zero for the others."""
    scores = softmax(logits_BK).astype(np.float64) if kind == "category" else 1.0 / (1.0 + np.exp(-logits_BK))
    if not votes:
        return scores
    return np.eye(scores.shape[1])[scores.argmax(1)] if kind == "category" else (scores > 0.5).astype(np.float64)


def joined(parts: Sequence[Pipeline]) -> Pipeline:
    """The pipeline of the whole: all inputs, and the outputs, which every part must share with labels in the same order."""
    inputs = {c.name: c for p in parts for c in p.inputs}
    first = parts[0].outputs
    for other in parts[1:]:
        same = [(c.name, c.kind, getattr(c.state, "labels", None)) for c in other.outputs]
        if same != [(c.name, c.kind, getattr(c.state, "labels", None)) for c in first]:
            raise ArtefactError("the parts of a composite must predict the same outputs with the same labels")
    return Pipeline(list(inputs.values()), list(first))
