"""Optuna's samplers (Akiba et al. 2019) as a function: the next suggestion follows from the trials so far and nothing else.

Every trial is drawn by a fresh sampler whose seed is a function of (study seed, trial number), over a study in memory made of what the
journal holds. So a search that was killed goes on with the very suggestions it would have made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import MissingExtra
from modelyard.verbs.tune._space import Choice, Dimension, Range, Space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


ATTEMPTS = 200
"""Suggestions for one trial after which every combination counts as tried."""

STARTUP = 10
"""Trials that TPE draws by chance before it makes a model (Optuna's default)."""


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


class Suggestions:
    """What a method (a module of this folder) asks for next."""

    def __init__(self, method: ModuleType, space: Space, better: str, config: Any) -> None:
        self.method, self.space, self.config = method, space, config
        self.direction = "maximize" if better == "higher" else "minimize"
        self.distributions = {key: distribution(dim) for key, dim in space.dimensions.items()}

    def next(self, number: int, found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
        """Settings of trial `number` after the trials `found`; None where nothing new is left.

        The same settings give the same model, so none are tried twice.
        """
        tried = {_key(t["params"]) for t in found.values()}
        with quiet():
            for attempt in range(ATTEMPTS):
                seed = seed_of(self.config.seed, number, attempt)
                # a sampler that has settled on one place of a small space suggests it again and again: chance finds what is left
                chance = optuna().samplers.RandomSampler(seed=seed)
                sampler = self.method.sampler(self.config, seed) if attempt < ATTEMPTS // 10 else chance
                params = self._drawn(self._study(found, sampler).ask())
                if _key(params) not in tried:
                    return params
        return None

    def _drawn(self, trial: Any) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for key, dim in self.space.dimensions.items():
            if self.space.active(key, params):
                params[key] = _suggested(trial, key, dim)
        return params

    def _study(self, found: Mapping[int, Mapping[str, Any]], sampler: Any) -> Any:
        """A study in memory with what is known; failed trials tell nothing.

        With pruning these are the scores at one rung, the highest that enough trials came to (see `bohb`).
        """
        kit = optuna()
        study = kit.create_study(study_name="tune", direction=self.direction, sampler=sampler)
        running = []
        if self.method.PRUNES:
            at: dict[int, list[tuple[Mapping[str, Any], float]]] = {}
            for _, t in sorted(found.items()):
                for rung, value in t.get("scores", {}).items():
                    at.setdefault(rung, []).append((t["params"], value))
            enough = max(STARTUP, len(self.space.dimensions) + 2)
            known = at.get(max((r for r, scores in at.items() if len(scores) >= enough), default=min(at, default=0)), [])
        else:
            known = [(t["params"], t["value"]) for _, t in sorted(found.items()) if t.get("state") == "complete"]
            running = [t["params"] for _, t in sorted(found.items()) if "state" not in t]
        for params, value in known:
            study.add_trial(kit.trial.create_trial(value=value, **self._inner(params)))
        for params in running:
            study.add_trial(kit.trial.create_trial(state=kit.trial.TrialState.RUNNING, **self._inner(params)))
        return study

    def _inner(self, params: Mapping[str, Any]) -> dict[str, Any]:
        dims = self.space.dimensions
        plain = {k: d.index(v) if isinstance(d := dims[k], Choice) else v for k, v in params.items()}
        return {"params": plain, "distributions": {k: self.distributions[k] for k in params}}


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
