"""Penalties, cuts and draws of tokens: against transformers' processors, slow loops and frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.runtime.answers import Randomness
from modelyard.runtime.sampling import FEW, adjust, choose, log_softmax

B, V = 5, 40


def logits(seed: int, size: int = V) -> np.ndarray:
    return (3 * np.random.default_rng(seed).normal(size=(B, size))).astype(np.float32)


def test_processors_of_transformers_give_the_same() -> None:
    torch = pytest.importorskip("torch")
    made = pytest.importorskip("transformers.generation.logits_process")
    cases = [
        {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"repetition": 1.7},
        {"temperature": 1.6, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition": 1.3},
    ]  # fmt: skip
    for seed, size in ((0, V), (1, 3 * FEW)):
        scores = logits(seed, size)
        written = np.random.default_rng(seed).integers(0, size, (B, 9))
        seen = np.stack([np.bincount(row, minlength=size) for row in written])
        for case in cases:
            chain = [made.RepetitionPenaltyLogitsProcessor(case["repetition"])] if "repetition" in case else []
            chain += [made.TemperatureLogitsWarper(case["temperature"])] if "temperature" in case else []
            chain += [made.TopKLogitsWarper(case["top_k"])] if "top_k" in case else []
            chain += [made.TopPLogitsWarper(case["top_p"])] if "top_p" in case else []
            chain += [made.MinPLogitsWarper(case["min_p"])] if "min_p" in case else []
            theirs = torch.from_numpy(scores.astype(np.float64))
            for step in chain:
                theirs = step(torch.from_numpy(written), theirs)
            ours = adjust(scores, seen=seen, **case)
            assert (np.isinf(ours) == np.isinf(theirs.numpy())).all(), case
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_frequency_and_presence_are_subtracted() -> None:
    scores, seen = logits(2), np.zeros((B, V), np.int64)
    seen[0, 3], seen[1, 4] = 4, 1
    got = adjust(scores, frequency=0.5, presence=np.array([0.25, 1, 0, 0, 0]), seen=seen)
    wanted = scores.astype(np.float64)
    wanted[0, 3] -= 4 * 0.5 + 0.25
    wanted[1, 4] -= 0.5 + 1
    np.testing.assert_allclose(got, wanted)


def test_what_was_read_counts_for_repetition_alone() -> None:
    scores, prompt = logits(3), np.zeros((B, V), bool)
    prompt[:, 7] = True
    got = adjust(scores, repetition=2.0, frequency=1.0, presence=1.0, seen=np.zeros((B, V), np.int64), prompt=prompt)
    wanted = scores.astype(np.float64)
    wanted[:, 7] = np.where(wanted[:, 7] < 0, wanted[:, 7] * 2, wanted[:, 7] / 2)
    np.testing.assert_allclose(got, wanted)


def test_settings_of_each_text_are_its_own() -> None:
    scores = logits(4)
    heats, ks = np.array([0.5, 1, 2, 0, 1]), np.array([3, 0, 5, 2, 1])
    together = adjust(scores, temperature=heats, top_k=ks)
    for b in range(B):
        np.testing.assert_array_equal(together[b], adjust(scores[b : b + 1], temperature=heats[b], top_k=int(ks[b]))[0])
    assert np.isfinite(together).sum(1).tolist() == [3, V, 5, V, 1]  # at temperature 0 nothing is cut


@pytest.mark.parametrize("size", [V, 4 * FEW])
def test_top_p_keeps_the_fewest_that_reach_it(size: int) -> None:
    scores = logits(5, size) / (1 if size == V else 4)  # flat enough for more than FEW to be needed
    for p in (0.0, 0.3, 0.95):
        kept = np.isfinite(adjust(scores, top_p=p))
        share = np.exp(log_softmax(scores))
        for b in range(B):
            inside = np.sort(share[b][kept[b]])[::-1]
            assert inside.sum() >= p - 1e-12 and inside[:-1].sum() < max(p, 1e-300)
            assert share[b][~kept[b]].max(initial=0) <= inside.min()


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    scores = np.zeros((2, 6))
    scores[0, [2, 4]] = scores[1, [5, 1, 3]] = 1.0
    assert choose(scores, 0.0, [None, None]).tolist() == [2, 1]


def test_draws_follow_the_probabilities_and_their_own_generator() -> None:
    row = np.log(np.array([0.5, 1e-300, 0.3, 0.2]))
    row[1] = -np.inf
    many = np.tile(row, (4000, 1))
    random = Randomness(7)
    drawn = choose(many, 1.0, [random.generator(i) for i in range(len(many))])
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    spread = np.sqrt(4000 * np.array([0.5, 0, 0.3, 0.2]) * np.array([0.5, 1, 0.7, 0.8]))
    assert (np.abs(counts - 4000 * np.array([0.5, 0, 0.3, 0.2])) <= 4 * spread).all()
    some = choose(many[:3], 1.0, [Randomness(7, 100).generator(i) for i in range(3)])
    assert some.tolist() == drawn[100:103].tolist()
    with pytest.raises(ValueError, match="no generator"):
        choose(many[:1], 1.0, [None])


def test_log_probabilities_sum_to_one() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(logits(6) * 100)).sum(1), 1.0)
