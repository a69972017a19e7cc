"""Layers that do not learn: feature extraction (`train.freeze`), and gradual unfreezing (`train.unfreeze`).

Frozen modules get no gradient and stand in evaluation mode: their dropout is off and their running means stay. With `freeze: encoders` the
base is a fixed reader and only fusion and heads learn (feature extraction). Gradual unfreezing (Howard & Ruder 2018, arXiv 1801.06146,
section 3.3) begins with the heads and adds one level from the top every few epochs, so that what the base knows is not forgotten at once.
What is frozen is a function of the epoch alone, so a resumed run freezes the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.depth import Level, levels

Schedule = Callable[[int], None]
"""Called with each epoch before its first step."""


def prepare(network: nn.Module, config: TrainConfig) -> Schedule | None:
    """Freezes what `config` says, for good; returns what is to be called before every epoch, where the epoch decides.

    Raises `ConfigError` for names that the network has not, `Unsupported` where nothing would be left to learn.
    """
    if config.freeze is None and config.unfreeze is None:
        return None
    if config.freeze is not None and config.unfreeze is not None:
        raise ConfigError("train.freeze and train.unfreeze exclude each other: one freezes for good, the other for a while")
    if config.unfreeze is not None:
        found = levels(network, "unfreeze")
        return functools.partial(_unfreeze, _Held(network), found, config.unfreeze)
    held = _Held(network)
    modules, parameters = _named(network, config.freeze)
    held.set(modules, parameters)
    if not any(p.requires_grad for p in network.parameters()):
        raise Unsupported("train.freeze leaves nothing to learn; name fewer layers", "never")
    return None


class _Held:
    """What is frozen now. `network.train()` keeps frozen modules in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules: list[nn.Module] = []
        network.train = functools.partial(_train, network, self)  # type: ignore[method-assign]

    def set(self, modules: list[nn.Module], parameters: list[nn.Parameter]) -> None:
        """Freezes these and frees all others."""
        frozen = {id(p) for p in parameters}
        for p in self.network.parameters():
            p.requires_grad_(id(p) not in frozen)
        self.modules = modules
        self.network.train(self.network.training)


def _train(network: nn.Module, held: _Held, mode: bool = True) -> nn.Module:
    nn.Module.train(network, mode)
    for module in held.modules:
        nn.Module.train(module, False)
    return network


def _unfreeze(held: _Held, found: list[Level], every: int, epoch: int) -> None:
    """In epoch e the heads and the e // every highest levels below them learn."""
    learning = 1 + epoch // every
    frozen = found[: max(0, len(found) - learning)]
    held.set([m for level in frozen for m in level.modules], [p for level in frozen for p in level.parameters.values()])


def _named(network: nn.Module, asked: int | str | list[str] | None) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """(modules, parameters) that are to stay as they are."""
    if isinstance(asked, int):
        found = levels(network, "freeze")
        if asked >= len(found):
            raise ConfigError(f"train.freeze is {asked}, and the net has {len(found)} levels, of which the last are the heads; at most {len(found) - 1}")
        lowest = found[:asked]
        return [m for level in lowest for m in level.modules], [p for level in lowest for p in level.parameters.values()]
    names = [asked] if isinstance(asked, str) else list(asked or [])
    known = dict(network.named_modules())
    unknown = [n for n in names if not n or n not in known]
    if unknown:
        allowed = ", ".join(n for n in known if n and n.count(".") < 3)[:400]
        raise ConfigError(f"train.freeze names {', '.join(unknown)}", [Problem(f"is no module; there are {allowed} …", f"train.freeze: {n}") for n in unknown])
    return [known[n] for n in names], [p for n in names for p in known[n].parameters()]
