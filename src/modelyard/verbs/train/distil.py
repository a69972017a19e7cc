"""Teaches one small model the answers of a search's whole (`train.distil`).

Labels are learnt from probabilities: every row stands once for each label that the teacher gives more than `LEAST`, weighted by that
probability, so that the loss of the copies is the cross-entropy against the teacher's answer, for estimators and nets alike. Of a label set
the copies are sets of labels, see `nested_sets`. Numbers are learnt as the mean of the teacher's value and the row's own, which keeps what
the teacher has smoothed away.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard import registry
from modelyard.errors import Unsupported
from modelyard.kinds._contract import Head, take
from modelyard.runtime.answers import Graph
from modelyard.store.state import pack
from modelyard.tasks._binding import Bound
from modelyard.verbs.train import ensemble, learner

if TYPE_CHECKING:
    from modelyard.verbs.train.candidates import Search

LEAST = 0.02
"""Probability below which a label of a row is not learnt (its share goes to the others)."""

Student = tuple[Bound, dict[str, Any], dict[str, Graph], dict[str, np.ndarray], dict[str, np.ndarray]]
"""(rows with the student's pipeline, manifest section, graphs, a net's parameters, an estimator's arrays)."""


def distil(found: Search, outputs: dict[str, np.ndarray]) -> Student:
    """The student; `outputs` are the teacher's out-of-fold graph outputs `(N, size)`, NaN where a row was never held out."""
    bound, config = found.rows.bound, found.job.config
    choice = learner.choose(config.distil, bound.pipeline, bound.tasks, len(found.rows.held))
    if choice.parts or choice.user:
        raise Unsupported("train.distil makes one model; name a family such as trees, linear or mlp", "use")
    pipeline = copy.deepcopy(bound.pipeline)
    learner.set_encodings(choice, pipeline)
    frame = bound.splits["train"]
    pipeline.fit([frame])
    encoded = pipeline.encode(frame)
    heads = pipeline.heads()
    if len(heads) > 1 and any(h.kind != "number" for h in heads):
        raise Unsupported("train.distil learns one output of labels, or any number of numbers; leave it out for several outputs", "not yet")
    index, weights, targets = soft(heads, pipeline.targets(frame, encoded.contexts), outputs, found.rows.weights)
    inputs = {name: take(array, index) for name, array in encoded.arrays.items()}
    own = dataclasses.replace(bound, pipeline=pipeline)
    if choice.estimator:
        module = registry.load("estimators", choice.estimator)
        state = module.fit(inputs, targets, heads, choice.config, weights=weights, seed=config.seed, budget_s=None)
        arrays: dict[str, np.ndarray] = {}
        section = {"backend": "numpy", "estimator": choice.estimator, "state": pack(state, "model", arrays)}
        return own, section, {"main": lambda some: module.apply(some, state)}, {}, arrays
    from modelyard.runtime.backends.torch import graphs
    from modelyard.verbs.train import fit_net

    spec, families = fit_net.describe(choice, pipeline, len(index))
    section, network, parameters, *_ = fit_net.fit(
        spec, families, pipeline, bound.tasks, (inputs, targets), None, dataclasses.replace(config, budget=None), weights=weights,
        folder=None, resume=False, events=lambda event: None, stop=found.job.stop, progress=found.job.progress, device=found.job.device,
    )  # fmt: skip
    return own, section, graphs(network), parameters, {}


def soft(
    heads: list[Head], targets: dict[str, Any], outputs: dict[str, np.ndarray], weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """(row of each copy, its weight, its targets) from the teacher's answers; rows without one keep their own labels."""
    rows = len(next(iter(outputs.values())))
    base = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    head = heads[0]
    if head.kind == "category":
        p = ensemble.answers(head, outputs[head.key])
        own = np.asarray(targets[f"{head.output}.index"])
        unknown = np.isnan(p[:, 0])
        p[unknown] = np.eye(head.size)[own[unknown]]
        p = np.where(p >= LEAST, p, 0.0)
        p /= p.sum(1, keepdims=True)
        index, label = np.nonzero(p)
        return index, (p[index, label] * base[index]).astype(np.float32), {f"{head.output}.index": label.astype(np.int64)}
    if head.kind == "label-set":
        own = np.asarray(targets[f"{head.output}.multi_hot"], np.float64)
        p = ensemble.answers(head, outputs[head.key])
        index, share, sets = nested_sets(np.where(np.isnan(p[:, :1]), own, p))
        return index, (share * base[index]).astype(np.float32), {f"{head.output}.multi_hot": sets}
    found = {}
    for head in heads:
        own = np.asarray(targets[f"{head.output}.value"], np.float64).reshape(-1)
        teacher = outputs[head.key][:, 0].astype(np.float64)
        found[f"{head.output}.value"] = np.where(np.isnan(teacher), own, (teacher + own) / 2).astype(np.float32)
    return np.arange(rows), base.astype(np.float32), found


def nested_sets(p_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row of each copy, its share of the row, its labels (S, K) as 0 and 1) whose shares add up to each label's probability.

    The sets of a row are {k: p_k > u} for u in [0, 1): at most one more than there are labels in doubt, and the cross-entropy of the
    copies, label by label, is that against the probabilities. Labels surer than `LEAST` either way are taken as known.
    """
    p_NK = np.where(p_NK < LEAST, 0.0, np.where(p_NK > 1 - LEAST, 1.0, p_NK))
    rows = len(p_NK)
    edges = np.concatenate([np.zeros((rows, 1)), np.sort(p_NK, 1), np.ones((rows, 1))], 1)
    share = np.diff(edges, axis=1)
    index, step = np.nonzero(share)
    sets = p_NK[index] >= edges[index, step + 1][:, None]
    return index, share[index, step], sets.astype(np.float32)
