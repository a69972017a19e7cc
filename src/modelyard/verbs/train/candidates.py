"""`train.preset: balanced | best`: many models, judged on the rows that each did not learn from, ranked, and averaged into one.

Every candidate is fitted once for each fold of the training rows and answers the fold that it did not see (out-of-fold answers). These
rank the candidates and choose the ensemble (`ensemble.py`). What is kept of a candidate is small: where the family can, its fold models
are joined into one state (trees: one forest; linear: mean weights), else it is fitted again on all rows (k-NN) or its fold models
stay as parts (nets). Nothing is fitted on a row and judged on it, and the test rows are never looked at.

A finished candidate is written to `checkpoints/candidates/`, so a run that is killed goes on with those it had.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.data.folds import Fold, folds
from modelyard.errors import ModelyardError
from modelyard.kinds._contract import Array, take
from modelyard.runtime.answers import Graph
from modelyard.runtime.composite import combine
from modelyard.runtime.pipeline import Pipeline, dense
from modelyard.store import checkpoint
from modelyard.store.state import pack, restore
from modelyard.tasks._binding import Bound
from modelyard.verbs.train import balanced, calibrate, ensemble, learner, monotone
from modelyard.verbs.train.ensemble import Truth
from modelyard.verbs.train.weights import row_weights

if TYPE_CHECKING:
    from modelyard.data.split import SplitConfig
    from modelyard.verbs.train import _Job

BLOCK = 512


@dataclass(frozen=True)
class Preset:
    """How much is tried."""

    folds: int
    budget: float
    """Seconds, where `train.budget` says nothing."""
    first: tuple[dict[str, Any], ...]
    """Model sections in the order they are tried; after them, trees with settings drawn at random until the time is over."""


TREES: tuple[dict[str, Any], ...] = (
    {"name": "trees", "bags": 1},
    {"name": "trees", "bags": 1, "extra": True},
    {"name": "trees", "bags": 1, "lr": 0.03, "leaves": 12, "features": 0.5, "l2": 5.0},
    {"name": "trees", "bags": 1, "lr": 0.03, "leaves": 128, "min_leaf": 5, "features": 0.9},
)
"""Boosted trees: the default, one with thresholds drawn at random (Geurts et al. 2006), a small and a large one."""

LINEAR, FOREST = {"name": "linear"}, {"name": "forest", "variant": "extra", "trees": 60, "min_leaf": 5}
"""The forest of a fold is small, since those of all folds are joined: five times 60 trees."""

PRESETS = {
    "balanced": Preset(5, 300, (TREES[0], LINEAR, TREES[1], FOREST, *TREES[2:])),
    "best": Preset(8, 1200, (TREES[0], LINEAR, *TREES[1:], FOREST, {"name": "mlp"}, {"name": "neighbours"}, {**FOREST, "variant": "random"})),
}

SHARE = 0.25
"""Share of the budget that a candidate may take; the first, without which there is no model, may take `FIRST`."""
FIRST = 0.6

MEANT, STACKED = 5, 12
"""Candidates that a mean or a vote takes, and a stack."""

RESERVE = 0.06
"""Share of the budget kept for the choice, saving and loading back."""


@dataclass
class Member:
    """One model that can be saved: the whole of a candidate, or one of its fold models."""

    section: dict[str, Any]
    """Of the manifest."""
    graphs: dict[str, Graph]
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Candidate:
    """One model section and what came of it."""

    label: str
    section: dict[str, Any]
    pipeline: Pipeline | None = None
    members: list[Member] = field(default_factory=list)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Out-of-fold graph outputs (N, size); NaN where a row was never held out."""
    seconds: float = 0.0
    predict_seconds: float = 0.0
    """For a thousand rows."""
    reason: str = ""
    """Why it has no score, where it has none."""
    weight: float = 0.0
    loss: float = math.nan

    @property
    def bytes(self) -> int:
        """Size of what would be saved."""
        return sum(a.nbytes for m in self.members for a in (*m.parameters.values(), *m.arrays.values()))


