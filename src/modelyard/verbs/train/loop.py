"""The one loop for everything trained by gradient.

All randomness is a function of (seed, epoch, step): a run that is killed anywhere and resumed from its last checkpoint
ends in the same weights, bit for bit, on the same kind of CPU with the same number of threads. Loss sums stay tensors until
the epoch ends; a non-finite loss or gradient stops the run before the weights see it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modelyard.data.batches import Batch, Batches
from modelyard.errors import NonFiniteError, Problem
from modelyard.store import checkpoint
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.optimisers import factor, make

Loss = Callable[..., tuple[torch.Tensor, torch.Tensor]]
Augment = Callable[[dict[str, torch.Tensor], np.ndarray, int], tuple[dict[str, torch.Tensor], Any]]
"""(inputs, example ids, epoch) -> (inputs, mix): `mix` has `partner_B` and `weight_B`, or is None."""

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.3, 3
"""`schedule: plateau`: the rate is cut to 0.3 after three epochs without a better validation loss."""


@dataclass(frozen=True)
class Term:
    """One output's share of the objective."""

    head: str
    target: str
    loss: Loss
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    class_weights_K: torch.Tensor | None = None


@dataclass
class Sums:
    """Σ w·value and Σ w·units of each term."""

    values: list[torch.Tensor]
    units: list[torch.Tensor]


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
    values, units = [], []
    for term in terms:
        output, target = outputs[term.head].float(), batch.targets[term.target]
        mask = _mask(batch.targets, term.target)
        value_B, weight_B = term.loss(output, target, mask, **term.options)
        if mix is not None:
            other_B, _ = term.loss(output, target[mix.partner_B], mask, **term.options)
            value_B = mix.weight_B * value_B + (1 - mix.weight_B) * other_B
        importance_B = batch.weights_B
        if term.class_weights_K is not None:
            own_B = term.class_weights_K[target.long().clamp_min(0)]
            importance_B = own_B if importance_B is None else importance_B * own_B
        if importance_B is not None:
            value_B, weight_B = value_B * importance_B, weight_B * importance_B
        values.append(value_B.sum())
        units.append(weight_B.sum())
    return Sums(values, units)


def _mask(targets: Mapping[str, torch.Tensor], key: str) -> torch.Tensor | None:
    lengths_B = targets.get(f"{key.rsplit('.', 1)[0]}.length")
    if lengths_B is None:
        return None
    return torch.arange(targets[key].shape[1])[None, :] < lengths_B[:, None]


