"""Confidence intervals for every metric, and when which one is used.

1. *Theory*, where `Metric.closed` has one: Wilson's score interval for proportions (Wilson 1927, JASA 22:209); the
influence
   function on the logit scale for ROC-AUC (DeLong et al. 1988, Biometrics 44:837) and average precision.
2. *Sums*: metrics that are functions of sums over rows are resampled 1,000 times by one matrix product, BCa-corrected
   (Efron 1987, JASA 82:171) where the jackknife is affordable. Beyond 20,000 distinct rows the sums are drawn from
   their normal limit instead (central limit theorem), so that a million rows cost one covariance.
3. *Rows*: anything else is computed again on 200 bootstrap weightings of at most 5,000 rows; the spread then shrinks by
   sqrt(rows used / rows).

Rows are taken as independent. All draws are functions of `seed`. A metric of 0 … 1 that sits on its bound in every
resample gets
the exact one-sided bound `(alpha/2)^(1/n)` (Clopper & Pearson 1934) rather than an interval of width zero.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, Undefined

RESAMPLES = 1000
DISTINCT_ROWS = 20_000
_BLOCK = 1_000_000
"""Elements of one block of resampling counts (8 MB, of which there are four at a time), so that memory does not grow with the data."""
_ALONE = 4_000_000
"""Statistics up to which every row is left out once for the acceleration."""


def wilson(hits: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of `hits` out of `n` independent rows."""
    if n <= 0:
        raise Undefined("there are no rows")
    z, p = _z(level), hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if hits == 0 else float(low)), (1.0 if hits == n else float(high))


def logit_interval(value: float, influence_B: np.ndarray, level: float, smallest: float) -> tuple[float, float]:
    """Interval of a value in 0 … 1 from its influence function: se² = Σ influence² / n², on the logit scale.

    `smallest` counts the rarer side (positives or negatives) and bounds a perfect value.
    """
    n = len(influence_B)
    error = math.sqrt(float(influence_B @ influence_B) / max(1, n * (n - 1)))
    if not 1e-12 < value < 1 - 1e-12:
        return at_the_bound(value, smallest, level)
    centre = math.log(value / (1 - value))
    half = _z(level) * error / (value * (1 - value))
    return tuple(1 / (1 + math.exp(-max(-700.0, min(700.0, x)))) for x in (centre - half, centre + half))  # type: ignore[return-value]


def at_the_bound(value: float, n: float, level: float) -> tuple[float, float]:
    """Exact interval of a proportion observed as 0 or 1 on `n` rows."""
    edge = ((1 - level) / 2) ** (1 / max(1.0, n))
    return (edge, 1.0) if value > 0.5 else (0.0, 1 - edge)


def interval(
    metric: Metric,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    labels: Any = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    **options: Any,
) -> tuple[float, float, str]:
    """(low, high, method) of a defined metric; method is `theory`, `bootstrap`, `normal` or a sentence on sampling."""
    given = {"weights": weights, "labels": labels, **options}
    closed = metric.closed(truth, prediction, level=level, **given) if metric.closed else None
    if closed is not None:
        return closed[0], closed[1], "theory"
    sums = metric.sums(truth, prediction, **given) if metric.sums else None
    if sums is None:
        low, high, how = _rows(metric, truth, prediction, given, level, seed)
    else:
        low, high, how = _from_sums(sums, level, seed, resamples)
    if metric.bounds == (0.0, 1.0) and low == high and low in (0.0, 1.0):
        low, high = at_the_bound(low, len(truth), level)
    if math.isfinite(low):
        low, high = max(low, metric.bounds[0]), min(high, metric.bounds[1])
    return low, high, how


def _z(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)


def _from_sums(sums: Sums, level: float, seed: int, resamples: int) -> tuple[float, float, str]:
    rng = np.random.default_rng(seed)
    distinct = len(sums.rows_NS)
    normal = sums.counts_N is None and distinct > DISTINCT_ROWS
    sums_RS = _normal_sums(sums.rows_NS, rng, resamples) if normal else _resampled_sums(sums, rng, resamples)
    how = "normal" if normal else "bootstrap"
    if sums.distance:
        return *_distance(sums, sums_RS, level), how
    values_R = _formula(sums, sums_RS)
    if normal or distinct * sums.rows_NS.shape[1] > _ALONE:
        return *_percentiles(values_R, level), how
    value = float(_formula(sums, sums.total_S()[None])[0])
    return *_bca(values_R, value, _jackknife(sums), sums.counts_N, level), how


def _formula(sums: Sums, sums_RS: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums.formula(sums_RS.astype(np.float64)))


