"""Which metric of which output models are compared by."""

from __future__ import annotations

from modelyard import metrics
from modelyard.errors import ConfigError, Problem, Unsupported, UsageError
from modelyard.tasks._binding import Bound


def aim(bound: Bound, wanted: str | None, judged: list[str] | None, verb: str, split: str = "valid") -> tuple[str, str, str]:
    """(output, metric, better) by which `verb` compares models on the rows of `split`: `wanted` (metric or output.metric), else the first of those
    that the project judges by, the task's own and the kind's. Raises `ConfigError` and `Unsupported` with the reason."""
    if bound.environment is not None:
        raise Unsupported(f"{verb} scores models on validation rows, and an environment has none", "not yet")
    if split not in bound.splits or not bound.splits[split].height:
        raise Unsupported(f"{verb} scores models on validation rows, and the data has none; set data.split.valid", "needs")
    outputs = {c.name: c for c in bound.pipeline.outputs}
    output, _, name = wanted.rpartition(".") if wanted and wanted.rpartition(".")[0] in outputs else ("", "", wanted or "")
    column = outputs[output] if output else bound.pipeline.outputs[0]
    if not name:
        own = [*(judged or ()), *(bound.tasks[column.name].metrics or ()), *metrics.DEFAULTS.get(column.kind, ())]
        name = next((m for m in own if column.kind in metrics.get(m).kinds), "")
        if not name:
            raise Unsupported(f"there is no metric for outputs of kind {column.kind}", "needs")
    try:
        metric = metrics.get(name)
    except UsageError as error:
        raise ConfigError(f"{verb}.metric: {error.message}", error.details) from None
    if column.kind not in metric.kinds:
        message = f"{name} is for {' and '.join(metric.kinds)} outputs; {column.name} is of kind {column.kind}"
        raise ConfigError(f"{verb}.metric does not apply", [Problem(message, f"{verb}.metric", f"Use one of {', '.join(metrics.names(column.kind))}.")])
    brings = bound.tasks[column.name].examine is not None  # its truth is no column
    if column.name not in bound.splits[split].columns and metric.needs != "features" and not brings:
        reason = f"{metric.name} compares answers with known ones, and the data has no column {column.name}; name a target column, or a metric that needs none"
        raise Unsupported(reason, "needs")
    return column.name, name if "/" in name else metric.name, metric.better
