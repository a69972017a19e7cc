"""After training: scores that are true frequencies, and answers with a promise. Fitted on the validation rows, never on test.

`promise(model, bound, config)` gives the post steps and what to tell about them. Where both calibration and coverage are asked for, each gets
its own half of the validation rows: a conformal promise holds for rows that nothing was fitted on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard import metrics as scoring
from modelyard.errors import Problem, Unsupported
from modelyard.metrics._interval import wilson
from modelyard.metrics._pictures import calibration as reliability
from modelyard.runtime import post
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column, Pipeline
from modelyard.tasks._binding import Bound
from modelyard.verbs.train.config import TrainConfig

LEAST = 20
"""Rows below which nothing is calibrated: the noise of the fit would exceed what it repairs."""
GAP = 0.05
"""Least distance in log-odds between two points of an isotonic curve: a steeper one would blow up the seventh digit of a score."""
FOLDS = 5
METHODS = ("temperature", "platt", "isotonic")


@dataclass
class Evidence:
    """What a model says of rows whose truth is known: graph outputs before any stored step.

    Out-of-fold outputs of cross-validation make one too: `Evidence(column, logits, truth)`.
    """

    column: Column
    outputs: np.ndarray
    """`logits` (N, K) or `value` (N, 1)."""
    truth: np.ndarray
    """Ids (N,), multi-hot (N, K), or the target in the unit of the graph (N,)."""

    @property
    def exclusive(self) -> bool:
        """One label out of K."""
        return self.column.kind == "category"

    @property
    def key(self) -> str:
        """Name of the graph output."""
        return f"{self.column.name}.{'value' if self.column.kind == 'number' else 'logits'}"

    def take(self, index: np.ndarray) -> Evidence:
        """Some rows."""
        return Evidence(self.column, self.outputs[index], self.truth[index])

    def after(self, steps: list[dict[str, Any]]) -> Evidence:
        """With the outputs that stored steps make of these."""
        return Evidence(self.column, post.apply({self.key: self.outputs}, steps)[self.key], self.truth)

    def __len__(self) -> int:
        return len(self.truth)


def wanted(config: TrainConfig) -> bool:
    """Whether anything is to be fitted after training."""
    return config.calibration != "none" or config.coverage is not None


def without(config: TrainConfig) -> TrainConfig:
    """The same training without it: for the parts of a composite, which is calibrated as a whole."""
    return dataclasses.replace(config, calibration="none", coverage=None)


def promise(
    model: Model, bound: Bound, config: TrainConfig, held: Mapping[str, Evidence] | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(post steps, facts) for every output. `held` are out-of-fold outputs, used in place of validation rows.

    Raises `Unsupported` with the reason where there are no rows to fit on, or an output has no such step.
    """
    if not wanted(config):
        return [], {}
    if held is None:
        require(bound, config)
        held = gather(model, bound.splits["valid"])
    tests = gather(model, bound.splits["test"]) if "test" in bound.splits and bound.splits["test"].height else {}
    steps: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for name, evidence in held.items():
        own, told = _output(evidence, tests.get(name), config)
        steps += own
        facts[name] = told
    return steps, {"promises": facts}


def require(bound: Bound, config: TrainConfig) -> None:
    """Refuses before anything is trained what could not be fitted afterwards: without validation rows, or for outputs of other kinds."""
    if not wanted(config):
        return
    rows = bound.splits["valid"].height if "valid" in bound.splits else 0
    if not rows:
        what = "train.calibration" if config.calibration != "none" else "train.coverage"
        raise Unsupported(f"{what} is fitted on validation rows, and the data has none; set data.split.valid", "needs")
    for column in bound.pipeline.outputs:
        _suits(column, config, rows)


