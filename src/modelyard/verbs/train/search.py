"""`train.preset: balanced | best`: many models, judged on the rows that each did not learn from, ranked, and averaged into one.

Every candidate is fitted once for each fold of the training rows and answers the fold that it did not see (out-of-fold answers). These
rank the candidates and choose the ensemble (`ensemble.py`). What is kept of a candidate is small: where the family can, its fold models
are joined into one state (trees: one forest; linear: mean weights), else it is fitted again on all rows (k-NN) or its fold models
stay as parts (nets). Nothing is fitted on a row and judged on it, and the test rows are never looked at.

A finished candidate is written to `checkpoints/candidates/`, so a run that is killed goes on with those it had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import ModelyardError
from modelyard.tasks._binding import Bound
from modelyard.verbs.train import by_folds, chosen, learner
from modelyard.verbs.train.candidates import Candidate, Search, divide

if TYPE_CHECKING:
    from modelyard.data.split import SplitConfig
    from modelyard.verbs.train import _Job
    from modelyard.verbs.train.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """How much is tried."""

    folds: int
    budget: float
    """Seconds, where `train.budget` says nothing."""
    first: tuple[dict[str, Any], ...]
    """Model sections in the order they are tried; after them, trees with settings drawn at random until the time is over."""

    @property
    def possible(self) -> list[dict[str, Any]]:
        """Those of `first` whose packages are installed."""
        return [one for one in self.first if one["name"] not in EXTRAS or find_spec(EXTRAS[one["name"]]) is not None]


TREES: tuple[dict[str, Any], ...] = (
    {"name": "trees", "bags": 1},
    {"name": "trees", "bags": 1, "extra": True},
    {"name": "trees", "bags": 1, "lr": 0.03, "leaves": 12, "features": 0.5, "l2": 5.0},
    {"name": "trees", "bags": 1, "lr": 0.03, "leaves": 128, "min_leaf": 5, "features": 0.9},
)
"""Boosted trees: the default, one with thresholds drawn at random (Geurts et al. 2006), a small and a large one."""

LINEAR, FOREST = {"name": "linear"}, {"name": "forest", "variant": "extra", "trees": 60, "min_leaf": 5}
"""The forest of a fold is small, since those of all folds are joined: five times 60 trees."""

EXTRAS = {"catboost": "catboost"}
"""Candidates that are tried only where a package is installed. CatBoost's symmetric trees err elsewhere than LightGBM's."""

PRESETS = {
    "balanced": Preset(5, 300, (TREES[0], LINEAR, TREES[1], FOREST, *TREES[2:])),
    "best": Preset(
        8, 1200,
        (TREES[0], LINEAR, {"name": "catboost"}, *TREES[1:], FOREST, {"name": "mlp"}, {"name": "neighbours"}, {**FOREST, "variant": "random"}),
    ),
}

SHARE = 0.25
"""Share of the budget that a candidate may take; the first, without which there is no model, may take `FIRST`."""
FIRST = 0.6


def searches(section: Any, bound: Bound, preset: str) -> bool:
    """Whether this model section asks for a search here: `auto` beyond the preset `quick`, for inputs that candidates read."""
    asked = section if isinstance(section, str) or section is None else section.get("name")
    scalar = all(c.rules.scalar for c in bound.pipeline.inputs)
    supervised = all(t.supervised for t in bound.tasks.values())
    return asked in (None, "auto") and preset in PRESETS and scalar and supervised and bound.stream is None and bound.environment is None


def planned(section: Any, config: TrainConfig) -> tuple[list[str], dict[str, Any]]:
    """(candidates in the order they will be tried, facts) of a search, for people."""
    preset = PRESETS[config.preset]
    own = None if isinstance(section, str) or section is None else section.get("candidates")
    listed = [{"name": one} if isinstance(one, str) else one for one in own] if own else preset.possible
    names = [" ".join([str(one["name"]), *(f"{k}={v}" for k, v in one.items() if k not in ("name", "bags"))]) for one in listed]
    more = [] if own else ["trees with settings at random"]
    facts = {"preset": config.preset, "folds": preset.folds, "budget": f"{config.budget or preset.budget:.0f} s", "ensemble": config.ensemble}
    return names + more, facts | ({"distil": config.distil} if config.distil else {})


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
    rule, outputs = chosen.weigh(found, usable)
    job.say(f"{sum(c.weight > 0 for c in usable)} of {len(tried)} candidates make the model")
    if job.config.distil is not None:
        return chosen.distilled(found, tried, outputs)
    return chosen.finish(found, tried, usable, rule, outputs)


def _wanted(section: Any, preset: Preset, seed: int) -> Iterator[dict[str, Any]]:
    """Model sections: the user's own list, else the preset's and then random trees."""
    own = None if isinstance(section, str) or section is None else section.get("candidates")
    if own:
        yield from ({"name": one} if isinstance(one, str) else dict(one) for one in own)
        return
    yield from preset.possible
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
        if found.job.resume and by_folds.again(found, candidate, choice, kept):
            return candidate
        found.say(candidate.label)
        limit = min(found.left, (FIRST if alone else SHARE) * found.budget)
        if choice.estimator:
            by_folds.fit_estimator(found, candidate, choice, limit, alone)
        else:
            by_folds.fit_net(found, candidate, choice, limit, alone)
    except (ModelyardError, MemoryError) as error:
        candidate.reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    candidate.seconds = time.monotonic() - began
    if candidate.reason:
        candidate.members, candidate.outputs = [], {}
    else:
        by_folds.keep(candidate, kept)
    found.job.run.event({"event": "candidate", "model": candidate.label, "seconds": round(candidate.seconds, 2), "reason": candidate.reason})
    return candidate
