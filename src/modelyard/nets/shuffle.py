"""A family made for speed rather than for few multiplications: ShuffleNetV2.

Ma, Zhang, Zheng & Sun 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design"
(arXiv:1807.11164): a block leaves half of the channels as they are, filters the other half (1x1, depthwise 3x3, 1x1,
all of one width, which moves the least memory) and interleaves the two, so that the next block sees both.
`size: 0.5x` to `2x` are the paper's table 5; `size: small` (the default) is cut for images below 100 pixels.
Where we differ: images below 64 pixels are neither shrunk by the stem nor pooled, and strides stop at 4x4 positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from modelyard.kinds._contract import Part
from modelyard.nets._pixels import ConvNorm, ImageEncoder, init_convolutions
from modelyard.settings import Between

SIZES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], int]] = {
    "small": ((48, 96, 160), (2, 3, 2), 256),
    "0.5x": ((48, 96, 192), (4, 8, 4), 1024),
    "1x": ((116, 232, 464), (4, 8, 4), 1024),
    "1.5x": ((176, 352, 704), (4, 8, 4), 1024),
    "2x": ((244, 488, 976), (4, 8, 4), 2048),
}
"""Channels and blocks of each stage, and channels of the last 1x1 convolution: the width of the features."""
STEM = 24
"""Channels of the first convolution."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the shuffle net."""

    size: Literal["small", "0.5x", "1x", "1.5x", "2x"] = "small"
    """`small`: 0.1 million weights; the others: the paper's 0.3, 1.3, 2.5 and 5.3 million without the head."""
    widen: Annotated[float, Between(0.01, 16)] = 1.0
    """The channels of all stages are multiplied by this; they stay multiples of 4."""
    activation: Literal["relu", "relu6", "silu", "hard-swish"] = "relu"
    dropout: Annotated[float, Between(0, 0.95)] = 0.0
    """Share of features dropped in training, before the head."""


ACCEPTS = ("pixels",)
TRAIN: dict[str, object] = {
    "epochs": 20,
    "batch": 128,
    "optimiser": "adamw",
    "lr": 0.004,
    "weight_decay": 0.05,
    "schedule": "one-cycle",
    "warmup": 0.2,
    "label_smoothing": 0.1,
    "augment": "standard",
}


class Encoder(ImageEncoder):
    """Images `(B, C, H, W)` to the mean over positions of the last 1x1 convolution, `(B, width)`."""

    def __init__(
        self, config: Config, parts: Mapping[str, Part], *, statistics: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, statistics)
        widths, blocks, self.width = SIZES[config.size]
        side = min(self.height, self.breadth)
        large = side >= 64
        layers: list[nn.Module] = [ConvNorm(self.channels, STEM, 3, 2 if large else 1, config.activation)]
        if large:
            layers.append(nn.MaxPool2d(3, 2, 1))
            side //= 4
        channels = STEM
        for width, count in zip(widths, blocks, strict=True):
            outputs = max(4, round(width * config.widen / 4) * 4)
            step = 2 if side >= 8 else 1
            side //= step
            layers.append(Change(channels, outputs, step, config.activation))
            layers += [Keep(outputs, config.activation) for _ in range(count - 1)]
            channels = outputs
        layers.append(ConvNorm(channels, self.width, 1, 1, config.activation))
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        init_convolutions(self)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BD`: mean over positions."""
        features_BD: Tensor = self.dropout(self.body(images_BCHW).mean((2, 3)))
        return features_BD


def interleave(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Channels in turn from both, `(B, 2C, H, W)`: the paper's concatenation and shuffle by two groups in one copy."""
    return torch.stack((first_BCHW, second_BCHW), 2).flatten(1, 2)


def _filters(inputs: int, outputs: int, stride: int, activation: str) -> nn.Sequential:
    """1x1, depthwise 3x3 of `stride`, 1x1: the right branch of both blocks (figure 3 c and d)."""
    return nn.Sequential(
        ConvNorm(inputs, outputs, 1, 1, activation),
        ConvNorm(outputs, outputs, 3, stride, None, groups=outputs),
        ConvNorm(outputs, outputs, 1, 1, activation),
    )


class Keep(nn.Module):
    """Half of the channels as they are, the other half filtered, both interleaved (figure 3c)."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.body = _filters(channels // 2, channels // 2, 1, activation)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of the same shape."""
        kept_BCHW, given_BCHW = maps_BCHW.chunk(2, 1)
        return interleave(kept_BCHW, self.body(given_BCHW))


class Change(nn.Module):
    """The first block of a stage: two branches from all channels, half of the outputs each, interleaved (figure 3d)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(
            ConvNorm(inputs, inputs, 3, stride, None, groups=inputs),
            ConvNorm(inputs, outputs // 2, 1, 1, activation),
        )
        self.body = _filters(inputs, outputs // 2, stride, activation)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of `outputs` channels, `stride` times smaller."""
        return interleave(self.shortcut(maps_BCHW), self.body(maps_BCHW))
