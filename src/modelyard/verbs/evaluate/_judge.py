"""Judges a saved model on bound data: metrics with intervals beside a trivial baseline, pictures, slices and worst rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from modelyard import metrics as scoring
from modelyard.kinds._contract import RowError
from modelyard.metrics._pictures import picture_data
from modelyard.metrics._segments import profiles
from modelyard.runtime import post
from modelyard.runtime.answers import Answers
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column, dense
from modelyard.tasks._binding import Bound
from modelyard.verbs.evaluate import _costs, _odd

WORST = 24
"""Worst rows shown per output (a page of pictures)."""

SAMPLES = 24
"""Sample answers shown of outputs that have no pictures: texts."""

PROFILED = 20_000
"""Rows of which groups are profiled, drawn from all splits."""

SLICES = 12
"""Slices shown; a slice has at least `SLICE_ROWS` rows."""
SLICE_ROWS = 20


@dataclass
class Evaluation:
    """`{split: {output: {kind, headline, metrics, baseline, pictures, worst, slices, samples}}}` and the answers behind it."""

    splits: dict[str, dict[str, dict[str, Any]]]
    failed: dict[str, list[RowError]]
    answers: dict[str, Answers]

    def metrics(self) -> dict[str, Any]:
        """`{split: {metric: {value, low, high, …}}}`; with several outputs `{split: {output: {metric: …}}}`."""
        found = {s: {o: e["metrics"] for o, e in outputs.items()} for s, outputs in self.splits.items()}
        return {s: next(iter(o.values())) if len(o) == 1 else o for s, o in found.items()}

    def segments(self) -> dict[str, Any]:
        """`{output: {why, profiles}}` of outputs that put rows into groups; the same for every split."""
        first: dict[str, dict[str, Any]] = next(iter(self.splits.values()), {})
        return {o: {"why": e.get("groups"), "profiles": e["segments"]} for o, e in first.items() if "segments" in e}

    def baselines(self) -> dict[str, Any]:
        """The same of the trivial baseline."""
        found = {s: {o: e["baseline"] for o, e in outputs.items()} for s, outputs in self.splits.items()}
        return {s: next(iter(o.values())) if len(o) == 1 else o for s, o in found.items()}


def judge(
    model: Model, bound: Bound, splits: Sequence[str], wanted: Sequence[str] | None = None, *, positive: str | None = None, seed: int = 0,
    costs: Mapping[str, Any] | None = None, known: Mapping[str, pl.DataFrame] | None = None,
) -> Evaluation:
    """Predict each split with the loaded model and score every output; `costs` are those of `evaluate.costs`.

    `known` has answers by split that are taken as they are: those of rows that the model learnt from, made by models that did not.
    """
    if bound.environment is not None:
        from modelyard.verbs.evaluate._episodes import play

        return Evaluation({"test": play(model, bound.environment, seed)}, {}, {})
    out: dict[str, dict[str, dict[str, Any]]] = {}
    failed, kept = {}, {}
    for split in splits:
        frame = bound.splits[split]
        rows = frame.select([c.name for c in bound.pipeline.inputs])
        if known is not None and split in known:
            answers = Answers(known[split], [], frame.height, model.name, model.version)
        else:
            answers, frame = _answered(model, bound, frame)
        bad = {e.row for e in answers.errors}
        good = np.array([i for i in range(answers.rows) if i not in bad], np.int64)
        failed[split], kept[split] = answers.errors, answers
        whole = len(good) == answers.rows
        truth, found = (frame, answers.columns) if whole else (frame[good], answers.columns[good])
        out[split] = {
            column.name: _output(model, bound, column, truth, found, wanted, positive, seed, costs) for column in model.pipeline.outputs
        }
        if known is None or split not in known:
            _before(model, rows if whole else rows[good], truth, out[split])
    _segments(model, bound, out, seed)
    return Evaluation(out, failed, kept)


def score(model: Model, bound: Bound, split: str, metric: str, output: str, *, positive: str | None = None) -> dict[str, Any]:
    """`{value, better, note?}` of one metric of one output on one split, without interval: what a search compares."""
    answers, frame = _answered(model, bound, bound.splits[split])
    bad = {e.row for e in answers.errors}
    good = np.array([i for i in range(answers.rows) if i not in bad], np.int64)
    truth, found = (frame, answers.columns) if len(good) == answers.rows else (frame[good], answers.columns[good])
    column = next(c for c in model.pipeline.outputs if c.name == output)
    supervised = column.name in truth.columns
    is_true = column.rules.evidence(truth[column.name], column.coder, column.state) if supervised else None
    said = predicted(column, found, None if supervised else _features(model, truth))
    labels = getattr(column.state, "labels", None)
    at = labels.index(positive) if positive is not None and labels and positive in labels and len(labels) == 2 else None
    given = {} if at is None else {"positive": at}
    return scoring.evaluate_output(column.kind, is_true, said, [metric], labels=labels, intervals=False, **given)[metric]


def _answered(model: Model, bound: Bound, frame: pl.DataFrame) -> tuple[Answers, pl.DataFrame]:
    """(answers to the rows of a split, the rows with their truths): those of a task that brings its truth are made by it."""
    rows = frame.select([c.name for c in bound.pipeline.inputs])
    for output, task in bound.tasks.items():
        if task.examine is not None:  # such a task stands alone
            answers, truths = task.examine(model, frame, output)
            return answers, frame.with_columns(truths.alias(output))
    return model.predict_examples(rows), frame


def predicted(column: Column, answers: pl.DataFrame, features: np.ndarray | None) -> scoring.Predicted:
    """What the answers say of one output, as metrics take it."""
    evidence = column.rules.evidence(answers[column.name], column.coder, column.state)
    scores = None
    if f"{column.name}.scores" in answers.columns:
        scores = answers[f"{column.name}.scores"].struct.unnest().to_numpy().astype(np.float64)
    mine = {c.removeprefix(column.name).lstrip("."): answers[c] for c in answers.columns if c == column.name or c.startswith(f"{column.name}.")}
    values = column.rules.measured(mine)
    if values is not None:
        return scoring.Predicted(labels=evidence, values=values)
    if column.kind == "number":
        return scoring.Predicted(values=evidence)
    if isinstance(evidence, np.ndarray) and evidence.dtype.kind == "f":
        evidence = evidence.astype(np.int64)
    return scoring.Predicted(labels=evidence, scores=scores, features=features)


def _output(
    model: Model,
    bound: Bound,
    column: Column,
    truth: pl.DataFrame,
    answers: pl.DataFrame,
    wanted: Sequence[str] | None,
    positive: str | None,
    seed: int,
    costs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    supervised = column.name in truth.columns
    features = None if supervised else _features(model, truth)
    found = predicted(column, answers, features)
    is_true = column.rules.evidence(truth[column.name], column.coder, column.state) if supervised else None
    labels = getattr(column.state, "labels", None)
    task = bound.tasks[column.name]
    measured = tuple(m for m, part in task.measured.items() if f"{column.name}.{part}" in answers.columns)
    names = _applicable(wanted or (None if task.metrics is None else (*task.metrics, *measured)), column.kind)
    if is_true is None and not features_needed(column.kind):
        names = None  # nothing can be measured; what is odd is shown all the same
    options: dict[str, Any] = {"labels": labels, "seed": seed}
    if positive is not None and labels and positive in labels and len(labels) == 2:
        options["positive"] = labels.index(positive)
    scores = scoring.evaluate_output(column.kind, is_true, found, names, **options)
    entry: dict[str, Any] = {
        "kind": column.kind,
        "headline": next((n for n, s in scores.items() if s["value"] == s["value"]), next(iter(scores), None)),
        "metrics": scores,
        "baseline": {},
        "pictures": {},
        "worst": [],
        "slices": [],
    }
    if column.kind not in scoring.DEFAULTS:
        entry["samples"] = _samples(bound, column, truth, answers)
        return entry
    entry["pictures"] = picture_data(column.kind, is_true, found, labels=labels, seed=seed)
    if is_true is None and labels and found.scores is not None:
        entry["worst"] = _oddest(bound, column, truth, answers, found)
    if is_true is not None:
        past = column.rules.evidence(bound.splits["train"][column.name], column.coder, column.state)
        lengths = [len(row) for row in is_true] if is_true.dtype == object else None
        guess = scoring.baseline(column.kind, past, truth.height, labels=labels, lengths=lengths)
        entry["baseline"] = scoring.evaluate_output(column.kind, is_true, guess, names, **options)
        scores |= _costs.promises(column, truth[column.name], answers)
        costs_KK = _costs.matrix(costs, column, positive)
        for place, said in ((scores, found), (entry["baseline"], guess)) if costs_KK is not None else ():
            assert costs_KK is not None and said.labels is not None
            place["cost"] = _costs.entry(_costs.per_row(costs_KK, is_true, said.labels))
        same = is_true.dtype == object  # structured answers say themselves how far they are from the truth
        errors_B = column.rules.distance(truth[column.name], answers[column.name]) if same else _errors(column, found, is_true)
        entry["worst"] = _worst(bound, column, truth, answers, found, errors_B)
        entry["slices"] = _slices(bound, column, truth, found, is_true, entry["headline"], options)
    return entry


def _segments(model: Model, bound: Bound, outputs: dict[str, dict[str, dict[str, Any]]], seed: int) -> None:
    """Puts profiles of the groups, made of the rows of all splits (up to `PROFILED`), and the reason for their number beside the metrics."""
    from modelyard.verbs.report.segments import in_words, why

    columns = [c for c in model.pipeline.outputs if c.kind == "cluster"]
    if not columns:
        return
    names = [c.name for c in bound.pipeline.inputs]
    frames = {id(f): f.select(names) for f in bound.splits.values() if f.height}
    rows = pl.concat(list(frames.values()))
    if rows.height > PROFILED:
        rows = rows[np.sort(np.random.default_rng(seed).permutation(rows.height)[:PROFILED])]
    answers = model.predict_examples(rows)
    bad = {e.row for e in answers.errors}
    good = np.array([i for i in range(answers.rows) if i not in bad], np.int64)
    rows, found = (rows, answers.columns) if not bad else (rows[good], answers.columns[good])
    state = model.manifest["model"].get("state") or {}
    for column in columns:
        told = profiles(rows, {c.name: c.kind for c in bound.pipeline.inputs}, found[column.name].to_numpy())
        for entry in (split[column.name] for split in outputs.values()):
            entry["segments"] = in_words(told)
            if state.get("suggestion"):
                entry["groups"] = {**state["suggestion"], "text": why(state["suggestion"])}


def _before(model: Model, rows: pl.DataFrame, truth: pl.DataFrame, outputs: dict[str, dict[str, Any]]) -> None:
    """Beside the calibration error of a calibrated model: what it was before."""
    steps = model.manifest.get("post", [])
    calibrated = {s["output"] for s in steps if s["step"] in post.CALIBRATION}
    if not calibrated or not rows.height:
        return
    bare = replace(model, manifest={**model.manifest, "post": [s for s in steps if s["step"] not in post.CALIBRATION]})
    answers = bare.predict_examples(rows).columns
    for column in (c for c in model.pipeline.outputs if c.name in calibrated):
        scores = outputs[column.name]["metrics"]
        if "calibration_error" in scores and column.name in truth.columns:
            is_true = column.rules.evidence(truth[column.name], column.coder, column.state)
            found = predicted(column, answers, None)
            before = scoring.evaluate_output(column.kind, is_true, found, ["calibration_error"], intervals=False)["calibration_error"]["value"]
            note = f"{before:.4f} before calibration"
            scores["calibration_error"] |= {"before": before, "note": "; ".join(filter(None, [scores["calibration_error"].get("note"), note]))}


def features_needed(kind: str) -> bool:
    """Whether metrics of this kind measure answers against the inputs, not against truths."""
    return any(scoring.get(name).needs == "features" for name in scoring.DEFAULTS.get(kind, ()))


def _applicable(wanted: Sequence[str] | None, kind: str) -> list[str] | None:
    """Of the metrics asked for, those that apply to this kind; None (the defaults) where none was asked for."""
    if wanted is None:
        return None
    return [name for name in wanted if kind in scoring.get(name).kinds] or None


def _features(model: Model, frame: pl.DataFrame) -> np.ndarray:
    """Encoded inputs side by side, categories as 0/1 columns: the space in which clusters were made."""
    encoded = dense(model.pipeline.encode(frame.select([c.name for c in model.pipeline.inputs])).arrays)
    blocks = [encoded["table.numbers"].astype(np.float64)] if "table.numbers" in encoded else []
    if "table.categories" in encoded:
        ids = encoded["table.categories"]
        blocks += [(ids[:, [i]] == np.arange(ids[:, i].max(initial=0) + 1)).astype(np.float64) for i in range(ids.shape[1])]
    blocks += [a.reshape(len(a), -1).astype(np.float64) for k, a in encoded.items() if not k.startswith("table.") and a.dtype.kind == "f"]
    return np.nan_to_num(np.concatenate(blocks, axis=1)) if blocks else np.zeros((frame.height, 1))


def _errors(column: Column, found: scoring.Predicted, truth: np.ndarray) -> np.ndarray:
    """How wrong each row is: 1 - score of the true label, share of wrong labels, or the absolute error."""
    if column.kind == "number" and found.values is not None:
        return np.abs(found.values - truth)
    if column.kind == "category" and found.scores is not None:
        own = found.scores[np.arange(len(truth)), np.maximum(truth, 0)]
        return np.where(truth >= 0, 1.0 - own, 1.0)
    if found.scores is not None and truth.ndim == 2:
        return np.abs(found.scores - truth).max(axis=1)
    return np.zeros(len(truth))


def _worst(
    bound: Bound, column: Column, truth: pl.DataFrame, answers: pl.DataFrame, found: scoring.Predicted, errors_B: np.ndarray
) -> list[dict[str, Any]]:
    order = np.argsort(-errors_B, kind="stable")[:WORST]
    shown = bound.pipeline.inputs[:8]
    along = next((c for c in shown if c.name == column.of and column.rules.draw_along([], []) is not None), None)
    rows = []
    drawn = {c.name: truth[c.name].gather(order.astype(np.uint32)).to_list() for c in shown}
    said = answers[column.name].gather(order.astype(np.uint32)).to_list()
    true = truth[column.name].gather(order.astype(np.uint32)).to_list() if column.name in truth.columns else ["—"] * len(said)
    for i, row in enumerate(order.tolist()):
        rows.append(
            {
                "row": row + 1,
                "inputs": {c.name: c.rules.draw(drawn[c.name][i]) for c in shown if c is not along},
                "along": {} if along is None else _along(column, drawn[along.name][i], true[i], said[i]),
                "truth": _text(true[i]),
                "prediction": _text(said[i]),
                "confidence": None if found.scores is None else float(found.scores[row].max()),
                "loss": float(errors_B[row]),
            }
        )
    return rows


def _along(column: Column, beside: Any, true: Any, said: Any) -> dict[str, str]:
    """`{truth, prediction}`: both drawn along the input that they speak of."""
    found = {"truth": column.rules.draw_along(true, beside), "prediction": column.rules.draw_along(said, beside)}
    return {key: html for key, html in found.items() if html is not None}


def _samples(bound: Bound, column: Column, truth: pl.DataFrame, answers: pl.DataFrame) -> list[dict[str, Any]]:
    """Answers to rows spread evenly over the split, for people to judge what no picture shows. Where some were answered, those."""
    answered = np.flatnonzero(answers[column.name].is_not_null().to_numpy()).astype(np.uint32)
    among = answered if len(answered) else np.arange(truth.height, dtype=np.uint32)
    order = among[np.unique(np.linspace(0, max(0, len(among) - 1), SAMPLES).round().astype(np.uint32))] if len(among) else among
    shown = bound.pipeline.inputs[:8]
    drawn = {c.name: truth[c.name].gather(order).to_list() for c in shown}
    said = answers[column.name].gather(order).to_list()
    true = truth[column.name].gather(order).to_list() if column.name in truth.columns else [None] * len(said)
    return [
        {
            "row": int(row) + 1,
            "inputs": {c.name: c.rules.draw(drawn[c.name][i]) for c in shown},
            "truth": "" if true[i] is None else _text(true[i]),
            "prediction": _text(said[i]),
        }
        for i, row in enumerate(order)
    ]


def _oddest(bound: Bound, column: Column, frame: pl.DataFrame, answers: pl.DataFrame, found: scoring.Predicted) -> list[dict[str, Any]]:
    """The rows with the highest score of the last label, and why, where nobody knows the truth."""
    assert found.scores is not None
    score_B = found.scores[:, -1]
    rows = _worst(bound, column, frame, answers, found, score_B)
    why = _odd.reasons(bound, frame[[row["row"] - 1 for row in rows]])
    return [
        {"row": r["row"], "inputs": r["inputs"], "prediction": r["prediction"], "score": r["loss"], "why": text}
        for r, text in zip(rows, why, strict=True)
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "∅"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _slices(
    bound: Bound,
    column: Column,
    truth: pl.DataFrame,
    found: scoring.Predicted,
    is_true: np.ndarray,
    headline: str | None,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The headline metric where a category has one value, or a number lies in one quarter; the worst first."""
    if headline is None:
        return []
    slices = []
    for source in bound.pipeline.inputs:
        for name, mask in _masks(source, truth[source.name]):
            if SLICE_ROWS <= mask.sum() < len(mask):
                value = scoring.evaluate_output(column.kind, is_true[mask], found.take(mask), [headline], **options)[headline]
                slices.append({"slice": name, "rows": int(mask.sum()), "metric": headline, **value})
    defined = [s for s in slices if s["value"] == s["value"]]
    sign = 1 if defined and defined[0]["better"] == "higher" else -1
    return sorted(defined, key=lambda s: sign * s["value"])[:SLICES]


def _masks(source: Column, values: pl.Series) -> list[tuple[str, np.ndarray]]:
    if source.kind == "category":
        top = values.drop_nulls().value_counts(sort=True).head(8)[source.name].to_list()
        return [(f"{source.name} = {v}", (values == v).fill_null(False).to_numpy()) for v in top]
    if source.kind == "number" and values.n_unique() > 8:
        cuts = [float(values.quantile(q) or 0.0) for q in (0.25, 0.5, 0.75)]
        x = values.fill_null(float("nan")).to_numpy()
        bounds = [-np.inf, *cuts, np.inf]
        return [(f"{source.name} {a:.4g} … {b:.4g}", (x > a) & (x <= b)) for a, b in pairwise(bounds) if a < b]
    if source.kind == "text":
        size = values.str.len_chars().fill_null(0).to_numpy()
        middle = float(np.median(size))
        return [
            (f"{source.name}: up to {middle:.0f} characters", size <= middle),
            (f"{source.name}: longer than {middle:.0f}", size > middle),
        ]
    return []
