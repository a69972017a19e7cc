"""Optimisers and the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from modelyard.verbs.train.config import TrainConfig


def make(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser with two groups: matrices decay, biases and normalisation do not; with `train.layer_decay` two for each rate."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if config.layer_decay is not None and config.layer_decay < 1:
        groups = _by_depth(network, groups, config.layer_decay)
    groups = [g for g in groups if g["params"]]
    lr = float(config.lr or 0)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.optimiser == "muon":
        return Muon(_apart(network, groups), lr=lr, momentum=config.momentum)
    cls = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return cls(groups, lr=lr, betas=(0.9, 0.99), fused=True)


def _apart(network: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with what is no map between hidden states (tables of embeddings, the matrix onto a vocabulary, vectors) marked `plain`."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(m.weight) for name, m in network.named_modules() if name.endswith("lm_head") and isinstance(m, nn.Linear)}
    plain = lambda p: p.ndim <= 1 or id(p) in tables  # noqa: E731
    found = [{**g, "params": [p for p in g["params"] if plain(p) == side], "plain": side} for g in groups for side in (False, True)]
    return [g for g in found if g["params"]]


def _by_depth(network: nn.Module, groups: list[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """The groups divided by the factor of their rate, `scale`, from the lowest layer up."""
    from modelyard.verbs.train.layer_decay import scales

    found = scales(network, decay)
    return [
        {**group, "params": [p for p in group["params"] if found[id(p)] == scale], "scale": scale}
        for scale in sorted(set(found.values()))
        for group in groups
    ]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix steps are orthogonalised by five Newton-Schulz iterations, in float32 (Jordan et al. 2024).

    torch's own Muon computes them in bfloat16, which CPUs without that unit emulate nine times slower. Parameters of groups marked
    `plain` take steps of Adam at a tenth of the rate.
    """

    BETAS, EPS, SHARE = (0.9, 0.99), 1e-8, 0.1

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "plain": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"] * (self.SHARE if group["plain"] else 1.0))
                self._adam(p, group["lr"] * self.SHARE) if group["plain"] or p.ndim < 2 else self._turned(p, group["lr"], group["momentum"])

    def _turned(self, p: torch.Tensor, lr: float, momentum: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        assert p.grad is not None
        moving = state["momentum"].mul_(momentum).add_(p.grad)
        flat = (p.grad + momentum * moving).reshape(len(p), -1)
        p.add_(orthogonal(flat).reshape(p.shape), alpha=-lr * max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5)

    def _adam(self, p: torch.Tensor, lr: float) -> None:
        state = self.state[p]
        if not state:
            state.update({"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)})
        assert p.grad is not None
        (a, b), step = self.BETAS, state["step"].add_(1).item()
        state["mean"].lerp_(p.grad, 1 - a)
        state["square"].mul_(b).addcmul_(p.grad, p.grad, value=1 - b)
        spread = (state["square"] / (1 - b**step)).sqrt_().add_(self.EPS)
        p.addcdiv_(state["mean"], spread, value=-lr / (1 - a**step))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values end in 0.7 … 1.2. An accelerator computes it in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    turned = x.shape[0] > x.shape[1]
    x = (x.T if turned else x).to(torch.float32 if x.device.type == "cpu" else torch.bfloat16).contiguous()
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if turned else x).to(matrix.dtype)


def factor(config: TrainConfig, step: int, steps: int) -> float:
    """Learning-rate factor at `step` of `steps` (plateau is applied on top, after each validation).

    one-cycle and cosine rise from 1/25 during the warm-up and fall to 1/1000 along a cosine (Smith & Topin 2017;
    Loshchilov & Hutter 2016); one-cycle falls linearly to zero, which suits short runs.
    """
    rise = max(1, round(float(config.warmup or 0) * steps)) if config.warmup else 0
    if step < rise:
        return 0.04 + 0.96 * step / rise
    if config.schedule in ("constant", "plateau"):
        return 1.0
    done = (step - rise) / max(1, steps - rise)
    if config.schedule == "one-cycle":
        return max(0.0, 1.0 - done)
    return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
