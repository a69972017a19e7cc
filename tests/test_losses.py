"""Losses against torch's own, a slow loop, numerical gradients and extreme logits."""

import math

import pytest
import torch
from torch.nn import functional

from modelyard.losses import binary_cross_entropy, cross_entropy, focal, huber, mae, mse


def mean(pair):
    value_B, weight_B = pair
    return value_B.sum() / weight_B.sum()


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_torchs_weighted_mean(rng, weighted, dtype):
    logits, target = torch.randn(64, 7, generator=rng, dtype=dtype) * 3, torch.randint(0, 7, (64,), generator=rng)
    weights = torch.rand(7, generator=rng, dtype=dtype) if weighted else None
    expected = functional.cross_entropy(logits, target, weight=weights)
    assert torch.allclose(mean(cross_entropy.loss(logits, target, class_weights=weights)), expected, rtol=1e-5)


def test_smoothing_and_soft_targets_match_torch(rng):
    logits, target = torch.randn(50, 5, generator=rng), torch.randint(0, 5, (50,), generator=rng)
    soft = torch.softmax(torch.randn(50, 5, generator=rng), -1)
    for smoothing in (0.0, 0.1, 0.5):
        for goal in (target, soft):
            expected = functional.cross_entropy(logits, goal, label_smoothing=smoothing)
            assert torch.allclose(
                mean(cross_entropy.loss(logits, goal, label_smoothing=smoothing)), expected, rtol=1e-5
            )


def test_cross_entropy_against_a_slow_loop_with_everything(rng):
    logits, target = torch.randn(6, 4, 3, generator=rng), torch.randint(0, 3, (6, 4), generator=rng)
    mask, weights = torch.rand(6, 4, generator=rng) > 0.4, [0.5, 2.0, 1.5]
    mask[2] = False
    value_B, weight_B = cross_entropy.loss(
        logits, torch.where(mask, target, -100), mask, label_smoothing=0.2, class_weights=torch.tensor(weights)
    )
    for b in range(6):
        value = weight = 0.0
        for unit in range(4):
            if not mask[b, unit]:
                continue
            z = logits[b, unit].tolist()
            log_p = [x - math.log(sum(map(math.exp, z))) for x in z]
            t = int(target[b, unit])
            value += weights[t] * -(0.8 * log_p[t] + 0.2 * sum(log_p) / 3)
            weight += weights[t]
        assert value_B[b].item() == pytest.approx(value, rel=1e-5) and weight_B[b].item() == pytest.approx(weight)


def test_one_hot_soft_targets_equal_ids(rng):
    logits, target = torch.randn(20, 6, generator=rng), torch.randint(0, 6, (20,), generator=rng)
    weights, hot = torch.rand(6, generator=rng), functional.one_hot(target, 6).float()
    for a, b in zip(
        cross_entropy.loss(logits, target, label_smoothing=0.1, class_weights=weights),
        cross_entropy.loss(logits, hot, label_smoothing=0.1, class_weights=weights),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-5)


def test_binary_cross_entropy_matches_torch_and_counts_labels(rng):
    logits, target = torch.randn(30, 4, generator=rng), (torch.rand(30, 4, generator=rng) > 0.5).float()
    weight, mask = torch.rand(4, generator=rng) * 3, torch.rand(30, 4, generator=rng) > 0.3
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)
    value_B, weight_B = binary_cross_entropy.loss(logits, target, mask, pos_weight=weight)
    assert torch.allclose(value_B, (each * mask).sum(1), rtol=1e-5) and torch.equal(weight_B, mask.sum(1).float())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(mse, functional.mse_loss), (mae, functional.l1_loss), (huber, functional.huber_loss)],
)
def test_number_losses_match_torch_and_take_flat_targets(rng, ours, theirs):
    output, target = torch.randn(40, 1, generator=rng) * 3, torch.randn(40, generator=rng)
    assert torch.allclose(mean(ours.loss(output, target)), theirs(output[:, 0], target), rtol=1e-5)
    mask = torch.arange(40) % 3 == 0
    assert torch.allclose(mean(ours.loss(output, target, mask)), theirs(output[mask, 0], target[mask]), rtol=1e-5)


