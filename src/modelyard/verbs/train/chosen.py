"""What a search makes of its candidates: the weights, the saved whole, the leaderboard."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.runtime.composite import combine
from modelyard.runtime.pipeline import Pipeline
from modelyard.tasks._binding import Bound
from modelyard.verbs.train import calibrate, ensemble
from modelyard.verbs.train.candidates import Candidate, Search
from modelyard.verbs.train.ensemble import Truth

MEANT, STACKED = 5, 12
"""Candidates that a mean or a vote takes, and a stack."""


def weigh(found: Search, usable: list[Candidate]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sets losses and weights of all candidates; (the rule that combines those with a weight, graph outputs of the whole on the rows
    held out), the latter by the very function that will answer."""
    held, pipeline = found.rows.held, usable[0].pipeline
    assert pipeline is not None
    truths = _truths(found, pipeline)
    library = [{t.head.key: ensemble.answers(t.head, c.outputs[t.head.key][held]) for t in truths} for c in usable]
    for candidate, one in zip(usable, library, strict=True):
        candidate.loss = ensemble.total(truths, one)
    rule = _rule(found.job.config.ensemble, usable, truths, library, held)
    parts = [{k: v[held] for k, v in c.outputs.items()} for c in usable if c.weight > 0]
    mixed = combine(parts, pipeline.outputs, rule) if len(parts) > 1 else parts[0]
    whole = {key: np.full((len(held), value.shape[1]), np.nan, np.float32) for key, value in mixed.items()}
    for key, value in mixed.items():
        whole[key][held] = value
    return rule, whole


def _truths(found: Search, pipeline: Pipeline) -> list[Truth]:
    _, _, targets = next(iter(found.encoded.values()))
    weights = None if found.rows.weights is None else found.rows.weights[found.rows.held]
    return [Truth(h, np.asarray(targets[h.target])[found.rows.held], weights) for h in pipeline.heads()]


def _rule(
    how: str, usable: list[Candidate], truths: list[Truth], library: list[dict[str, np.ndarray]], held: np.ndarray
) -> dict[str, Any]:
    """The rule over the candidates that it gives a weight; how they are combined is `train.ensemble`."""
    best = sorted(range(len(usable)), key=lambda i: usable[i].loss)
    if how == "select":
        weights = ensemble.select(truths, library)
    else:
        most = {"single": 1, "stack": STACKED}.get(how, MEANT)
        weights = [1 / min(most, len(best)) if i in best[:most] else 0.0 for i in range(len(usable))]
    for candidate, weight in zip(usable, weights, strict=True):
        candidate.weight = weight
    chosen = [c for c in usable if c.weight > 0]
    if how == "stack":
        learnt = {t.head.key: ensemble.stack(t, np.stack([c.outputs[t.head.key][held] for c in chosen])) for t in truths}
        for i, candidate in enumerate(chosen):  # shown on the leaderboard: the share over all outputs
            candidate.weight = float(np.mean([w[i] / max(sum(w), 1e-12) for w, _ in learnt.values()])) or 1e-9
        return {"combine": "stack", "stack": {k: {"weights": w, "shifts": b} for k, (w, b) in learnt.items()}}
    if how in ("mean", "vote"):
        return {"combine": how}
    return {"combine": "weights", "weights": [c.weight for c in chosen]}


def _spread(rule: dict[str, Any], counts: list[int]) -> dict[str, Any]:
    """The rule over all members, where candidate i has `counts[i]` of them (fold models of a net) that share its weight."""
    if max(counts) == 1:
        return rule
    again = lambda weights: [w / n for w, n in zip(weights, counts, strict=True) for _ in range(n)]  # noqa: E731
    if rule["combine"] == "stack":
        return {**rule, "stack": {k: {**v, "weights": again(v["weights"])} for k, v in rule["stack"].items()}}
    if rule["combine"] == "vote":
        return {"combine": "vote"}
    return {"combine": "weights", "weights": again(rule.get("weights") or [1 / len(counts)] * len(counts))}


