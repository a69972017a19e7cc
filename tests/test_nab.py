"""The score of the Numenta benchmark: values printed in its paper and its scorer's own documentation, and a slow loop over the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modelyard.metrics._nab import REWARD_LOW_FN, REWARD_LOW_FP, STANDARD, Profile, nab, sigmoid, worth


def slow(scores: list[np.ndarray], windows: list[list[tuple[int, int]]], threshold: float, profile: Profile) -> float:
    """Row by row as the definition reads."""
    total, count = 0.0, 0
    for s, own in zip(scores, windows, strict=True):
        probation = min(math.floor(0.15 * len(s)), 750)
        for first, last in own:
            rows = [i for i in range(first, last + 1) if i >= probation]
            count += bool(rows)
            worths = [
                profile.hit * (2 / (1 + math.exp(5 * -(last - i + 1) / (last - first + 1))) - 1) / (2 / (1 + math.exp(-5)) - 1)
                for i in rows
                if s[i] >= threshold
            ]
            total += max(worths) if worths else -profile.miss * bool(rows)
        for i in range(probation, len(s)):
            if s[i] < threshold or any(first <= i <= last for first, last in own):
                continue
            before = [(first, last) for first, last in own if last < i]
            y = (i - before[-1][1]) / (before[-1][1] - before[-1][0]) if before else 3.0
            total += profile.false_alarm * (-1.0 if y >= 3 else 2 / (1 + math.exp(5 * y)) - 1)
    return 100 * (total + profile.miss * count) / ((profile.hit + profile.miss) * count)


def test_printed_values_of_the_sigmoid() -> None:
    """Those that the published scorer prints beside its function."""
    assert np.allclose(sigmoid(np.array([-1.0, -0.5, 0.0, 1.0, 3.0, 10.0])), [0.98661, 0.84828, 0.0, -0.98661, -1.0, -1.0], atol=1e-5)


@pytest.mark.parametrize("profile", [STANDARD, REWARD_LOW_FP, REWARD_LOW_FN])
def test_equals_a_slow_loop(profile: Profile) -> None:
    """Two series, one window cut by the probation and one within it, ties, at every threshold; the best one is found."""
    rng = np.random.default_rng(0)
    scores = [rng.integers(0, 12, 400) / 10, rng.integers(0, 12, 300) / 10]
    windows = [[(50, 80), (200, 230), (300, 310)], [(5, 20), (100, 140)]]
    values = {t: slow(scores, windows, t, profile) for t in [*(np.arange(12) / 10).tolist(), 2.0]}
    for threshold, value in values.items():
        assert abs(nab(scores, windows, threshold, profile).score - value) < 1e-9
    best = nab(scores, windows, None, profile)
    assert abs(best.score - max(values.values())) < 1e-9 and best.hits + best.misses == 4
    if best.hits:
        assert abs(values[round(best.threshold, 1)] - best.score) < 1e-9


def test_ends_of_the_scale() -> None:
    """Silence is 0 and the first row of every window 100; a false alarm without windows near costs its weight; earlier is better."""
    windows = [[(300, 349), (600, 699)]]
    perfect = np.zeros(1000)
    perfect[[300, 600]] = 1
    assert nab([perfect], windows, 0.5).score == pytest.approx(100) and nab([np.zeros(1000)], windows, 0.5).score == 0
    assert nab([np.zeros(1000)], windows).score == 0  # the best threshold for a detector that knows nothing is silence
    one = perfect.copy()
    one[200] = 1
    assert nab([one], windows, 0.5).score == pytest.approx(100 - 100 * 0.11 / 4)
    later = np.roll(perfect, 20)
    assert 0 < nab([later], windows, 0.5).score < 100
    many = perfect.copy()
    many[300:350] = 1
    assert nab([many], windows, 0.5).score == pytest.approx(100)  # only the earliest counts
    early = perfect.copy()
    early[:150] = 1
    assert nab([early], windows, 0.5).false_alarms == 0  # probation
    points, numbers = worth(1000, windows[0])
    assert points[349] + points[350] / 0.11 == pytest.approx(0, abs=0.01)  # the curve crosses zero between the last row and the next
    assert (numbers[:150] == -2).all() and numbers[150] == -1 and (worth(10_000, [])[1] == -2).sum() == 750
    with pytest.raises(ValueError, match="no window"):
        nab([np.zeros(100)], [[(0, 5)]])