@dataclass
class Rows:
    """The rows that are learnt from, and how they are held out."""

    bound: Bound
    """`train` holds all of them; `valid` is gone where it was cut from them."""
    folds: list[Fold]
    held: np.ndarray
    """(N,) whether a fold holds the row out."""
    weights: np.ndarray | None


@dataclass
class Search:
    """What is fixed for a whole search."""

    job: _Job
    rows: Rows
    budget: float
    began: float
    encoded: dict[str, tuple[Pipeline, dict[str, Array], dict[str, Array]]] = field(default_factory=dict)
    """By names of the encodings: fitted pipeline, inputs, targets."""

    @property
    def left(self) -> float:
        """Seconds for fitting."""
        return (1 - RESERVE) * self.budget - (time.monotonic() - self.began)

    def say(self, text: str) -> None:
        """Tells the progress bar."""
        if self.job.progress is not None:
            self.job.progress(min(int(time.monotonic() - self.began), int(self.budget)), max(1, int(self.budget)), text)


def searches(section: Any, bound: Bound, preset: str) -> bool:
    """Whether this model section asks for a search here: `auto` beyond the preset `quick`, for inputs that candidates read."""
    asked = section if isinstance(section, str) or section is None else section.get("name")
    scalar = all(c.rules.scalar for c in bound.pipeline.inputs)
    supervised = all(t.supervised for t in bound.tasks.values())
    return asked in (None, "auto") and preset in PRESETS and scalar and supervised and bound.stream is None and bound.environment is None


def search(bound: Bound, section: Any, job: _Job, split: SplitConfig) -> tuple[Path, dict[str, Any], Bound, dict[str, np.ndarray]]:
    """(model folder, facts, the rows as they were learnt from, out-of-fold graph outputs of the chosen whole).

    Raises the first candidate's error where none could be fitted.
    """
    preset = PRESETS[job.config.preset]
    job.say(f"{job.config.preset}: candidates judged on {preset.folds} folds of {bound.rows['train'] + bound.rows.get('valid', 0)} rows")
    found = Search(job, divide(bound, split, preset.folds, job.config.seed), job.config.budget or preset.budget, time.monotonic())
    tried: list[Candidate] = []
    for number, one in enumerate(_wanted(section, preset, job.config.seed)):
        done = [c for c in tried if not c.reason]
        if (done and found.left <= _least(done)) or (job.stop.is_set() and done):
            break
        if candidate := _try(found, number, one, alone=not done):
            tried.append(candidate)
    usable = [c for c in tried if not c.reason]
    if not usable:
        raise ModelyardError(f"no candidate could be fitted; the first: {tried[0].reason}")
    rule, outputs = _weigh(found, usable)
    job.say(f"{sum(c.weight > 0 for c in usable)} of {len(tried)} candidates make the model")
    if job.config.distil is not None:
        return _distilled(found, tried, outputs)
    return _finish(found, tried, usable, rule, outputs)


def divide(bound: Bound, split: SplitConfig, k: int, seed: int) -> Rows:
    """All training rows with their folds. Validation rows that were cut from the same table at random are learnt from too, since
    every fold has its own; those that came as a file, a column or the end of a time stay apart and are the only fold."""
    train, valid = bound.splits["train"], bound.splits.get("valid")
    targets = [c.name for c in bound.pipeline.outputs]
    apart = valid is not None and valid.height and ("valid" in bound.source.tables or split.time or split.column)
    splits = {name: frame for name, frame in bound.splits.items() if name not in ("train", "valid")}
    if apart:
        assert valid is not None
        whole = pl.concat([train, valid])
        made = [(np.arange(train.height), np.arange(train.height, whole.height))]
        splits["valid"] = valid
    else:
        bound.source.refuse_folds("this preset, which judges by folds,")
        whole = train if valid is None or not valid.height else pl.concat([train, valid])
        made = folds(whole, split, targets, k, seed=seed)
    held = np.zeros(whole.height, bool)
    for _, out in made:
        held[out] = True
    weights = None if bound.weight is None else whole[bound.weight].cast(pl.Float64).to_numpy().astype(np.float32)
    return Rows(dataclasses.replace(bound, splits={"train": whole, **splits}), made, held, weights)


