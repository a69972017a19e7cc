"""The front of every image net: uint8 pixels to normalised floats in the memory order that convolutions like.

`embed` gives floats in [0, 1], the space where attacks and explanations measure; the normalisation of the training
images (`statistics`, see `kinds/image.py`) comes after it, inside the net, so that no caller can forget it.
Convolutions run channels-last: on CPUs 1.2 to 1.5 times the speed of NCHW, forward and backward (oneDNN, two cores).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modelyard.errors import Problem, Unsupported
from modelyard.kinds._contract import Part


class ImageEncoder(nn.Module):
    """Base of the image nets: subclasses give `width` and `features(images_BCHW) -> features_BD`."""

    width: int

    def __init__(self, parts: Mapping[str, Part], statistics: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.channels, self.height, self.breadth = image_shape(parts)
        mean, std = normalisation(self.channels, statistics)
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def embed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels `(B, C, H, W)` in 0..255 (uint8, or float after augmentation) as floats in [0, 1]."""
        return {**inputs, "pixels": inputs["pixels"].to(self.mean.dtype) / 255}

    def from_embedded(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`features_BD` of pixels in [0, 1]."""
        images_BCHW = (inputs["pixels"] - self.mean) / self.std
        return self.features(images_BCHW.contiguous(memory_format=torch.channels_last))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`features_BD` of `inputs["pixels"]` `(B, C, H, W)`."""
        return self.from_embedded(self.embed(inputs))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BD` of normalised images."""
        raise NotImplementedError


def image_shape(parts: Mapping[str, Part]) -> tuple[int, int, int]:
    """(channels, height, width) of the part `pixels`; refuses inputs that are not images."""
    shape = parts["pixels"].shape if "pixels" in parts else ()
    if len(shape) != 3 or None in shape:
        came = ", ".join(f"{name} {part.shape}" for name, part in parts.items()) or "nothing"
        raise Unsupported(
            f"an image net reads the part `pixels` of shape (C, H, W), not {came}",
            "never",
            [Problem("the column is not an image", hint="Choose a net that accepts this encoding.")],
        )
    return tuple(int(axis or 0) for axis in shape)  # type: ignore[return-value]


def normalisation(channels: int, statistics: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, on the scale 0..1; 0.5 and 0.25 where nothing is known."""
    known = statistics or {}
    mean = torch.as_tensor(known.get("mean", [0.5] * channels), dtype=torch.float32)
    std = torch.as_tensor(known.get("std", [0.25] * channels), dtype=torch.float32)
    return mean, std.clamp(min=1 / 255)  # one grey step: a blank data set stays finite


def init_convolutions(module: nn.Module) -> None:
    """He initialisation, fan-out (He 2015, "Delving Deep into Rectifiers", eq. 14), channels-last weights."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # of a group's own outputs: counting all C outputs of a depthwise layer starts it C**0.5 times too small
            fan_out = layer.weight.shape[0] // layer.groups * layer.weight[0, 0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hard-swish": nn.Hardswish,
}


def multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that loses at most a tenth (`_make_divisible` of the MobileNets' reference code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation and, where named, activation; maps `(B, outputs, H / stride, W / stride)`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, activation: str | None, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            *([ACTIVATIONS[activation]()] if activation else []),
        )
