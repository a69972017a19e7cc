"""What `model: auto` means: the family for each kind of input, by what was measured (docs/explanation/auto.md)."""

from __future__ import annotations

from typing import Any

from modelyard.errors import Unsupported
from modelyard.runtime.pipeline import TABLE, Pipeline
from modelyard.tasks._contract import Task

FAMILIES = {"text": "bag", "image": "cnn", TABLE: "mlp"}
"""The net that reads each kind of input when several are fused."""


def auto(pipeline: Pipeline, tasks: dict[str, Task], rows: int) -> dict[str, Any]:
    """The model section that `auto` stands for."""
    defaults = {task.default for task in tasks.values()} - {None}
    if defaults:
        return {"name": defaults.pop()}
    kinds = {c.kind for c in pipeline.inputs}
    if all(c.rules.scalar for c in pipeline.inputs):
        return {"name": "trees"}
    if kinds == {"text"}:
        return {"name": "linear"}
    unread = {name: kind for name, kind in families(pipeline).items() if kind not in FAMILIES}
    if unread:
        named = ", ".join(f"{name} ({kind})" for name, kind in unread.items())
        raise Unsupported(f"auto knows no net for {named}; name one under model, e.g. model: {{{next(iter(unread))}: NET}}", "use")
    return {name: {"name": FAMILIES[kind]} for name, kind in families(pipeline).items()}


def families(pipeline: Pipeline) -> dict[str, str]:
    """Kind of every network input; the scalars together are `table`."""
    return {TABLE if c.rules.scalar else c.name: TABLE if c.rules.scalar else c.kind for c in pipeline.inputs}