def _wanted(section: Any, preset: Preset, seed: int) -> Iterator[dict[str, Any]]:
    """Model sections: the user's own list, else the preset's and then random trees."""
    own = None if isinstance(section, str) or section is None else section.get("candidates")
    if own:
        yield from ({"name": one} if isinstance(one, str) else dict(one) for one in own)
        return
    yield from preset.first
    random = np.random.default_rng([seed, 7])
    for _ in range(200):
        yield {
            "name": "trees", "bags": 1, "lr": round(float(np.exp(random.uniform(math.log(0.015), math.log(0.1)))), 4),
            "leaves": int(np.exp(random.uniform(math.log(6), math.log(160)))), "min_leaf": int(np.exp(random.uniform(math.log(2), math.log(80)))),
            "features": round(float(random.uniform(0.3, 1.0)), 2), "rows": round(float(random.uniform(0.5, 1.0)), 2),
            "l2": round(float(np.exp(random.uniform(math.log(0.1), math.log(30)))), 2), **({"extra": True} if random.random() < 0.3 else {}),
        }  # fmt: skip


def _least(done: list[Candidate]) -> float:
    """Seconds without which no further candidate is begun: what the quickest one took."""
    return min(c.seconds for c in done)


def _try(found: Search, number: int, section: dict[str, Any], *, alone: bool) -> Candidate | None:
    """One candidate with its out-of-fold answers; None where it does not know such columns at all."""
    name = str(section.get("name"))
    candidate = Candidate(f"{number:02d}-{name.replace('/', '-')}", section)
    kept = found.job.run.folder / "checkpoints" / "candidates" / candidate.label
    began = time.monotonic()
    try:
        choice = learner.choose(section, found.rows.bound.pipeline, found.rows.bound.tasks, found.rows.held.size)
        if found.job.resume and _again(found, candidate, choice, kept):
            return candidate
        found.say(candidate.label)
        limit = min(found.left, (FIRST if alone else SHARE) * found.budget)
        if choice.estimator:
            _fit_estimator(found, candidate, choice, limit, alone)
        else:
            _fit_net(found, candidate, choice, limit, alone)
    except (ModelyardError, MemoryError) as error:
        candidate.reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    candidate.seconds = time.monotonic() - began
    if candidate.reason:
        candidate.members, candidate.outputs = [], {}
    else:
        _keep(candidate, kept)
    found.job.run.event({"event": "candidate", "model": candidate.label, "seconds": round(candidate.seconds, 2), "reason": candidate.reason})
    return candidate


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


def _fit_estimator(found: Search, candidate: Candidate, choice: learner.Choice, limit: float, alone: bool) -> None:
    module = registry.load("estimators", str(choice.estimator))
    pipeline, inputs, targets = _arrays(found, choice)
    candidate.pipeline = pipeline
    heads, rows, seed = pipeline.heads(), found.rows, found.job.config.seed
    states: list[Any] = []
    more, heavy = monotone.options(choice, pipeline), row_weights(found.job.config, pipeline, targets, rows.weights)

    def fit(index: np.ndarray, held: np.ndarray | None, seconds: float) -> Any:
        weights = None if heavy is None else heavy[index]
        valid = None if held is None else (_some(inputs, held), _some(targets, held))
        return module.fit(
            _some(inputs, index), _some(targets, index), heads, choice.config, weights=weights, valid=valid, seed=seed, budget_s=seconds,
            **more,
        )  # fmt: skip

    def one(index: np.ndarray, held: np.ndarray, seconds: float) -> Callable[[dict[str, Array]], dict[str, np.ndarray]]:
        states.append(fit(index, held, seconds))
        return lambda some: module.apply(some, states[-1])

    if not _by_folds(found, candidate, inputs, one, limit, alone):
        return
    if len(states) == 1:
        state = states[0]
    elif hasattr(module, "join"):
        state = module.join(states)
    else:
        every = balanced.fold(rows.bound, found.job.config, np.arange(len(rows.held)))
        state = fit(every, None, max(1.0, found.left))
    arrays: dict[str, np.ndarray] = {}
    section = {"backend": "numpy", "estimator": choice.estimator, "state": pack(state, "model", arrays)}
    candidate.members = [Member(section, {"main": lambda some: module.apply(some, state)}, arrays=arrays)]


