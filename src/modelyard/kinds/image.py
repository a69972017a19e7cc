"""A picture: an encoded file (PNG, JPEG, WebP, BMP, GIF, TIFF), or its pixels.

Canonical columns are `Binary` (encoded files) or `Array(UInt8, (H, W))` / `Array(UInt8, (H, W, 3))` (pixels, all of one
size). How files become pixels is said in `kinds/_picture.py`. Strings are base64 or data URLs and are never taken for
paths: only an `Image(folder=…)`, made by a reader of local data, opens files, and only below that folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from PIL import Image as Pillow

from modelyard.kinds._contract import Array, Context, Encoding, Kind, Part, RowError
from modelyard.kinds._picture import (
    GREY_MODES,
    MAX_BYTES,
    BadPicture,
    decode,
    from_array,
    open_header,
    resize,
    to_png,
    upright_size,
)
from modelyard.settings import Between

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6")
BASE64_MAGIC = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")
"""The first letters of PNG, JPEG, GIF, WebP, BMP and TIFF in base64."""


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


class Image(Kind):
    """A picture."""

    name = "image"
    encodings: ClassVar[dict[str, Encoding]] = {"pixels": Pixels()}
    needs_value: ClassVar[bool] = True

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        """Where strings that are paths are read from; None (HTTP, JSON) never opens a file."""

    def check(self, column: pl.Series) -> tuple[pl.Series, list[RowError]]:
        """Pictures that decode completely; see the module for what is accepted. Each file is decoded once to know."""
        if _all_pixels(column):
            if column.dtype.shape[2:] == (1,):  # type: ignore[attr-defined]
                column = _canonical(column.name, [None if v is None else v[:, :, 0] for v in _pictures(column)])
            return column, []
        values = _pictures(column)
        results = threaded(self._check_one, values)
        errors = [
            RowError(row, column.name, str(result), _short(value))
            for row, (value, result) in enumerate(zip(values, results, strict=True))
            if isinstance(result, BadPicture)
        ]
        good = [None if isinstance(result, BadPicture) else result for result in results]
        return _canonical(column.name, good), errors

    def _check_one(self, value: Any) -> bytes | np.ndarray | BadPicture | None:
        """Encoded bytes that decode, or uint8 pixels; None for missing."""
        try:
            if value is None or (isinstance(value, str) and not value.strip()):
                return None
            if isinstance(value, dict) and set(value) == {"b64"}:  # TensorFlow Serving's form of binary values
                value = value["b64"]
            if isinstance(value, str):
                value = self._bytes_of(value)
            if isinstance(value, Pillow.Image):
                value = np.asarray(value)
            if isinstance(value, (bytes, bytearray, memoryview)):
                data = bytes(value)
                decode(data)
                return data
            if isinstance(value, (list, tuple, np.ndarray, pl.Series)):
                return from_array(value.to_list() if isinstance(value, pl.Series) else value)
            raise BadPicture(f"a picture cannot be of type {type(value).__name__}; send a file, base64 or pixels")
        except BadPicture as error:
            return error

    def _bytes_of(self, text: str) -> bytes:
        """The bytes behind a string: a data URL, a path below `folder` where there is one, else base64."""
        text = text.strip()
        if text.startswith("data:"):
            head, _, text = text.partition(",")
            if not head.endswith(";base64"):
                raise BadPicture("a data URL must be base64: data:image/png;base64,…")
        elif self.folder is not None:
            return read_below(self.folder, text)
        if len(text) > MAX_BYTES * 4 // 3 + 4:
            raise BadPicture(f"the picture has more than {MAX_BYTES:,} bytes; shrink it first")
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadPicture("not base64; send the bytes as base64 or as a data URL (paths are not opened)") from None

    def fits(self, column: pl.Series) -> float:
        """Pixel arrays are certain; bytes and strings by the first letters or the file ending of up to 64 values."""
        if isinstance(column.dtype, pl.Array):
            return 1.0 if _pixel_column(column.dtype) else 0.0
        sample = column.drop_nulls().head(64).to_list()
        if not sample:
            return 0.0
        if column.dtype == pl.Binary:
            return float(np.mean([value.startswith(MAGIC) for value in sample]))
        if column.dtype == pl.String:
            return float(np.mean([_looks_like_picture(value) for value in sample]))
        return 0.0

    def from_json(self, values: Sequence[Any]) -> pl.Series:
        """Base64 strings, data URLs, `{"b64": …}` or nested lists of pixels, also mixed."""
        plain = [v["b64"] if isinstance(v, dict) and set(v) == {"b64"} else v for v in values]
        if all(v is None or isinstance(v, str) for v in plain):
            return pl.Series("", plain, dtype=pl.String)
        return pl.Series("", plain, dtype=pl.Object)

    def to_json(self, column: pl.Series) -> list[Any]:
        """Base64 of files, nested lists of pixels."""
        if column.dtype == pl.Binary:
            return [None if data is None else base64.b64encode(data).decode("ascii") for data in column.to_list()]
        return _nested(column)

    def draw(self, value: Any) -> str:
        """An `<img>` of at most 96 pixels with its data inside; small pictures are shown enlarged, with hard pixels."""
        if value is None:
            return super().draw(None)
        image = decode(value) if isinstance(value, bytes) else Pillow.fromarray(from_array(value))
        title = f"{image.width} x {image.height}"
        image.thumbnail((96, 96))
        buffer = io.BytesIO()
        small = max(image.size) <= 32
        image.save(buffer, "PNG" if small else "JPEG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        style = "image-rendering:pixelated;width:64px" if small else "max-width:96px"
        source = f"data:image/{'png' if small else 'jpeg'};base64,{data}"
        return f'<img alt="{title}" title="{title}" style="{style}" src="{source}">'

    def distance(self, a: pl.Series, b: pl.Series) -> np.ndarray:
        """Mean absolute difference of pixels, 0..1; 1 where the sizes differ or one of both is missing."""
        return np.array([_difference(x, y) for x, y in zip(_pictures(a), _pictures(b), strict=True)], np.float64)

    def summary(self, column: pl.Series) -> dict[str, Any]:
        """`count`, `missing`, the ten commonest `sizes` (`HxW`), `formats`, `colour` (share that is not grey)."""
        present = column.drop_nulls()
        result: dict[str, Any] = {"count": len(column), "missing": column.null_count()}
        if isinstance(column.dtype, pl.Array):
            height, width, *rest = column.dtype.shape
            sizes, formats = Counter({f"{height}x{width}": len(present)}), Counter({"pixels": len(present)})
            colour = len(present) if rest else 0
        else:
            headers = [open_header(data) for data in present.to_list()]
            sizes = Counter("{}x{}".format(*upright_size(header)) for header in headers)
            formats = Counter(header.format or "unknown" for header in headers)
            colour = sum(header.mode not in GREY_MODES for header in headers)
        return {
            **result,
            "sizes": dict(sizes.most_common(10)),
            "formats": dict(formats.most_common()),
            "colour": colour / max(1, len(present)),
        }


def read_below(folder: Path, name: str) -> bytes:
    """The bytes of a file below `folder`. Links and `..` that lead outside are refused."""
    base = folder.resolve()
    try:
        path = (base / name).resolve()
        inside, there = path.is_relative_to(base), path.is_file()
        size = path.stat().st_size if inside and there else 0
    except (OSError, ValueError):  # a name too long for the system, a null byte, a loop of links
        raise BadPicture("this cannot be the name of a file") from None
    if not inside:
        raise BadPicture(f"the path leaves the data folder {folder.name!r}; pictures must lie below it")
    if not there:
        raise BadPicture(f"no such file below {folder.name!r}; paths are relative to the data file")
    if size > MAX_BYTES:
        raise BadPicture(f"the file has {size:,} bytes; at most {MAX_BYTES:,} are read. Shrink it first")
    return path.read_bytes()


def _pixel_column(dtype: pl.Array) -> bool:
    """Whether an Array dtype is pixels as they are: uint8, (H, W), (H, W, 1) or (H, W, 3), none of them 0."""
    inner: Any = dtype
    while isinstance(inner, pl.Array):
        inner = inner.inner
    shape = dtype.shape
    return inner == pl.UInt8 and 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def _all_pixels(column: pl.Series) -> bool:
    """Whether a column is canonical pixels throughout (a null inside a picture makes NumPy answer with floats)."""
    dtype = column.dtype
    return isinstance(dtype, pl.Array) and _pixel_column(dtype) and array_of(column.drop_nulls()).dtype == np.uint8


def _canonical(name: str, values: list[bytes | np.ndarray | None]) -> pl.Series:
    """`Array` where all are pixels of one shape, else `Binary` (pixels of several sizes become PNG, without loss)."""
    arrays = [v for v in values if isinstance(v, np.ndarray)]
    if arrays and len({a.shape for a in arrays}) == 1 and not any(isinstance(v, bytes) for v in values):
        shape = arrays[0].shape
        stacked = pl.Series(name, np.stack(arrays), dtype=pl.Array(pl.UInt8, shape))
        if len(arrays) == len(values):
            return stacked
        positions = np.cumsum([v is not None for v in values]) - 1
        index = pl.Series(
            [None if v is None else int(p) for v, p in zip(values, positions, strict=True)], dtype=pl.UInt32
        )
        return stacked.to_frame().select(pl.col(name).gather(index)).to_series()
    return pl.Series(name, [to_png(v) if isinstance(v, np.ndarray) else v for v in values], dtype=pl.Binary)


def _nested(column: pl.Series) -> list[Any]:
    present = array_of(column.drop_nulls())
    pictures = iter(present.tolist())
    return [next(pictures) if there else None for there in column.is_not_null().to_list()]


def _pictures(column: pl.Series) -> list[Any]:
    if isinstance(column.dtype, pl.Array) and 0 not in column.dtype.shape and column.dtype.inner.is_nested():
        pictures = iter(array_of(column.drop_nulls()))
        return [next(pictures) if there else None for there in column.is_not_null().to_list()]
    return list(column.to_list())


def _difference(a: np.ndarray | bytes | None, b: np.ndarray | bytes | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else 1.0
    if isinstance(a, bytes) and a == b:
        return 0.0
    x, y = (np.asarray(decode(v)) if isinstance(v, bytes) else v for v in (a, b))
    return float(np.abs(x.astype(np.int16) - y).mean() / 255) if x.shape == y.shape else 1.0


def _looks_like_picture(text: str) -> bool:
    text = text.strip()
    if text.startswith("data:image/") or text.lower().endswith(SUFFIXES):
        return True
    return len(text) >= 64 and text.startswith(BASE64_MAGIC) and " " not in text


def _short(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes: {bytes(value[:16]).hex(' ')}"[:80]
    text = repr(np.asarray(value).shape) if isinstance(value, np.ndarray) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


KIND = Image()
