"""Pictures in and out: encoded bytes to 8-bit grey or RGB by stated rules, and the one resize of training and service.

Everything is Pillow on 8-bit integers: the same bytes give the same pixels offline and served. The rules of `decode`:

- the header is read first; more than `MAX_PIXELS` pixels are refused before any pixel is decoded (decompression bombs);
- only the formats in `FORMATS` are tried (EPS and others start programs or are rarely fuzzed);
- the first frame of an animation or a multi-page file counts;
- the EXIF orientation is applied (a phone picture stands upright);
- transparency is laid over white; a palette becomes RGB; black-and-white becomes grey; CMYK, YCbCr, LAB and HSV become
  RGB by Pillow's conversion (no colour profile is applied);
- 16-bit grey is divided by 257 and rounded (65535 → 255); 16-bit RGB keeps its high byte (Pillow);
- floating-point pixels are refused: their scale is not known.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
"""Longest encoded picture; a 64-megapixel JPEG is about 30 MB."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class BadPicture(ValueError):
    """A picture that cannot be used; the message is a sentence for the user."""


def open_header(data: bytes) -> Image.Image:
    """A lazily opened picture of allowed size: format, mode and size are known, nothing is decoded."""
    if not data:
        raise BadPicture("the picture is empty (0 bytes); send an encoded PNG, JPEG, WebP, BMP, GIF or TIFF file")
    if len(data) > MAX_BYTES:
        raise BadPicture(f"the picture has {len(data):,} bytes; at most {MAX_BYTES:,} are read. Shrink it first")
    too_big = f"the picture has more than {MAX_PIXELS // 10**6} megapixels; shrink it first"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(too_big) from None
    except Exception:  # header parsers raise OSError, SyntaxError, ValueError, struct.error … on hostile bytes
        raise BadPicture(f"not a picture that can be read; allowed are {', '.join(FORMATS)} files") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{too_big} (it is {width} x {height})")
    if width < 1 or height < 1:
        raise BadPicture(f"the picture has no pixels (it is {width} x {height})")
    return image


def decode(data: bytes) -> Image.Image:
    """An upright 8-bit picture of mode `L` (grey) or `RGB`, by the rules above. Raises `BadPicture`."""
    image = open_header(data)
    try:
        image.load()
        return to_8_bit(ImageOps.exif_transpose(image))
    except BadPicture:
        raise
    except MemoryError:
        raise BadPicture("the picture does not fit into memory; shrink it first") from None
    except Exception as error:  # decoders raise nearly everything on hostile bytes, and each is the row's fault
        reason = str(error).split("\n")[0] or type(error).__name__
        raise BadPicture(f"the {image.format} picture is damaged or cut off ({reason}); send the whole file") from None


def to_8_bit(image: Image.Image) -> Image.Image:
    """Mode `L` or `RGB` of any mode that Pillow decodes."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "F":
        raise BadPicture("the picture has floating-point pixels of unknown scale; convert it to 8 bits first")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((np.clip(values, 0, 65535) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        under = Image.new("RGBA", over.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(under, over)
        return flat.convert("L" if image.mode in GREY_MODES else "RGB")
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF orientation, from the header alone."""
    width, height = image.size
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # 0x0112: Orientation; these four swap the axes
    return (width, height) if turned else (height, width)


def resize(image: Image.Image, height: int, width: int, method: str, fit: str) -> Image.Image:
    """A picture of exactly `height` x `width`. Pillow's filters widen when shrinking, so there is no aliasing.

    `fit`: `squash` changes the aspect ratio; `crop` keeps it and cuts the longer side about the middle; `pad` keeps it
    and adds black borders.
    """
    if image.size == (width, height):
        return image
    resample = FILTERS[method]
    if fit == "crop":
        return ImageOps.fit(image, (width, height), method=resample)
    if fit == "pad":
        return ImageOps.pad(image, (width, height), method=resample, color=0)
    return image.resize((width, height), resample)


def from_array(pixels: Any) -> np.ndarray:
    """uint8 `(H, W)` or `(H, W, 3)` of whole numbers 0..255 in nested lists or an array.

    Alpha is laid over white; false and true are 0 and 255.
    """
    try:
        array = np.asarray(pixels)
    except ValueError:
        raise BadPicture("the rows of the picture differ in length; send (height, width[, 3])") from None
    if array.dtype.kind not in "uifb" or array.dtype == object:
        raise BadPicture("the pixels are not numbers; send whole numbers from 0 to 255")
    array = array.astype(np.uint8) * 255 if array.dtype == bool else array
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise BadPicture(f"the pixels have shape {array.shape}; send (height, width) or (height, width, 3)")
    if 0 in array.shape:
        raise BadPicture(f"the picture has no pixels (its shape is {array.shape})")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise BadPicture(f"the picture has more than {MAX_PIXELS // 10**6} megapixels; shrink it first")
    if array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255) or (array.dtype.kind == "f" and (array != np.floor(array)).any()):
            raise BadPicture(f"pixels are from {low} to {high}; send whole numbers from 0 to 255")
        array = array.astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 4:
        array = np.asarray(to_8_bit(Image.fromarray(array)))
    return array


def to_png(pixels: np.ndarray) -> bytes:
    """Lossless PNG bytes of uint8 `(H, W)` or `(H, W, 3)`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
