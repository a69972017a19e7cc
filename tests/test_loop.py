# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""The training loop against hand-written PyTorch, closed forms and its own promises."""

from __future__ import annotations

import copy
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent / "crash"))
import course

from modelyard.data.batches import Batch, Batches
from modelyard.errors import NonFiniteError
from modelyard.kinds._contract import Ragged
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.guard import Guard
from modelyard.verbs.train.loop import Fit, Term, objective
from modelyard.verbs.train.optimisers import factor, make, orthogonal


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small only wait for a second thread."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


class Linear(nn.Module):
    """x.value (B, 4) -> y.logits (B, 3)."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), *between, nn.Tanh(), nn.Linear(8, 3))

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y.logits": self.body(inputs["x.value"])}


def arrays(rows: int = 64, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 4)).astype(np.float32)
    return {"x.value": x}, {"y.index": (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)}


def fit(net: nn.Module | None = None, *, batch: int = 16, weights: Any = None, terms: Any = None, valid: bool = False,
        rows: int = 64, hook: Any = None, judge: Any = None, **settings: Any) -> Fit:  # fmt: skip
    base: dict[str, Any] = {"epochs": 2, "lr": 0.05, "optimiser": "sgd", "weight_decay": 0.0, "schedule": "constant",
                            "precision": "float32", "compile": False}  # fmt: skip
    train = Batches(*arrays(rows), batch=batch, weights=weights, seed=3)
    held = Batches(*arrays(40, 9), batch=16, shuffle=False) if valid else None
    terms = terms or [Term("y.logits", "y.index", course.cross_entropy)]
    return Fit(net or Linear(), terms, train, held, TrainConfig(**{**base, **settings}), augment=hook, judge=judge)


def go(job: Fit) -> Any:
    return job.run(None, lambda event: None, threading.Event())


def flat(net: nn.Module) -> Any:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


@pytest.mark.parametrize(("name", "theirs"), [
    ("sgd", lambda g: torch.optim.SGD(g, lr=0.05, momentum=0.9, nesterov=True)),
    ("adamw", lambda g: torch.optim.AdamW(g, lr=0.05, betas=(0.9, 0.99))),
    ("adam", lambda g: torch.optim.Adam(g, lr=0.05, betas=(0.9, 0.99))),
])  # fmt: skip
def test_equals_a_hand_written_loop(name: str, theirs: Callable[..., Any]) -> None:
    job = fit(optimiser=name, weight_decay=0.1)
    net = copy.deepcopy(job.network)
    groups = [{"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    optimiser = theirs(groups)
    x, y = torch.from_numpy(arrays()[0]["x.value"]), torch.from_numpy(arrays()[1]["y.index"])
    for epoch in range(2):
        order = job.train.order(epoch)
        for i in range(0, 64, 16):
            optimiser.zero_grad()
            functional.cross_entropy(net({"x.value": x[order[i : i + 16]]})["y.logits"], y[order[i : i + 16]]).backward()
            optimiser.step()
    go(job)
    torch.testing.assert_close(flat(job.network), flat(net), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_one_kernel_loss_takes_the_step_of_the_loss_by_example(weight: float) -> None:
    """Also in a last batch that is smaller (70 rows in batches of 16: 6 are left), whose divisor is another."""
    from modelyard.losses.cross_entropy import loss, total

    one, many = (fit(terms=[Term("y.logits", "y.index", loss, weight=weight, total=t)], rows=70, clip=0.1) for t in (total, None))
    for job in (one, many):
        go(job)
    assert sorted(one.shares) == pytest.approx([weight / 16, weight / 6])
    torch.testing.assert_close(flat(one.network), flat(many.network), atol=1e-6, rtol=1e-5)
    assert abs(one.history[-1]["loss"] - many.history[-1]["loss"]) < 1e-5 and all(p.grad is None for p in one.network.parameters())


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("parts", [3, 16])
def test_accumulation_equals_the_whole_batch(terms: int, parts: int) -> None:
    """Unequal parts, example weights, class weights, L1, dropout off: the same step within 1e-6."""
    weights = np.random.default_rng(1).uniform(0, 3, 64).astype(np.float32)

    def uneven(output: Any, target: Any, mask: Any = None) -> tuple[Any, Any]:
        units_B = 1.0 + target.float()
        return functional.cross_entropy(output, target, reduction="none") * units_B, units_B

    listed = [Term("y.logits", "y.index", uneven, class_weights_K=torch.tensor([1.0, 2.0, 0.5])),
              Term("y.logits", "y.index", course.cross_entropy, weight=0.3)][:terms]  # fmt: skip
    whole, cut = (fit(terms=listed, weights=weights, accumulate=n, l1=0.01, batch=16) for n in (1, parts))
    for job in (whole, cut):
        go(job)
    torch.testing.assert_close(flat(cut.network), flat(whole.network), atol=1e-6, rtol=1e-5)
    assert abs(cut.history[0]["loss"] - whole.history[0]["loss"]) < 1e-5


def test_objective_is_the_weighted_mean() -> None:
    draw = np.random.default_rng(0)
    logits, target = draw.normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, 1, 0])
    weights, classes = np.array([1, 2, 0, 1, 3], np.float32), np.array([1, 5, 2], np.float32)
    batch = Batch({}, {"y.index": torch.from_numpy(target)}, torch.from_numpy(weights), np.arange(5))
    term = Term("y.logits", "y.index", course.cross_entropy, class_weights_K=torch.from_numpy(classes))
    sums = objective([term], {"y.logits": torch.from_numpy(logits)}, batch)
    top = bottom = 0.0
    for i in range(5):
        loss = -(logits[i, target[i]] - math.log(sum(math.exp(v) for v in logits[i])))
        top += weights[i] * classes[target[i]] * loss
        bottom += weights[i] * classes[target[i]]
    assert abs(float(sums.values[0] / sums.units[0]) - top / bottom) < 1e-5
    mix = SimpleNamespace(partner_B=torch.tensor([1, 0, 3, 2, 4]), weight_B=torch.full((5,), 0.3))
    plain = Batch({}, batch.targets, None, np.arange(5))
    mixed = objective([Term("y.logits", "y.index", course.cross_entropy)], {"y.logits": torch.from_numpy(logits)}, plain, mix)
    soft = 0.3 * functional.one_hot(torch.from_numpy(target), 3) + 0.7 * functional.one_hot(torch.from_numpy(target)[mix.partner_B], 3)
    torch.testing.assert_close(mixed.values[0] / 5, functional.cross_entropy(torch.from_numpy(logits), soft))


def test_clipping_bounds_the_step() -> None:
    job = fit(clip=0.01, momentum=0.0, lr=1.0)
    before = flat(job.network)
    job.update(next(job.train.epoch(0)), 0)
    assert abs(float((flat(job.network) - before).norm()) - 0.01) < 1e-5


def test_running_average() -> None:
    job = fit(ema=0.9, epochs=1)
    mine = flat(job.network).double()
    for step, batch in enumerate(job.train.epoch(0)):
        job.update(batch, 0)
        decay = min(0.9, (2 + step) / (11 + step))
        mine = decay * mine + (1 - decay) * flat(job.network).double()
    job._install()
    torch.testing.assert_close(flat(job.network).double(), mine, atol=1e-6, rtol=1e-5)


def test_early_stopping_keeps_the_best_weights() -> None:
    told = iter([0.5, 0.3, 0.4, 0.6, 0.35, 0.1, 0.1])
    seen: list[Any] = []

    def judge(net: nn.Module) -> float:
        seen.append(flat(net))
        return next(told)

    job = fit(epochs=30, patience=3, judge=judge)
    result = go(job)
    assert (result.stopped, result.best_epoch, result.epochs) == ("patience", 1, 5)
    assert torch.equal(flat(job.network), seen[1])


def test_plateau_cuts_the_rate() -> None:
    job = fit(epochs=8, schedule="plateau", judge=lambda net: 1.0)
    go(job)
    assert [round(e["lr"] / 0.05, 4) for e in job.history] == [1, 1, 1, 1, 0.3, 0.3, 0.3, 0.09]


def test_schedules() -> None:
    at = lambda schedule, warmup: [factor(TrainConfig(schedule=schedule, warmup=warmup), s, 100) for s in range(100)]  # noqa: E731
    for schedule in ("one-cycle", "cosine"):
        rates = at(schedule, 0.2)
        assert rates[0] == 0.04 and rates[20] == max(rates) == 1.0 and rates[-1] < 0.02
        assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert set(at("constant", 0.0)) == {1.0}
    assert abs(at("cosine", 0.0)[50] - 0.5005) < 1e-9


def test_muon_steps_are_nearly_orthogonal_and_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((8, 20), (20, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=draw)))
        assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    job = fit(optimiser="muon", lr=0.02, epochs=10)
    go(job)
    assert job.history[-1]["loss"] < 0.6 * job.history[0]["loss"]


def test_decay_spares_vectors() -> None:
    groups = make(Linear(nn.BatchNorm1d(8)), TrainConfig(lr=0.1, optimiser="adamw", weight_decay=0.3)).param_groups
    assert all(p.ndim > 1 for p in groups[0]["params"]) and groups[0]["weight_decay"] == 0.3
    assert all(p.ndim == 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0


# -- the guard ----------------------------------------------------------------------------------------------------------------


class Trap(nn.Module):
    """Turns marked examples into NaN or infinity, forward or backward."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, h_BD: Any) -> Any:
        if self.place == "activation":
            return torch.where(h_BD.abs().sum(1, keepdim=True) > 1e3, math.nan, h_BD)
        if self.place == "gradient":  # the square root has an infinite slope at 0: a finite loss, a gradient that is not
            return h_BD + torch.where(h_BD.abs().sum(1, keepdim=True) > 1e3, h_BD * 0, torch.ones_like(h_BD)).sqrt()
        return h_BD


