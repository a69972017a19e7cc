"""A picture: an encoded file (PNG, JPEG, WebP, BMP, GIF, TIFF), or its pixels.

Canonical columns are `Binary` (encoded files) or `Array(UInt8, (H, W))` / `Array(UInt8, (H, W, 3))` (pixels, all of one
size). How files become pixels is said in `kinds/_picture.py`. Strings are base64 or data URLs and are never taken for
paths: only an `Image(folder=…)`, made by a reader of local data, opens files, and only below that folder.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from PIL import Image as Pillow

from modelyard.kinds._contract import Encoding, Kind, RowError
from modelyard.kinds._picture import (
    GREY_MODES,
    MAX_BYTES,
    MAX_PIXELS,
    BadPicture,
    decode,
    from_array,
    open_header,
    to_8_bit,
    to_png,
    upright_size,
)
from modelyard.kinds._pixels import Pixels, array_of, threaded

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6")
BASE64_MAGIC = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")
"""The first letters of PNG, JPEG, GIF, WebP, BMP and TIFF in base64."""


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
                value = np.asarray(to_8_bit(value))
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
    """Whether an Array dtype is pixels as they are: uint8, (H, W), (H, W, 1) or (H, W, 3), not empty, not huge."""
    inner: Any = dtype
    while isinstance(inner, pl.Array):
        inner = inner.inner
    shape = dtype.shape
    fits = 0 not in shape and len(shape) > 1 and shape[0] * shape[1] <= MAX_PIXELS
    return inner == pl.UInt8 and fits and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


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
