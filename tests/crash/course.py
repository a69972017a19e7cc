"""A small training course that is the same every time: what the crash tests kill, resume and compare.

Everything that a checkpoint must hold is switched on: momentum, running average, batch normalisation, dropout, patience, ragged
input, example weights and two outputs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from modelyard.data.batches import Batches
from modelyard.kinds._contract import Ragged
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.loop import Fit, Result, Term

ROWS = 96


def cross_entropy(output: torch.Tensor, target: torch.Tensor, mask: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One unit an example."""
    return functional.cross_entropy(output, target, reduction="none"), torch.ones(len(output))


def squares(output: torch.Tensor, target: torch.Tensor, mask: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """One unit an example."""
    return (output[:, 0] - target).square(), torch.ones(len(output))


class Net(nn.Module):
    """Numbers and a sequence in, classes and a number out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.body = nn.Sequential(nn.Linear(10 + 6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({"a": nn.Linear(24, 3), "b": nn.Linear(24, 1)})

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`x.value` (B, 10), `w.tokens` (B, L), `w.length` (B,)."""
        tokens_BL, length_B = inputs["w.tokens"].long(), inputs["w.length"]
        real_BL = torch.arange(tokens_BL.shape[1]) < length_B[:, None]
        words_BD = (self.words(tokens_BL) * real_BL[..., None]).sum(1) / length_B[:, None].clamp_min(1)
        h_BD = self.body(torch.cat([inputs["x.value"], words_BD], 1))
        return {"a.logits": self.heads["a"](h_BD), "b.value": self.heads["b"](h_BD)}


def data(rows: int, seed: int) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """Arrays, targets and example weights."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 10)).astype(np.float32)
    words = Ragged.from_lists([draw.integers(0, 20, draw.integers(1, 9)).tolist() for _ in range(rows)], np.int32)
    a = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    b = (x[:, 2] * x[:, 3] + draw.normal(size=rows) * 0.1).astype(np.float32)
    return {"x.value": x, "w.tokens": words}, {"a.index": a, "b.value": b}, draw.uniform(0.5, 2, rows).astype(np.float32)


def make(seed: int = 0, **settings: Any) -> Fit:
    """A fresh course: 6 batches an epoch."""
    torch.manual_seed(seed)
    base: dict[str, Any] = {
        "epochs": 5, "lr": 0.02, "optimiser": "adamw", "weight_decay": 0.01, "schedule": "cosine", "warmup": 0.1, "ema": 0.9,
        "patience": 3, "precision": "float32", "compile": False, "seed": seed, "clip": 1.0, "checkpoint_every": 0.0,
    }  # fmt: skip
    config = TrainConfig(**{**base, **settings})
    arrays, targets, weights = data(ROWS, seed)
    train = Batches(arrays, targets, batch=16, seed=seed, weights=weights)
    arrays, targets, _ = data(40, seed + 1)
    valid = Batches(arrays, targets, batch=16, shuffle=False)
    terms = [Term("a.logits", "a.index", cross_entropy), Term("b.value", "b.value", squares, weight=0.5)]
    return Fit(Net(), terms, train, valid, config)


def go(fit: Fit, folder: Path | None, *, resume: bool = False, decided: Mapping[int, int] | None = None,
       events: Callable[[dict[str, Any]], None] = lambda event: None, stop: threading.Event | None = None) -> Result:  # fmt: skip
    """Runs it."""
    return fit.run(folder, events, stop or threading.Event(), resume=resume, decided=decided)


def print_of(fit: Fit) -> str:
    """sha256 of weights, optimiser, metrics of every epoch (without times), and predictions."""
    digest = hashlib.sha256()
    for name, value in sorted(fit.network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    for index, state in sorted(fit.optimiser.state_dict()["state"].items()):
        for key, value in sorted(state.items()):
            digest.update(f"{index}{key}".encode() + (value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()))
    for entry in fit.history:
        digest.update(repr({k: v for k, v in sorted(entry.items()) if k != "seconds"}).encode())
    assert fit.valid is not None
    with torch.no_grad():
        for batch in fit.valid.epoch(0):
            for name, value in sorted(fit.network(batch.inputs).items()):
                digest.update(name.encode() + value.numpy().tobytes())
    digest.update(repr([fit.step, fit.steps, fit.best, fit.best_epoch, fit.stale]).encode())
    return digest.hexdigest()
