"""The score of the Numenta Anomaly Benchmark for alarms in a running series (Lavin & Ahmad 2015, arXiv:1510.03336, §II).

An anomaly is a window of rows. Of the alarms inside it the earliest counts, by σ(y) = 2 / (1 + exp(5 y)) - 1 of its position y, from -1 (the first
row) towards 0 (behind the last), divided by σ(-1) so that the first row is worth `hit`. A window without an alarm costs `miss`. An alarm outside counts
`false_alarm` · σ(y), where y is how many widths it lies behind the last window: little just behind it, and all of it three widths behind or before the
first. The first 15 % of a series (at most 750 rows) are probation, which nobody judges. The sum over all series is put on a scale on which
silence is 0 and the earliest possible alarm in every window, with no other, is 100. It can be negative.

The definition of the position is that of the published scorer: -(last - i + 1) / width inside, (i - last) / (width - 1) behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROBATION = 0.15
PROBATION_ROWS = 5000
"""Probation is the share of at most so many rows."""
BEHIND = 3.0


@dataclass(frozen=True)
class Profile:
    """What alarms are worth: the standard profile, `REWARD_LOW_FP` or `REWARD_LOW_FN`."""

    hit: float = 1.0
    false_alarm: float = 0.11
    miss: float = 1.0


STANDARD = Profile()
REWARD_LOW_FP = Profile(1.0, 0.22, 1.0)
REWARD_LOW_FN = Profile(1.0, 0.11, 2.0)


@dataclass(frozen=True)
class Judged:
    """The result: normalised score, the threshold at which it was reached, and what was counted there."""

    score: float
    threshold: float
    hits: int
    misses: int
    false_alarms: int


def sigmoid(position: np.ndarray) -> np.ndarray:
    """σ: 0.987 at -1, 0 at 0, -0.987 at 1, and exactly -1 from 3 on."""
    value = 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, BEHIND))) - 1.0
    return np.where(position >= BEHIND, -1.0, value)


def worth(rows: int, windows: Sequence[tuple[int, int]], profile: Profile = STANDARD) -> tuple[np.ndarray, np.ndarray]:
    """(worth_N, window_N): what an alarm at each row counts, and the number of its window, -1 outside, -2 in probation.

    `windows` are (first, last) rows, in order, without overlap.
    """
    worth_N, window_N = np.full(rows, -profile.false_alarm), np.full(rows, -1)
    index = np.arange(rows)
    for number, (first, last) in enumerate(windows):
        width = last - first + 1
        inside = slice(first, last + 1)
        worth_N[inside] = profile.hit * sigmoid(-(last - index[inside] + 1) / width) / sigmoid(np.array(-1.0))
        window_N[inside] = number
        end = windows[number + 1][0] if number + 1 < len(windows) else rows
        behind = slice(last + 1, end)
        worth_N[behind] = profile.false_alarm * sigmoid((index[behind] - last) / max(width - 1.0, 1e-9))
    window_N[: int(min(np.floor(PROBATION * rows), PROBATION * PROBATION_ROWS))] = -2
    return worth_N, window_N


def nab(
    scores: Sequence[np.ndarray], windows: Sequence[Sequence[tuple[int, int]]], threshold: float | None = None, profile: Profile = STANDARD
) -> Judged:
    """The score of one or more series; rows with a score of at least `threshold` are alarms.

    Without a threshold the one that is best over all these series together is taken, as the benchmark's own optimiser does: it has then
    seen the windows. Raises `ValueError` where no window lies behind the probation.
    """
    value, gain, hit, false = [], [], [], []
    count = 0
    for scores_N, own in zip(scores, windows, strict=True):
        worth_N, window_N = worth(len(scores_N), own, profile)
        s = np.asarray(scores_N, np.float64)
        outside = window_N == -1
        value.append(s[outside])
        gain.append(worth_N[outside])
        hit.append(np.zeros(int(outside.sum()), np.int64))
        false.append(np.ones(int(outside.sum()), np.int64))
        for number in np.unique(window_N[window_N >= 0]):
            rows = np.flatnonzero(window_N == number)
            order = rows[np.argsort(-s[rows], kind="stable")]
            best = np.maximum.accumulate(worth_N[order])
            value.append(s[order])
            gain.append(np.diff(best, prepend=-profile.miss))  # with each lower score the window may be found earlier
            hit.append((np.arange(len(order)) == 0).astype(np.int64))
            false.append(np.zeros(len(order), np.int64))
            count += 1
    if not count:
        raise ValueError("no window lies behind the probation, so there is nothing to score")
    all_s = np.concatenate(value)
    order = np.argsort(-all_s, kind="stable")
    s, raw = all_s[order], np.cumsum(np.concatenate(gain)[order]) - profile.miss * count
    hits, alarms = np.cumsum(np.concatenate(hit)[order]), np.cumsum(np.concatenate(false)[order])
    silence = -profile.miss * count
    if threshold is None:
        ends = np.flatnonzero(np.append(np.diff(s) != 0, True))  # equal scores alarm together
        at = int(ends[np.argmax(raw[ends])])
        at = at if raw[at] > silence else -1
        threshold = float(s[at]) if at >= 0 else float("inf")
    else:
        at = int(np.searchsorted(-s, -threshold, side="right")) - 1
    found = (float(raw[at]), int(hits[at]), int(alarms[at])) if at >= 0 else (silence, 0, 0)
    return Judged(100.0 * (found[0] - silence) / ((profile.hit + profile.miss) * count), threshold, found[1], count - found[1], found[2])
