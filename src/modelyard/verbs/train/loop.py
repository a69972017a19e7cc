"""The one loop for everything trained by gradient.

All randomness is a function of (seed, epoch, step): a run that is killed anywhere and resumed from its last checkpoint
ends in the same weights, bit for bit, on the same kind of CPU with the same number of threads. What was decided from the
clock (the steps that a time budget allows) is saved before a step depends on it, and `run(decided=…)` repeats it elsewhere.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modelyard.data.batches import Batch, Batches
from modelyard.data.blocks import Blocks
from modelyard.errors import ArtefactError
from modelyard.nets import _vocabulary
from modelyard.nets._network import MEMBERS
from modelyard.store import checkpoint
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.guard import Guard, cut
from modelyard.verbs.train.optimisers import factor, make

Loss = Callable[..., tuple[torch.Tensor, torch.Tensor]]
Augment = Callable[[dict[str, torch.Tensor], np.ndarray, int], tuple[dict[str, torch.Tensor], Any]]
"""(inputs, example ids, epoch) -> (inputs, mix): `mix` has `partner_B` and `weight_B`, or is None."""
Rewrite = Callable[[Batch, int | None], Batch]
"""(batch, epoch) -> the batch with other inputs and targets; epoch None in a validation, which is the same each time."""

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 3
"""`schedule: plateau`: the rate is cut to 0.3 after three epochs without a better validation loss."""

RESERVE = 0.1
"""Share of a time budget kept for saving and the final evaluation."""


@dataclass(frozen=True)
class Term:
    """One output's share of the objective."""

    head: str
    target: str
    loss: Loss
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    class_weights_K: torch.Tensor | None = None
    total: Callable[..., torch.Tensor] | None = None
    """The same loss summed over the batch by one kernel, for outputs (B, K), targets (B,) and no weights."""


@dataclass
class Sums:
    """Σ w·value and Σ w·units of each term."""

    values: list[torch.Tensor]
    units: list[torch.Tensor | float]
    """Numbers where every example counts once: nothing to compute, move or wait for."""


@dataclass
class Result:
    """What a fit produced; the network holds the weights that are to be saved."""

    steps: int
    epochs: int
    stopped: str
    """`epochs`, `patience`, `budget` or `interrupt`."""
    best_epoch: int
    seconds: float
    decided_steps: int


def objective(terms: Sequence[Term], outputs: Mapping[str, torch.Tensor], batch: Batch, mix: Any = None) -> Sums:
    """Weighted sums over the batch. Positions beyond `<output>.length` of an aligned target do not count."""
    values: list[torch.Tensor] = []
    units: list[torch.Tensor | float] = []
    for term in terms:
        if term.total is not None and mix is None and _plain(term, outputs, batch):
            values.append(term.total(outputs[term.head].float(), batch.targets[term.target], **term.options))
            units.append(float(len(batch)))
            continue
        value_B, weight_B = _weighted(term, outputs, batch, mix)
        values.append(value_B.sum())
        units.append(weight_B.sum())
    return Sums(values, units)


def _plain(term: Term, outputs: Mapping[str, torch.Tensor], batch: Batch) -> bool:
    """Whether every example counts once: then one fused kernel gives the sum (40 µs of 0.9 ms a step of a small net)."""
    unweighted = batch.weights_B is None and term.class_weights_K is None and f"{term.head}{MEMBERS}" not in outputs
    return unweighted and batch.targets[term.target].dim() == 1 and outputs[term.head].dim() == 2