def test_focal_is_cross_entropy_at_gamma_zero_and_its_formula_else(rng):
    logits, target = torch.randn(25, 5, generator=rng), torch.randint(0, 5, (25,), generator=rng)
    assert torch.allclose(
        mean(focal.loss(logits, target, gamma=0.0)), functional.cross_entropy(logits, target), rtol=1e-5
    )
    p = logits.softmax(-1)[torch.arange(25), target]
    assert torch.allclose(focal.loss(logits, target)[0], -((1 - p) ** 2) * p.log(), rtol=1e-4)
    hot = functional.one_hot(target, 5).float()
    q = torch.where(hot > 0, logits.sigmoid(), 1 - logits.sigmoid())
    scale = torch.where(hot > 0, 0.25, 0.75)
    assert torch.allclose(focal.loss(logits, hot, alpha=0.25)[0], (-scale * (1 - q) ** 2 * q.log()).sum(1), rtol=1e-4)


CASES = {
    "cross_entropy": lambda z, ids, hot, y: cross_entropy.loss(z, ids, label_smoothing=0.1),
    "soft": lambda z, ids, hot, y: cross_entropy.loss(z, hot * 0.9 + 0.02, class_weights=torch.arange(1, 6)),
    "masked": lambda z, ids, hot, y: cross_entropy.loss(z, ids, torch.arange(len(z)) % 2 == 0),
    "binary": lambda z, ids, hot, y: binary_cross_entropy.loss(z, hot, pos_weight=torch.arange(1, 6)),
    "focal": lambda z, ids, hot, y: focal.loss(z, ids),
    "focal_hot": lambda z, ids, hot, y: focal.loss(z, hot, alpha=0.3),
    "mse": lambda z, ids, hot, y: mse.loss(z, y),
    "mae": lambda z, ids, hot, y: mae.loss(z, y),
    "huber": lambda z, ids, hot, y: huber.loss(z, y, delta=0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_numerical_ones(rng, name):
    ids = torch.randint(0, 5, (6,), generator=rng)
    hot, y = functional.one_hot(ids, 5).double(), torch.randn(6, 5, generator=rng, dtype=torch.float64)
    z = torch.randn(6, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: mean(CASES[name](z, ids, hot, y)), (z,))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name, dtype):
    z = torch.tensor([[1e4, -1e4, 0, 0, 0], [-1e4, 1e4, 1e4, -1e4, 1e4]], dtype=dtype, requires_grad=True)
    ids = torch.tensor([1, 2])
    loss = mean(CASES[name](z, ids, functional.one_hot(ids, 5).float(), torch.zeros(2, 5)))
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_masked_units_pass_no_gradient_even_when_not_finite():
    z = torch.tensor([[float("nan")], [1.0]], requires_grad=True)
    value_B, weight_B = mse.loss(z, torch.zeros(2), torch.tensor([False, True]))
    value_B.sum().backward()
    assert value_B.tolist() == [0.0, 1.0] and weight_B.tolist() == [0.0, 1.0]
    assert z.grad[1].item() == 2.0


def test_the_summed_cross_entropy_is_the_sum_of_its_values() -> None:
    from modelyard.losses.cross_entropy import loss, total

    draw = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(33, 7, generator=draw, requires_grad=True), torch.randint(7, (33,), generator=draw)
    for smoothing in (0.0, 0.1):
        value_B, _ = loss(logits, ids, label_smoothing=smoothing)
        whole = total(logits, ids, label_smoothing=smoothing)
        assert torch.allclose(whole, value_B.sum(), rtol=1e-6)
        assert torch.allclose(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (whole, value_B.sum())), atol=1e-7)
