"""A small fast convolutional net: stages of 3x3 convolutions with batch normalisation, max-pooled between stages.

The shape of VGG (Simonyan & Zisserman 2014, arXiv:1409.1556) with batch normalisation (Ioffe & Szegedy 2015) and, where
a stage is deep enough, the identity shortcut of ResNet-9 (D. Page 2019, "How to train your ResNet"). Features are the
maximum over positions, joined with the mean. The default for images: most accuracy per second on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelyard.errors import Unsupported
from modelyard.kinds._contract import Part
from modelyard.nets._pixels import ACTIVATIONS, ImageEncoder, image_shape, init_convolutions
from modelyard.settings import Between


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the small CNN. What is not given follows from the size of the images (`shape_for`)."""

    widths: tuple[Annotated[int, Between(1, 4096)], ...] | None = None
    """Channels of each stage; height and width are halved between stages."""
    depths: tuple[Annotated[int, Between(1, 64)], ...] | None = None
    """Convolutions of each stage (else 1). The last two of a stage of three or more are residual."""
    stem: Annotated[int, Between(1, 31)] | None = None
    """Kernel of the first convolution, pixels; odd."""
    stride: Annotated[int, Between(1, 16)] | None = None
    """Stride of the first convolution."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    dropout: Annotated[float, Between(0, 0.95)] = 0.0
    """Share of features dropped in training, before the head."""

    def __post_init__(self) -> None:
        if self.depths is not None and (self.widths is None or len(self.depths) != len(self.widths)):
            raise ValueError("widths and depths need one number for each stage, both")
        if self.stem is not None and self.stem % 2 == 0:
            raise ValueError(f"stem is {self.stem}, expected an odd number of pixels")


ACCEPTS = ("pixels",)
TRAIN: dict[str, object] = {
    "epochs": 14,
    "batch": 128,
    "optimiser": "adamw",
    "lr": 0.004,
    "weight_decay": 0.05,
    "schedule": "one-cycle",
    "warmup": 0.2,
    "label_smoothing": 0.1,
    "augment": "standard",
}
"""Found on 20,000 colour images; `recipe` adapts it to the number of rows and to grey images."""
IMAGES = 280_000
"""Images that training looks at in all, whatever their number: 14 epochs of 20,000, found on the CIFAR-10 subset."""


def recipe(parts: Mapping[str, Part], rows: int) -> tuple[Config, dict[str, object]]:
    """(net, `train` settings) for images of this shape and `rows` training images.

    A budget of images, not of epochs: 5 epochs of MNIST's 60,000, 60 (the most) of 4,000 and fewer. Grey images take
    three quarters of the learning rate and half of the label smoothing.
    """
    grey = image_shape(parts)[0] == 1
    epochs = min(60, max(4, round(IMAGES / max(1, rows))))
    return Config(), {**TRAIN, "epochs": epochs, **({"lr": 0.003, "label_smoothing": 0.05} if grey else {})}


def shape_for(config: Config, channels: int, side: int) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """(widths, depths, stem, stride) for images whose shorter side is `side` pixels.

    Stages are added until the last map is 3 to 5 positions wide (with three, a feature of MNIST saw 18 of 28 pixels).
    Images from 48 pixels on are shrunk by the first convolution, so that all sizes cost about the same.
    Grey images get three quarters of the channels.
    """
    stride = config.stride or (1 if side < 48 else 2 if side < 112 else 4)
    stages = min(4, 1 + max(0, int(math.log2(max(3, side // stride) / 3))))
    first = 24 if channels == 1 else 32
    widths = config.widths or tuple(first * 2**stage for stage in range(stages))
    return widths, config.depths or (1,) * len(widths), config.stem or max(3, 2 * stride - 1), stride


def narrow(config: Config, weights: Mapping[str, Tensor], share: float, encoder: Encoder) -> tuple[Config, dict[str, Tensor]]:
    """(settings, changed weights) of the encoder without `share` of the channels of each stage but the last, whose channels the heads read:
    those go of which the filters have the smallest norm, summed over the stage's convolutions."""
    widths, depths, stem, stride = shape_for(config, encoder.channels, min(encoder.height, encoder.breadth))
    if len(widths) < 2:
        raise Unsupported("the net has one stage, and the heads read that; distil it into a smaller one", "use")
    stages: list[list[str]] = [[]]
    for i, layer in enumerate(encoder.body):
        if isinstance(layer, Halve):
            stages.append([])
        else:
            stages[-1] += [f"body.{i}.body.{j}" for j in range(2)] if isinstance(layer, Residual) else [f"body.{i}"]
    changed, narrowed, before = dict(weights), list(widths), None
    for stage, (names, width) in enumerate(zip(stages, widths, strict=True)):
        last = stage == len(widths) - 1
        worth_C = sum(changed[f"{n}.0.weight"].flatten(1).norm(dim=1) for n in names)
        assert isinstance(worth_C, Tensor)
        kept = worth_C.topk(width if last else _left(width, share)).indices.sort().values
        for n in names:
            kernel = changed[f"{n}.0.weight"][kept]
            changed[f"{n}.0.weight"] = kernel if before is None else kernel[:, before]
            changed |= {f"{n}.1.{part}": changed[f"{n}.1.{part}"][kept] for part in ("weight", "bias", "running_mean", "running_var")}
            before = kept
        narrowed[stage] = len(kept)
    return replace(config, widths=tuple(narrowed), depths=tuple(depths), stem=stem, stride=stride), changed


