"""Optuna's samplers and pruners (Akiba et al. 2019) behind ask, report and tell, made to repeat themselves.

Every trial is sampled by a fresh sampler whose seed is a function of (study seed, trial number), over a study in memory that
holds exactly the trials finished before it. So the next suggestion depends on the journal alone, and a study that was killed and
replayed goes on with the suggestions it would have made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import MissingExtra
from modelyard.verbs.tune._space import Choice, Dimension, Range, Space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

NAME = "tune"
"""Optuna's Hyperband draws brackets from the study's name and the trial's number: both are the same after a resume."""


def optuna() -> Any:
    """The package, or `MissingExtra` with the line that installs it."""
    try:
        import optuna as found
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "optuna":
            raise
        raise MissingExtra("optuna", "tune") from None
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells of every trial on stderr; our own lines do that."""
    package = optuna()
    before = package.logging.get_verbosity()
    package.logging.set_verbosity(package.logging.ERROR)
    try:
        yield
    finally:
        package.logging.set_verbosity(before)


ATTEMPTS = 200
"""Suggestions for one trial after which every combination counts as tried."""


@dataclass
class Asked:
    """A trial that runs."""

    number: int
    params: dict[str, Any]
    trial: Any


class Study:
    """One search; `method` is a module of this folder."""

    def __init__(self, method: ModuleType, space: Space, better: str, config: Any) -> None:
        self.method, self.space, self.config = method, space, config
        self.distributions = {key: distribution(dim) for key, dim in space.dimensions.items()}
        with quiet():
            direction = "maximize" if better == "higher" else "minimize"
            pruner = method.pruner(config) if method.PRUNES else optuna().pruners.NopPruner()
            # it never suggests: `_new` asks the method's sampler, and what it says is queued here
            idle = optuna().samplers.RandomSampler(seed=0)
            self.study = optuna().create_study(study_name=NAME, direction=direction, sampler=idle, pruner=pruner)

    def replay(self, trials: Mapping[int, Mapping[str, Any]]) -> None:
        """Puts trials of a journal in place, in order of number; those that did not finish are asked again first."""
        kit = optuna()
        states = {"complete": kit.trial.TrialState.COMPLETE, "pruned": kit.trial.TrialState.PRUNED, "failed": kit.trial.TrialState.FAIL}
        for _, entry in sorted(trials.items()):
            inner = {k: self._inner(k, v) for k, v in entry["params"].items()}
            if "state" not in entry:
                self.study.enqueue_trial(inner)
                continue
            # a trial pruned by the end of the budget before its first rung has no value; Optuna then wants it as failed
            known = entry["state"] != "failed" and entry.get("value") is not None
            frozen = kit.trial.create_trial(
                state=states[entry["state"]] if known else states["failed"],
                value=entry["value"] if known else None,
                params=inner,
                distributions={k: self.distributions[k] for k in inner},
                intermediate_values={self.step(i): v for i, v in enumerate(entry.get("rungs") or [])},
                system_attrs=entry.get("attrs") or {},
            )
            self.study.add_trial(frozen)

    def ask(self, fixed: Mapping[str, Any] | None = None) -> Asked | None:
        """The next trial: one that was cut short, else `fixed`, else what the sampler suggests; None where nothing new is left."""
        kit = optuna()
        with quiet():
            every = self.study.get_trials(deepcopy=False)
            if not any(t.state == kit.trial.TrialState.WAITING for t in every):
                fixed = fixed if fixed is not None else self._new(every)
                if fixed is None:
                    return None
                self.study.enqueue_trial({k: self._inner(k, v) for k, v in fixed.items()})
            trial = self.study.ask()
            return Asked(trial.number, self._drawn(trial), trial)

    def _new(self, every: list[Any]) -> dict[str, Any] | None:
        """What the sampler suggests for the next trial. The same settings give the same model, so they are not tried twice."""
        tried = {_key(self._outer(t.params)) for t in every}
        for attempt in range(ATTEMPTS):
            seed = seed_of(self.config.seed, len(every), attempt)
            # a sampler that has settled on one place of a small space suggests it again and again: chance finds what is left
            chance = optuna().samplers.RandomSampler(seed=seed)
            sampler = self.method.sampler(self.config, seed) if attempt < ATTEMPTS // 10 else chance
            params = self._drawn(self._seen(every, sampler).ask())
            if _key(params) not in tried:
                return params
        return None

    def _drawn(self, trial: Any) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for key, dim in self.space.dimensions.items():
            if self.space.active(key, params):
                params[key] = _suggested(trial, key, dim)
        return params

    def _seen(self, every: list[Any], sampler: Any) -> Any:
        """The study as the sampler sees it.

        With pruning these are the values of one rung, the highest that enough trials came to (BOHB, Falkner et al. 2018): Optuna's own
        order, whole trials before pruned ones, would make a model of the first trials, which went to their end because there was nobody
        to lose against.
        """
        kit = optuna()
        study = kit.create_study(study_name=NAME, direction=self.study.direction, sampler=sampler)
        if not self.method.PRUNES:
            study.add_trials([t for t in every if t.state != kit.trial.TrialState.WAITING])
            return study
        at: dict[int, list[Any]] = {}
        for trial in every:
            for step, value in trial.intermediate_values.items():
                at.setdefault(step, []).append((trial, value))
        step = max((s for s, found in at.items() if len(found) >= len(self.space.dimensions) + 2), default=1)
        for trial, value in at.get(step, []):
            study.add_trial(kit.trial.create_trial(value=value, params=trial.params, distributions=trial.distributions))
        return study

    def report(self, asked: Asked, rung: int, value: float) -> bool:
        """Tells the value at a rung; True where the trial should end here."""
        asked.trial.report(value, self.step(rung))
        with quiet():
            return bool(asked.trial.should_prune())

    def tell(self, asked: Asked, state: str, value: float | None) -> dict[str, Any]:
        """Closes a trial; returns what Optuna noted about its rungs, which the journal keeps for the replay."""
        kit = optuna()
        noted = self.study.get_trials(deepcopy=False)[asked.number].system_attrs
        attrs = {k: v for k, v in noted.items() if k.startswith("completed_rung_")}
        with quiet():
            if state == "complete":
                self.study.tell(asked.trial, value)
            else:
                pruned = state == "pruned" and value is not None
                self.study.tell(asked.trial, state=kit.trial.TrialState.PRUNED if pruned else kit.trial.TrialState.FAIL)
        return attrs

    def step(self, rung: int) -> int:
        """Rungs are told as powers of eta, which is where Optuna's pruners look."""
        return int(self.config.eta**rung)

    def _inner(self, key: str, value: Any) -> Any:
        dim = self.space.dimensions[key]
        return dim.index(value) if isinstance(dim, Choice) else value

    def _outer(self, params: Mapping[str, Any]) -> dict[str, Any]:
        dims = self.space.dimensions
        return {k: d.values[v] if isinstance(d := dims[k], Choice) else v for k, v in params.items()}