def each(
    terms: Sequence[Term], outputs: Mapping[str, torch.Tensor], batch: Batch, mix: Any = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(w·value_B, w·units_B) of each term."""
    return (_weighted(term, outputs, batch, mix) for term in terms)


def _weighted(term: Term, outputs: Mapping[str, torch.Tensor], batch: Batch, mix: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(w·value_B, w·units_B) of one term: w is the example's weight times that of its class."""
    target = batch.targets[term.target]
    mask = _mask(batch.targets, term.target)
    value_B, weight_B = _loss(term, outputs, target, mask)
    if mix is not None:
        other_B, _ = _loss(term, outputs, target[mix.partner_B], mask)
        value_B = mix.weight_B * value_B + (1 - mix.weight_B) * other_B
    importance_B = batch.weights_B
    if term.class_weights_K is not None:
        own_B = term.class_weights_K.to(target.device)[target.long().clamp_min(0)]
        importance_B = own_B if importance_B is None else importance_B * own_B
    if importance_B is not None:
        value_B, weight_B = value_B * importance_B, weight_B * importance_B
    return value_B, weight_B


def _loss(
    term: Term, outputs: Mapping[str, torch.Tensor], target: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(value_B, units_B) of one term; the mean over members where the net is an ensemble whose members are taught one by one."""
    members = outputs.get(f"{term.head}{MEMBERS}")
    if members is None:
        return term.loss(outputs[term.head].float(), target, mask, **term.options)
    count = members.shape[1]  # (B, M, …) to (B·M, …)
    again = lambda x: None if x is None else x.repeat_interleave(count, 0)  # noqa: E731
    value, weight = term.loss(members.float().flatten(0, 1), again(target), again(mask), **term.options)
    return value.reshape(-1, count).mean(1), weight.reshape(-1, count).mean(1)


def _mask(targets: Mapping[str, torch.Tensor], key: str) -> torch.Tensor | None:
    lengths_B = targets.get(f"{key.rsplit('.', 1)[0]}.length")
    if lengths_B is None:
        return None
    return torch.arange(targets[key].shape[1], device=lengths_B.device)[None, :] < lengths_B[:, None]


class Fit:
    """State of one run: network, optimiser, averages, position, history."""

    def __init__(
        self, network: nn.Module, terms: Sequence[Term], train: Batches | Blocks, valid: Batches | Blocks | None, config: TrainConfig, *,
        augment: Augment | None = None, device: str = "cpu", judge: Callable[[nn.Module], float] | None = None,
        rewrite: Rewrite | None = None, before: Callable[[int], None] | None = None,
    ) -> None:
        """`judge` gives what early stopping and the plateau watch instead of the validation loss; lower is better. `before` is called
        with each epoch before its steps (what is frozen changes there)."""
        self.network, self.terms, self.train, self.valid, self.config = network.to(device), list(terms), train, valid, config
        self.augment, self.device, self.judge, self.rewrite, self.before = augment, device, judge, rewrite, before
        self.optimiser = make(network, config)
        self.guard = Guard(network)
        self.matrices = [p for p in self.guard.parameters if p.ndim > 1]
        self.step, self.steps = 0, max(1, train.steps * int(config.epochs or 1))
        self.best, self.best_epoch, self.stale, self.plateau = math.inf, -1, 0, 1.0
        self.averaged = {k: v.detach().clone() for k, v in self.state().items()} if config.ema else None
        self.kept: dict[str, torch.Tensor] | None = None
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.stopped = ""
        self.decisions: list[list[int]] = []
        """`[step, steps]`: at `step` it was decided from the clock to make `steps` in all."""
        self.shares: dict[float, torch.Tensor] = {}
        """weight / units on the device, of the batch sizes that came."""
        self.running = [0.0] * (2 * len(self.terms))
        """Σ w·value of each term in the epoch so far, then Σ w·units."""
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and native_bfloat16(device, network))
        compiled = config.compile is True or (config.compile == "auto" and device.startswith("cuda"))
        if compiled:
            _vocabulary.leave_out()
        self.forward: Callable[..., dict[str, torch.Tensor]] = torch.compile(network) if compiled else network
        self.sees_targets = bool(getattr(network, "sees_targets", False))

    def state(self) -> dict[str, torch.Tensor]:
        """What training changes of the network: all of it, or the entries that it names as `moving` (adapters beside a frozen base)."""
        whole = self.network.state_dict()
        moving = getattr(self.network, "moving", None)
        return whole if moving is None else {k: whole[k] for k in sorted(moving)}

    def put(self, state: Mapping[str, torch.Tensor]) -> None:
        """The other way round."""
        self.network.load_state_dict(dict(state), strict=getattr(self.network, "moving", None) is None)

    # -- one step -------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, epoch: int) -> list[float]:
        """One optimiser step; returns Σ w·value of each term, then Σ w·units. Raises `NonFiniteError` instead of a bad step."""
        self._seed()
        rate = float(self.config.lr or 0) * factor(self.config, self.step, self.steps) * self.plateau
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self.guard.remember()
        batch = batch if self.rewrite is None else self.rewrite(batch, epoch)
        totals = self._backward(batch, epoch)
        norm, found = self.guard.facts([*totals.values, *totals.units])
        if not (math.isfinite(norm) and all(map(math.isfinite, found))):
            raise self.guard.stop(self._there(batch), self.step, norm, found[: len(self.terms)], self._values)
        if self.config.clip and norm > self.config.clip:
            torch._foreach_mul_([p.grad for p in self.guard.parameters if p.grad is not None], self.config.clip / norm)
        self.optimiser.step()
        self.guard.forget()
        self.step += 1
        if self.averaged is not None:
            self._average()
        return found

    def _seed(self) -> None:
        """Dropout of this very step: the generator does not remember earlier ones."""
        seed = ((self.config.seed * 1_000_003) + self.step) % 2**63
        if self.device == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for every accelerator: 5 times the time
        else:
            torch.manual_seed(seed)

    def _backward(self, batch: Batch, epoch: int) -> Sums:
        """Gradients of Σ_terms weight · Σ w·value / Σ w·units over all parts; returns the sums, detached.

        In parts (accumulation) the divisors of the whole batch are found first, so that the step equals the undivided one.
        """
        parts = [batch]
        if self.config.accumulate > 1:
            ends = [round(i * len(batch) / self.config.accumulate) for i in range(self.config.accumulate + 1)]
            parts = [cut(batch, low, high) for low, high in pairwise(ends) if high > low]
        units = self._units(parts) if len(parts) > 1 else None
        total: list[Any] = []
        for i, part in enumerate(parts):
            sums = self._sums(part, epoch)
            # the divisor goes into the backward pass as its seed: no nodes of the graph for it
            seeds = [self._share(t.weight, u) for t, u in zip(self.terms, units or sums.units, strict=True)]
            heads = list(sums.values)
            if self.config.l1 and i == 0:
                heads.append(self.config.l1 * torch.stack([p.abs().sum() for p in self.matrices]).sum())
                seeds.append(torch.ones_like(heads[-1]))
            torch.autograd.backward(heads, seeds)
            mine = [x.detach() if isinstance(x, torch.Tensor) else x for x in (*sums.values, *sums.units)]
            total = [a + b for a, b in zip(total, mine, strict=True)] if total else mine
        return Sums(total[: len(self.terms)], total[len(self.terms) :])

    def _share(self, weight: float, units: torch.Tensor | float) -> torch.Tensor:
        """weight / units, without a gradient; that of a number is made once (a new tensor a step is 2 % of a small net's)."""
        if isinstance(units, torch.Tensor):
            return weight / units.detach().clamp_min(1e-12)
        share = weight / max(units, 1e-12)
        if share not in self.shares:
            self.shares[share] = torch.tensor(share, dtype=torch.float32, device=self.device)
        return self.shares[share]

    def _units(self, parts: Sequence[Batch]) -> list[torch.Tensor | float]:
        """Σ w·units of the batch, without a gradient, a random number or a change of running means."""
        self.network.eval()
        with torch.no_grad():
            found = [[weight_B.sum() for _, weight_B in self._terms(part)] for part in parts]
        self.network.train()
        return [torch.stack(x).sum() for x in zip(*found, strict=True)]

    def _there(self, batch: Batch) -> Batch:
        """The batch on the device."""
        if self.device == "cpu":
            return batch
        move = lambda arrays: {k: v.to(self.device, non_blocking=True) for k, v in arrays.items()}  # noqa: E731
        weights_B = None if batch.weights_B is None else batch.weights_B.to(self.device)
        return Batch(move(batch.inputs), move(batch.targets), weights_B, batch.index)

    def _outputs(self, inputs: Mapping[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        if self.sees_targets:
            inputs = {**inputs, **batch.targets}
        if not self.bf16:
            return self.forward(inputs)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            return self.forward(inputs)

    def _sums(self, batch: Batch, epoch: int) -> Sums:
        """Of a training batch, with augmentation."""
        mix = None
        if self.augment is not None:
            inputs, mix = self.augment(batch.inputs, batch.index, epoch)
            batch = Batch(inputs, batch.targets, batch.weights_B, batch.index)
        batch = self._there(batch)
        return objective(self.terms, self._outputs(batch.inputs, batch), batch, mix)

    def _terms(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(w·value_B, w·units_B) of each term without augmentation."""
        batch = self._there(batch)
        return each(self.terms, self._outputs(batch.inputs, batch), batch)

    def _values(self, batch: Batch) -> list[torch.Tensor]:
        return [value_B for value_B, _ in self._terms(batch)]

    def _average(self) -> None:
        """Running average of the weights (Polyak & Juditsky 1992); counters are copied."""
        assert self.averaged is not None
        decay = min(float(self.config.ema or 0), (1 + self.step) / (10 + self.step))  # the start is forgotten quickly
        now = self.state()
        floats = [k for k, v in self.averaged.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.averaged[k] for k in floats], [now[k] for k in floats], 1 - decay)
        for name in self.averaged.keys() - set(floats):
            self.averaged[name].copy_(now[name])

    # -- whole run ------------------------------------------------------------------------------------------------------

    def run(
        self, folder: Path | None, events: Callable[[dict[str, Any]], None], stop: threading.Event, *, resume: bool = False,
        progress: Callable[[int, int, str], None] | None = None, decided: Mapping[int, int] | None = None,
    ) -> Result:
        """Train to the end, to the budget, to the patience or until `stop`; leaves the best weights in the network.

        `decided` (`dict(fit.decisions)` of another run) replaces the clock of a time budget: the same steps are made again.
        """
        found = resume and folder is not None and self._load(folder, events)
        began = time.monotonic() - self.seconds
        if self.config.budget and not found:
            self._decide(decided, began, events)
        if folder is not None and not found:
            self._save(folder, began)  # the decisions of the start survive a kill in the first epoch
        saved = time.monotonic()
        self.network.train()
        while not self.stopped and self.step < self.steps and not stop.is_set():
            epoch, at = divmod(self.step, self.train.steps)
            if self.before is not None:
                self.before(epoch)
            for batch in self.train.epoch(epoch, at):
                self.running = [a + b for a, b in zip(self.running, self.update(batch, epoch), strict=True)]
                ended = self.step % self.train.steps == 0 or self.step >= self.steps
                if ended:  # before any save, so that a checkpoint never lies between the last step and its evaluation
                    self.seconds = time.monotonic() - began
                    self._end_of_epoch(epoch, events)
                over = bool(self.stopped) or self.step >= self.steps
                again = ended and not over and self._reconsider(decided, began, events)
                if progress is not None and (self.step % 10 == 0 or over):
                    progress(self.step, self.steps, "")
                due = over or again or stop.is_set() or time.monotonic() - saved > self.config.checkpoint_every
                if folder is not None and due:
                    self._save(folder, began)
                    saved = time.monotonic()
                if ended or stop.is_set():
                    break
        interrupted = not self.stopped and self.step < self.steps
        full = self.steps >= self.train.steps * int(self.config.epochs or 1)
        stopped = "interrupt" if interrupted else self.stopped or ("epochs" if full else "budget")
        self._install()
        return Result(self.step, len(self.history), stopped, self.best_epoch, time.monotonic() - began, self.steps)

    def _end_of_epoch(self, epoch: int, events: Callable[[dict[str, Any]], None]) -> None:
        count = len(self.terms)
        pairs = zip(self.terms, self.running[:count], self.running[count:], strict=True)
        loss = sum(t.weight * value / max(unit, 1e-12) for t, value, unit in pairs)
        self.running = [0.0] * (2 * count)
        self.guard.weights(self.step)
        entry: dict[str, Any] = {
            "event": "epoch", "epoch": epoch + 1, "step": self.step, "steps": self.steps, "loss": loss, "lr": self.optimiser.param_groups[-1]["lr"],
            "seconds": round(self.seconds, 3),
        }  # fmt: skip
        judged = loss
        if self.valid is not None:
            judged = entry["valid_loss"] = self.validate()
        if self.judge is not None:
            with self._saved_weights():
                judged = entry["judged"] = float(self.judge(self.network))
        if judged < self.best:
            self.best, self.best_epoch, self.stale = judged, epoch, 0
            if self.config.patience or self.config.schedule == "plateau" or self.judge is not None:
                self.kept = {k: v.detach().clone() for k, v in self._current().items()}
        else:
            self.stale += 1
            if self.config.schedule == "plateau" and self.stale % PLATEAU_PATIENCE == 0:
                self.plateau *= PLATEAU_FACTOR
        self.history.append(entry)
        events(entry)
        self.stopped = "patience" if self.config.patience and self.stale >= self.config.patience else ""

    @contextmanager
    def _saved_weights(self) -> Iterator[None]:
        """The weights that would be saved (the average, where one is kept), in evaluation mode."""
        own, was = None, self.network.training
        if self.averaged is not None:
            own = {k: v.detach().clone() for k, v in self.state().items()}
            self.put(self.averaged)
        self.network.eval()
        try:
            yield
        finally:
            if own is not None:
                self.put(own)
            self.network.train(was)

    def validate(self) -> float:
        """Mean loss of all terms on the validation examples, with the weights that would be saved."""
        assert self.valid is not None
        count = len(self.terms)
        totals = [0.0] * (2 * count)
        with self._saved_weights(), torch.no_grad():
            for batch in self.valid.epoch(0):
                found = list(self._terms(batch if self.rewrite is None else self.rewrite(batch, None)))
                sums = torch.stack([*(v.sum() for v, _ in found), *(w.sum() for _, w in found)]).tolist()
                totals = [a + b for a, b in zip(totals, sums, strict=True)]
        pairs = zip(self.terms, totals[:count], totals[count:], strict=True)
        return float(sum(t.weight * value / max(unit, 1e-12) for t, value, unit in pairs))

    def _current(self) -> dict[str, torch.Tensor]:
        return self.averaged if self.averaged is not None else self.state()

    def _install(self) -> None:
        self.put(self.kept if self.kept is not None else self._current())
        self.network.eval()

    # -- time budget ----------------------------------------------------------------------------------------------------

    def _decide(self, decided: Mapping[int, int] | None, began: float, events: Callable[[dict[str, Any]], None]) -> None:
        """Turns the budget into a number of steps, before the first one."""
        self.steps = decided[0] if decided is not None else self._affordable(began)
        self.decisions.append([0, self.steps])
        events({"event": "budget", "seconds": self.config.budget, "steps": self.steps})

    def _reconsider(self, decided: Mapping[int, int] | None, began: float, events: Callable[[dict[str, Any]], None]) -> bool:
        """After an epoch: fewer steps if the rest would overrun the budget by 5 %, more if it would leave 10 % unused.

        More only in the first half, where the schedules have hardly begun to fall. True where a decision was made.
        """
        if not self.config.budget:
            return False
        steps = decided.get(self.step, self.steps) if decided is not None else self._fitting(began)
        if steps == self.steps:
            return False
        self.steps = steps
        self.decisions.append([self.step, steps])
        events({"event": "budget", "seconds": self.config.budget, "steps": steps})
        return True

    def _fitting(self, began: float) -> int:
        budget = float(self.config.budget or 0)
        spent = time.monotonic() - began
        left = (1 - RESERVE) * budget - spent
        over = (self.steps - self.step) * spent / self.step - left
        fits = min(self.step + max(0, int(left * self.step / spent)), self.train.steps * int(self.config.epochs or 1))
        if over > 0.05 * budget:
            return fits
        return max(fits, self.steps) if over < -0.1 * budget and 2 * self.step <= self.steps else self.steps

    def _affordable(self, began: float) -> int:
        """Steps that fit into the budget, from the speed of a few on a copy of the state (20 of them, 3 s or 5 % at most)."""
        budget = float(self.config.budget or 0)
        before = {k: v.detach().clone() for k, v in self.state().items()}
        averaged = None if self.averaged is None else {k: v.clone() for k, v in self.averaged.items()}
        self.network.train()
        if self.before is not None:
            self.before(0)
        times: list[float] = []
        for batch in self.train.epoch(0):
            start = time.monotonic()
            self.update(batch, 0)
            times.append(time.monotonic() - start)
            # the first step imports, allocates and compiles: a second or more that says nothing of the others
            if len(times) > 20 or sum(times[1:]) > min(3.0, 0.05 * budget):
                break
        speed = float(np.median(times[1:] or times))
        check = 0.0
        if self.valid is not None:
            start = time.monotonic()
            self.validate()
            check = time.monotonic() - start
        self.put(before)
        self.averaged, self.step = averaged, 0
        self.optimiser = make(self.network, self.config)
        left = (1 - RESERVE) * budget - (time.monotonic() - began)
        per_step = speed + check / self.train.steps
        return max(1, min(self.steps, int(left / per_step)))

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def _save(self, folder: Path, began: float) -> None:
        self.seconds = time.monotonic() - began
        self.guard.weights(self.step)
        arrays = {f"net/{k}": _array(v) for k, v in self.state().items()}
        for name, group in (("ema", self.averaged), ("best", self.kept)):
            arrays |= {f"{name}/{k}": _array(v) for k, v in (group or {}).items()}
        plain: dict[str, float] = {}
        for i, state in self.optimiser.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    arrays[f"opt/{i}/{key}"] = _array(value)
                else:
                    plain[f"{i}/{key}"] = value
        meta = {
            "steps": self.steps, "best": None if math.isinf(self.best) else self.best, "best_epoch": self.best_epoch,
            "stale": self.stale, "plateau": self.plateau, "history": self.history, "seconds": self.seconds, "optimiser": plain,
            "batch": self.train.batch, "epoch_steps": self.train.steps, "threads": torch.get_num_threads(),
            "running": self.running, "stopped": self.stopped, "decisions": self.decisions,
        }  # fmt: skip
        checkpoint.save(folder, self.step, arrays, meta)

    def _load(self, folder: Path, events: Callable[[dict[str, Any]], None]) -> bool:
        found = checkpoint.load(folder)
        if found is None:
            events({"event": "resume", "step": 0, "notes": ["no checkpoint was written yet; starting again"]})
            return False
        arrays, meta, notes = found
        came = (meta["batch"], meta["epoch_steps"])
        if came != (self.train.batch, self.train.steps):
            message = f"the checkpoint was made with batches of {came[0]} and {came[1]} steps an epoch; now they are {self.train.batch} "
            raise ArtefactError(f"{message}and {self.train.steps}. Resume with the same data and train.batch, or start a new run.")
        pick = lambda prefix: {  # noqa: E731
            k.removeprefix(prefix): torch.from_numpy(v.copy()).to(self.device) for k, v in arrays.items() if k.startswith(prefix)
        }
        self.put(pick("net/"))
        self.averaged = pick("ema/") or self.averaged
        self.kept = pick("best/") or None
        state: dict[int, dict[str, Any]] = {}
        for key, value in pick("opt/").items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = value
        for key, plain in meta["optimiser"].items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = plain
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step, self.steps = meta["step"], meta["steps"]
        self.best = math.inf if meta["best"] is None else meta["best"]
        self.best_epoch, self.stale, self.plateau = meta["best_epoch"], meta["stale"], meta["plateau"]
        self.history, self.seconds, self.running = meta["history"], meta["seconds"], meta["running"]
        self.stopped, self.decisions = meta["stopped"], meta["decisions"]
        if meta["threads"] != torch.get_num_threads():
            torch.set_num_threads(meta["threads"])  # the order of sums depends on it
        events({"event": "resume", "step": self.step, "notes": notes})
        return True


def native_bfloat16(device: str, network: nn.Module) -> bool:
    """Whether bfloat16 is computed natively there and pays: always on such an accelerator; on a CPU with those instructions for nets
    that say so (`bfloat16_on_cpu`), since small ones lose more by casting than products gain. AVX2 CPUs emulate it, nine times slower."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if device == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(getattr(network, "bfloat16_on_cpu", False) and (known.get("avx512_bf16") or known.get("amx_bf16")))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