def _suits(column: Column, config: TrainConfig, rows: int) -> None:
    name = column.name
    if column.kind not in ("category", "label-set", "number") or column.of:
        raise Unsupported(f"{name}: answers of kind {column.kind} cannot be calibrated", "not yet")
    if column.kind == "number" and config.coverage is None:
        reason = f"{name} is a number: it has no scores to calibrate. For intervals that hold the truth set train.coverage"
        raise Unsupported(reason, "use", [Problem("is a number", "train.calibration")])
    if column.kind == "label-set" and config.coverage is not None:
        reason = f"{name}: a label set has no one truth that a conformal set could hold; tune thresholds (evaluate.threshold) instead"
        raise Unsupported(reason, "not yet")
    if rows < LEAST:
        raise Unsupported(f"{name}: {rows} validation rows are too few to calibrate on; at least {LEAST} are needed", "needs")


def gather(model: Model, frame: pl.DataFrame) -> dict[str, Evidence]:
    """The model's own outputs on checked examples, by output; rows without a truth are left out."""
    pipeline = model.pipeline
    outputs, contexts = model.outputs(frame.select([c.name for c in pipeline.inputs]))
    targets = pipeline.targets(frame, contexts)
    found = {}
    for column in pipeline.outputs:
        part, _ = column.coder.head(column.state)
        truth = next((np.asarray(v) for k, v in targets.items() if k.startswith(f"{column.name}.") and isinstance(v, np.ndarray)), None)
        if truth is None:
            continue
        known = truth >= 0 if column.kind == "category" else np.isfinite(truth.reshape(len(truth), -1)).all(1)
        found[column.name] = Evidence(column, outputs[f"{column.name}.{part}"][known], truth[known])
    return found


def out_of_fold(pipeline: Pipeline, frame: pl.DataFrame, outputs: Mapping[str, np.ndarray]) -> dict[str, Evidence]:
    """Evidence from graph outputs that models gave of rows they did not learn from; NaN where a row was never held out.

    The model that is kept has seen all rows and errs a little less than these did, so its promises are kept or more than kept.
    """
    targets, found = pipeline.targets(frame, {}), {}
    for column in pipeline.outputs:
        part, _ = column.coder.head(column.state)
        value = outputs[f"{column.name}.{part}"]
        truth = next(np.asarray(v) for k, v in targets.items() if k.startswith(f"{column.name}."))
        known = ~np.isnan(value[:, 0]) & (truth >= 0 if column.kind == "category" else np.isfinite(truth.reshape(len(truth), -1)).all(1))
        found[column.name] = Evidence(column, value[known], truth[known])
    return found