def _suggested(trial: Any, key: str, dim: Dimension) -> Any:
    if isinstance(dim, Choice):
        return dim.values[trial.suggest_categorical(key, tuple(range(len(dim.values))))]
    if dim.whole:
        return trial.suggest_int(key, int(dim.low), int(dim.high), log=dim.log, step=1 if dim.step is None else int(dim.step))
    return trial.suggest_float(key, dim.low, dim.high, log=dim.log, step=dim.step)


def distribution(dim: Dimension) -> Any:
    """Optuna's distribution; choices are told by their place, because lists and maps are no values to Optuna."""
    kit = optuna().distributions
    if isinstance(dim, Choice):
        return kit.CategoricalDistribution(tuple(range(len(dim.values))))
    assert isinstance(dim, Range)
    if dim.whole:
        return kit.IntDistribution(int(dim.low), int(dim.high), log=dim.log, step=1 if dim.step is None else int(dim.step))
    return kit.FloatDistribution(dim.low, dim.high, log=dim.log, step=dim.step)


def seed_of(seed: int, number: int, attempt: int = 0) -> int:
    """Independent streams for each trial (SeedSequence spreads neighbouring numbers)."""
    return int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=str)


def importances(trials: list[dict[str, Any]], space: Space, bins: int = 4) -> list[tuple[str, float]]:
    """Share of the variance of the value that goes with each key alone: the correlation ratio over quantile bins of the key,
    corrected for their number (epsilon squared, Kelley 1935). 0 is nothing; interactions do not show. At least 10 trials."""
    known = [t for t in trials if t.get("shown") is not None]
    found = []
    for key, dim in space.dimensions.items():
        pairs = [(t["params"][key], float(t["shown"])) for t in known if key in t["params"]]
        y = np.array([v for _, v in pairs])
        if len(pairs) < 10 or y.var() <= 0:
            continue
        if isinstance(dim, Choice):
            group = np.array([dim.index(p) for p, _ in pairs])
        else:
            x = np.array([float(p) for p, _ in pairs])
            edges = np.quantile(x, np.linspace(0, 1, min(bins, len(pairs) // 5) + 1)[1:-1])
            group = np.searchsorted(edges, x)
        groups = [y[group == g] for g in np.unique(group)]
        inside = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
        n, k = len(y), len(groups)
        value = 0.0 if k < 2 or n <= k else 1 - (inside / (n - k)) / (float(((y - y.mean()) ** 2).sum()) / (n - 1))
        found.append((key, max(0.0, value) if math.isfinite(value) else 0.0))
    return sorted(found, key=lambda item: -item[1])
