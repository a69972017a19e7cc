"""Teaches a smaller model the answers of the one that came in: labels by a temperature (`losses/distillation.py`), numbers by its value and sets of
labels by its probabilities, each with a share of the row's own. The teacher may be anything that answers: a net, trees, an ensemble.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from modelyard import registry
from modelyard.errors import ConfigError, Unsupported
from modelyard.kinds._contract import Array, Head, take
from modelyard.settings import Between
from modelyard.tasks._binding import Bound, input_column

if TYPE_CHECKING:
    import torch

    from modelyard.runtime.model import Model
    from modelyard.verbs.compress._work import Work

NET = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """`distil`."""

    to: dict[str, Any] = field(default_factory=dict)
    """The student as in `model:` (name: mlp, hidden: [64])."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the student reads columns, as in `data.inputs` ({review: {encoding: bag, buckets: 8192}}); without it as its family does."""
    epochs: Annotated[int, Between(1)] | None = None
    """Without it those of the student's family."""
    temperature: Annotated[float, Between(0.1, 20)] = 2.0
    """Above 1 the teacher's second thoughts weigh more."""
    alpha: Annotated[float, Between(0, 1)] = 0.7
    """Weight of the teacher's answer beside the row's own label."""
    features: Annotated[float, Between(0, 100)] = 0.0
    """Weight of matching the teacher's features before its heads, through a linear map that is thrown away (FitNets); both must be nets."""
    attention: Annotated[float, Between(0, 1000)] = 0.0
    """Weight of matching where an image net looks (the squares of its last convolution over all channels); images are not changed while it learns."""
    seed: int = 0


def apply(work: Work, folder: Path, config: Config, target: Path) -> Path:
    """The student's model folder."""
    from modelyard.verbs.train import learner

    if not config.to:
        raise ConfigError("distil needs a student; write {distil: {to: {name: mlp, hidden: [64]}}}")
    bound = work.bound
    choice = learner.choose(config.to, bound.pipeline, bound.tasks, bound.splits["train"].height)
    if choice.parts or choice.user:
        raise Unsupported("distil makes one model of a family; name mlp, cnn, trees or another", "use")
    pipeline = copy.deepcopy(bound.pipeline)
    if unknown := sorted(set(config.inputs) - {c.name for c in pipeline.inputs}):
        raise ConfigError(f"distil.inputs names {', '.join(unknown)}; the model reads {', '.join(c.name for c in pipeline.inputs)}")
    for column in pipeline.inputs:  # the teacher's encodings are no wish of anybody's: trees keep numbers raw, which a net cannot read
        named = input_column(column.name, column.kind, config.inputs.get(column.name, {}), where=f"distil.inputs.{column.name}")
        column.encoding, column.config = named.encoding, named.config
    learner.set_encodings(choice, pipeline)
    pipeline.fit([bound.splits["train"]])
    own = dataclasses.replace(bound, pipeline=pipeline)
    if choice.estimator:
        return _estimator(work, own, choice, config, target)
    from modelyard.verbs.train import fit_net

    spec, families = fit_net.describe(choice, pipeline, bound.splits["train"].height)
    return learn(work, own, spec, families, config, target, f"distil {next(iter(spec['nets'].values()))['name']}")


def learn(
    work: Work, bound: Bound, spec: Mapping[str, Any], families: list[dict[str, object]], config: Config, target: Path, relation: str,
    weights: Mapping[str, torch.Tensor] | None = None, around: Callable[[torch.nn.Module], Callable[[], None]] | None = None,
) -> Path:  # fmt: skip
    """Trains a net of `spec` on the teacher's answers, from `weights` where given, and saves it.

    `around` changes the net while it learns (its numbers are rounded, for one) and gives what takes that away again. Where it is given the net may have
    outputs of any kind: those that are not distilled learn the rows' own truths, as in training.
    """
    import torch

    from modelyard.data.batches import Batches
    from modelyard.nets import _network
    from modelyard.runtime.backends.torch import graphs
    from modelyard.verbs.train import fit_net
    from modelyard.verbs.train.config import TrainConfig, resolve
    from modelyard.verbs.train.loop import Fit, Term
    from modelyard.verbs.train.save import save

    pipeline, heads = bound.pipeline, bound.pipeline.heads()
    asked = TrainConfig(seed=config.seed, epochs=config.epochs, patience=0, mixup=0.0)
    train, _ = resolve(asked, *families)
    rows = bound.splits["train"]
    encoded = pipeline.encode(rows)
    targets: dict[str, Array] = {}
    terms = []
    own = pipeline.targets(rows, encoded.contexts)
    taught = [h for h in heads if around is None or taught_here(h, bound)]
    outputs = teacher_outputs(work.teacher, rows, taught) if taught else {}
    for head in heads:
        if head not in taught:
            targets |= own
            terms.append(fit_net.term(pipeline, bound.tasks[head.output], head.output, head.key, train, own))
            continue
        key, name, options = f"{head.output}.taught", *_loss(head, config)
        targets[key] = _target(head, outputs[head.key], own, config)
        terms.append(Term(head.key, key, registry.load("losses", name).loss, options, 1.0, None, None))
    hints: dict[str, np.ndarray] = {}
    if config.features or config.attention:
        from modelyard.verbs.compress import _hints

        hints = _hints.of_teacher(work.teacher, rows, config.features > 0, config.attention > 0, work.trust_code)
        for key, weight in ((_hints.FEATURES, config.features), (_hints.ATTENTION, config.attention)):
            if key in hints:
                targets[key] = hints[key]
                terms.append(Term(key, key, _hints.loss, {"mean": key == _hints.FEATURES}, weight, None, None))
    statistics = fit_net.statistics(pipeline)
    network = _network.build(spec, pipeline.parts(), pipeline.cardinalities(), heads, seed=config.seed, statistics=statistics)
    if weights is not None:
        network.load_state_dict(dict(weights), strict=True)
    count = len(next(iter(encoded.arrays.values())))
    batches = Batches(encoded.arrays, targets, batch=int(train.batch or 1), seed=config.seed, drop_last=count > 2 * int(train.batch or 1))
    rewrite = fit_net.rewriting(bound.tasks, pipeline, train) if len(taught) < len(heads) else None
    undo = around(network) if around is not None else None
    augment = None if config.attention else fit_net.augmentation(train, pipeline)
    hinted = _hints.Hinted(network, hints) if hints else None
    job = Fit(hinted or network, terms, batches, None, train, augment=augment, rewrite=rewrite)
    with torch.random.fork_rng(devices=[]):
        job.run(None, lambda event: None, threading.Event())
    if hinted is not None:
        hinted.watched.stop()
    if undo is not None:
        undo()
    network.eval()
    stored = network.stored() if hasattr(network, "stored") else network.state_dict()  # type: ignore[operator]
    state = {k: v.detach().contiguous().numpy() for k, v in stored.items()}
    facts = {"parents": [{"version": work.teacher.version, "relation": relation}], "seed": config.seed}
    beside = fit_net.beside(network, pipeline) or None
    return save(target, work.teacher.name, bound, fit_net.section(spec, network), graphs(network), state, {}, facts, beside=beside)


