"""Modules of a network in order of depth, from the input to the heads: what methods that treat layers differently go by.

An encoder's own order is `ordered()` where it has one, else the order in which its parts were made, lists and sequences of modules taken
apart. Encoders of several inputs are aligned at the top: the last blocks of all of them are one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from modelyard.errors import Unsupported


@dataclass
class Level:
    """Modules at one depth, and their parameters by name."""

    name: str
    modules: list[nn.Module]
    parameters: dict[str, nn.Parameter]


def levels(network: nn.Module, method: str) -> list[Level]:
    """Levels from the lowest block to the heads (the last one, with the fusion); every parameter is in exactly one of them.

    Raises `Unsupported` where the network says nothing of its order: a user's own module, or a net that is no encoder with heads.
    """
    encoders = getattr(network, "encoders", None)
    heads = getattr(network, "heads", None)
    if not isinstance(encoders, nn.ModuleDict) or not isinstance(heads, nn.ModuleDict):
        what = "your own module" if hasattr(network, "module") else "this net"
        raise Unsupported(f"train.{method} goes by depth, and {what} does not say which of its layers lie below which; leave it out", "never")
    stacks = {name: _blocks(encoder) for name, encoder in encoders.items()}
    deepest = max(map(len, stacks.values()))
    found: list[list[nn.Module]] = [[] for _ in range(deepest)]
    names: list[list[str]] = [[] for _ in range(deepest)]
    for name, stack in stacks.items():
        for i, modules in enumerate(stack):
            found[deepest - len(stack) + i] += modules
            names[deepest - len(stack) + i].append(f"encoders.{name} block {i + 1}")
    top = [module for name, module in network.named_children() if name != "encoders"]
    named = {id(p): name for name, p in network.named_parameters()}
    out, seen = [], set()
    for label, modules in [*zip((" and ".join(n) for n in names), found, strict=True), ("fusion and heads", top)]:
        own = {named[id(p)]: p for m in modules for p in m.parameters() if id(p) not in seen}  # a tied parameter belongs to its lowest place
        seen |= {id(p) for p in own.values()}
        out.append(Level(label, list(modules), own))
    rest = {name: p for name, p in network.named_parameters() if id(p) not in seen}
    out[0].parameters |= rest  # parameters that hang on the encoder itself (a learned query) are as deep as its input
    return out


def _blocks(encoder: nn.Module) -> list[list[nn.Module]]:
    if hasattr(encoder, "ordered"):
        return [list(block) for block in encoder.ordered()]  # type: ignore[operator]
    found = [[m] for m in _flat(encoder) if any(True for _ in m.parameters())]
    return found or [[encoder]]


def _flat(module: nn.Module) -> Sequence[nn.Module]:
    out: list[nn.Module] = []
    for child in module.children():
        out += _flat(child) if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict) else [child]
    return out