def _resampled_sums(sums: Sums, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Sums `(R, S)` of bootstrap samples: counts of each distinct row times its statistics."""
    distinct = len(sums.rows_NS)
    step = max(1, _BLOCK // distinct)
    blocks = []
    for start in range(0, resamples, step):
        some = min(step, resamples - start)
        if sums.counts_N is None:
            drawn = rng.integers(0, distinct, (some, distinct)) + np.arange(some)[:, None] * distinct
            counts = np.bincount(drawn.ravel(), minlength=some * distinct).reshape(some, distinct)
        else:
            counts = rng.multinomial(int(sums.counts_N.sum()), sums.counts_N / sums.counts_N.sum(), size=some)
        blocks.append(counts.astype(sums.rows_NS.dtype) @ sums.rows_NS)
    return np.concatenate(blocks)


def _normal_sums(rows_NS: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Sums `(R, S)` drawn from their normal limit."""
    n = len(rows_NS)
    mean_S = rows_NS.mean(axis=0, dtype=np.float64)
    centred = rows_NS - mean_S
    spread, axes = np.linalg.eigh((centred.T @ centred) / n)
    root = axes * np.sqrt(np.clip(spread, 0, None))
    noise = rng.standard_normal((resamples, len(mean_S)))
    return np.asarray(n * mean_S + math.sqrt(n) * (noise @ root.T))


def _jackknife(sums: Sums) -> np.ndarray:
    """The metric without one example of each distinct row `(N,)`."""
    return _formula(sums, sums.total_S()[None] - sums.rows_NS)


def _percentiles(values_R: np.ndarray, level: float) -> tuple[float, float]:
    finite = values_R[np.isfinite(values_R)]
    if len(finite) < max(20, len(values_R) // 2):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _distance(sums: Sums, sums_RS: np.ndarray, level: float) -> tuple[float, float]:
    """Safe interval of Σ|mean|: by the triangle inequality it is off by no more than Σ|noise|, which resampling shows.

    Upwards the plain percentile is already safe, since resampling adds noise too.
    """
    total_S = sums.total_S()
    noise_RS = np.concatenate([(sums_RS - total_S)[:, :-1], sums_RS[:, -1:]], axis=1)
    value = float(_formula(sums, total_S[None])[0])
    low = value - float(np.quantile(_formula(sums, noise_RS), level))
    return low, max(value, _percentiles(_formula(sums, sums_RS), level)[1])


def _bca(
    values_R: np.ndarray, value: float, without_N: np.ndarray, counts_N: np.ndarray | None, level: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles; plain ones where the corrections are not defined."""
    finite = values_R[np.isfinite(values_R)]
    share = (np.sum(finite < value) + 0.5 * np.sum(finite == value)) / max(1, len(finite))
    known = np.isfinite(without_N)
    if len(finite) < len(values_R) or not 0.02 < share < 0.98 or not known.all():
        return _percentiles(values_R, level)
    weight = np.ones(len(without_N)) if counts_N is None else counts_N
    centred = (weight @ without_N) / weight.sum() - without_N
    below = 6 * float(weight @ centred**2) ** 1.5
    acceleration = float(weight @ centred**3) / below if below > 0 else 0.0
    normal = NormalDist()
    shift = normal.inv_cdf(float(share))
    edges = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = shift + normal.inv_cdf(tail)
        edges.append(normal.cdf(shift + z / max(0.1, 1 - acceleration * z)))
    low, high = np.quantile(finite, edges)
    return float(low), float(high)


def _rows(
    metric: Metric, truth: np.ndarray, prediction: np.ndarray, given: dict[str, Any], level: float, seed: int
) -> tuple[float, float, str]:
    """Bootstrap by weighting rows; costs one computation each, hence 200 of at most 5,000 rows."""
    n, rng = len(truth), np.random.default_rng(seed)
    whole = metric.compute(truth, prediction, **given)
    used = np.arange(n) if n <= 5000 else np.sort(rng.choice(n, 5000, replace=False))
    base_B = np.ones(len(used)) if given["weights"] is None else np.asarray(given["weights"], np.float64)[used]
    values = []
    for _ in range(200):
        counts = np.bincount(rng.integers(0, len(used), len(used)), minlength=len(used))
        try:
            values.append(metric.compute(truth[used], prediction[used], **{**given, "weights": counts * base_B}))
        except Undefined:
            values.append(math.nan)
    low, high = _percentiles(np.asarray(values), level)
    if len(used) == n:
        return low, high, "bootstrap"
    centre, shrink = float(np.nanmedian(values)), math.sqrt(len(used) / n)
    note = f"interval from {len(used):,} of {n:,} rows"
    return whole + (low - centre) * shrink, whole + (high - centre) * shrink, note
