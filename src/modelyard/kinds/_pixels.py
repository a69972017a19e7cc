"""The encoding `pixels`: pictures as uint8 arrays of one size, and what fitting finds out about them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from PIL import Image as Pillow

from modelyard.kinds._contract import Array, Context, Encoding, Part
from modelyard.kinds._picture import GREY_MODES, decode, open_header, resize, upright_size
from modelyard.settings import Between


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """How pictures become arrays of one size."""

    size: Annotated[int, Between(1, 4096)] | tuple[Annotated[int, Between(1, 4096)], ...] | Literal["auto"] = "auto"
    """Pixels: one number for a square, (height, width), or `auto`: the median in training, at most `largest`."""
    largest: Annotated[int, Between(1, 4096)] = 128
    """Longest side that `auto` chooses, pixels; the aspect ratio is kept."""
    channels: Literal["auto", 1, 3] = "auto"
    """1 grey, 3 RGB; `auto` is 1 where all training pictures are grey."""
    resize: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Filter; all but `nearest` are antialiased when shrinking."""
    fit: Literal["squash", "crop", "pad"] = "squash"
    """What happens to another aspect ratio: change it, cut the middle, or add black borders."""
    statistics_from: Annotated[int, Between(1)] = 4096
    """Encoded files that mean and standard deviation are taken from; pixel columns use all."""

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple) and len(self.size) != 2:
            raise ValueError(f"size has {len(self.size)} numbers, expected one, or height and width")