def _output(held: Evidence, test: Evidence | None, config: TrainConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    calibrated = config.calibration != "none" and held.column.kind != "number"
    _suits(held.column, config, len(held))
    both = calibrated and config.coverage is not None
    order = np.random.Generator(np.random.Philox(key=config.seed)).permutation(len(held))
    first, second = (held.take(np.sort(i)) for i in (order[::2], order[1::2])) if both else (held, held)
    steps: list[dict[str, Any]] = []
    told: dict[str, Any] = {"rows": len(held)}
    if calibrated:
        method, losses = _choose(first, config)
        steps += [] if method == "none" else [FITS[method](first)]
        told["calibration"] = {"method": method, "rows": len(first), "asked": config.calibration, **({"log_loss": losses} if losses else {})}
        told["calibration"]["calibration_error"] = {
            split: {"before": error(e), "after": error(e.after(steps))} for split, e in (("valid", held), ("test", test)) if e is not None
        }
        shown, split = (held, "valid") if test is None else (test, "test")
        told["calibration"]["reliability"] = {
            "split": split, "error": told["calibration"]["calibration_error"][split], "before": diagram(shown), "after": diagram(shown.after(steps)),
        }  # fmt: skip
    if config.coverage is not None:
        step = conform(second.after(steps), config)
        told["coverage"] = {"promised": config.coverage, "rows": len(second), "step": step["step"], "method": step.get("method", config.intervals)}
        if test is not None:
            told["coverage"]["test"] = kept(test.after(steps), step)
        steps.append(step)
    return steps, told


# calibration


def _choose(held: Evidence, config: TrainConfig) -> tuple[str, dict[str, float]]:
    """(method, cross-validated log-loss of each) for `auto`; what was asked for otherwise."""
    if config.calibration != "auto":
        return config.calibration, {}
    losses = {}
    folds = np.random.Generator(np.random.Philox(key=config.seed, counter=[0, 0, 0, 1])).permutation(len(held)) % FOLDS
    for method in ("none", *METHODS):
        total = 0.0
        for fold in range(FOLDS):
            rest, out = held.take(folds != fold), held.take(folds == fold)
            total += log_loss(out if method == "none" else out.after([FITS[method](rest)])) * len(out)
        losses[method] = total / len(held)
    return min(losses, key=lambda m: losses[m]), losses


def log_loss(held: Evidence) -> float:
    """Mean -log p of the true label (label sets: mean over the labels)."""
    if held.exclusive:
        return float(-post.log_scores(held.outputs, True)[np.arange(len(held)), held.truth].mean())
    z = held.outputs.astype(np.float64)
    return float((np.logaddexp(0, z) - held.truth * z).mean())


def _probabilities(held: Evidence) -> np.ndarray:
    return np.exp(post.log_scores(held.outputs, True)) if held.exclusive else 1.0 / (1.0 + np.exp(-held.outputs.astype(np.float64)))


def diagram(held: Evidence) -> dict[str, Any]:
    """The reliability diagram (`metrics/_pictures.py`), rounded for the manifest."""
    found = reliability(held.truth, _probabilities(held))
    bins = [{k: round(v, 5) if isinstance(v, float) else v for k, v in b.items()} for b in found["bins"]]
    return {**found, "bins": bins}


def error(held: Evidence) -> float:
    """Expected calibration error (`metrics/calibration_error.py`)."""
    p = _probabilities(held)
    found = scoring.evaluate_output(held.column.kind, held.truth, scoring.Predicted(scores=p), ["calibration_error"], intervals=False)
    return float(found["calibration_error"]["value"])


def fit_temperature(held: Evidence) -> dict[str, Any]:
    """The one temperature from 1/20 to 20 with the least log-loss."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return log_loss(Evidence(held.column, held.outputs / math.exp(log_t), held.truth))

    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-4})
    return {"step": "temperature", "output": held.column.name, "value": math.exp(float(found.x))}


def fit_platt(held: Evidence) -> dict[str, Any]:
    """Scale and shift by least log-loss against Platt's smoothed targets, (N₊ + 1) / (N₊ + 2) in place of 1."""
    scores = post.log_scores(held.outputs, held.exclusive)
    if held.exclusive and scores.shape[1] == 2:
        a, b = _sigmoid_fit(scores[:, 1] - scores[:, 0], held.truth == 1)
        scale, shift = [a, a], [-b / 2, b / 2]
    elif held.exclusive:
        scale, shift = _vector_fit(scores, held.truth)
    else:
        found = [_sigmoid_fit(scores[:, k], held.truth[:, k] > 0.5) for k in range(scores.shape[1])]
        scale, shift = [f[0] for f in found], [f[1] for f in found]
    return {"step": "platt", "output": held.column.name, "exclusive": held.exclusive, "scale": scale, "shift": shift}


def _sigmoid_fit(margin: np.ndarray, is_it: np.ndarray) -> tuple[float, float]:
    from scipy.optimize import minimize

    yes, no = int(is_it.sum()), int((~is_it).sum())
    target = np.where(is_it, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        a = math.exp(p[0])
        z = a * margin + p[1]
        wrong = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - target
        return float((np.logaddexp(0, z) - target * z).mean()), np.array([(wrong * margin).mean() * a, wrong.mean()])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-5, 5), (-50, 50)])
    return math.exp(float(found.x[0])), float(found.x[1])


def _vector_fit(scores: np.ndarray, truth: np.ndarray) -> tuple[list[float], list[float]]:
    """K scales and K shifts; a prior of one row a parameter keeps rare labels near 1 and 0."""
    from scipy.optimize import minimize

    n, k = scores.shape
    own = np.eye(k)[truth]

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = np.exp(p[:k]), p[k:]
        logs = post.log_scores(w * scores + b, True)
        wrong = np.exp(logs) - own
        prior = float((p**2).sum()) / (2 * n)
        gradient = np.concatenate([(wrong * scores).mean(0) * w, wrong.mean(0)]) + p / n
        return float(-(own * logs).sum(1).mean()) + prior, gradient

    found = minimize(loss, np.zeros(2 * k), jac=True, method="L-BFGS-B", bounds=[(-5, 5)] * k + [(-50, 50)] * k)
    return np.exp(found.x[:k]).tolist(), found.x[k:].tolist()


