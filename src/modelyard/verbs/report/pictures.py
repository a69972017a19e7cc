"""Every picture of a report: plain data in, an SVG string out.

The data of each name is what `modelyard.metrics._pictures.picture_data` gives (and `plots/<name>.json` holds):

    learning_curve, metric_curve, rate_curve   {x, series: [{label, y}], best}
    confusion       {labels, matrix}                     rows = truth
    roc, pr         {curves: [{label, value, x, y}], of, rows}
    calibration     {bins: [{confidence, accuracy, count}], of, about}
    scores, lengths {edges, series: [{label, counts}], of, about?, beyond?}
    predicted_true, residuals   {x, y, of} or, beyond 2,000 rows, {x, y, count, radius, of} in hexagons
    balance, cluster_sizes      {labels, counts}
    clusters        {x, y, id, explained, of}
    groups_tried    {by, groups, cells, tried: {number: criterion}}
    reliability     {split, error: {before, after}, before, after}     each as in `calibration`
    coverage        {promised, coverage, low, high, rows}
    leaderboard     {entries: [{model, weight, value, low, high}], metric, better}
    metrics         {items: [{name, value, low, high, baseline}]}
    importance      {items: [{name, value, low?, high?}], about?}
    pareto                            {metric, better, limit, points: [{stage, accepted, value, bytes, milliseconds_1}]}
    sensitivity                       {metric, better, limit, layers: [{name, shares, values}]}
    search_history, search_settings   {metric, better, best, axes: {key: {log, values}}, trials: [{trial, params, state, value, …}]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from modelyard.verbs.report._bars import counts, histogram, importance, metric_bars
from modelyard.verbs.report._board import board
from modelyard.verbs.report._curves import calibration, learning, learning_data, pr, roc
from modelyard.verbs.report._matrix import confusion
from modelyard.verbs.report._points import clusters, predicted_true, residuals
from modelyard.verbs.report._promises import coverage, reliability, tried
from modelyard.verbs.report._search import history, settings
from modelyard.verbs.report._stages import pareto, sensitivity
from modelyard.verbs.report._svg import standalone
from modelyard.verbs.report._words import Say, words

__all__ = ["PICTURES", "draw", "learning_data", "standalone"]

PICTURES: dict[str, Callable[[Mapping[str, Any], Say], str]] = {
    "learning_curve": partial(learning, title="learning_curve"),
    "metric_curve": partial(learning, title="metric_curve"),
    "rate_curve": partial(learning, title="rate_curve"),
    "leaderboard": board,
    "metrics": metric_bars,
    "confusion": confusion,
    "roc": roc,
    "pr": pr,
    "calibration": calibration,
    "reliability": reliability,
    "coverage": coverage,
    "scores": partial(histogram, title="scores"),
    "predicted_true": predicted_true,
    "residuals": residuals,
    "clusters": clusters,
    "groups_tried": tried,
    "cluster_sizes": partial(counts, title="cluster_sizes"),
    "importance": importance,
    "balance": partial(counts, title="balance"),
    "lengths": partial(histogram, title="lengths"),
    "pareto": pareto,
    "sensitivity": sensitivity,
    "search_history": history,
    "search_settings": settings,
}
"""In the order in which a report shows them."""


def draw(name: str, data: Mapping[str, Any], say: Say | None = None) -> str:
    """The picture called `name` as an SVG string; `say` is the reader's language (English by default)."""
    return PICTURES[name](data, say or words())
