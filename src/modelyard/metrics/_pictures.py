"""The data behind the pictures of an evaluation: small JSON values, thinned, with what was thinned.

Every picture gets at most about 2,000 marks: curves are cut to 200 points each (the largest steps stay), points are
counted in
hexagons beyond 2,000 rows, and scatter plots of clusters show a seeded sample. `of` always says how many rows there
were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelyard.metrics._confusion import confusion_matrix
from modelyard.metrics._contract import Predicted, Undefined, classes
from modelyard.metrics._ranking import auc, average_precision, curve
from modelyard.metrics._scores import probabilities_BK

MARKS = 2000
CURVE_POINTS = 200
CURVES = 8
BINS = 15


def picture_data(
    kind: str, truth: np.ndarray | None, predicted: Predicted, *, labels: Sequence[Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """`{picture name: data}` of one output, of whatever the model gives. Rows without truth are left out."""
    predicted = predicted.decided(kind)
    found_ids, scores, values = predicted.labels, predicted.scores, predicted.values
    if kind == "cluster":
        return {} if found_ids is None else cluster_pictures(found_ids, predicted.features, seed)
    if truth is None or not len(truth):
        return {} if truth is not None or kind != "category" or scores is None else {"scores": plain_scores(probabilities_BK(scores), labels)}
    if kind == "number":
        return {} if values is None else number_pictures(truth, values)
    if kind == "category":
        known = truth >= 0
        if not known.any():
            return {}
        names = [str(x) for x in labels] if labels is not None else [str(i) for i in range(classes(truth, truth, None))]
        found = {} if found_ids is None else {"confusion": confusion(truth[known], found_ids[known], names)}
        return {**found, **({} if scores is None else score_pictures(truth[known], scores[known], names))}
    names = [str(x) for x in labels] if labels is not None else [str(i) for i in range(truth.shape[1])]
    return {} if scores is None else score_pictures(truth, scores, names)


def confusion(truth: np.ndarray, found: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """`{labels, matrix}`, rows = truth."""
    return {"labels": list(labels), "matrix": confusion_matrix(truth, found, labels=labels).tolist()}


def score_pictures(truth: np.ndarray, scores: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """`roc`, `pr`, `calibration` and `scores` (histogram); beyond eight classes the curves are of the most frequent
    ones."""
    if truth.ndim == 1:
        scores = probabilities_BK(scores)
        shown = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
        is_true = {c: truth == c for c in shown}
    else:
        shown, is_true = list(range(truth.shape[1])), {c: truth[:, c].astype(bool) for c in range(truth.shape[1])}
    shown.sort(key=lambda c: -int(is_true[c].sum()))
    roc, pr = [], []
    for c in shown[:CURVES]:
        is_B = is_true[c]
        if not is_B.any() or is_B.all():
            continue
        one_B = np.ones(len(is_B))
        roc_value, _ = auc(is_B, scores[:, c], one_B)
        pr_value, _ = average_precision(is_B, scores[:, c], one_B)
        points = curve(is_B, scores[:, c])
        hits, alarms = points["hits"], points["false_alarms"]
        recall = hits / hits[-1]
        full = int(np.searchsorted(recall, 1.0)) + 1  # after the last hit the curve would only fall
        roc.append({"label": labels[c], "value": roc_value, **_thin(alarms / alarms[-1], recall, (0.0, 0.0))})
        pr.append(
            {
                "label": labels[c],
                "value": pr_value,
                "prior": float(is_B.mean()),
                **_thin(recall[:full], (hits / (hits + alarms))[:full]),
            }
        )
    found: dict[str, Any] = {
        "calibration": calibration(truth, scores),
        "scores": histogram_of_scores(truth, scores, labels),
    }
    if roc:
        more = {"of": len(shown), "rows": len(truth)}
        found |= {"roc": {"curves": roc, **more}, "pr": {"curves": pr, **more}}
    return found


def calibration(truth: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Reliability diagram: `bins` of equal width with mean confidence, accuracy and count (Guo et al. 2017, fig. 1).

    Two classes: the probability of the positive class; more: that of the predicted class; several labels: every pair.
    """
    if truth.ndim == 2:
        confidence, right, about = scores.ravel(), truth.ravel().astype(bool), "label"
    elif scores.shape[1] == 2:
        confidence, right, about = scores[:, 1], truth == 1, "positive"
    else:
        top = scores.argmax(axis=1)
        confidence, right, about = scores[np.arange(len(top)), top], top == truth, "predicted"
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, weights=confidence, minlength=BINS) / count
        rate = np.bincount(index, weights=right, minlength=BINS) / count
    bins = [
        {"confidence": float(mean[b]), "accuracy": float(rate[b]), "count": int(count[b])}
        for b in range(BINS)
        if count[b]
    ]
    return {"bins": bins, "of": len(truth), "about": about}


def plain_scores(scores: np.ndarray, labels: Sequence[Any] | None) -> dict[str, Any]:
    """Counts of the last label's scores in 20 bins, where nobody knows the truth; rows on the other side of one half apart."""
    edges = np.linspace(0, 1, 21)
    names = [str(x) for x in labels] if labels is not None else [str(k) for k in range(scores.shape[1])]
    last, chosen = scores[:, -1], scores.argmax(1)
    series = [{"label": names[k], "counts": np.histogram(last[chosen == k], edges)[0].tolist()} for k in range(scores.shape[1])]
    return {"edges": edges.tolist(), "series": series, "of": len(scores), "about": names[-1]}