def fit_isotonic(held: Evidence) -> dict[str, Any]:
    """A rising curve per label by pooling adjacent violators (Ayer et al. 1955), through the centres of the pools, which keeps
    scores apart that plain steps would tie (Oron & Flournoy 2017)."""
    odds = post.log_odds(held.outputs, held.exclusive)
    if held.exclusive and odds.shape[1] == 2:
        curves = [_curve(odds[:, 1], held.truth == 1)]
    else:
        is_it = (np.eye(odds.shape[1])[held.truth] if held.exclusive else held.truth) > 0.5
        curves = [_curve(odds[:, k], is_it[:, k]) for k in range(odds.shape[1])]
    return {"step": "isotonic", "output": held.column.name, "exclusive": held.exclusive, "curves": curves}


def _curve(odds: np.ndarray, is_it: np.ndarray) -> dict[str, list[float]]:
    at, share, _ = pooled(odds, is_it.astype(np.float64))
    least = 0.5 / (len(odds) + 1)  # nothing is impossible that was not seen in n rows
    return {"odds": at.tolist(), "probabilities": np.clip(share, least, 1 - least).tolist()}


def pooled(x: np.ndarray, y: np.ndarray, gap: float = GAP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centres, means, sizes) of the pools of the rising regression of `y` on `x`; centres lie at least `gap` apart."""
    stack: list[list[float]] = []  # [sum of x, sum of y, rows]
    order = np.argsort(x, kind="stable")
    values, starts = np.unique(x[order], return_index=True)
    sums, rows = np.add.reduceat(y[order], starts), np.diff(np.append(starts, len(x)))
    for one, total, n in zip(values, sums, rows, strict=True):
        stack.append([one * n, total, n])
        while len(stack) > 1 and (
            stack[-2][1] * stack[-1][2] >= stack[-1][1] * stack[-2][2] or stack[-1][0] / stack[-1][2] - stack[-2][0] / stack[-2][2] < gap
        ):
            last = stack.pop()
            stack[-1] = [a + b for a, b in zip(stack[-1], last, strict=True)]
    found = np.array(stack)
    return found[:, 0] / found[:, 2], found[:, 1] / found[:, 2], found[:, 2]


FITS: dict[str, Callable[[Evidence], dict[str, Any]]] = {"temperature": fit_temperature, "platt": fit_platt, "isotonic": fit_isotonic}


# conformal prediction


def conform(held: Evidence, config: TrainConfig) -> dict[str, Any]:
    """The step of split conformal prediction: the (n + 1) · coverage-th smallest strangeness of the held rows' truths is the limit."""
    coverage, name = config.coverage, held.column.name
    assert coverage is not None
    tuning, rest = _divided(held, config) if config.sets == "raps" or held.column.kind == "number" else (held, held)
    if held.column.kind == "number":
        step: dict[str, Any] = {"step": "intervals", "output": name, **_spread(tuning, config)}
        rest = rest if config.intervals == "scaled" and len(step["at"]) > 1 else held
        value = rest.outputs.astype(np.float64)
        strange = (np.abs(rest.truth.reshape(-1, 1) - value) / post.spread(value, step))[:, 0]
        return step | {"quantile": limit(strange, coverage, name), "coverage": coverage}
    step = {"step": "sets", "output": name, "method": config.sets, **(_penalty(tuning, coverage) if config.sets == "raps" else {})}
    return step | {"threshold": limit(_of_truth(rest, step), coverage, name), "coverage": coverage}