def _fit_net(found: Search, candidate: Candidate, choice: learner.Choice, limit: float, alone: bool) -> None:
    from modelyard.runtime.backends.torch import graphs as torch_graphs
    from modelyard.verbs.train import fit_net

    pipeline, inputs, targets = _arrays(found, choice)
    candidate.pipeline = pipeline
    rows, job = found.rows, found.job
    members: list[Member] = []

    def one(index: np.ndarray, held: np.ndarray, seconds: float) -> Graph:
        spec, families = fit_net.describe(choice, pipeline, len(index))
        weights = None if rows.weights is None else rows.weights[index]
        config = dataclasses.replace(job.config, budget=max(1.0, seconds), smoke=False)
        section, network, parameters, *_ = fit_net.fit(
            spec, families, pipeline, rows.bound.tasks, (_some(inputs, index), _some(targets, index)),
            (_some(inputs, held), _some(targets, held)), config, weights=weights, folder=None, resume=False,
            events=lambda event: None, stop=job.stop, progress=None, device=job.device,
        )  # fmt: skip
        members.append(Member(section, torch_graphs(network), parameters))
        return members[-1].graphs["main"]

    if _by_folds(found, candidate, inputs, one, limit, alone):
        candidate.members = members


Fitter = Callable[[np.ndarray, np.ndarray, float], Callable[[dict[str, Any]], dict[str, np.ndarray]]]
"""(rows to learn from, rows held out, seconds) -> graph."""


def _by_folds(found: Search, candidate: Candidate, inputs: Mapping[str, Array], fit: Fitter, limit: float, alone: bool) -> bool:
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
        graph = fit(balanced.fold(found.rows.bound, found.job.config, index), held, max(0.1, (limit - spent) / (len(made) - done)))
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


def _keep(candidate: Candidate, folder: Path) -> None:
    arrays = {f"out/{k}": v for k, v in candidate.outputs.items()}
    for i, member in enumerate(candidate.members):
        arrays |= {f"{i}/parameters/{k}": v for k, v in member.parameters.items()} | {f"{i}/arrays/{k}": v for k, v in member.arrays.items()}
    meta = {
        "section": candidate.section, "seconds": candidate.seconds, "predict_seconds": candidate.predict_seconds,
        "members": [m.section for m in candidate.members],
    }  # fmt: skip
    checkpoint.save(folder, 0, arrays, meta)


def _again(found: Search, candidate: Candidate, choice: learner.Choice, folder: Path) -> bool:
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


# -- the choice -------------------------------------------------------------------------------------------------------------


