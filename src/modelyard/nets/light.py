"""A light family for phones and small CPUs: inverted residual blocks of depthwise-separable convolutions.

Sandler, Howard, Zhu, Zhmoginov & Chen 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(arXiv:1801.04381): a 1x1 convolution widens by `expand`, a depthwise 3x3 filters each channel by itself, a linear 1x1
narrows again. `size: full` is the paper's table 2; `size: small` (the default) is cut for images below 100 pixels.
Where we differ: images below 64 pixels are not shrunk by the stem, and strides stop at 4x4 positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from modelyard.kinds._contract import Part
from modelyard.nets._pixels import ConvNorm, ImageEncoder, init_convolutions, multiple_of_8
from modelyard.settings import Between

STAGES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "small": ((1, 16, 1, 1), (4, 24, 2, 2), (4, 40, 2, 2), (4, 80, 2, 2)),
    "full": (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ),
}
"""Expansion, channels, blocks and stride of each stage (the paper's t, c, n, s)."""
STEM = {"small": 16, "full": 32}
LAST = {"small": 256, "full": 1280}
"""Channels of the first convolution, and of the last 1x1 convolution: the width of the features."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the light net."""

    size: Literal["small", "full"] = "small"
    """`small`: 0.1 million weights; `full`: the paper's 2.2 million."""
    widen: Annotated[float, Between(0.01, 16)] = 1.0
    """The paper's width multiplier: 0.35 to 1.4; channels stay multiples of 8."""
    activation: Literal["relu6", "relu", "silu"] = "relu6"
    dropout: Annotated[float, Between(0, 0.95)] = 0.0
    """Share of features dropped in training, before the head (the paper: 0.2 for ImageNet)."""


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
        side = min(self.height, self.breadth)
        stride = 2 if side >= 64 else 1
        channels = multiple_of_8(STEM[config.size] * config.widen)
        layers: list[nn.Module] = [ConvNorm(self.channels, channels, 3, stride, config.activation)]
        side //= stride
        for expand, width, blocks, step in STAGES[config.size]:
            outputs = multiple_of_8(width * config.widen)
            step = step if side >= 8 else 1
            side //= step
            for index in range(blocks):
                layers.append(InvertedResidual(channels, outputs, expand, step if not index else 1, config.activation))
                channels = outputs
        self.width = multiple_of_8(LAST[config.size] * max(1.0, config.widen))  # the paper does not narrow it
        layers.append(ConvNorm(channels, self.width, 1, 1, config.activation))
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        init_convolutions(self)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BD`: mean over positions."""
        features_BD: Tensor = self.dropout(self.body(images_BCHW).mean((2, 3)))
        return features_BD


class InvertedResidual(nn.Module):
    """Widen, filter by channel, narrow without activation; a shortcut where shapes agree (figure 4d)."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, activation: str) -> None:
        super().__init__()
        hidden = inputs * expand
        self.body = nn.Sequential(
            *([ConvNorm(inputs, hidden, 1, 1, activation)] if expand != 1 else []),
            ConvNorm(hidden, hidden, 3, stride, activation, groups=hidden),
            ConvNorm(hidden, outputs, 1, 1, None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of `outputs` channels, `stride` times smaller."""
        out_BCHW: Tensor = self.body(maps_BCHW)
        return maps_BCHW + out_BCHW if self.residual else out_BCHW
