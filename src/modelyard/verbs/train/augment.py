"""Augmentation of whole encoded image batches: shifts, flips, cut-outs, affine maps, mix-up, cut-mix and growing size.

Every operation is a pure function of a batch `(B, C, H, W)` (uint8, or float 0..255) and of numbers drawn for it; there
is no Python loop over examples. The numbers come from a counter-based generator: those of an example are a function of
(seed, epoch, example id, purpose) and do not depend on its neighbours or on the batch size. Mix-up and cut-mix couple
examples: partner and weight of an example depend on the ids of the batch as well.

`ImageAugment` is the training loop's hook; by hand it is

    draws = Draws(seed=7, epoch=2, ids=ids_B)
    images_BCHW, mix = augment(images_BCHW, config, draws)
    value_B = mixed(lambda target: loss(outputs, target)[0], targets, mix)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from modelyard import settings
from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.settings import Between

WEYL = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio, odd: the step of splitmix64 (Steele, Lea & Flood 2014, fig. 15)."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training images go through, in this order. Everything is off by default."""

    crop: Annotated[float, Between(0, 1)] = 0.0
    """Largest shift to each side, as a share of height and width (0.1 of 32 pixels: up to 3)."""
    rotate: Annotated[float, Between(0, 180)] = 0.0
    """Largest rotation to each side, degrees."""
    scale: Annotated[float, Between(0, 1)] = 0.0
    """Largest relative change of height and width, each drawn by itself."""
    shift: Annotated[float, Between(0, 1)] = 0.0
    """Largest shift in fractions of a pixel grid, as a share of the size; interpolated, unlike `crop`."""
    shear: Annotated[float, Between(0, 1)] = 0.0
    """Largest horizontal shear, as a share."""
    flip: bool = False
    """Mirror left and right with probability one half. Not for digits, letters, or left and right organs."""
    cutout: Annotated[float, Between(0, 1)] = 0.0
    """Side of a square that is replaced by the image's mean colour, as a share of the size."""
    padding: Literal["reflect", "zero"] = "reflect"
    """What comes in at the borders."""
    mixup: Annotated[float, Between(0, 10)] = 0.0
    """`alpha` of Beta(alpha, alpha) for mix-up; 0 is off, 0.2 is usual."""
    cutmix: Annotated[float, Between(0, 10)] = 0.0
    """`alpha` of cut-mix; with both, half of the batches get each."""
    progressive: Annotated[float, Between(0.25, 1)] = 1.0
    """The first half of training sees images of this share of the size (0.75: at 0.56 of the cost). For nets that take
    any size."""