def taught_here(head: Head, bound: Bound) -> bool:
    """Whether a teacher's answers to this output can be learnt: labels, sets of labels and numbers, one for a row, that are no part of what a task makes
    up itself."""
    task = bound.tasks[head.output]
    return head.kind in ("category", "label-set", "number") and not (task.aligned or task.rewrites)


def teacher_outputs(teacher: Model, rows: Any, heads: list[Head]) -> dict[str, np.ndarray]:
    """The teacher's graph outputs for rows by key. Raises `Unsupported` where it answers in another form than the student."""
    outputs, _ = teacher.outputs(rows.select([c.name for c in teacher.pipeline.inputs]))
    if missing := [h.key for h in heads if h.key not in outputs]:
        raise Unsupported(f"the teacher does not answer with {', '.join(missing)}; distil it into a family of the same task", "never")
    return outputs


def _loss(head: Head, config: Config) -> tuple[str, dict[str, Any]]:
    if head.kind == "category":
        return "distillation", {"temperature": config.temperature, "alpha": config.alpha}
    if head.kind == "label-set":
        return "binary_cross_entropy", {}
    if head.kind == "number":
        return "mse", {}
    raise Unsupported(f"outputs of kind {head.kind} are not distilled; leave the stage out", "not yet")


def _target(head: Head, teacher: np.ndarray, own: Mapping[str, Array], config: Config) -> np.ndarray:
    """What the student's output is compared with."""
    if head.kind == "category":
        labels = np.asarray(own[f"{head.output}.index"], np.float32).reshape(-1, 1)
        return np.concatenate([teacher.astype(np.float32), labels], 1)
    if head.kind == "label-set":
        share = 1 / (1 + np.exp(-teacher.astype(np.float64)))
        return (config.alpha * share + (1 - config.alpha) * np.asarray(own[f"{head.output}.multi_hot"], np.float64)).astype(np.float32)
    value = np.asarray(own[f"{head.output}.value"], np.float64).reshape(-1)
    return (config.alpha * teacher.astype(np.float64).reshape(-1) + (1 - config.alpha) * value).astype(np.float32)


def _estimator(work: Work, bound: Bound, choice: Any, config: Config, target: Path) -> Path:
    """A student that fits itself: rows copied for each label, weighted by the teacher's probability (`verbs/train/distil.py`)."""
    from modelyard.store.state import pack
    from modelyard.verbs.train.distil import soft
    from modelyard.verbs.train.save import save

    pipeline, heads, rows = bound.pipeline, bound.pipeline.heads(), bound.splits["train"]
    encoded = pipeline.encode(rows)
    index, weights, targets = soft(heads, pipeline.targets(rows, encoded.contexts), teacher_outputs(work.teacher, rows, heads), None)
    inputs = {name: take(array, index) for name, array in encoded.arrays.items()}
    module = registry.load("estimators", choice.estimator)
    state = module.fit(inputs, targets, heads, choice.config, weights=weights, seed=config.seed, budget_s=None)
    arrays: dict[str, np.ndarray] = {}
    section = {"backend": "numpy", "estimator": choice.estimator, "state": pack(state, "model", arrays)}
    facts = {"parents": [{"version": work.teacher.version, "relation": f"distil {choice.estimator}"}], "seed": config.seed}
    return save(target, work.teacher.name, bound, section, {"main": lambda some: module.apply(some, state)}, {}, arrays, facts)
