"""Inverted residuals with attention over channels: MobileNetV3, the successor of the family `light`.

Howard, Sandler, Chu et al. 2019, "Searching for MobileNetV3" (arXiv:1905.02244): the blocks of MobileNetV2 with
depthwise kernels of 3 and 5, squeeze-and-excitation (Hu, Shen & Sun 2018, arXiv:1709.01507) in some of them, the hard
swish `x · relu6(x + 3) / 6` in the deeper ones, and a last layer that is computed after the mean over positions
(figure 5), where it costs one position. `size: large` and `small` are tables 1 and 2; `size: tiny` (the default) is
cut for images below 100 pixels. Where we differ: images below 64 pixels are not shrunk by the stem, and strides stop
at 4x4 positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from modelyard.kinds._contract import Part
from modelyard.nets._pixels import ConvNorm, ImageEncoder, init_convolutions, multiple_of_8
from modelyard.settings import Between


class Row(NamedTuple):
    """One block, as a row of the paper's tables (k, exp size, #out, SE, NL, s)."""

    kernel: int
    hidden: int
    outputs: int
    excite: bool
    activation: str
    stride: int


RE, HS = "relu", "hard-swish"
BLOCKS: dict[str, tuple[Row, ...]] = {
    "tiny": (
        Row(3, 16, 16, False, RE, 1),
        Row(3, 64, 24, False, RE, 2),
        Row(3, 72, 24, False, RE, 1),
        Row(5, 96, 40, True, HS, 2),
        Row(5, 120, 40, True, HS, 1),
        Row(3, 160, 64, True, HS, 2),
    ),
    "small": (
        Row(3, 16, 16, True, RE, 2),
        Row(3, 72, 24, False, RE, 2),
        Row(3, 88, 24, False, RE, 1),
        Row(5, 96, 40, True, HS, 2),
        Row(5, 240, 40, True, HS, 1),
        Row(5, 240, 40, True, HS, 1),
        Row(5, 120, 48, True, HS, 1),
        Row(5, 144, 48, True, HS, 1),
        Row(5, 288, 96, True, HS, 2),
        Row(5, 576, 96, True, HS, 1),
        Row(5, 576, 96, True, HS, 1),
    ),
    "large": (
        Row(3, 16, 16, False, RE, 1),
        Row(3, 64, 24, False, RE, 2),
        Row(3, 72, 24, False, RE, 1),
        Row(5, 72, 40, True, RE, 2),
        Row(5, 120, 40, True, RE, 1),
        Row(5, 120, 40, True, RE, 1),
        Row(3, 240, 80, False, HS, 2),
        Row(3, 200, 80, False, HS, 1),
        Row(3, 184, 80, False, HS, 1),
        Row(3, 184, 80, False, HS, 1),
        Row(3, 480, 112, True, HS, 1),
        Row(3, 672, 112, True, HS, 1),
        Row(5, 672, 160, True, HS, 2),
        Row(5, 960, 160, True, HS, 1),
        Row(5, 960, 160, True, HS, 1),
    ),
}
STEM = 16
"""Channels of the first convolution."""
LAST = {"tiny": (192, 256), "small": (576, 1024), "large": (960, 1280)}
"""Channels of the last 1x1 convolution, and of the layer after the mean: the width of the features."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the inverted-residual net."""

    size: Literal["tiny", "small", "large"] = "tiny"
    """`tiny`: 0.15 million weights; `small` and `large`: the paper's 1.5 and 4.2 million without the head."""
    widen: Annotated[float, Between(0.01, 16)] = 1.0
    """The paper's width multiplier: 0.35 to 1.25; channels stay multiples of 8."""
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
    """Images `(B, C, H, W)` to the last layer's activations over the mean of all positions, `(B, width)`."""

    def __init__(
        self, config: Config, parts: Mapping[str, Part], *, statistics: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, statistics)
        side = min(self.height, self.breadth)
        stride = 2 if side >= 64 else 1
        channels = multiple_of_8(STEM * config.widen)
        layers: list[nn.Module] = [ConvNorm(self.channels, channels, 3, stride, HS)]
        side //= stride
        for row in BLOCKS[config.size]:
            step = row.stride if side >= 8 else 1
            side //= step
            wide = row._replace(
                hidden=multiple_of_8(row.hidden * config.widen), outputs=multiple_of_8(row.outputs * config.widen)
            )
            layers.append(Block(channels, wide, step))
            channels = wide.outputs
        inner, width = LAST[config.size]
        inner = multiple_of_8(inner * config.widen)
        self.width = multiple_of_8(width * max(1.0, config.widen))  # as in MobileNetV2, not narrowed
        layers.append(ConvNorm(channels, inner, 1, 1, HS))
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(inner, self.width)
        self.dropout = nn.Dropout(config.dropout)
        init_convolutions(self)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BD`: hard swish of the last layer, which sees the mean over positions."""
        means_BC = self.body(images_BCHW).mean((2, 3))
        features_BD: Tensor = self.dropout(functional.hardswish(self.last(means_BC)))
        return features_BD


class Block(nn.Module):
    """Widen, filter by channel, weigh the channels, narrow without activation; a shortcut where shapes agree (figure 4)."""

    def __init__(self, inputs: int, row: Row, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *([ConvNorm(inputs, row.hidden, 1, 1, row.activation)] if row.hidden != inputs else []),
            ConvNorm(row.hidden, row.hidden, row.kernel, stride, row.activation, groups=row.hidden),
            *([Excite(row.hidden)] if row.excite else []),
            ConvNorm(row.hidden, row.outputs, 1, 1, None),
        )
        self.residual = stride == 1 and inputs == row.outputs

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of `row.outputs` channels, `stride` times smaller."""
        out_BCHW: Tensor = self.body(maps_BCHW)
        return maps_BCHW + out_BCHW if self.residual else out_BCHW


class Excite(nn.Module):
    """Squeeze-and-excitation: each channel times a weight in [0, 1] found from the means of all (a quarter hidden)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = multiple_of_8(channels / 4)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of the same shape."""
        hidden_BC11 = functional.relu(self.squeeze(maps_BCHW.mean((2, 3), keepdim=True)))
        return maps_BCHW * functional.hardsigmoid(self.excite(hidden_BC11))