@dataclass(frozen=True)
class Mix:
    """Example `i` became `weight_B[i]` of itself and the rest of example `partner_B[i]`."""

    partner_B: Tensor
    weight_B: Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers that are a function of (seed, epoch, example id, purpose)."""

    seed: int
    epoch: int
    ids: np.ndarray
    """Ids of the examples of the batch, `(B,)` whole numbers: their row in the training table."""
    name: str = ""
    """Of the column: two images of an example are drawn for by themselves."""

    def uniform(self, purpose: str, count: int) -> Tensor:
        """`(B, count)` float32 in [0, 1)."""
        ids = self.ids.astype(np.uint64)[:, None]
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
            key = scramble(scramble(np.uint64(self.seed & (2**64 - 1)) + WEYL) + np.uint64(self.epoch) * WEYL)
            key = scramble(key ^ np.uint64(zlib.crc32(f"{self.name}/{purpose}".encode())))
            bits = scramble(scramble(ids * WEYL + key) + np.arange(1, count + 1, dtype=np.uint64) * WEYL)
        return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))

    def signed(self, purpose: str, count: int) -> Tensor:
        """`(B, count)` float32 in [-1, 1)."""
        return self.uniform(purpose, count) * 2 - 1

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator for what belongs to the batch: keyed by (seed, epoch, ids in their order, purpose)."""
        ids = zlib.crc32(np.ascontiguousarray(self.ids, np.int64).tobytes())
        entropy = [self.seed & (2**64 - 1), self.epoch, ids, zlib.crc32(f"{self.name}/{purpose}".encode())]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def scramble(bits: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    """The finaliser of splitmix64: each input bit flips each output bit with probability about one half."""
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def standard(channels: int) -> AugmentConfig:
    """The preset `standard`. Grey images (scans, digits): small affine maps. Colour (photographs): flip, crop.

    Digits found with the last 10,000 of MNIST's training set held out, photographs with 4,000 of the CIFAR-10 subset's.
    """
    if channels == 1:
        return AugmentConfig(rotate=12, scale=0.12, shift=0.06, shear=0.1, padding="zero")
    return AugmentConfig(crop=0.1, flip=True, progressive=0.75)


def read(value: str | Mapping[str, Any] | None, channels: int, mixup: float = 0.0) -> AugmentConfig:
    """The setting `train.augment` (`none`, `standard`, or a map of operations) with `train.mixup` for one image input.

    Raises `ConfigError` naming every mistake.
    """
    if value == "standard":
        config = standard(channels)
    elif value in (None, "none"):
        config = AugmentConfig()
    else:
        problems: list[Problem] = []
        if isinstance(value, str):
            problems.append(Problem(f"got {value!r}, expected none, standard or a map", "train.augment"))
        config = settings.parse(AugmentConfig, {} if isinstance(value, str) else value, "train.augment", problems)
        if problems:
            raise ConfigError(f"train.augment has {len(problems)} mistake(s)", problems)
    return replace(config, mixup=mixup) if mixup else config


class ImageAugment:
    """The loop's hook `(inputs, example ids, epoch) -> (inputs, mix)` for image inputs `<column>.pixels`.

    `epochs` is the planned number. Where it is None, all images are full-sized: a time budget does not say how many
    epochs there will be, and the speed measured on small images says nothing about that of large ones.
    """

    def __init__(
        self, configs: Mapping[str, AugmentConfig], inputs: Iterable[str], seed: int, epochs: int | None
    ) -> None:
        self.configs = dict(configs)
        """By column."""
        self.seed, self.epochs = seed, epochs
        mixing = [name for name, config in self.configs.items() if config.mixup or config.cutmix]
        others = sorted(set(inputs) - {f"{name}.pixels" for name in mixing})
        if mixing and (others or len(mixing) > 1):
            came = ", ".join(others or mixing)
            raise Unsupported(f"mix-up and cut-mix need one image as the only input; there are {came} too", "not yet")

    def __call__(self, inputs: dict[str, Tensor], ids: np.ndarray, epoch: int) -> tuple[dict[str, Tensor], Mix | None]:
        """The inputs with every image column augmented by itself."""
        out, mix = dict(inputs), None
        for name, config in self.configs.items():
            key = f"{name}.pixels"
            out[key], found = augment(out[key], config, Draws(self.seed, epoch, ids, name))
            mix = mix or found
            if self.epochs is not None and epoch < self.epochs // 2:
                out[key] = progressive(out[key], config.progressive)
        return out, mix


def augment(images_BCHW: Tensor, config: AugmentConfig, draws: Draws) -> tuple[Tensor, Mix | None]:
    """The batch after every operation that `config` switches on, and how examples were mixed, if they were.

    uint8 stays uint8 unless pixels are interpolated or mixed; then float32 on the same scale 0..255.
    """
    height, width = images_BCHW.shape[2:]
    if config.crop:
        reach = torch.tensor([config.crop * height, config.crop * width]).round()
        offsets = (draws.uniform("crop", 2) * (2 * reach + 1)).floor() - reach
        images_BCHW = crop(images_BCHW, offsets.long(), config.padding)
    if config.rotate or config.scale or config.shift or config.shear:
        images_BCHW = affine(images_BCHW, affine_maps(config, draws), config.padding)
    if config.flip:
        images_BCHW = flip(images_BCHW, draws.uniform("flip", 1)[:, 0] < 0.5)
    if config.cutout:
        sides = (max(1, round(config.cutout * height)), max(1, round(config.cutout * width)))
        images_BCHW = cutout(images_BCHW, draws.uniform("cutout", 2), sides)
    if not (config.mixup or config.cutmix):
        return images_BCHW, None
    generator = draws.generator("mix")
    blend = config.mixup and (not config.cutmix or generator.random() < 0.5)
    partner_B = torch.from_numpy(generator.permutation(len(images_BCHW)))
    if blend:
        return mixup(images_BCHW, partner_B, beta(generator, config.mixup, len(images_BCHW)))
    corners = torch.from_numpy(generator.random((len(images_BCHW), 2), np.float32))
    return cutmix(images_BCHW, partner_B, beta(generator, config.cutmix, len(images_BCHW)), corners)


def progressive(images_BCHW: Tensor, share: float) -> Tensor:
    """Images of `share` of the height and width, antialiased; float32 where that changes anything.

    Early epochs at a lower resolution cost less and lose nothing (Tan & Le 2021, "EfficientNetV2", section 4.2).
    """
    height, width = images_BCHW.shape[2:]
    size = (max(1, round(height * share)), max(1, round(width * share)))
    if size == (height, width):
        return images_BCHW
    return functional.interpolate(images_BCHW.float(), size=size, mode="bilinear", antialias=True)


def beta(generator: np.random.Generator, alpha: float, count: int) -> Tensor:
    """`(count,)` float32 of Beta(alpha, alpha)."""
    return torch.from_numpy(generator.beta(alpha, alpha, count).astype(np.float32))


def flip(images_BCHW: Tensor, chosen_B: Tensor) -> Tensor:
    """Mirror the chosen images left and right."""
    return torch.where(chosen_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)


def crop(images_BCHW: Tensor, offsets_B2: Tensor, padding: str = "reflect") -> Tensor:
    """Shift each image by whole pixels: output `[y, x]` is input `[y + offset_y, x + offset_x]`.

    The random crop of a padded image (He 2016), as one gather; `reflect` repeats no border pixel.
    """
    count, _, height, width = images_BCHW.shape
    rows_BH = torch.arange(height) + offsets_B2[:, :1]
    columns_BW = torch.arange(width) + offsets_B2[:, 1:]
    inside = ((rows_BH >= 0) & (rows_BH < height))[:, :, None] & ((columns_BW >= 0) & (columns_BW < width))[:, None, :]
    rows_BH, columns_BW = reflected(rows_BH, height), reflected(columns_BW, width)
    which = torch.arange(count)[:, None, None]
    shifted_BHWC = images_BCHW.permute(0, 2, 3, 1)[which, rows_BH[:, :, None], columns_BW[:, None, :]]
    shifted_BCHW = shifted_BHWC.permute(0, 3, 1, 2)
    return shifted_BCHW if padding == "reflect" else shifted_BCHW * inside[:, None]


def reflected(index: Tensor, size: int) -> Tensor:
    """Indices folded back into [0, size) at the centres of the border pixels: -1 → 1, size → size - 2."""
    period = max(1, 2 * (size - 1))
    folded = index.remainder(period)
    return torch.minimum(folded, period - folded).clamp(max=size - 1)


def affine_maps(config: AugmentConfig, draws: Draws) -> Tensor:
    """`(B, 2, 3)` maps from output to input places, on axes from -1 to 1, as `affine_grid` wants them."""
    angle, grow_x, grow_y, shear, x, y = draws.signed("affine", 6).unbind(1)
    angle = angle * math.radians(config.rotate)
    wide, high = 1 + config.scale * grow_x, 1 + config.scale * grow_y
    # a shift of the whole size is 2 on these axes
    top = torch.stack([wide * angle.cos(), config.shear * shear - wide * angle.sin(), 2 * config.shift * x], 1)
    bottom = torch.stack([high * angle.sin(), high * angle.cos(), 2 * config.shift * y], 1)
    return torch.stack([top, bottom], 1)


def affine(images_BCHW: Tensor, maps_B23: Tensor, padding: str = "reflect") -> Tensor:
    """Bilinear affine maps (Jaderberg 2015, "Spatial Transformer Networks"); float32 out."""
    mode = "reflection" if padding == "reflect" else "zeros"
    grid = functional.affine_grid(maps_B23, list(images_BCHW.shape), align_corners=False)
    return functional.grid_sample(images_BCHW.float(), grid, padding_mode=mode, align_corners=False)


def boxes(centres_B2: Tensor, sides: tuple[Tensor | int, Tensor | int], height: int, width: int) -> Tensor:
    """`(B, 1, H, W)` true inside boxes whose centres are shares of the size; they are cut at the border."""
    axes = []
    for axis, (size, side) in enumerate(zip((height, width), sides, strict=True)):
        begin = (centres_B2[:, axis] * size).floor() - torch.as_tensor(side) // 2
        place = torch.arange(size)[None]
        axes.append((place >= begin[:, None]) & (place < (begin + side)[:, None]))
    return (axes[0][:, :, None] & axes[1][:, None, :])[:, None]


def cutout(images_BCHW: Tensor, centres_B2: Tensor, sides: tuple[int, int]) -> Tensor:
    """A box of `sides` (height, width) pixels becomes the image's mean colour (DeVries & Taylor 2017)."""
    mean = images_BCHW.float().mean((2, 3), keepdim=True)
    mean = mean if images_BCHW.is_floating_point() else mean.round().to(images_BCHW.dtype)
    return torch.where(boxes(centres_B2, sides, *images_BCHW.shape[2:]), mean, images_BCHW)


def mixup(images_BCHW: Tensor, partner_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Mix]:
    """`weight * image + (1 - weight) * partner` (Zhang 2018, arXiv:1710.09412, eq. 1)."""
    own = images_BCHW.float()
    weight = weight_B[:, None, None, None]
    return torch.lerp(own[partner_B], own, weight), Mix(partner_B, weight_B)


def cutmix(images_BCHW: Tensor, partner_B: Tensor, weight_B: Tensor, centres_B2: Tensor) -> tuple[Tensor, Mix]:
    """A box of share `1 - weight` comes from the partner (Yun 2019, arXiv:1905.04899).

    The weight returned is the share of pixels that stayed: the box may be cut at the border.
    """
    height, width = images_BCHW.shape[2:]
    side = (1 - weight_B).sqrt()
    box = boxes(centres_B2, ((side * height).round(), (side * width).round()), height, width)
    share_B = 1 - box.float().mean((1, 2, 3))
    return torch.where(box, images_BCHW[partner_B], images_BCHW), Mix(partner_B, share_B)


def mixed(loss: Callable[[Tensor], Tensor], targets: Tensor, mix: Mix | None) -> Tensor:
    """`(B,)` loss of a mixed batch: the weighted sum over both targets, for any loss of one target per example."""
    if mix is None:
        return loss(targets)
    return mix.weight_B * loss(targets) + (1 - mix.weight_B) * loss(targets[mix.partner_B])
