"""Residual networks: ResNet-8, -14 and -20 for small images, ResNet-18 and -34 for large ones.

He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385): basic blocks of two 3x3
convolutions; sections 3.3 (18, 34) and 4.2 (6n + 2 layers for 32x32 images). With `preactivation`, normalisation and
activation come before each convolution (He 2016, "Identity Mappings", arXiv:1603.05027). Where we differ: shortcuts
that change shape are 1x1 projections in all depths (option B), and the last scale of each block starts at zero
(Goyal 2017, arXiv:1706.02677), so that each block begins as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from modelyard.kinds._contract import Part
from modelyard.nets._pixels import ACTIVATIONS, ImageEncoder, init_convolutions
from modelyard.settings import Between

DEPTHS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    8: ((16, 32, 64), (1, 1, 1)),
    14: ((16, 32, 64), (2, 2, 2)),
    20: ((16, 32, 64), (3, 3, 3)),
    18: ((64, 128, 256, 512), (2, 2, 2, 2)),
    34: ((64, 128, 256, 512), (3, 4, 6, 3)),
}
"""Channels and blocks of each stage, by the number of layers with weights (with the head)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a residual network."""

    depth: Literal[8, 14, 18, 20, 34] = 8
    """Layers with weights."""
    widen: Annotated[float, Between(0.01, 16)] = 1.0
    """All channels are multiplied by this (Zagoruyko & Komodakis 2016, wide residual networks)."""
    stem: Literal["auto", "small", "large"] = "auto"
    """`small`: one 3x3 convolution; `large`: 7x7 of stride 2 and a max-pool; `auto`: large from 64 pixels on."""
    preactivation: bool = False
    """Normalise and activate before each convolution, not after."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
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
    """Images `(B, C, H, W)` to the mean over positions of the last stage, `(B, width)`."""

    def __init__(
        self, config: Config, parts: Mapping[str, Part], *, statistics: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, statistics)
        widths, blocks = DEPTHS[config.depth]
        widths = tuple(max(1, round(width * config.widen)) for width in widths)
        large = config.stem == "large" or (config.stem == "auto" and min(self.height, self.breadth) >= 64)
        self.stem = _stem(self.channels, widths[0], large, config)
        block: type[Basic | PreActivation] = PreActivation if config.preactivation else Basic
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                layers.append(block(channels, width, 2 if stage and not index else 1, config.activation))
                channels = width
        if config.preactivation:
            layers += [nn.BatchNorm2d(channels), ACTIVATIONS[config.activation]()]
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.width = channels
        init_convolutions(self)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BD`: mean over positions."""
        features_BD: Tensor = self.dropout(self.body(self.stem(images_BCHW)).mean((2, 3)))
        return features_BD


def _stem(channels: int, width: int, large: bool, config: Config) -> nn.Sequential:
    kernel, stride = (7, 2) if large else (3, 1)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)]
    if not config.preactivation:
        layers += [nn.BatchNorm2d(width), ACTIVATIONS[config.activation]()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if large else []))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Basic(nn.Module):
    """`act(shortcut(x) + norm(conv(act(norm(conv(x))))))` (2015, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        last = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride),
            nn.BatchNorm2d(outputs),
            ACTIVATIONS[activation](),
            _convolution(outputs, outputs),
            last,
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of `outputs` channels, `stride` times smaller."""
        out_BCHW: Tensor = self.activation(self.shortcut(maps_BCHW) + self.body(maps_BCHW))
        return out_BCHW


class PreActivation(nn.Module):
    """`shortcut(x) + conv(act(norm(conv(act(norm(x))))))` (2016, figure 1b)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), ACTIVATIONS[activation]())
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride),
            nn.BatchNorm2d(outputs),
            ACTIVATIONS[activation](),
            _convolution(outputs, outputs),
        )
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Maps of `outputs` channels, `stride` times smaller."""
        active_BCHW = self.before(maps_BCHW)
        kept_BCHW = maps_BCHW if self.shortcut is None else self.shortcut(active_BCHW)
        out_BCHW: Tensor = kept_BCHW + self.body(active_BCHW)
        return out_BCHW