@dataclass
class PixelsState:
    """What fitting found. `mean` and `std` are per channel on the scale 0..1; the net normalises with them."""

    config: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)
    """Pictures by `HxW`, while fitting."""
    colour: bool = False
    sample: dict[str, list[int]] = field(default_factory=dict)
    """Of the encoded files with the smallest digests, while fitting: pixels, three sums and three sums of squares."""
    limit: str = "g"
    """Digests from here on can no longer enter the sample (`g` is above every hexadecimal digit)."""
    pixels: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Sum of the pixels per channel; whole numbers, so merging in any order is exact."""
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])
    height: int = 0
    width: int = 0
    channels: int = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    def statistics(self) -> dict[str, list[float]]:
        """What an image net normalises with: `mean` and `std` per channel on the scale 0..1."""
        return {"mean": list(self.mean), "std": list(self.std)}


class Pixels(Encoding):
    """Pictures as uint8 `(C, H, W)`; a missing one is the mean colour, which the net sees as zeros.

    Sizes and channels are exact, as are mean and standard deviation of pixel columns. Encoded files are sampled: those
    with the `statistics_from` smallest digests of their bytes, the same in any order and after any merge (a bottom-k
    sketch, Cohen & Kaplan 2007). With 4,096 pictures the mean is off by about half a grey step of 255.
    """

    name = "pixels"
    Config: ClassVar[type] = PixelsConfig
    State: ClassVar[type] = PixelsState

    def start(self, config: PixelsConfig | None = None) -> PixelsState:
        """An empty state that remembers the settings."""
        config = config or PixelsConfig()
        return PixelsState(config={name: getattr(config, name) for name in PixelsConfig.__dataclass_fields__})

    def update(self, state: PixelsState, column: pl.Series) -> PixelsState:
        """Count sizes and colour of a canonical column, and add up pixels."""
        column = column.drop_nulls()
        if len(column) == 0:
            return state
        if isinstance(column.dtype, pl.Array):
            self._update_arrays(state, array_of(column))
        else:
            self._update_files(state, column.to_list())
        return state

    def _update_arrays(self, state: PixelsState, images: np.ndarray) -> None:
        key = f"{images.shape[1]}x{images.shape[2]}"
        state.sizes[key] = state.sizes.get(key, 0) + len(images)
        state.colour |= images.ndim == 4
        if images.ndim == 4 and state.config["channels"] == 1:
            images = np.stack([np.asarray(Pillow.fromarray(image).convert("L")) for image in images])
        pixels, *sums = pixel_sums(images)
        state.pixels += pixels
        state.sums = [x + y for x, y in zip(state.sums, sums[:3], strict=True)]
        state.squares = [x + y for x, y in zip(state.squares, sums[3:], strict=True)]

    def _update_files(self, state: PixelsState, files: list[bytes]) -> None:
        room = state.config["statistics_from"]
        for data in files:
            header = open_header(data)
            key = "{}x{}".format(*upright_size(header))
            state.sizes[key] = state.sizes.get(key, 0) + 1
            state.colour |= header.mode not in GREY_MODES
            digest = hashlib.blake2b(data, digest_size=8).hexdigest()
            if digest < state.limit and digest not in state.sample:
                image = decode(data)
                image = image.convert("L") if state.config["channels"] == 1 else image
                state.sample[digest] = pixel_sums(np.asarray(image)[None])
                if len(state.sample) >= 2 * room:
                    self._cut(state, room)

    def _cut(self, state: PixelsState, room: int) -> None:
        """Keep the `room` smallest digests."""
        kept = sorted(state.sample)[:room]
        state.limit = kept[-1] if len(kept) == room else "g"
        state.sample = {digest: state.sample[digest] for digest in kept}

    def merge(self, a: PixelsState, b: PixelsState) -> PixelsState:
        """The state of both: every field is a sum."""
        return PixelsState(
            config=a.config,
            sizes=dict(Counter(a.sizes) + Counter(b.sizes)),
            colour=a.colour or b.colour,
            sample={**a.sample, **b.sample},
            limit=min(a.limit, b.limit),
            pixels=a.pixels + b.pixels,
            sums=[x + y for x, y in zip(a.sums, b.sums, strict=True)],
            squares=[x + y for x, y in zip(a.squares, b.squares, strict=True)],
        )

    def finish(self, state: PixelsState) -> PixelsState:
        """Fix size, channels, mean and standard deviation; the counts of sizes are dropped."""
        config = state.config
        state.channels = (3 if state.colour else 1) if config["channels"] == "auto" else config["channels"]
        size = config["size"]
        if size == "auto":
            state.height, state.width = common_size(state.sizes, config["largest"])
        else:
            state.height, state.width = (size, size) if isinstance(size, int) else size
        self._cut(state, config["statistics_from"])
        totals = [state.pixels, *state.sums, *state.squares]
        count, *moments = (sum(column) for column in zip(totals, *state.sample.values(), strict=True))
        mean = [moments[c] / max(1, count) for c in range(state.channels)]
        variance = [max(0.0, moments[3 + c] / max(1, count) - mean[c] ** 2) for c in range(state.channels)]
        state.mean = [m / 255 for m in mean] if count else [0.5] * state.channels
        state.std = [v**0.5 / 255 for v in variance] if count else [0.25] * state.channels
        state.pixels, state.sums, state.squares = count, moments[:3], moments[3:]
        state.sizes, state.sample = {}, {}
        return state

    def parts(self, state: PixelsState) -> dict[str, Part]:
        """`pixels` uint8 `(C, H, W)`."""
        return {"pixels": Part((state.channels, state.height, state.width), "uint8")}

    def encode(self, column: pl.Series, state: PixelsState, context: Context) -> dict[str, Array]:
        """`pixels` `(B, C, H, W)` uint8: a read-only view of the column where that is grey and of the right size."""
        present = column.drop_nulls()
        images = self._images(present, state)
        if len(present) == len(column):
            return {"pixels": images}
        fill = np.array([round(m * 255) for m in state.mean], np.uint8)
        full = np.empty((len(column), *images.shape[1:]), np.uint8)
        full[:] = fill[:, None, None]
        full[column.is_not_null().to_numpy()] = images
        return {"pixels": full}

    def _images(self, column: pl.Series, state: PixelsState) -> np.ndarray:
        shape = (state.height, state.width)
        if isinstance(column.dtype, pl.Array):
            arrays = array_of(column)
            if arrays.shape[1:3] == shape and arrays.ndim == (4 if state.channels == 3 else 3):
                return np.ascontiguousarray(arrays.transpose(0, 3, 1, 2)) if arrays.ndim == 4 else arrays[:, None]
            pictures: Iterable[Any] = arrays
            opened: Callable[[Any], Pillow.Image] = Pillow.fromarray
        else:
            pictures, opened = column.to_list(), decode
        out = np.empty((len(column), state.channels, *shape), np.uint8)

        def one(item: tuple[int, Any]) -> None:
            row, picture = item
            out[row] = to_pixels(opened(picture), state)

        threaded(one, list(enumerate(pictures)))
        return out


def pixel_sums(images: np.ndarray) -> list[int]:
    """Pixels, three sums and three sums of squares of `(B, H, W)` (the same for each channel) or `(B, H, W, 3)`.

    Whole numbers: float64 adds up 2**20 squares of bytes exactly (below 2**53).
    """
    flat = images.reshape(-1, 3) if images.ndim == 4 else images.reshape(-1, 1)
    totals = [len(flat), *[0] * 6]
    for begin in range(0, len(flat), 2**20):
        block = flat[begin : begin + 2**20].astype(np.float64)
        sums, squares = np.ones(len(block)) @ block, (block.T @ block).diagonal()
        for channel in range(3):
            which = min(channel, flat.shape[1] - 1)
            totals[1 + channel] += int(sums[which])
            totals[4 + channel] += int(squares[which])
    return totals


def to_pixels(image: Pillow.Image, state: PixelsState) -> np.ndarray:
    """uint8 `(C, H, W)` of one picture: colour first, then size. Used for every row, offline and served."""
    image = image.convert("L" if state.channels == 1 else "RGB")
    method, fit = state.config["resize"], state.config["fit"]
    pixels = np.asarray(resize(image, state.height, state.width, method, fit))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def common_size(sizes: dict[str, int], largest: int) -> tuple[int, int]:
    """(height, width): the medians over all pictures, shrunk to `largest` in proportion; 32 x 32 of none."""
    if not sizes:
        return 32, 32
    shapes = np.array([[int(axis) for axis in key.split("x")] for key in sizes])
    counts = np.array(list(sizes.values()))
    height, width = (_weighted_median(shapes[:, axis], counts) for axis in (0, 1))
    scale = min(1.0, largest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _weighted_median(values: np.ndarray, counts: np.ndarray) -> int:
    order = np.argsort(values)
    reached = np.cumsum(counts[order])
    return int(values[order][np.searchsorted(reached, reached[-1] / 2)])


def array_of(column: pl.Series) -> np.ndarray:
    """`(B, H, W)` or `(B, H, W, 3)` view of an `Array(UInt8, …)` column without nulls."""
    shape = column.dtype.shape  # type: ignore[attr-defined]
    flat = column.rechunk()
    for _ in shape:
        flat = flat.arr.explode()
    return flat.to_numpy().reshape(-1, *shape)


def threaded(work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Results in order; Pillow decodes and resizes without the GIL, so 64 pictures and more use all cores."""
    if len(items) < 64:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