@pytest.mark.parametrize("place", ["input", "label", "activation", "gradient", "loss"])
@pytest.mark.parametrize("bad", [(5,), (0, 17, 63)])
def test_nothing_that_is_not_finite_reaches_the_weights(place: str, bad: tuple[int, ...]) -> None:
    job = fit(Linear(Trap(place), nn.BatchNorm1d(8)), batch=64, optimiser="adamw", epochs=3)
    job.update(next(job.train.epoch(0)), 0)
    ids = torch.tensor(bad)
    if place == "input":
        job.train.inputs["x.value"][ids, 1] = math.inf
    elif place in ("activation", "gradient"):
        job.train.inputs["x.value"][ids] = 1e5
    else:
        value = torch.zeros(64)
        value[ids] = math.nan if place == "label" else 1.0
        job.train.targets["y.weight"] = value

        def loss(output: Any, target: Any, mask: Any = None) -> tuple[Any, Any]:
            spoilt = (output[:, 0] - target).square() if place == "label" else output[:, 0] + torch.where(target > 0, math.inf, 0.0)
            return spoilt, torch.ones(len(output))

        job.terms.append(Term("y.logits", "y.weight", loss))
        job.running = [0.0] * 4
    before = {k: v.clone() for k, v in job.network.state_dict().items()}
    state = copy.deepcopy(job.optimiser.state_dict()["state"])
    with pytest.raises(NonFiniteError) as caught:
        job.update(next(job.train.epoch(1)), 1)
    for name, value in job.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for index, old in job.optimiser.state_dict()["state"].items():
        assert all(torch.equal(v, state[index][k]) for k, v in old.items())
    told = caught.value.details[0].message
    assert sorted(map(int, told.rsplit("example(s) ", 1)[1].split(", "))) == sorted(bad), told
    assert "step 1" in caught.value.message and ("the gradient" in caught.value.message) == (place == "gradient")