def _weigh(found: Search, usable: list[Candidate]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sets losses and weights of all candidates; (the rule that combines those with a weight, graph outputs of the whole on the rows
    held out), the latter by the very function that will answer."""
    held, pipeline = found.rows.held, usable[0].pipeline
    assert pipeline is not None
    truths = _truths(found, pipeline)
    library = [{t.head.key: ensemble.answers(t.head, c.outputs[t.head.key][held]) for t in truths} for c in usable]
    for candidate, one in zip(usable, library, strict=True):
        candidate.loss = ensemble.total(truths, one)
    rule = _rule(found.job.config.ensemble, usable, truths, library, held)
    parts = [{k: v[held] for k, v in c.outputs.items()} for c in usable if c.weight > 0]
    mixed = combine(parts, pipeline.outputs, rule) if len(parts) > 1 else parts[0]
    whole = {key: np.full((len(held), value.shape[1]), np.nan, np.float32) for key, value in mixed.items()}
    for key, value in mixed.items():
        whole[key][held] = value
    return rule, whole


def _truths(found: Search, pipeline: Pipeline) -> list[Truth]:
    _, _, targets = next(iter(found.encoded.values()))
    parts = {"category": "index", "label-set": "multi_hot", "number": "value"}
    weights = None if found.rows.weights is None else found.rows.weights[found.rows.held]
    return [Truth(h, np.asarray(targets[f"{h.output}.{parts[h.kind]}"])[found.rows.held], weights) for h in pipeline.heads()]


def _rule(
    how: str, usable: list[Candidate], truths: list[Truth], library: list[dict[str, np.ndarray]], held: np.ndarray
) -> dict[str, Any]:
    """The rule over the candidates that it gives a weight; how they are combined is `train.ensemble`."""
    best = sorted(range(len(usable)), key=lambda i: usable[i].loss)
    if how == "select":
        weights = ensemble.select(truths, library)
    else:
        most = {"single": 1, "stack": STACKED}.get(how, MEANT)
        weights = [1 / min(most, len(best)) if i in best[:most] else 0.0 for i in range(len(usable))]
    for candidate, weight in zip(usable, weights, strict=True):
        candidate.weight = weight
    chosen = [c for c in usable if c.weight > 0]
    if how == "stack":
        learnt = {t.head.key: ensemble.stack(t, np.stack([c.outputs[t.head.key][held] for c in chosen])) for t in truths}
        for i, candidate in enumerate(chosen):  # shown on the leaderboard: the share over all outputs
            candidate.weight = float(np.mean([w[i] / max(sum(w), 1e-12) for w, _ in learnt.values()])) or 1e-9
        return {"combine": "stack", "stack": {k: {"weights": w, "shifts": b} for k, (w, b) in learnt.items()}}
    if how in ("mean", "vote"):
        return {"combine": how}
    return {"combine": "weights", "weights": [c.weight for c in chosen]}


def _spread(rule: dict[str, Any], counts: list[int]) -> dict[str, Any]:
    """The rule over all members, where candidate i has `counts[i]` of them (fold models of a net) that share its weight."""
    if max(counts) == 1:
        return rule
    again = lambda weights: [w / n for w, n in zip(weights, counts, strict=True) for _ in range(n)]  # noqa: E731
    if rule["combine"] == "stack":
        return {**rule, "stack": {k: {**v, "weights": again(v["weights"])} for k, v in rule["stack"].items()}}
    if rule["combine"] == "vote":
        return {"combine": "vote"}
    return {"combine": "weights", "weights": again(rule.get("weights") or [1 / len(counts)] * len(counts))}


def _finish(
    found: Search, tried: list[Candidate], usable: list[Candidate], rule: dict[str, Any], outputs: dict[str, np.ndarray]
) -> tuple[Path, dict[str, Any], Bound, dict[str, np.ndarray]]:
    """Saves the chosen candidates: one as it is, several as a composite with their weights."""
    from modelyard.verbs.train.compose import compose
    from modelyard.verbs.train.save import save

    run, name = found.job.run, found.job.name
    seconds = time.monotonic() - found.began
    facts = {"training": {"seconds": seconds, "candidates": len(tried)}, "seed": found.job.config.seed, "out_of_fold": True}
    chosen = [c for c in usable if c.weight > 0]
    parts = [(c, m, f"{c.label}.{i}" if len(c.members) > 1 else c.label) for c in chosen for i, m in enumerate(c.members)]
    config, frame = found.job.config, found.rows.bound.splits["train"]
    fitted = chosen[0].pipeline
    assert fitted is not None
    held = calibrate.out_of_fold(fitted, frame, outputs) if calibrate.wanted(config) else None
    folders: dict[str, Path] = {}
    rows: list[dict[str, Any]] | None = None
    for candidate, member, label in parts:
        assert candidate.pipeline is not None
        own = dataclasses.replace(found.rows.bound, pipeline=candidate.pipeline)
        target = run.model if len(parts) == 1 else run.folder / "parts" / label
        if not (target / "manifest.json").is_file():
            whole = config if len(parts) == 1 else None  # of several the composite is calibrated, not its parts
            save(target, name, own, member.section, member.graphs, member.parameters, member.arrays, facts, whole, rows, held)
        if rows is None:
            rows = stored_rows(target)
        folders[label] = target
    folder = run.model
    if len(parts) > 1:
        rule = _spread(rule, [len(c.members) for c in chosen])
        folder = compose(run.model, name, folders, rule, facts, found.rows.bound, config, held)
    first = parts[0][0]
    assert first.pipeline is not None
    facts["leaderboard"] = leaderboard(found, tried, first.pipeline)
    return folder, facts, dataclasses.replace(found.rows.bound, pipeline=first.pipeline), outputs


def _distilled(
    found: Search, tried: list[Candidate], outputs: dict[str, np.ndarray]
) -> tuple[Path, dict[str, Any], Bound, dict[str, np.ndarray]]:
    """One small model that learnt the answers of the whole (Hinton, Vinyals & Dean 2015, with out-of-fold answers as in Fakoor et al. 2020).

    Its own validation scores are not given: the answers it learnt came from models that saw other rows' labels.
    """
    from modelyard.verbs.train.distil import distil

    own, section, graphs, parameters, arrays = distil(found, outputs)
    from modelyard.verbs.train.save import save

    facts = {
        "training": {"seconds": time.monotonic() - found.began, "candidates": len(tried)}, "seed": found.job.config.seed, "out_of_fold": True,
        "distilled_from": [c.label for c in tried if c.weight > 0],
    }  # fmt: skip
    folder = save(found.job.run.model, found.job.name, own, section, graphs, parameters, arrays, facts, found.job.config)
    facts["leaderboard"] = leaderboard(found, tried, own.pipeline)
    return folder, facts, own, {}


def stored_rows(folder: Path) -> list[dict[str, Any]]:
    """The example rows of a model folder."""
    import json

    rows: list[dict[str, Any]] = json.loads((folder / "examples.json").read_text(encoding="utf-8"))["rows"]
    return rows


def leaderboard(found: Search, tried: list[Candidate], pipeline: Pipeline) -> list[dict[str, Any]]:
    """One entry for each candidate, the best first and what failed last: score with its interval, seconds, size, weight, reason."""
    frame = found.rows.bound.splits["train"].filter(pl.Series(found.rows.held))
    entries = []
    for c in sorted(tried, key=lambda c: (bool(c.reason), c.loss)):
        settings = {k: v for k, v in c.section.items() if k not in ("name", "bags")}
        entry: dict[str, Any] = {"model": c.label, "settings": settings, "fit_seconds": round(c.seconds, 2)}
        if c.reason:
            entries.append(entry | {"reason": c.reason})
            continue
        scores = headline(pipeline, frame, {k: v[found.rows.held] for k, v in c.outputs.items()})
        entries.append(
            entry | {"loss": round(c.loss, 6), "weight": round(c.weight, 4), "scores": scores, "bytes": c.bytes,
                     "predict_seconds_per_1000": round(c.predict_seconds, 5)}
        )  # fmt: skip
    return entries


def headline(pipeline: Pipeline, truth: pl.DataFrame, outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The first metric of every output with its interval."""
    from modelyard import metrics as scoring
    from modelyard.verbs.evaluate import predicted

    answers = pl.DataFrame(pipeline.decode(outputs, {}))
    found = {}
    for column in pipeline.outputs:
        true = column.rules.evidence(truth[column.name], column.coder, column.state)
        said = predicted(column, answers, None)
        labels = getattr(column.state, "labels", None)
        name = scoring.DEFAULTS[column.kind][0]
        found[column.name] = {"metric": name, **scoring.evaluate_output(column.kind, true, said, [name], labels=labels)[name]}
    return found
