"""Judges a saved model on its own test rows or on new data: metrics with intervals, a baseline, and gates.

    modelyard evaluate
    modelyard evaluate runs/churn-0001 data=new.csv
    modelyard evaluate evaluate.metrics=[roc_auc,f1]
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelyard.errors import ConfigError, Problem
from modelyard.verbs.evaluate._judge import Evaluation, judge

__all__ = ["Config", "Evaluation", "gates", "judge"]

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`evaluate`: what is measured and what must hold."""

    metrics: list[str] | None = None
    """Metrics by name; without it those of the output's kind. The first is the headline."""
    gate: dict[str, str] = field(default_factory=dict)
    """metric (or output.metric) → condition such as `>= 0.80`; a missed gate makes the command exit 1."""
    positive: str | None = None
    """The label that precision, recall and F1 of two classes are about; without it the last one."""
    threshold: str | None = None
    """Tune decision thresholds on the validation rows for this metric (`f1`); makes a child model."""

    def __post_init__(self) -> None:
        for name, condition in self.gate.items():
            parse_gate(name, condition)


def parse_gate(name: str, condition: str) -> tuple[Any, float]:
    """(comparison, limit) of `>= 0.8`; raises `ValueError` saying what is allowed."""
    found = re.fullmatch(r"\s*(>=|<=|>|<)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*", str(condition))
    if not found:
        raise ValueError(f"gate.{name}: got {condition!r}, expected a comparison such as '>= 0.80'")
    return OPERATORS[found[1]], float(found[2])


def gates(metrics: Mapping[str, Any], wanted: Mapping[str, str]) -> list[dict[str, Any]]:
    """`{metric, value, limit, passed}` for each gate; an undefined metric fails. Raises `ConfigError` for unknown names."""
    flat = {}
    for name, entry in metrics.items():
        if "value" in entry:
            flat[name] = entry["value"]
        else:
            flat |= {f"{name}.{metric}": e["value"] for metric, e in entry.items()}
    unknown = [name for name in wanted if name not in flat]
    if unknown:
        details = [Problem(f"was not measured; there are {', '.join(flat)}", f"evaluate.gate.{name}") for name in unknown]
        raise ConfigError(f"evaluate.gate names {', '.join(unknown)}, which was not measured", details)
    found = []
    for name, condition in wanted.items():
        compare, limit = parse_gate(name, condition)
        value = flat[name]
        found.append({"metric": name, "value": value, "limit": condition, "passed": value == value and bool(compare(value, limit))})
    return found
