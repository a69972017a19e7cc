"""Teaches a net to live with 8 bits, then writes the ONNX that `quantise` writes: its weights and inputs are rounded while it learns.

Quantisation-aware training (Jacob et al. 2018, arXiv:1712.05877, section 3): the forward pass sees the numbers as int8 will hold them, the backward pass
takes the rounding for the identity (straight-through, Bengio et al. 2013, arXiv:1308.3432). Weights: symmetric, ±127 steps of the largest value of an
output channel; what goes into a matrix or convolution: 256 steps between its smallest and largest value with 0 among them, those of the batch (as
dynamic quantisation finds them at every call; for the static kind they stand in for those of the calibration rows). These are the grids of ONNX
Runtime's quantiser, and folding a batch norm into the convolution before it scales a channel's weights and its grid alike. What is not rounded here:
recurrent weights, and sums and activations between layers, which static quantisation rounds as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from modelyard import registry
from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.settings import Between
from modelyard.verbs.compress import distil, quantise

if TYPE_CHECKING:
    import torch

    from modelyard.verbs.compress._work import Work

NET = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """`qat`."""

    SHORTHAND: ClassVar[str] = "epochs"

    epochs: Annotated[int, Between(1)] | None = None
    """Of learning with rounded numbers; without it a third of the family's."""
    rate: Annotated[float, Between(0.001, 1)] = 0.1
    """Share of the family's learning rate."""
    temperature: Annotated[float, Between(0.1, 20)] = 2.0
    alpha: Annotated[float, Between(0, 1)] = 1.0
    """Weight of the first model's answer beside the row's own. 1: only the rounding is to be mended, and rows that the net knows are not learnt further.
    Outputs that are not distilled (tags, texts) learn their own truths."""
    how: Literal["auto", "dynamic", "static"] = "auto"
    """As in `quantise`."""
    rows: Annotated[int, Between(1, 100_000)] = 256
    """As in `quantise`."""
    per_channel: bool = True
    """As in `quantise`."""
    seed: int = 0


def apply(work: Work, folder: Path, config: Config, target: Path) -> Path:
    """The folder of the net that learnt with rounded numbers, its weights still whole; `after` writes the int8 graphs."""
    import dataclasses

    from modelyard.runtime.backends.torch import rebuild

    model = Model.load(folder, trust_code=work.trust_code)
    section = model.manifest["model"]
    if "decoder" in model.graphs:
        raise Unsupported("a language model keeps its activations whole and its weights small: use weight-only", "use")
    nets = (section.get("net") or {}).get("nets") if section["backend"] == "torch" else None
    if not nets:
        raise Unsupported("what learns with rounded numbers are nets of our families as they were trained (not exports, trees or your own module)", "never")
    network = rebuild(folder, model.manifest, model.pipeline)
    if not _layers(network):
        raise Unsupported("this net has no matrices or convolutions that could be rounded while it learns; use quantise", "use")
    families = []
    for name, entry in nets.items():
        module = registry.load("nets", entry["name"])
        advised = module.recipe(model.pipeline.parts()[name], work.bound.splits["train"].height)[1] if hasattr(module, "recipe") else {}
        family = dict(advised or getattr(module, "TRAIN", {}))
        families.append({**family, "lr": float(family.get("lr", 1e-3)) * config.rate})
    epochs = config.epochs or max(1, int(families[0].get("epochs", 10)) // 3)
    taught = distil.Config(epochs=epochs, temperature=config.temperature, alpha=config.alpha, seed=config.seed)
    own = dataclasses.replace(work.bound, pipeline=model.pipeline)
    return distil.learn(
        work, own, section["net"], families, taught, target, f"qat {epochs} epochs", network.state_dict(), lambda net: rounded(net, config.per_channel)
    )


def after(work: Work, model: Model, config: Config, target: Path) -> Path:
    """The exported model's folder with int8 graphs, by `quantise`."""
    return quantise.apply(work, model, quantise.Config(how=config.how, rows=config.rows, per_channel=config.per_channel), target)


def rounded(network: torch.nn.Module, per_channel: bool = True) -> Callable[[], None]:
    """Makes every matrix, convolution and table of embeddings compute with numbers as int8 holds them; returns what takes that away, the weights
    being the ones that learnt. Dropout is off meanwhile."""
    import torch
    from torch.nn.utils import parametrize

    class Grid(torch.nn.Module):
        def __init__(self, by_channel: bool) -> None:
            super().__init__()
            self.by_channel = by_channel

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return on_grid(weight, self.by_channel)

        def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
            return weight

    hooks, changed = [], _layers(network)
    for module, name in changed:
        parametrize.register_parametrization(module, name, Grid(per_channel and not isinstance(module, torch.nn.Embedding)), unsafe=True)
        if not isinstance(module, torch.nn.Embedding | torch.nn.MultiheadAttention):
            hooks.append(module.register_forward_pre_hook(lambda _, given: (in_range(given[0]), *given[1:])))

    # rounding is noise enough: with its dropout of 0.1 a net that predicts numbers drifted from an rmse of 0.229 to 0.299 while it learnt its own answers
    drops: list[tuple[Any, str]] = [(m, "p") for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    drops += [(m, "dropout") for m in network.modules() if isinstance(getattr(m, "dropout", None), float)]
    shares = [getattr(m, name) for m, name in drops]
    for module, name in drops:
        setattr(module, name, 0.0)

    def undo() -> None:
        for (module, name), share in zip(drops, shares, strict=True):
            setattr(module, name, share)
        for hook in hooks:
            hook.remove()
        for module, name in changed:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)

    return undo


def on_grid(weight: torch.Tensor, by_channel: bool) -> torch.Tensor:
    """Weights rounded to 255 steps, ±127 at the largest of each row (output channel) or of all; the gradient passes as if they were not."""
    whole = weight.detach()
    largest = whole.abs().flatten(1).amax(1).view(-1, *[1] * (whole.ndim - 1)) if by_channel else whole.abs().amax()
    scale = (largest / 127).clamp_min(1e-12)
    return weight + ((whole / scale).round() * scale - whole)


def in_range(x: torch.Tensor) -> torch.Tensor:
    """Activations rounded to 256 steps between their smallest and largest value, 0 being one of the steps (ONNX, DynamicQuantizeLinear)."""
    if not x.is_floating_point():
        return x
    whole = x.detach()
    low, high = whole.amin().clamp_max(0), whole.amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    return x + (((whole / scale).round() + zero).clamp(0, 255) - zero) * scale - whole


def _layers(network: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """(module, name of its matrix) of what the quantiser will round."""
    import torch
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
    found: list[tuple[Any, str]] = [(m, "weight") for m in network.modules() if isinstance(m, kinds)]
    found += [(m, "in_proj_weight") for m in network.modules() if isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None]
    return [(m, name) for m, name in found if torch.is_floating_point(getattr(m, name))]
