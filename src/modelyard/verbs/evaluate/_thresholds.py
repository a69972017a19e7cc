"""Decisions tuned on validation rows, for a metric or for costs: a child model that differs in one stored post step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard import metrics as scoring
from modelyard.errors import Unsupported
from modelyard.runtime import post
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column
from modelyard.store import folder as store
from modelyard.store import sealed
from modelyard.tasks._binding import Bound
from modelyard.verbs.evaluate import _costs
from modelyard.verbs.evaluate._judge import predicted


def tune(
    model: Model, bound: Bound, metric: str | None, folder: Path, costs: Mapping[str, Any] | None = None, positive: str | None = None
) -> Path:
    """The child `<model>-threshold-N`, which decides for the best `metric`, or the least expected cost, on the validation rows.

    Two labels and label sets get thresholds; tags of entities a number that is taken from the score of `O`.
    More labels have no single threshold: under `costs` they are decided by the least expected cost of their scores (Elkan 2001), which
    is as good as the scores are calibrated. Raises `Unsupported` otherwise.
    """
    if "valid" not in bound.splits:
        raise Unsupported("thresholds are tuned on validation rows, and the data has none; set data.split.valid", "needs")
    frame = bound.splits["valid"]
    answers = model.predict_examples(frame.select([c.name for c in bound.pipeline.inputs]))
    steps = [s for s in model.manifest.get("post", []) if s["step"] not in post.DECISION]
    failed = {e.row for e in answers.errors}
    good = np.array([i for i in range(answers.rows) if i not in failed], np.int64)
    for column in model.pipeline.outputs:
        labels = getattr(column.state, "labels", None)
        if column.kind == "tags" and metric and column.state.learnt != "plain":
            if column.kind not in scoring.get(metric).kinds:
                raise Unsupported(f"{column.name}: {metric} is not measured on tags; write evaluate.threshold: entity_f1", "use")
            value = _outside(model, column, frame[good], metric)
            steps.append({"step": "outside", "output": column.name, "value": value})
            continue
        costs_KK = _costs.matrix(costs, column, positive)
        several = column.kind == "category" and labels is not None and len(labels) != 2
        if column.kind not in ("category", "label-set") or not labels or (several and costs_KK is None):
            raise Unsupported(f"{column.name}: thresholds need two classes or a label set, not {column.kind}", "never")
        if several and costs_KK is not None:
            steps.append({"step": "costs", "output": column.name, "matrix": costs_KK.tolist()})
            continue
        if column.name not in frame.columns:
            raise Unsupported(f"{column.name}: thresholds are tuned on known answers, and the data has none; name a target column", "needs")
        found = predicted(column, answers.columns[good], None)
        truth = column.rules.evidence(frame[column.name][good], column.coder, column.state)
        assert found.scores is not None
        exclusive = column.kind == "category"
        pick = (lambda t, s: _best(t, s, metric, "category")) if metric else (lambda t, s: _cheapest(t, s, costs_KK))  # noqa: B023
        if exclusive:
            known = truth >= 0  # answers that judge may be missing
            t = pick(truth[known], found.scores[known, 1])
            values = [1.0 - t, t]
        else:
            values = [pick(truth[:, k].astype(np.int64), found.scores[:, k]) for k in range(len(labels))]
        steps.append({"step": "thresholds", "output": column.name, "values": values, "exclusive": exclusive})
    return child(model, folder, steps)


OUTSIDE = [round(0.25 * i, 2) for i in range(-4, 17)]
"""What may be taken from the score of `O`: from e times as likely to e⁴ times less."""


def _outside(model: Model, column: Column, frame: pl.DataFrame, metric: str) -> float:
    """The one of `OUTSIDE` with the best metric of the tags; of equally good ones the nearest to 0."""
    better = scoring.get(metric).better
    outputs, contexts = model.outputs(frame.select([c.name for c in model.pipeline.inputs]))
    context = contexts.get(column.of or "", {})
    truth = column.rules.evidence(frame[column.name], column.coder, column.state)
    found = {}
    for value in OUTSIDE:
        moved = post.outside(outputs, {"output": column.name, "value": value})
        mine = {k.removeprefix(f"{column.name}."): v for k, v in moved.items() if k.startswith(f"{column.name}.")}
        said = column.rules.evidence(column.coder.decode(mine, column.state, context)[""], column.coder, column.state)
        score = scoring.evaluate_output(column.kind, truth, scoring.Predicted(labels=said), [metric], intervals=False)[metric]["value"]
        if score == score:
            found[value] = score if better == "higher" else -score
    return max(found, key=lambda v: (found[v], -abs(v)), default=0.0)


def _cheapest(truth: np.ndarray, scores: np.ndarray, costs_KK: np.ndarray | None) -> float:
    """The threshold of least cost among 199 quantiles of the scores and the one that true frequencies would have (Elkan 2001)."""
    assert costs_KK is not None
    known = truth >= 0
    over, under = costs_KK[0, 1] - costs_KK[0, 0], costs_KK[1, 0] - costs_KK[1, 1]
    ideal = over / (over + under) if over + under > 0 else 0.5
    costs = {t: float(_costs.per_row(costs_KK, truth[known], (scores[known] >= t).astype(np.int64)).sum()) for t in _candidates(scores, ideal)}
    least = min(costs.values())
    # of equally cheap ones the nearest to the ideal: an edge of the scores would fit the noise of a few rows
    return min((t for t, cost in costs.items() if cost <= least), key=lambda t: abs(t - ideal))


def _candidates(scores: np.ndarray, more: float) -> list[float]:
    """199 quantiles of the scores and `more`, away from 0 and 1."""
    found = np.unique(np.append(np.quantile(scores, np.linspace(0.005, 0.995, 199)), more))
    return found[(found > 1e-4) & (found < 1 - 1e-4)].tolist() or [0.5]


def _best(truth: np.ndarray, scores: np.ndarray, metric: str, kind: str) -> float:
    """The threshold with the best metric among 199 quantiles of the scores, and one half."""
    known = truth >= 0
    better = scoring.get(metric).better
    best, chosen = None, 0.5
    for t in _candidates(scores, 0.5):
        value = scoring.evaluate_output(
            kind,
            truth[known],
            scoring.Predicted(labels=(scores[known] >= t).astype(np.int64)),
            [metric],
            labels=["no", "yes"],
            intervals=False,
        )[metric]["value"]
        if value == value and (best is None or (value > best if better == "higher" else value < best)):
            best, chosen = value, t
    return float(chosen)


def child(model: Model, folder: Path, steps: list[dict[str, object]]) -> Path:
    """A copy of the model folder with other post steps; its examples are answered anew, its parent named."""
    from modelyard.verbs.train.save import answered, write_examples

    sealed.forbid_copy(model.opened, folder)
    number = 1
    while (target := folder.with_name(f"{folder.name}-threshold-{number}")).exists():
        number += 1
    kept = {k: v for k, v in model.manifest.items() if k not in ("format", "files")}
    parent = {"version": model.version, "relation": "thresholds", "examples_sha256": model.manifest["files"]["examples.json"]["sha256"]}
    manifest = {**kept, "post": steps, "parents": [*model.manifest.get("parents", []), parent]}
    fitted = replace(model, folder=target, manifest=manifest, version="unsaved")
    stored = json.loads((model.folder / "examples.json").read_text(encoding="utf-8"))

    def fill(aside: Path) -> None:
        for name in model.manifest["files"]:
            if name != "examples.json":
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.folder / name, aside / name)
        write_examples(aside, answered(fitted, stored["rows"], stored["params"]))

    return store.write(target, manifest, fill)