def finish(
    found: Search, tried: list[Candidate], usable: list[Candidate], rule: dict[str, Any], outputs: dict[str, np.ndarray]
) -> tuple[Path, dict[str, Any], Bound, dict[str, np.ndarray]]:
    """Saves the chosen candidates: one as it is, several as a composite with their weights."""
    from modelyard.verbs.train.compose import compose
    from modelyard.verbs.train.save import save

    run, name = found.job.run, found.job.name
    seconds = time.monotonic() - found.began
    facts = {"training": {"seconds": seconds, "candidates": len(tried)}, "seed": found.job.config.seed, "out_of_fold": True}
    chosen = [c for c in usable if c.weight > 0]
    parts = [(c, m, f"{c.label}.{i}" if len(c.members) > 1 else c.label) for c in chosen for i, m in enumerate(c.members)]
    config, frame = found.job.config, found.rows.bound.splits["train"]
    fitted = chosen[0].pipeline
    assert fitted is not None
    held = calibrate.out_of_fold(fitted, frame, outputs) if calibrate.wanted(config) else None
    folders: dict[str, Path] = {}
    rows: list[dict[str, Any]] | None = None
    for candidate, member, label in parts:
        assert candidate.pipeline is not None
        own = dataclasses.replace(found.rows.bound, pipeline=candidate.pipeline)
        target = run.model if len(parts) == 1 else run.folder / "parts" / label
        if not (target / "manifest.json").is_file():
            whole = config if len(parts) == 1 else None  # of several the composite is calibrated, not its parts
            save(target, name, own, member.section, member.graphs, member.parameters, member.arrays, facts, whole, rows, held)
        if rows is None:
            rows = stored_rows(target)
        folders[label] = target
    folder = run.model
    if len(parts) > 1:
        rule = _spread(rule, [len(c.members) for c in chosen])
        folder = compose(run.model, name, folders, rule, facts, found.rows.bound, config, held)
    first = parts[0][0]
    assert first.pipeline is not None
    facts["leaderboard"] = leaderboard(found, tried, first.pipeline)
    return folder, facts, dataclasses.replace(found.rows.bound, pipeline=first.pipeline), outputs


def distilled(
    found: Search, tried: list[Candidate], outputs: dict[str, np.ndarray]
) -> tuple[Path, dict[str, Any], Bound, dict[str, np.ndarray]]:
    """One small model that learnt the answers of the whole (Hinton, Vinyals & Dean 2015, with out-of-fold answers as in Fakoor et al. 2020).

    Its own validation scores are not given: the answers it learnt came from models that saw other rows' labels.
    """
    from modelyard.verbs.train.distil import distil

    own, section, graphs, parameters, arrays = distil(found, outputs)
    from modelyard.verbs.train.save import save

    facts = {
        "training": {"seconds": time.monotonic() - found.began, "candidates": len(tried)}, "seed": found.job.config.seed, "out_of_fold": True,
        "distilled_from": [c.label for c in tried if c.weight > 0],
    }  # fmt: skip
    folder = save(found.job.run.model, found.job.name, own, section, graphs, parameters, arrays, facts, found.job.config)
    facts["leaderboard"] = leaderboard(found, tried, own.pipeline)
    return folder, facts, own, {}


def stored_rows(folder: Path) -> list[dict[str, Any]]:
    """The example rows of a model folder."""
    rows: list[dict[str, Any]] = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["rows"]
    return rows


def leaderboard(found: Search, tried: list[Candidate], pipeline: Pipeline) -> list[dict[str, Any]]:
    """One entry for each candidate, the best first and what failed last: score with its interval, seconds, size, weight, reason."""
    frame = found.rows.bound.splits["train"].filter(pl.Series(found.rows.held))
    entries = []
    for c in sorted(tried, key=lambda c: (bool(c.reason), c.loss)):
        settings = {k: v for k, v in c.section.items() if k not in ("name", "bags")}
        entry: dict[str, Any] = {"model": c.label, "settings": settings, "fit_seconds": round(c.seconds, 2)}
        if c.reason:
            entries.append(entry | {"reason": c.reason})
            continue
        scores = headline(pipeline, frame, {k: v[found.rows.held] for k, v in c.outputs.items()})
        entries.append(
            entry | {"loss": round(c.loss, 6), "weight": round(c.weight, 4), "scores": scores, "bytes": c.bytes,
                     "predict_seconds_per_1000": round(c.predict_seconds, 5)}
        )  # fmt: skip
    return entries


def headline(pipeline: Pipeline, truth: pl.DataFrame, outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The first metric of every output with its interval."""
    from modelyard import metrics as scoring
    from modelyard.verbs.evaluate import predicted

    answers = pl.DataFrame(pipeline.decode(outputs, {}))
    found = {}
    for column in pipeline.outputs:
        true = column.rules.evidence(truth[column.name], column.coder, column.state)
        said = predicted(column, answers, None)
        labels = getattr(column.state, "labels", None)
        name = scoring.DEFAULTS[column.kind][0]
        found[column.name] = {"metric": name, **scoring.evaluate_output(column.kind, true, said, [name], labels=labels)[name]}
    return found
