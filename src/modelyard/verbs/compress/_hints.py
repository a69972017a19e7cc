"""What a student learns beside its teacher's answers: the features before its heads, and where an image net looks.

Features: Romero et al. 2015, FitNets (arXiv:1412.6550), the student's through a linear map that is learnt with it and thrown away, so that widths may
differ. Attention: Zagoruyko & Komodakis 2017 (arXiv:1612.03928, section 3.1), the sum of squares over the channels of the last convolution, as a map of
length one; maps of other sizes are averaged to 4 x 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelyard.errors import Unsupported

if TYPE_CHECKING:
    from modelyard.runtime.model import Model

FEATURES, ATTENTION = "hint.features", "hint.attention"
"""Outputs of the net while it learns, and the targets they are compared with."""
SIDE, BLOCK = 4, 256
"""Places of a map along each axis; rows that pass through the teacher together."""


class Watched:
    """What the encoders of a network gave at its last pass."""

    def __init__(self, network: Any) -> None:
        self.features: dict[str, Tensor] = {}
        self.maps: dict[str, Tensor] = {}
        self.hooks = []
        for name, encoder in network.encoders.items():
            self.hooks.append(encoder.register_forward_hook(lambda _m, _i, out, name=name: self.features.__setitem__(name, out)))
            convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
            if convolutions:
                self.hooks.append(convolutions[-1].register_forward_hook(lambda _m, _i, out, name=name: self.maps.__setitem__(name, out)))

    def together(self) -> Tensor:
        """(B, D): the features of all encoders side by side. Raises `Unsupported` where they are not one vector a row."""
        if any(f.ndim != 2 for f in self.features.values()):
            raise Unsupported("features are matched where a net makes one vector of a row, and this one makes one of every position; leave them out", "never")
        return torch.cat([self.features[n] for n in sorted(self.features)], 1)

    def looks(self) -> Tensor:
        """(B, M): the attention maps of all convolutional encoders. Raises `Unsupported` where there are none."""
        if not self.maps:
            raise Unsupported("attention is matched between nets with convolutions over images, and this one has none; leave it out", "never")
        return torch.cat([attention(self.maps[n]) for n in sorted(self.maps)], 1)

    def stop(self) -> None:
        """Takes the hooks away."""
        for hook in self.hooks:
            hook.remove()


def attention(maps_BCHW: Tensor) -> Tensor:
    """(B, 16), each row of length one."""
    return F.normalize(F.adaptive_avg_pool2d(maps_BCHW.float().pow(2).sum(1, keepdim=True), SIDE).flatten(1), dim=1)


def of_teacher(teacher: Model, rows: Any, features: bool, looks: bool, trust_code: bool) -> dict[str, np.ndarray]:
    """Targets by name for `rows`: features with mean 0 and deviation 1 in every place, maps as they are. Raises `Unsupported` for teachers that are
    no nets of ours."""
    from modelyard.runtime.backends.torch import rebuild
    from modelyard.runtime.pipeline import dense

    if teacher.manifest["model"]["backend"] != "torch" or not teacher.manifest["model"].get("net", {}).get("nets"):
        raise Unsupported("features are matched with those of a net as it was trained, and the teacher is none; distil its answers alone", "use")
    network: Any = rebuild(teacher.folder, teacher.manifest, teacher.pipeline, trust_code=trust_code)
    if not hasattr(network, "encoders"):
        raise Unsupported("features are matched between encoders with heads, and the teacher writes texts; distil its answers alone", "use")
    watched, found = Watched(network), []
    for start in range(0, rows.height, BLOCK):
        arrays = dense(teacher.pipeline.encode(rows[start : start + BLOCK]).arrays)
        with torch.inference_mode():
            network({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()})
            found.append(((watched.together().float().numpy() if features else None), (watched.looks().numpy() if looks else None)))
    out = {}
    if features:
        whole = np.concatenate([f for f, _ in found if f is not None])
        out[FEATURES] = ((whole - whole.mean(0)) / np.maximum(whole.std(0), 1e-6)).astype(np.float32)
    if looks:
        out[ATTENTION] = np.concatenate([a for _, a in found if a is not None])
    return out


class Hinted(nn.Module):
    """A student that shows its features (mapped to the teacher's width) and maps beside its outputs."""

    def __init__(self, network: Any, targets: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.network, self.watched, self.wanted = network, Watched(network), tuple(targets)
        if not hasattr(network, "encoders"):
            raise Unsupported("features are matched between encoders with heads; this student has none", "use")
        width = sum(int(e.width) for e in network.encoders.values())
        self.map = nn.Linear(width, targets[FEATURES].shape[1]) if FEATURES in targets else nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's outputs and what is to be matched."""
        outputs = dict(self.network(inputs))
        if FEATURES in self.wanted:
            outputs[FEATURES] = self.map(self.watched.together())
        if ATTENTION in self.wanted:
            outputs[ATTENTION] = self.watched.looks()
        return outputs


def loss(output: Tensor, target: Tensor, mask: Tensor | None = None, *, mean: bool = True) -> tuple[Tensor, Tensor]:
    """The squared distance of each row, its mean over the places (features) or its sum (maps)."""
    apart = (output - target).pow(2)
    value_B = apart.mean(1) if mean else apart.sum(1)
    return value_B, torch.ones_like(value_B)