def histogram_of_scores(truth: np.ndarray, scores: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Counts of scores in 20 bins: of the positive class by truth (two classes), else of the predicted class, right
    or wrong."""
    edges = np.linspace(0, 1, 21)
    if truth.ndim == 1 and scores.shape[1] == 2:
        groups = {labels[0]: scores[truth == 0, 1], labels[1]: scores[truth == 1, 1]}
        about = labels[1]
    elif truth.ndim == 1:
        top = scores.argmax(axis=1)
        best = scores[np.arange(len(top)), top]
        groups, about = {"right": best[top == truth], "wrong": best[top != truth]}, ""
    else:
        groups, about = {"present": scores[truth.astype(bool)], "absent": scores[~truth.astype(bool)]}, ""
    series = [{"label": name, "counts": np.histogram(x, edges)[0].tolist()} for name, x in groups.items()]
    return {"edges": edges.tolist(), "series": series, "about": about, "of": len(truth)}


def number_pictures(truth: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """`predicted_true` (x = truth) and `residuals` (x = prediction, y = truth − prediction)."""
    known = np.isfinite(truth) & np.isfinite(found)
    truth, found = truth[known].astype(np.float64), found[known].astype(np.float64)
    return {"predicted_true": points(truth, found), "residuals": points(found, truth - found)}


def points(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """`{x, y, of}` of up to 2,000 points, else counts in hexagons: `{x, y, count, radius: [rx, ry], of}`."""
    if len(x) <= MARKS:
        return {"x": _short(x), "y": _short(y), "of": len(x)}
    across = 32
    step_x = (float(np.ptp(x)) or 1.0) / across
    step_y = (float(np.ptp(y)) or 1.0) / (across * 0.75) * 2
    # Two interleaved rectangular grids; the nearer centre wins (Carr et al. 1987, JASA 82:424).
    u, v = (x - x.min()) / step_x, (y - y.min()) / step_y
    even = np.stack([np.round(u), np.round(v)])
    odd = np.stack([np.floor(u) + 0.5, np.floor(v) + 0.5])
    far = [(u - c[0]) ** 2 + 3 * (v - c[1]) ** 2 for c in (even, odd)]
    centre = np.where(far[0] <= far[1], even, odd)
    cells, count = np.unique(centre, axis=1, return_counts=True)
    return {
        "x": _short(cells[0] * step_x + x.min()),
        "y": _short(cells[1] * step_y + y.min()),
        "count": count.tolist(),
        "radius": [step_x / 2, step_y / 3],
        "of": len(x),
    }


def cluster_pictures(ids: np.ndarray, features: np.ndarray | None, seed: int = 0) -> dict[str, Any]:
    """`cluster_sizes` and `clusters`: rows along the two directions of largest variance (PCA)."""
    found_ids, sizes = np.unique(ids, return_counts=True)
    found: dict[str, Any] = {"cluster_sizes": {"labels": [str(i) for i in found_ids], "counts": sizes.tolist()}}
    if features is None or features.shape[0] < 3 or features.shape[1] < 1:
        return found
    some = np.arange(len(ids))
    if len(ids) > MARKS:
        some = np.sort(np.random.default_rng(seed).choice(len(ids), MARKS, replace=False))
    centred = np.asarray(features, np.float64) - features.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    best = np.argsort(-spread)[:2]
    plane = centred[some] @ axes[:, best]
    share = np.clip(spread[best], 0, None) / max(float(np.clip(spread, 0, None).sum()), 1e-300)
    y = plane[:, 1] if plane.shape[1] > 1 else np.zeros(len(some))
    found["clusters"] = {
        "x": _short(plane[:, 0]),
        "y": _short(y),
        "id": ids[some].tolist(),
        "explained": _short(share),
        "of": len(ids),
    }
    return found


def lengths(length_B: np.ndarray) -> dict[str, Any]:
    """Histogram of the lengths of a text column up to their 99.5 % quantile: `{edges, series, of, beyond}`."""
    if not len(length_B):
        raise Undefined("there are no rows")
    top = max(1, int(np.quantile(length_B, 0.995)))
    step = -(-(top + 1) // 30)  # whole numbers in every bin, or the bars form a comb
    edges = np.arange(0, top + 1 + step, step)
    counts = np.histogram(length_B, edges)[0]
    beyond = int((length_B > edges[-1]).sum())
    return {
        "edges": edges.tolist(),
        "series": [{"label": "", "counts": counts.tolist()}],
        "of": len(length_B),
        "beyond": beyond,
    }


def _thin(x: np.ndarray, y: np.ndarray, first: tuple[float, float] | None = None) -> dict[str, Any]:
    """A curve in at most 200 points, evenly along its own length, ends included."""
    if first is not None:
        x, y = np.append(first[0], x), np.append(first[1], y)
    if len(x) > CURVE_POINTS:
        way = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], CURVE_POINTS)).clip(0, len(x) - 1))
        x, y = x[kept], y[kept]
    return {"x": _short(x), "y": _short(y)}


def _short(values: np.ndarray) -> list[float]:
    """Five significant digits: pixels need no more, and the page stays small."""
    return [float(f"{v:.5g}") for v in values]