BLOCK = 16
"""Channels that ONNX Runtime's convolutions take together: 16, 32, 80, 256 channels take 0.17 ms for an image, and 19, 38, 77, 256 take 0.28 ms."""


def _left(width: int, share: float) -> int:
    """Channels that stay: whole blocks where there are such."""
    wanted = width * (1 - share)
    return max(1, round(wanted)) if width <= BLOCK else min(width, max(BLOCK, BLOCK * round(wanted / BLOCK)))


class Encoder(ImageEncoder):
    """Images `(B, C, H, W)` to features `(B, 2 * widths[-1])`."""

    def __init__(
        self, config: Config, parts: Mapping[str, Part], *, statistics: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(parts, statistics)
        widths, depths, stem, first_stride = shape_for(config, self.channels, min(self.height, self.breadth))
        layers: list[nn.Module] = []
        channels = self.channels
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                layers.append(Halve())
            plain = depth if depth < 3 else depth - 2
            for layer in range(plain):
                first = stage == 0 and layer == 0
                kernel, stride = (stem, first_stride) if first else (3, 1)
                layers.append(ConvNorm(channels, width, kernel, stride, config.activation))
                channels = width
            if depth >= 3:
                layers.append(Residual(width, config.activation))
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.width = 2 * channels
        init_convolutions(self)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """`features_BD`: maximum and mean over positions."""
        maps_BCHW = self.body(images_BCHW)
        pooled = torch.cat([maps_BCHW.amax((2, 3)), maps_BCHW.mean((2, 3))], 1)
        features_BD: Tensor = self.dropout(pooled)
        return features_BD


class Halve(nn.Module):
    """Maximum of each 2x2 positions; a map that is one position wide or high stays as it is."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """`(B, C, H // 2, W // 2)`."""
        return maps_BCHW if min(maps_BCHW.shape[2:]) < 2 else functional.max_pool2d(maps_BCHW, 2)


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation, activation; `same` padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, activation: str) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            ACTIVATIONS[activation](),
        )


class Residual(nn.Module):
    """Two convolutions around an identity shortcut."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(*(ConvNorm(width, width, 3, 1, activation) for _ in range(2)))

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """`x + body(x)`, same shape."""
        out_BCHW: Tensor = maps_BCHW + self.body(maps_BCHW)
        return out_BCHW
