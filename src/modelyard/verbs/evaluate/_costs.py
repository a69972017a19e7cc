"""What mistakes cost: read from `evaluate.costs`, measured per row, and minimised on validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.errors import ConfigError, Problem
from modelyard.metrics._interval import wilson
from modelyard.runtime.pipeline import Column

PAIR = ("false_positive", "false_negative")


def matrix(costs: Mapping[str, Any] | None, column: Column, positive: str | None) -> np.ndarray | None:
    """Cost (K, K) of answering k (column) where i is true (row); for a label set (2, 2) of one label. None where none are given.

    With several outputs `costs` holds one map per output. Raises `ConfigError` with every mistake.
    """
    labels = getattr(column.state, "labels", None)
    if not costs or column.kind not in ("category", "label-set") or not labels:
        return None
    if column.name in costs and isinstance(costs[column.name], Mapping) and column.name not in labels:
        costs = costs[column.name]
    where = "evaluate.costs"
    problems: list[Problem] = []
    if set(costs) & set(PAIR):
        if stray := sorted(set(costs) - set(PAIR)):
            problems.append(Problem(f"{', '.join(stray)} does not go with {' and '.join(PAIR)}", where))
        if column.kind == "category" and len(labels) != 2:
            problems.append(Problem(f"{column.name} has {len(labels)} labels: write a map true label → predicted label → cost", where))
        if positive is not None and column.kind == "category" and positive not in labels:
            problems.append(Problem(f"got {positive!r}, expected one of {', '.join(labels)}", "evaluate.positive"))
        found = {name: _number(costs.get(name, 0), f"{where}.{name}", problems) for name in PAIR}
        out = np.array([[0.0, found["false_positive"]], [found["false_negative"], 0.0]])
        turned = column.kind == "category" and not problems and positive == labels[0]
        out = out[::-1, ::-1] if turned else out
    elif column.kind == "label-set":
        problems.append(Problem(f"{column.name} is a label set: write {' and '.join(PAIR)}, the costs of one label", where))
    else:
        out = np.zeros((len(labels), len(labels)))
        for truth, row in costs.items():
            if truth not in labels or not isinstance(row, Mapping):
                problems.append(Problem(f"expected a map of labels ({', '.join(labels)}) to costs", f"{where}.{truth}"))
                continue
            for answer, cost in row.items():
                if answer not in labels:
                    problems.append(Problem(f"is no label; expected one of {', '.join(labels)}", f"{where}.{truth}.{answer}"))
                else:
                    out[labels.index(truth), labels.index(answer)] = _number(cost, f"{where}.{truth}.{answer}", problems)
    if problems:
        raise ConfigError(f"evaluate.costs has {len(problems)} mistake(s)", problems)
    return out


def _number(value: Any, where: str, problems: list[Problem]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    problems.append(Problem(f"got {value!r}, expected a number", where))
    return 0.0


def per_row(costs_KK: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Cost of each row, `(N,)`: ids (N,), or multi-hot (N, K) summed over the labels; rows with an unknown truth are left out."""
    if truth.ndim == 2:
        return np.asarray(costs_KK[truth.astype(np.int64), answer.astype(np.int64)].sum(1))
    known = truth >= 0
    return np.asarray(costs_KK[truth[known], answer[known]])


def entry(costs_N: np.ndarray) -> dict[str, Any]:
    """Mean cost of a row with its normal 95 % interval, as metrics are written."""
    if not len(costs_N):
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "better": "lower", "note": "not defined: no rows"}
    mean, half = float(costs_N.mean()), 1.96 * float(costs_N.std(ddof=1) if len(costs_N) > 1 else 0.0) / len(costs_N) ** 0.5
    return {"value": mean, "low": mean - half, "high": mean + half, "better": "lower", "note": "cost of a row"}


def promises(column: Column, truth: Any, answers: Any) -> dict[str, Any]:
    """Coverage of conformal sets or intervals (with Wilson's interval) and their mean size, where the model gives any."""
    name = column.name
    if f"{name}.set" in answers.columns:
        held = answers[f"{name}.set"]
        inside = np.array([t in s for t, s in zip(truth.to_list(), held.to_list(), strict=True)])
        size, what = held.list.len().to_numpy().astype(np.float64), "set_size"
    elif f"{name}.low" in answers.columns:
        low, high, value = (s.to_numpy().astype(np.float64) for s in (answers[f"{name}.low"], answers[f"{name}.high"], truth))
        inside, size, what = (low <= value) & (value <= high), high - low, "interval_width"
    else:
        return {}
    bounds = wilson(float(inside.sum()), float(len(inside)))
    found = {"coverage": {"value": float(inside.mean()), "low": bounds[0], "high": bounds[1], "better": "higher"}}
    return found | {what: {**entry(size), "note": "mean"}}