def limit(strange_N: np.ndarray, coverage: float, name: str) -> float:
    """The ⌈(n + 1) · coverage⌉-th smallest of n; raises `Unsupported` where n is too small for the promise."""
    n = len(strange_N)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    if rank > n:
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise Unsupported(f"{name}: a coverage of {coverage:g} needs at least {needed} validation rows; there are {n}", "needs")
    return float(np.sort(strange_N)[rank - 1])


def _divided(held: Evidence, config: TrainConfig) -> tuple[Evidence, Evidence]:
    """A third to choose the shape with, and the rest to set the limit on."""
    order = np.random.Generator(np.random.Philox(key=config.seed, counter=[0, 0, 0, 2])).permutation(len(held))
    third = len(held) // 3
    return held.take(np.sort(order[:third])), held.take(np.sort(order[third:]))


def _of_truth(held: Evidence, step: Mapping[str, Any]) -> np.ndarray:
    """(N,) strangeness of the true labels."""
    p = np.exp(post.log_scores(held.outputs, True))
    return post.strangeness(p, step)[np.arange(len(held)), held.truth]


def _penalty(tuning: Evidence, coverage: float) -> dict[str, Any]:
    """`free` is the rank within which the truth lies as often as promised, `penalty` the one with the smallest sets."""
    p = np.exp(post.log_scores(tuning.outputs, True))
    own = p[np.arange(len(tuning)), tuning.truth][:, None]
    ranks = np.sort(1 + (p > own).sum(1))
    free = int(ranks[min(len(ranks) - 1, math.ceil((len(ranks) + 1) * coverage) - 1)])
    best: tuple[float, float] | None = None
    for penalty in (0.001, 0.01, 0.1, 0.2, 0.5):
        step = {"method": "raps", "penalty": penalty, "free": free}
        edge = np.sort(_of_truth(tuning, step))[min(len(tuning) - 1, math.ceil((len(tuning) + 1) * coverage) - 1)]
        size = float((post.strangeness(p, step) <= edge).sum(1).mean())
        if best is None or size < best[0] - 1e-12:
            best = (size, penalty)
    assert best is not None
    return {"penalty": best[1], "free": free}


def _spread(tuning: Evidence, config: TrainConfig) -> dict[str, Any]:
    """Mean error of answers of about the same size, at up to ten sizes; one point where it is to be constant or rows are few."""
    if config.intervals == "constant" or len(tuning) < 60:
        return {"at": [0.0], "spread": [1.0]}
    value = tuning.outputs.astype(np.float64).reshape(-1)
    off = np.abs(tuning.truth.reshape(-1) - value)
    groups = np.array_split(np.argsort(value, kind="stable"), min(10, len(tuning) // 20))
    at, spread = np.array([value[g].mean() for g in groups]), np.array([off[g].mean() for g in groups])
    apart = np.append(True, np.diff(at) > 1e-6)  # equal answers make no slope
    floor = max(1e-12, 0.1 * float(off.mean()))  # an interval never shrinks to nothing
    return {"at": at[apart].tolist(), "spread": np.maximum(spread[apart], floor).tolist()}


def kept(test: Evidence, step: Mapping[str, Any]) -> dict[str, float]:
    """Share of rows whose truth lies inside with its interval, and the mean size of a set or width of an interval (in the unit of the data)."""
    out = post.apply({test.key: test.outputs}, [step])
    name = test.column.name
    if step["step"] == "sets":
        inside = out[f"{name}.set"]
        return {**_measured(inside[np.arange(len(test)), test.truth]), "size": float(inside.sum(1).mean())}
    low, high, truth = out[f"{name}.low"][:, 0], out[f"{name}.high"][:, 0], test.truth.reshape(-1)
    scale = float(getattr(test.column.state, "scale", 1.0))
    return {**_measured((low <= truth) & (truth <= high)), "width": float((high - low).mean()) * scale}


def _measured(inside_N: np.ndarray) -> dict[str, float]:
    """Share of rows with Wilson's 95 % interval."""
    low, high = wilson(float(inside_N.sum()), len(inside_N))
    return {"coverage": float(inside_N.mean()), "low": low, "high": high, "rows": len(inside_N)}
