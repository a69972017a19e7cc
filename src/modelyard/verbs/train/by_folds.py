"""Fits one candidate of a search by folds, and keeps what is finished across kills."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelyard import registry
from modelyard.kinds._contract import Array, concat, take
from modelyard.runtime.answers import Graph
from modelyard.runtime.pipeline import Pipeline, dense
from modelyard.store import checkpoint
from modelyard.store.state import pack, restore
from modelyard.verbs.train import balanced, learner, monotone
from modelyard.verbs.train.candidates import Candidate, Member, Search
from modelyard.verbs.train.weights import row_weights

BLOCK = 512
"""Rows that pass through a graph together."""


def _arrays(found: Search, choice: learner.Choice) -> tuple[Pipeline, dict[str, Array], dict[str, Array]]:
    """The rows as this family reads them; encoded once for all families that read them alike."""
    pipeline = copy.deepcopy(found.rows.bound.pipeline)
    learner.set_encodings(choice, pipeline)
    key = repr([(c.name, c.encoding, c.config) for c in pipeline.inputs])
    if key not in found.encoded:
        frame = found.rows.bound.splits["train"]
        pipeline.fit([frame])
        encoded = pipeline.encode(frame)
        found.encoded[key] = pipeline, encoded.arrays, pipeline.targets(frame, encoded.contexts)
    return found.encoded[key]


@dataclass
class Lesson:
    """What one model learns from."""

    inputs: dict[str, Array]
    targets: dict[str, Array]
    index: np.ndarray
    """(B,) number of each row, or of the row that it was made from: where its weight stands."""


def lesson(found: Search, pipeline: Pipeline, inputs: Mapping[str, Array], targets: Mapping[str, Array], learnt: np.ndarray) -> Lesson:
    """The rows `learnt`, balanced where `train.balance` asks for it; made rows are encoded as all others are."""
    key = learnt.tobytes()
    if key not in found.lots:
        found.lots[key] = balanced.fold(found.rows.bound, found.job.config, learnt)
    index, made = found.lots[key]
    if not made.height:
        return Lesson(_some(inputs, index), _some(targets, index), index)
    stored, encoded = index[: len(index) - made.height], pipeline.encode(made)
    own = pipeline.targets(made, encoded.contexts)
    return Lesson(_joined(_some(inputs, stored), encoded.arrays), _joined(_some(targets, stored), own), index)


def _joined(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array]:
    return {name: concat([array, second[name]]) for name, array in first.items()}


def fit_estimator(found: Search, candidate: Candidate, choice: learner.Choice, limit: float, alone: bool) -> None:
    """Fits an estimator for every fold; its fold models are joined, or it is fitted once more on all rows."""
    module = registry.load("estimators", str(choice.estimator))
    pipeline, inputs, targets = _arrays(found, choice)
    candidate.pipeline = pipeline
    heads, rows, seed = pipeline.heads(), found.rows, found.job.config.seed
    states: list[Any] = []
    more, heavy = monotone.options(choice, pipeline), row_weights(found.job.config, pipeline, targets, rows.weights)

    def fit(learnt: Lesson, held: np.ndarray | None, seconds: float) -> Any:
        weights = None if heavy is None else heavy[learnt.index]
        valid = None if held is None else (_some(inputs, held), _some(targets, held))
        return module.fit(
            learnt.inputs, learnt.targets, heads, choice.config, weights=weights, valid=valid, seed=seed, budget_s=seconds, **more,
        )  # fmt: skip

    def one(learnt: Lesson, held: np.ndarray, seconds: float) -> Callable[[dict[str, Array]], dict[str, np.ndarray]]:
        states.append(fit(learnt, held, seconds))
        return lambda some: module.apply(some, states[-1])

    if not _by_folds(found, candidate, inputs, targets, one, limit, alone):
        return
    if len(states) == 1:
        state = states[0]
    elif hasattr(module, "join"):
        state = module.join(states)
    else:
        state = fit(lesson(found, pipeline, inputs, targets, np.arange(len(rows.held))), None, max(1.0, found.left))
    arrays: dict[str, np.ndarray] = {}
    section = {"backend": "numpy", "estimator": choice.estimator, "state": pack(state, "model", arrays)}
    candidate.members = [Member(section, {"main": lambda some: module.apply(some, state)}, arrays=arrays)]


def fit_net(found: Search, candidate: Candidate, choice: learner.Choice, limit: float, alone: bool) -> None:
    """Trains a net for every fold; each is a member of its own."""
    from modelyard.runtime.backends.torch import graphs as torch_graphs
    from modelyard.verbs.train import fit_net as nets

    pipeline, inputs, targets = _arrays(found, choice)
    candidate.pipeline = pipeline
    rows, job = found.rows, found.job
    members: list[Member] = []

    def one(learnt: Lesson, held: np.ndarray, seconds: float) -> Graph:
        spec, families = nets.describe(choice, pipeline, len(learnt.index))
        weights = None if rows.weights is None else rows.weights[learnt.index]
        config = dataclasses.replace(job.config, budget=max(1.0, seconds), smoke=False)
        section, network, parameters, *_ = nets.fit(
            spec, families, pipeline, rows.bound.tasks, (learnt.inputs, learnt.targets),
            (_some(inputs, held), _some(targets, held)), config, weights=weights, folder=None, resume=False,
            events=lambda event: None, stop=job.stop, progress=None, device=job.device,
        )  # fmt: skip
        members.append(Member(section, torch_graphs(network), parameters))
        return members[-1].graphs["main"]

    if _by_folds(found, candidate, inputs, targets, one, limit, alone):
        candidate.members = members


Fitter = Callable[[Lesson, np.ndarray, float], Callable[[dict[str, Any]], dict[str, np.ndarray]]]
"""(what to learn from, rows held out, seconds) -> graph."""


def _by_folds(
    found: Search, candidate: Candidate, inputs: Mapping[str, Array], targets: Mapping[str, Array], fit: Fitter, limit: float, alone: bool
) -> bool:
    """Fits every fold and collects its answers; False, with the reason, where the time would not do for all of them."""
    began, made = time.monotonic(), found.rows.folds
    asked, rows = 0.0, 0
    for done, (index, held) in enumerate(made):
        spent = time.monotonic() - began
        if done and not alone and spent / done * len(made) > 1.1 * limit:
            candidate.reason = f"needs about {spent / done * len(made):.0f} s for {len(made)} folds; it may take {limit:.0f} s"
            return False
        if done and not alone and found.job.stop.is_set():
            candidate.reason = "interrupted"
            return False
        assert candidate.pipeline is not None
        learnt = lesson(found, candidate.pipeline, inputs, targets, index)
        graph = fit(learnt, held, max(0.1, (limit - spent) / (len(made) - done)))
        begin = time.monotonic()
        for key, value in answer(graph, inputs, held).items():
            whole = candidate.outputs.setdefault(key, np.full((len(found.rows.held), value.shape[1]), np.nan, np.float32))
            whole[held] = value
        asked, rows = asked + time.monotonic() - begin, rows + len(held)
    candidate.predict_seconds = 1000 * asked / max(1, rows) * (len(made) if len(made) > 1 else 1)
    return True


def answer(graph: Graph, inputs: Mapping[str, Array], index: np.ndarray) -> dict[str, np.ndarray]:
    """Graph outputs of some rows, block by block."""
    blocks = [graph(dense(_some(inputs, index[low : low + BLOCK]))) for low in range(0, len(index), BLOCK)]
    return {key: np.concatenate([b[key] for b in blocks]) for key in blocks[0]}


def _some(arrays: Mapping[str, Array], index: np.ndarray) -> dict[str, Array]:
    return {name: take(array, index) for name, array in arrays.items()}


# -- kept across kills ------------------------------------------------------------------------------------------------------


def keep(candidate: Candidate, folder: Path) -> None:
    """Writes a finished candidate."""
    arrays = {f"out/{k}": v for k, v in candidate.outputs.items()}
    for i, member in enumerate(candidate.members):
        arrays |= {f"{i}/parameters/{k}": v for k, v in member.parameters.items()} | {f"{i}/arrays/{k}": v for k, v in member.arrays.items()}
    meta = {
        "section": candidate.section, "seconds": candidate.seconds, "predict_seconds": candidate.predict_seconds,
        "members": [m.section for m in candidate.members],
    }  # fmt: skip
    checkpoint.save(folder, 0, arrays, meta)


def again(found: Search, candidate: Candidate, choice: learner.Choice, folder: Path) -> bool:
    """Takes a candidate that an interrupted run had finished."""
    stored = checkpoint.load(folder) if folder.is_dir() else None
    if stored is None or stored[1]["section"] != candidate.section:
        return False
    arrays, meta, _ = stored
    candidate.pipeline, *_ = _arrays(found, choice)
    pick = lambda prefix: {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}  # noqa: E731
    candidate.outputs = pick("out/")
    candidate.seconds, candidate.predict_seconds = meta["seconds"], meta["predict_seconds"]
    for i, section in enumerate(meta["members"]):
        member = Member(section, {}, pick(f"{i}/parameters/"), pick(f"{i}/arrays/"))
        member.graphs = _graphs(member, candidate.pipeline)
        candidate.members.append(member)
    return True


def _graphs(member: Member, pipeline: Pipeline) -> dict[str, Graph]:
    if "estimator" in member.section:
        module = registry.load("estimators", member.section["estimator"])
        state = restore(module.State, member.section["state"], member.arrays)
        return {"main": lambda some: module.apply(some, state)}
    import torch

    from modelyard.nets import _network
    from modelyard.runtime.backends.torch import graphs

    network = _network.build(member.section["net"], pipeline.parts(), pipeline.cardinalities(), pipeline.heads(), trust_code=True)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in member.parameters.items()})
    return graphs(network.eval())
