"""Says what train would do and writes nothing: every setting with its origin, rows, classes, parameters, files.

modelyard plan
modelyard plan data=customers.csv target=churned model=mlp
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modelyard import settings
from modelyard.tasks._binding import Bound, bind

SHOWN = 20
"""Rows that the preview of what is taught is drawn from."""


@dataclass
class Plan:
    """The plan."""

    settings: dict[str, Any]
    origins: dict[str, str]
    rows: dict[str, int]
    set_aside: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    model: list[str]
    parameters: int | None
    training: dict[str, Any]
    writes: list[str]
    notes: list[str]
    preview: list[list[tuple[str, bool]]] = field(default_factory=list)
    """Of language models: (token, whether it counts in the loss) of some rows."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = ["setting                          value                     origin"]
        for key, value in _flat(self.settings):
            origin = self.origins.get(key, "default")
            if origin != "default":
                lines.append(f"{key:<32} {value!s:<25} {origin}")
        lines += ["", "rows      " + ", ".join(f"{n} {s}" for s, n in self.rows.items()) + f"; {self.set_aside} set aside"]
        lines += ["inputs    " + ", ".join(f"{k} ({v})" for k, v in self.inputs.items())]
        lines += ["outputs   " + ", ".join(f"{k} ({v})" for k, v in self.outputs.items())]
        lines += ["model     " + ", ".join(self.model) + (f", {self.parameters:,} parameters" if self.parameters else "")]
        lines += ["training  " + ", ".join(f"{k} {v}" for k, v in self.training.items())]
        lines += ["writes    " + ", ".join(self.writes)]
        if self.preview:
            from modelyard.verbs.train.preview import in_brackets

            lines += ["", "taught with (what counts in the loss stands in ⟦ ⟧)", *(f"  {in_brackets(row)[:400]}" for row in self.preview)]
        return "\n".join(lines + [f"note: {n}" for n in self.notes])


def _flat(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        found += _flat(value, where) if isinstance(value, dict) and value else [(where, value)]
    return found


def describe(project: Any) -> Plan:
    """Bind the data and size the model; nothing is fitted but encodings on the training rows."""
    from modelyard.verbs.train import learner, search

    config = project.section("train")
    bound = bind(project.data, project.task, project.base, seed=config.seed)
    pipeline, model = bound.pipeline, learner.located(project.base, project.model.value)
    if search.searches(model, bound, config.preset):
        names, facts = search.planned(model, config)
        return _plan(project, bound, names, None, facts)
    choice = learner.choose(model, pipeline, bound.tasks, bound.rows["train"])
    parameters, training, seen = None, {}, []
    if choice.parts:
        training = dict(choice.combine)
    elif not choice.estimator:
        from modelyard.nets import _network
        from modelyard.verbs.train import align, fit_net
        from modelyard.verbs.train.config import resolve

        learner.set_encodings(choice, pipeline)
        pipeline.fit([bound.splits["train"]])
        spec, families = fit_net.describe(choice, pipeline, bound.rows["train"])
        used, origins = resolve(config, *align.defaults(config), *families)
        network = _network.build(spec, pipeline.parts(), pipeline.cardinalities(), pipeline.heads(), trust_code=True)
        parameters = sum(p.numel() for p in network.parameters())
        training = {k.split(".")[1]: getattr(used, k.split(".")[1]) for k in origins}
        seen = fit_net.previewed(network, pipeline, bound.splits["train"].head(SHOWN), used)
    else:
        training = settings.plain(choice.config)
    return _plan(project, bound, choice.names, parameters, training, seen)


def _plan(
    project: Any, bound: Bound, names: list[str], parameters: int | None, training: dict[str, Any],
    preview: list[list[tuple[str, bool]]] | None = None,
) -> Plan:
    folder = f"runs/{project.name}-NNNN/"
    files = ["config.yaml", "run.json", "events.jsonl", "metrics.json", "samples/", "plots/", "model/", "report.html"]
    outputs = {
        c.name: f"{c.kind}, {len(getattr(c.state, 'labels', []) or [])} classes" if getattr(c.state, "labels", None) else c.kind
        for c in bound.pipeline.outputs
    }
    return Plan(
        project.resolved(), project.origins, bound.rows, len(bound.set_aside), {c.name: c.kind for c in bound.pipeline.inputs}, outputs,
        names, parameters, training, [folder + f for f in files], bound.notes, preview or [],
    )  # fmt: skip


def run(project: Any, *, model: str | None = None, options: Any) -> Plan:
    """The verb."""
    return describe(project)