def test_weights_that_overflow_are_not_saved(tmp_path: Path) -> None:
    job = fit(lr=100.0, momentum=0.0, checkpoint_every=0.0)
    with torch.no_grad():
        next(job.network.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="weights"):
        job.run(tmp_path, lambda event: None, threading.Event())
    assert not list(tmp_path.glob("step-*"))


def test_large_gradients_are_not_taken_for_infinite() -> None:
    net = nn.Linear(3, 2)
    for p in net.parameters():
        p.grad = torch.full_like(p, 1e25)
    norm, found = Guard(net).facts([torch.tensor(2.0)])
    assert math.isclose(norm, 1e25 * math.sqrt(8), rel_tol=1e-5) and found == [2.0]


# -- determinism and budget -------------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_whatever_ran_before() -> None:
    prints = []
    for _ in range(2):
        job = course.make(seed=5)
        torch.rand(17)  # the global generator's position must not matter
        course.go(job, None)
        prints.append(course.print_of(job))
    other = course.make(seed=6)
    course.go(other, None)
    assert prints[0] == prints[1] != course.print_of(other)


def test_budget_is_kept_and_can_be_replayed() -> None:
    class Slow(Linear):
        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.004 if len(slow) < 40 else 0.012)  # three times slower after the estimate
            slow.append(1)
            return super().forward(inputs)

    slow: list[int] = []
    job = fit(Slow(), budget=2.0, epochs=10_000)
    result = go(job)
    assert result.stopped == "budget" and result.seconds < 2.5  # it planned for 4 ms a step: 4 s
    assert len(job.decisions) >= 2 and job.decisions[-1][1] == result.steps
    again = fit(budget=2.0, epochs=10_000)
    again.run(None, lambda event: None, threading.Event(), decided=dict(job.decisions))  # type: ignore[arg-type]
    assert torch.equal(flat(again.network), flat(job.network)) and again.decisions == job.decisions