class Fit:
    """State of one run: network, optimiser, averages, position, history."""

    def __init__(
        self, network: nn.Module, terms: Sequence[Term], train: Batches, valid: Batches | None, config: TrainConfig, *,
        augment: Augment | None = None, device: str = "cpu",
    ) -> None:
        self.network, self.terms, self.train, self.valid, self.config = network.to(device), list(terms), train, valid, config
        self.augment, self.device = augment, device
        self.optimiser = make(network, config)
        self.step, self.steps = 0, max(1, train.steps * int(config.epochs or 1))
        self.best, self.best_epoch, self.stale, self.plateau = math.inf, -1, 0, 1.0
        self.averaged = {k: v.detach().clone() for k, v in network.state_dict().items()} if config.ema else None
        self.kept: dict[str, torch.Tensor] | None = None
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.running = torch.zeros(2, dtype=torch.float64)
        # bf16 pays only where it is computed natively: AVX2 CPUs emulate it
        native = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and native)
        compiled = config.compile is True or (config.compile == "auto" and device.startswith("cuda"))
        self.forward: Callable[..., dict[str, torch.Tensor]] = torch.compile(network) if compiled else network
        self.sees_targets = bool(getattr(network, "sees_targets", False))

    # -- one step -------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step; returns detached (Σ value, Σ units) of the first term. Raises `NonFiniteError`."""
        torch.manual_seed(((self.config.seed * 1_000_003) + self.step) % 2**63)  # dropout of this very step
        rate = float(self.config.lr or 0) * factor(self.config, self.step, self.steps) * self.plateau
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        parts = [batch] if self.config.accumulate == 1 else _cut(batch, self.config.accumulate)
        totals = self._backward(parts, epoch)
        norm = self._guard(batch, totals)
        if self.config.clip:
            scale = min(1.0, self.config.clip / (norm + 1e-6))
            if scale < 1:
                torch._foreach_mul_([p.grad for p in self.network.parameters() if p.grad is not None], scale)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.averaged is not None:
            self._average()
        return totals.values[0].detach(), totals.units[0].detach()

    def _backward(self, parts: list[Batch], epoch: int) -> Sums:
        """Gradients of Σ_terms weight · Σ w·value / Σ w·units over all parts; returns the sums."""
        units = None
        if len(parts) > 1 and len(self.terms) > 1:  # the divisors must be known before the first backward pass
            with torch.no_grad():
                found = [self._sums(part, epoch).units for part in parts]
            units = [torch.stack(u).sum() for u in zip(*found, strict=True)]
        totals: Sums | None = None
        for part in parts:
            sums = self._sums(part, epoch)
            divisors = units or (sums.units if len(parts) == 1 else [torch.ones(()) for _ in sums.units])
            loss = sum(t.weight * v / d.clamp_min(1e-12) for t, v, d in zip(self.terms, sums.values, divisors, strict=True))
            if self.config.l1:
                loss = loss + self.config.l1 / len(parts) * sum(p.abs().sum() for p in self.network.parameters() if p.ndim > 1)
            loss.backward()  # type: ignore[union-attr]
            values, counts = [v.detach() for v in sums.values], [u.detach() for u in sums.units]
            totals = Sums(values, counts) if totals is None else Sums(
                [a + b for a, b in zip(totals.values, values, strict=True)], [a + b for a, b in zip(totals.units, counts, strict=True)]
            )  # fmt: skip
        assert totals is not None
        if len(parts) > 1 and units is None:
            for p in self.network.parameters():
                if p.grad is not None:
                    p.grad.div_(totals.units[0].clamp_min(1e-12))
        return totals

    def _sums(self, batch: Batch, epoch: int) -> Sums:
        inputs, mix = batch.inputs, None
        if self.augment is not None:
            inputs, mix = self.augment(inputs, batch.index, epoch)
        if self.sees_targets:
            inputs = {**inputs, **batch.targets}
        if self.device != "cpu":
            inputs = {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}
            batch = Batch(inputs, {k: v.to(self.device) for k, v in batch.targets.items()},
                          None if batch.weights_B is None else batch.weights_B.to(self.device), batch.index)  # fmt: skip
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16):
            outputs = self.forward(inputs)
        return objective(self.terms, outputs, batch, mix)

    def _guard(self, batch: Batch, totals: Sums) -> float:
        """The gradient's norm; raises before the optimiser steps if it or the loss is not finite."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # type: ignore[arg-type]
        both = torch.stack([norm, *(v.detach() for v in totals.values)])
        if bool(torch.isfinite(both).all()):
            return float(norm)
        shown = ", ".join(map(str, batch.index[:8].tolist()))
        what = "the loss" if not all(bool(torch.isfinite(v)) for v in totals.values) else "the gradient"
        message = f"{what} became NaN or infinite at step {self.step}; the weights are as they were before it"
        hint = "Lower train.lr, set train.clip=1, or look at these training examples."
        raise NonFiniteError(message, [Problem(f"examples {shown} …", f"step {self.step}", hint)])

    def _average(self) -> None:
        assert self.averaged is not None
        decay = min(float(self.config.ema or 0), (1 + self.step) / (10 + self.step))  # the start is forgotten quickly
        for name, value in self.network.state_dict().items():
            mine = self.averaged[name]
            if mine.is_floating_point():
                mine.lerp_(value, 1 - decay)
            else:
                mine.copy_(value)

    # -- whole run ------------------------------------------------------------------------------------------------------

    def run(
        self, folder: Path | None, events: Callable[[dict[str, Any]], None], stop: threading.Event, *, resume: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Result:
        """Train to the end, to the budget, to the patience or until `stop`; leaves the best weights in the network."""
        if resume and folder is not None:
            self._load(folder, events)
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        if self.config.budget and self.step == 0:
            self.steps = self._decide()
            events({"event": "budget", "seconds": self.config.budget, "steps": self.steps})
        if folder is not None and self.step == 0:
            self._save(folder)  # the decisions of the start survive a kill in the first epoch
        stopped = ""
        while not stopped and self.step < self.steps:
            epoch = self.step // self.train.steps
            self.network.train()
            if self.step % self.train.steps == 0:
                self.running = torch.zeros(2, dtype=torch.float64)
            for batch in self.train.epoch(epoch, self.step % self.train.steps):
                self.running += torch.stack(self.update(batch, epoch)).double().cpu()
                if progress is not None and (self.step % 10 == 0 or self.step == self.steps):
                    progress(self.step, self.steps, "")
                due = folder is not None and time.monotonic() - saved > self.config.checkpoint_every
                if due or stop.is_set():
                    self.seconds = time.monotonic() - began
                    if folder is not None:
                        self._save(folder)
                    saved = time.monotonic()
                if stop.is_set():
                    stopped = "interrupt"
                    break
                if self.step >= self.steps:
                    break
            if stopped:
                break
            self.seconds = time.monotonic() - began
            stopped = self._end_of_epoch(epoch, events)
            if folder is not None and (stopped or self.step >= self.steps):
                self._save(folder)
        finished = stopped or ("budget" if self.config.budget and self.steps < self.train.steps * int(self.config.epochs or 1) else "epochs")
        self._install()
        return Result(self.step, len(self.history), finished, self.best_epoch, time.monotonic() - began, self.steps)

    def _end_of_epoch(self, epoch: int, events: Callable[[dict[str, Any]], None]) -> str:
        loss = float(self.running[0] / self.running[1].clamp_min(1e-12))
        entry: dict[str, Any] = {
            "event": "epoch", "epoch": epoch + 1, "step": self.step, "loss": loss, "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": round(self.seconds, 3),
        }  # fmt: skip
        judged = loss
        if self.valid is not None:
            judged = entry["valid_loss"] = self.validate()
        if judged < self.best:
            self.best, self.best_epoch, self.stale = judged, epoch, 0
            if self.config.patience or self.config.schedule == "plateau":
                self.kept = {k: v.detach().clone() for k, v in self._current().items()}
        else:
            self.stale += 1
            if self.config.schedule == "plateau" and self.stale % PLATEAU_PATIENCE == 0:
                self.plateau *= PLATEAU_FACTOR
        self.history.append(entry)
        events(entry)
        return "patience" if self.config.patience and self.stale >= self.config.patience else ""

    def validate(self) -> float:
        """Mean loss of all terms on the validation examples, with the weights that would be saved."""
        assert self.valid is not None
        own = None
        if self.averaged is not None:
            own = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
            self.network.load_state_dict(self.averaged)
        self.network.eval()
        sums: list[Sums] = []
        hook, self.augment = self.augment, None
        with torch.no_grad():
            for batch in self.valid.epoch(0):
                sums.append(self._sums(batch, 0))
        self.augment = hook
        if own is not None:
            self.network.load_state_dict(own)
        total = 0.0
        for i, term in enumerate(self.terms):
            total += term.weight * float(sum(s.values[i] for s in sums) / sum(s.units[i] for s in sums).clamp_min(1e-12))  # type: ignore[union-attr]
        return total

    def _current(self) -> dict[str, torch.Tensor]:
        return self.averaged if self.averaged is not None else self.network.state_dict()

    def _install(self) -> None:
        self.network.load_state_dict(self.kept if self.kept is not None else dict(self._current()))
        self.network.eval()

    def _decide(self) -> int:
        """Steps that fit into the budget, from the speed of a few steps on a copy of the state (20 steps or 3 s at most).

        One tenth is kept for the validation, saving and the final evaluation of models this size.
        """
        before = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        averaged = None if self.averaged is None else {k: v.clone() for k, v in self.averaged.items()}
        optimiser, self.network = self.optimiser, self.network.train()
        times: list[float] = []
        begin = time.monotonic()
        for batch in self.train.epoch(0):
            start = time.monotonic()
            self.update(batch, 0)
            times.append(time.monotonic() - start)
            if len(times) >= 20 or time.monotonic() - begin > min(3.0, 0.1 * float(self.config.budget or 0)):
                break
        speed = float(np.median(times[1:] or times))
        check = 0.0
        if self.valid is not None:
            start = time.monotonic()
            self.validate()
            check = time.monotonic() - start
        self.network.load_state_dict(before)
        self.averaged = averaged
        self.step = 0
        self.optimiser = make(self.network, self.config)
        del optimiser
        left = 0.9 * (float(self.config.budget or 0) - (time.monotonic() - begin))
        per_epoch = self.train.steps * speed + check
        return max(1, min(self.steps, int(left / per_epoch * self.train.steps)))

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def _save(self, folder: Path) -> None:
        arrays = {f"net/{k}": _array(v) for k, v in self.network.state_dict().items()}
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
            "batch": self.train.batch, "epoch_steps": self.train.steps, "threads": torch.get_num_threads(), "running": self.running.tolist(),
        }  # fmt: skip
        checkpoint.save(folder, self.step, arrays, meta)

    def _load(self, folder: Path, events: Callable[[dict[str, Any]], None]) -> None:
        found = checkpoint.load(folder)
        if found is None:
            events({"event": "resume", "step": 0, "notes": ["no checkpoint was written yet; starting again"]})
            return
        arrays, meta, notes = found
        pick = lambda prefix: {  # noqa: E731
            k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)
        }
        self.network.load_state_dict(pick("net/"))
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
        self.history, self.seconds = meta["history"], meta["seconds"]
        self.running = torch.tensor(meta["running"], dtype=torch.float64)
        if meta["threads"] != torch.get_num_threads():
            torch.set_num_threads(meta["threads"])  # the order of sums depends on it
        events({"event": "resume", "step": self.step, "notes": notes})


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _cut(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` nearly equal pieces."""
    cuts = [c for c in np.array_split(np.arange(len(batch)), parts) if len(c)]
    return [
        Batch({k: v[c[0] : c[-1] + 1] for k, v in batch.inputs.items()}, {k: v[c[0] : c[-1] + 1] for k, v in batch.targets.items()},
              None if batch.weights_B is None else batch.weights_B[c[0] : c[-1] + 1], batch.index[c[0] : c[-1] + 1])
        for c in cuts
    ]  # fmt: skip
