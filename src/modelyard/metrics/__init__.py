"""Metrics with confidence intervals: one file per metric (`METRIC`), NumPy only.

evaluate_output("category", truth_B, Predicted(scores=probabilities_BK))
{"accuracy": {"value": 0.93, "low": 0.91, "high": 0.95, "better": "higher"}, ...}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelyard import registry
from modelyard.errors import Problem, UsageError
from modelyard.metrics._contract import Metric, Predicted, Sums, Undefined
from modelyard.metrics._interval import interval
from modelyard.metrics._pictures import picture_data

__all__ = [
    "DEFAULTS",
    "Metric",
    "Predicted",
    "Sums",
    "Undefined",
    "baseline",
    "evaluate_output",
    "get",
    "names",
    "picture_data",
]

DEFAULTS: dict[str, tuple[str, ...]] = {
    "category": (
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "f1",
        "macro_f1",
        "weighted_f1",
        "roc_auc",
        "average_precision",
        "log_loss",
        "brier",
        "calibration_error",
    ),
    "label-set": (
        "subset_accuracy",
        "hamming",
        "precision",
        "recall",
        "micro_f1",
        "macro_f1",
        "roc_auc",
        "average_precision",
        "log_loss",
        "calibration_error",
    ),
    "number": ("rmse", "mae", "mse", "r2"),
    "tags": ("entity_f1", "entity_precision", "entity_recall", "tag_accuracy"),
    "cluster": ("silhouette", "calinski_harabasz", "davies_bouldin", "adjusted_rand"),
}
"""Metrics reported when none are asked for, by kind of output; the first is the headline."""


def names(kind: str | None = None) -> list[str]:
    """Names of the built-in metrics (of one kind of output), as they appear in `metrics.json`."""
    every = [name.replace("-", "_") for name in registry.names("metrics")]
    return every if kind is None else [name for name in every if kind in get(name).kinds]


def get(name: str) -> Metric:
    """The metric called `name` (`roc_auc`, `roc-auc` or `package/name`)."""
    module = registry.load("metrics", name if "/" in name else name.replace("_", "-"))
    metric = module.METRIC
    assert isinstance(metric, Metric)
    return metric


def evaluate_output(
    kind: str,
    truth: np.ndarray | None,
    prediction: Predicted | np.ndarray,
    metrics: Sequence[str] | None = None,
    *,
    weights: np.ndarray | None = None,
    labels: Sequence[Any] | None = None,
    positive: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    intervals: bool = True,
) -> dict[str, dict[str, Any]]:
    """Every metric of one output: `{name: {value, low, high, better, note?}}`.

    `truth` is ids `(B,)` (negative = unknown), multi-hot `(B, K)`, numbers `(B,)` (NaN = unknown) or, for clusters, the
    true groups or None. A bare array is taken as what the kind suggests. An undefined metric has value, low and high
    NaN and a `note` that begins with "not defined". `intervals=False` leaves low and high NaN and costs one pass.
    Raises `UsageError` for names that do not exist or do not apply to the kind, all at once.
    """
    chosen = _chosen(kind, metrics)
    predicted = _as_predicted(kind, prediction).decided(kind)
    truth, predicted, weights, dropped = _known(kind, truth, predicted, weights)
    out: dict[str, dict[str, Any]] = {}
    for name, metric in chosen.items():
        pair = _arguments(metric, truth, predicted)
        if pair is None:
            if metrics is not None:
                out[name] = _undefined(metric, f"it needs {_NEEDS[metric.needs]}, which this model does not give")
            continue
        out[name] = _one(metric, *pair, weights, labels, positive, level, seed, intervals)
        if dropped:
            out[name]["note"] = "; ".join(
                filter(None, [out[name].get("note", ""), f"{dropped:,} rows without truth left out"])
            )
    return out


def baseline(
    kind: str, train_targets: np.ndarray | None, rows: int, *, labels: Sequence[Any] | None = None, lengths: Sequence[int] | None = None
) -> Predicted:
    """What a model that knows nothing but the training targets answers for `rows` rows.

    Category: the most frequent class, with the class shares as scores. Label set: the most frequent labels, as many
    as a row has on average (at least one), with their shares as scores. Number: the mean. Cluster: one cluster.
    Tags: the most frequent one for every word (`lengths` of the rows).
    """
    if kind == "cluster":
        return Predicted(labels=np.zeros(rows, np.int64))
    if train_targets is None or not len(train_targets):
        raise UsageError("a baseline needs training targets; got none")
    if kind == "number":
        return Predicted(values=np.full(rows, np.nanmean(np.asarray(train_targets, np.float64))))
    if kind == "tags":
        counts = Counter(tag for row in train_targets for tag in row)
        most = counts.most_common(1)[0][0] if counts else "O"
        tagged = np.empty(rows, object)
        tagged[:] = [(most,) * n for n in lengths or [0] * rows]
        return Predicted(labels=tagged)
    if kind == "category":
        ids = train_targets[train_targets >= 0]
        shares_K = np.bincount(ids, minlength=len(labels) if labels is not None else 2) / max(1, len(ids))
        best = np.full(rows, int(shares_K.argmax()), np.int64)
    elif kind == "label-set":
        shares_K = np.asarray(train_targets, np.float64).mean(axis=0)
        best_K = np.zeros(len(shares_K), np.int64)
        best_K[np.argsort(-shares_K, kind="stable")[: max(1, round(float(shares_K.sum())))]] = 1
        best = np.tile(best_K, (rows, 1))
    else:
        raise UsageError(f"there is no baseline for outputs of kind {kind!r}; expected one of {', '.join(DEFAULTS)}")
    return Predicted(labels=best, scores=np.tile(shares_K, (rows, 1)))


_NEEDS = {"labels": "labels", "scores": "probabilities", "values": "numbers", "features": "the encoded inputs"}


def _chosen(kind: str, metrics: Sequence[str] | None) -> dict[str, Metric]:
    if kind not in DEFAULTS and metrics is None:
        raise UsageError(f"there are no metrics for outputs of kind {kind!r}; expected one of {', '.join(DEFAULTS)}")
    chosen: dict[str, Metric] = {}
    problems: list[Problem] = []
    for name in metrics if metrics is not None else DEFAULTS[kind]:
        try:
            metric = get(name)
        except UsageError as error:
            problems += error.details or [Problem(error.message)]
            continue
        if kind not in metric.kinds:
            hint = f"Use one of {', '.join(names(kind))}."
            problems.append(
                Problem(f"{name!r} is for {' and '.join(metric.kinds)} outputs, not for {kind}", "metrics", hint)
            )
        chosen[name if "/" in name else metric.name] = metric
    if problems:
        raise UsageError("some metrics cannot be used", problems)
    return chosen


def _as_predicted(kind: str, prediction: Predicted | np.ndarray) -> Predicted:
    if isinstance(prediction, Predicted):
        return prediction
    if kind == "number":
        return Predicted(values=prediction)
    return (
        Predicted(scores=prediction) if np.issubdtype(prediction.dtype, np.floating) else Predicted(labels=prediction)
    )


def _known(
    kind: str, truth: np.ndarray | None, predicted: Predicted, weights: np.ndarray | None
) -> tuple[np.ndarray | None, Predicted, np.ndarray | None, int]:
    """Without the rows whose truth is unknown; and how many those were."""
    if truth is None or kind == "cluster" or truth.dtype == object:  # an outsider's kind knows its own unknowns
        return truth, predicted, weights, 0
    if kind == "category":
        known = truth >= 0
    else:
        known = np.isfinite(truth) if truth.ndim == 1 else np.isfinite(truth).all(axis=1)
    dropped = int(len(known) - known.sum())
    if not dropped:
        return truth, predicted, weights, 0
    return truth[known], predicted.take(known), None if weights is None else weights[known], dropped


def _arguments(metric: Metric, truth: np.ndarray | None, predicted: Predicted) -> tuple[np.ndarray, np.ndarray] | None:
    """(truth, prediction) for this metric; None where the model gives nothing it could use."""
    if metric.needs == "features":
        have = predicted.features is not None and predicted.labels is not None
        return (predicted.features, predicted.labels) if have else None  # type: ignore[return-value]
    part = {"labels": predicted.labels, "scores": predicted.scores, "values": predicted.values}[metric.needs]
    return None if part is None or truth is None else (truth, part)


def _one(
    metric: Metric,
    truth: np.ndarray,
    prediction: np.ndarray,
    weights: np.ndarray | None,
    labels: Sequence[Any] | None,
    positive: int | None,
    level: float,
    seed: int,
    intervals: bool,
) -> dict[str, Any]:
    notes = []
    if metric.limit is not None and len(truth) > metric.limit:
        notes.append(f"on {metric.limit:,} of {len(truth):,} rows, drawn at random")
        some = np.sort(np.random.default_rng(seed).choice(len(truth), metric.limit, replace=False))
        truth, prediction, weights = truth[some], prediction[some], None if weights is None else weights[some]
    given: dict[str, Any] = {"weights": weights, "labels": labels, "positive": positive}
    try:
        value = metric.compute(truth, prediction, **given)
        low, high, how = math.nan, math.nan, ""
        if intervals:
            low, high, how = interval(metric, truth, prediction, level=level, seed=seed, **given)
    except Undefined as reason:
        return _undefined(metric, str(reason))
    notes += [how] if " " in how else []
    found: dict[str, Any] = {"value": value, "low": low, "high": high, "better": metric.better}
    found |= metric.about(truth, prediction) if metric.about else {}
    return {**found, "note": "; ".join(notes)} if notes else found


def _undefined(metric: Metric, reason: str) -> dict[str, Any]:
    return {
        "value": math.nan,
        "low": math.nan,
        "high": math.nan,
        "better": metric.better,
        "note": f"not defined: {reason}",
    }