def test_augmentation_sees_inputs_and_validation_does_not() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def hook(inputs: dict[str, Any], ids: Any, epoch: int) -> tuple[dict[str, Any], Any]:
        seen.append((epoch, tuple(ids)))
        return {"x.value": inputs["x.value"] * 0}, None

    job = fit(hook=hook, valid=True, epochs=2)
    before = job.validate()
    go(job)
    assert len(seen) == 8 and sorted(i for e, ids in seen if e == 1 for i in ids) == list(range(64))
    assert job.validate() != before and not job.network.training


# -- batches ------------------------------------------------------------------------------------------------------------------------


def test_every_example_once_and_order_is_a_function_of_seed_and_epoch() -> None:
    ragged = Ragged.from_lists([list(range(n % 13)) for n in range(101)], np.int32)
    x = np.arange(101 * 6, dtype=np.float32).reshape(101, 2, 3)
    make_it = lambda seed: Batches({"x.v": x, "t.tokens": ragged}, {"y.index": np.arange(101)}, batch=8, seed=seed)  # noqa: E731
    batches = make_it(4)
    for epoch in (0, 1):
        found = list(batches.epoch(epoch))
        assert sorted(np.concatenate([b.index for b in found])) == list(range(101))
        for b in found:
            np.testing.assert_array_equal(b.inputs["x.v"].numpy(), x[b.index])
            np.testing.assert_array_equal(b.targets["y.index"].numpy(), b.index)
            for row, i in enumerate(b.index):
                length = int(b.inputs["t.length"][row])
                assert b.inputs["t.tokens"][row, :length].tolist() == list(range(i % 13)) and not b.inputs["t.tokens"][row, length:].any()
        later = list(make_it(4).epoch(epoch, 5))
        assert all(np.array_equal(p.index, q.index) for p, q in zip(found[5:], later, strict=True))
    assert not np.array_equal(make_it(4).order(0), make_it(5).order(0)) and not np.array_equal(batches.order(0), batches.order(1))
    padded = sum(b.inputs["t.tokens"].numel() for b in batches.epoch(0))
    assert padded < 1.35 * max(1, len(ragged.values))  # sorting by length saves most of the padding


def test_memory_maps_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4000, dtype=np.float32).reshape(100, 40))
    mapped = np.load(path, mmap_mode="r")
    batches = Batches({"x.v": mapped}, {}, batch=10)
    assert np.shares_memory(batches.inputs["x.v"].numpy(), mapped)
    first = next(batches.epoch(0))
    np.testing.assert_array_equal(first.inputs["x.v"].numpy(), mapped[first.index])
