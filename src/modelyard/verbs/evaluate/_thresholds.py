"""Decision thresholds tuned on validation rows: a child model that differs in one stored post step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from modelyard import metrics as scoring
from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.store import folder as store
from modelyard.tasks._binding import Bound
from modelyard.verbs.evaluate._judge import predicted


def tune(model: Model, bound: Bound, metric: str, folder: Path) -> Path:
    """The child `<model>-threshold-N`, whose thresholds maximise `metric` on the validation rows.

    Two classes and label sets only: for more classes there is no single threshold. Raises `Unsupported` otherwise.
    """
    if "valid" not in bound.splits:
        raise Unsupported("thresholds are tuned on validation rows, and the data has none; set data.split.valid", "needs")
    frame = bound.splits["valid"]
    answers = model.predict_examples(frame.select([c.name for c in bound.pipeline.inputs]))
    steps = [s for s in model.manifest.get("post", []) if s["step"] != "thresholds"]
    for column in model.pipeline.outputs:
        labels = getattr(column.state, "labels", None)
        if column.kind not in ("category", "label-set") or not labels or (column.kind == "category" and len(labels) != 2):
            raise Unsupported(f"{column.name}: thresholds need two classes or a label set, not {column.kind}", "never")
        found = predicted(column, answers.columns, None)
        truth = column.rules.evidence(frame[column.name], column.coder, column.state)
        assert found.scores is not None
        exclusive = column.kind == "category"
        if exclusive:
            t = _best(truth, found.scores[:, 1], metric, "category")
            values = [1.0 - t, t]
        else:
            values = [_best(truth[:, k].astype(np.int64), found.scores[:, k], metric, "category") for k in range(len(labels))]
        steps.append({"step": "thresholds", "output": column.name, "values": values, "exclusive": exclusive})
    return child(model, folder, steps)


def _best(truth: np.ndarray, scores: np.ndarray, metric: str, kind: str) -> float:
    """The threshold with the best metric among 199 quantiles of the scores, and one half."""
    known = truth >= 0
    candidates = np.unique(np.append(np.quantile(scores, np.linspace(0.005, 0.995, 199)), 0.5))
    candidates = candidates[(candidates > 1e-4) & (candidates < 1 - 1e-4)]
    better = scoring.get(metric).better
    best, chosen = None, 0.5
    for t in candidates.tolist():
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

    number = 1
    while (target := folder.with_name(f"{folder.name}-threshold-{number}")).exists():
        number += 1
    kept = {k: v for k, v in model.manifest.items() if k not in ("format", "files")}
    parent = {"version": model.version, "relation": "thresholds", "examples_sha256": model.manifest["files"]["examples.json"]["sha256"]}
    manifest = {**kept, "post": steps, "parents": [*model.manifest.get("parents", []), parent]}
    fitted = Model(target, manifest, model.pipeline, model.graphs, model.backend, "unsaved")
    stored = json.loads((folder / "examples.json").read_text(encoding="utf-8"))

    def fill(aside: Path) -> None:
        for name in model.manifest["files"]:
            if name != "examples.json":
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, aside / name)
        write_examples(aside, answered(fitted, stored["rows"], stored["params"]))

    return store.write(target, manifest, fill)
