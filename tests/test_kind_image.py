"""Pictures: every odd mode and every damaged file by the stated rules, and the encoding against a slow loop per row."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from modelyard.kinds._contract import Part
from modelyard.kinds._picture import MAX_PIXELS, decode
from modelyard.kinds._pixels import PixelsConfig, common_size
from modelyard.kinds.image import KIND, Image

PIXELS: Any = Image.encodings["pixels"]


def picture(height: int = 20, width: int = 30, mode: str = "RGB", seed: int = 0) -> Pillow.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pillow.fromarray(noise).convert(mode)


def save(image: Pillow.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def slow_pixels(values: list[Any], height: int, width: int, channels: int) -> np.ndarray:
    """The reference: one row at a time, straight from Pillow's documentation."""
    rows = []
    for value in values:
        image = (
            Pillow.open(io.BytesIO(value)) if isinstance(value, bytes) else Pillow.fromarray(np.array(value, np.uint8))
        )
        image = image.convert("RGB" if channels == 3 else "L")
        if (image.width, image.height) != (width, height):
            image = image.resize((width, height), Pillow.Resampling.BILINEAR)
        rows.append(np.array(image).reshape(height, width, channels).transpose(2, 0, 1))
    return np.stack(rows)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [5, 80])  # 64 pictures and more go through threads
def test_encode_equals_a_slow_loop(channels: Any, count: int) -> None:
    files = [save(picture(8 + i % 7, 9 + i % 5, "L" if i % 3 else "RGB", i)) for i in range(count)]
    column, errors = KIND.check(pl.Series("x", files))
    state = PIXELS.fit(column, PixelsConfig(size=(10, 12), channels=channels))
    assert errors == [] and PIXELS.parts(state) == {"pixels": Part((channels, 10, 12), "uint8")}
    np.testing.assert_array_equal(PIXELS.encode(column, state, {})["pixels"], slow_pixels(files, 10, 12, channels))


def test_pixels_and_the_same_pixels_as_png_encode_alike() -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (6, 20, 14, 3), dtype=np.uint8)
    as_arrays, _ = KIND.check(pl.Series("x", arrays))
    as_files, _ = KIND.check(pl.Series("x", [save(Pillow.fromarray(a)) for a in arrays]))
    as_lists, _ = KIND.check(KIND.from_json(arrays.tolist()))
    for config in (PixelsConfig(), PixelsConfig(size=9, channels=1), PixelsConfig(size=(7, 11), fit="crop")):
        states = [PIXELS.fit(column, config) for column in (as_arrays, as_files, as_lists)]
        assert states[0] == states[1] == states[2]
        encoded = [PIXELS.encode(c, states[0], {})["pixels"] for c in (as_arrays, as_files, as_lists)]
        np.testing.assert_array_equal(encoded[0], encoded[1])
        np.testing.assert_array_equal(encoded[0], encoded[2])


def test_grey_pixels_of_the_right_size_are_not_copied() -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
    column = pl.Series("x", arrays)
    encoded = PIXELS.encode(column, PIXELS.fit(column), {})["pixels"]
    assert encoded.shape == (50, 1, 28, 28) and np.shares_memory(encoded, column.to_numpy())
    np.testing.assert_array_equal(encoded[:, 0], arrays)


def test_mean_and_deviation_are_those_of_numpy_and_merge_exactly() -> None:
    arrays = np.random.default_rng(1).integers(0, 200, (40, 6, 5, 3), dtype=np.uint8)
    column = pl.Series("x", arrays)
    whole = PIXELS.fit(column)
    np.testing.assert_allclose(whole.mean, arrays.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(whole.std, arrays.std((0, 1, 2)) / 255, rtol=1e-9)
    assert whole.statistics() == {"mean": whole.mean, "std": whole.std}
    a, b = (PIXELS.update(PIXELS.start(PixelsConfig()), part) for part in (column[:7], column[7:]))
    assert PIXELS.finish(PIXELS.merge(b, a)) == whole


def test_statistics_of_files_come_from_the_same_sample_in_any_order() -> None:
    files = [save(picture(5, 6, "RGB" if i % 2 else "L", i)) for i in range(60)]
    config = PixelsConfig(statistics_from=8)
    smallest = sorted(files, key=lambda data: hashlib.blake2b(data, digest_size=8).digest())[:8]
    pixels = np.concatenate([np.array(decode(data).convert("RGB")).reshape(-1, 3) for data in smallest]) / 255.0
    for order in (files, files[::-1], files + files):
        column = pl.Series("x", order)
        a, b = (PIXELS.update(PIXELS.start(config), part) for part in (column[:17], column[17:]))
        for state in (PIXELS.fit(column, config), PIXELS.finish(PIXELS.merge(b, a))):
            np.testing.assert_allclose(state.mean, pixels.mean(0), rtol=1e-12)
            np.testing.assert_allclose(state.std, pixels.std(0), rtol=1e-9)
            assert state.channels == 3 and not state.sample


def test_a_column_without_rows_or_without_pictures_passes_through() -> None:
    for column in (pl.Series("x", np.zeros((3, 4, 5), np.uint8)), pl.Series("x", [GOOD, None])):
        state = PIXELS.fit(column)
        assert PIXELS.encode(column[:0], state, {})["pixels"].shape == (0, *PIXELS.parts(state)["pixels"].shape)
        assert KIND.check(column[:0])[0].len() == 0
    nothing, errors = KIND.check(pl.Series("x", [None, None]))
    assert errors == [] and nothing.dtype == pl.Binary and PIXELS.fit(nothing).mean == [0.5]


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=30), st.integers(8, 128))
@settings(max_examples=50, deadline=None)
def test_automatic_size_is_the_median_within_the_cap(shapes: list[tuple[int, int]], largest: int) -> None:
    counts = {f"{h}x{w}": shapes.count((h, w)) for h, w in shapes}
    height, width = common_size(counts, largest)
    assert min(height, width) >= 1 and max(height, width) <= largest
    heights, widths = (sorted(axis) for axis in zip(*shapes, strict=True))
    middle = (len(shapes) - 1) // 2
    if max(heights[middle], widths[middle]) <= largest:
        assert (height, width) == (heights[middle], widths[middle])


RGB = np.array(picture(12, 16))
GREY = np.array(picture(12, 16, "L"))
RGBA = np.dstack([RGB, np.random.default_rng(2).integers(0, 256, (12, 16), dtype=np.uint8)])


def over_white() -> np.ndarray:
    alpha = RGBA[:, :, 3:].astype(float) / 255
    return RGB * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (save(picture(12, 16, "L")), GREY, 0),
        (save(picture(12, 16, "1")), np.array(picture(12, 16, "1").convert("L")), 0),
        (save(picture(12, 16, "P")), np.array(picture(12, 16, "P").convert("RGB")), 0),
        (save(Pillow.fromarray(RGBA)), over_white(), 1),
        (save(Pillow.fromarray(RGBA).convert("LA")),
         np.array(Pillow.fromarray(RGB).convert("L")) * (RGBA[:, :, 3] / 255.0) + 255 - RGBA[:, :, 3], 1),
        (save(picture(12, 16, "CMYK"), "TIFF"), RGB, 0),
        (save(Pillow.fromarray(GREY.astype(np.uint16) * 257)), GREY, 0),
        (save(Pillow.fromarray(GREY.astype(np.int32) * 257), "TIFF"), GREY, 0),
        (save(picture(12, 16), "GIF", save_all=True, append_images=[picture(12, 16, seed=9)]),
         np.array(picture(12, 16).convert("P", palette=Pillow.Palette.ADAPTIVE).convert("RGB")), 60),
    ],
    ids=["grey", "bilevel", "palette", "alpha", "grey-alpha", "cmyk", "16-bit", "32-bit", "animated"],
)  # fmt: skip
def test_modes_follow_the_stated_rules(data: bytes, expected: np.ndarray, tolerance: int) -> None:
    column, errors = KIND.check(pl.Series("x", [data]))
    assert errors == []
    found = np.array(decode(column[0]))
    assert found.shape == expected.shape and np.abs(found - expected.astype(float)).max() <= tolerance + 0.5


def test_exif_orientation_turns_the_picture() -> None:
    image = picture(10, 20)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to show"
    data = save(image, "PNG", exif=exif)
    np.testing.assert_array_equal(np.array(decode(data)), np.rot90(np.array(image), -1))
    column = pl.Series("x", [data])
    assert KIND.summary(column)["sizes"] == {"20x10": 1}
    assert PIXELS.encode(column, PIXELS.fit(column), {})["pixels"].shape == (1, 3, 20, 10)


GOOD = save(picture())
BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "empty"),
    "not a picture": (b"hello, this is text", "not a picture"),
    "truncated png": (GOOD[: len(GOOD) // 2], "damaged or cut off"),
    "truncated jpeg": (save(picture(99, 99), "JPEG")[:2000], "damaged or cut off"),
    "flipped byte": (GOOD[:60] + bytes([GOOD[60] ^ 255]) + GOOD[61:], "damaged or cut off"),
    "bomb": (bomb(60_000, 60_000), "megapixels"),
    "just above the cap": (bomb(8000, MAX_PIXELS // 8000 + 1), "megapixels"),
    "float": (save(Pillow.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "path": ("/etc/hostname", "base64"),
    "url": ("http://example.org/a.png", "base64"),
    "data url that is not base64": ("data:image/svg+xml,<svg/>", "base64"),
    "ragged": ([[1, 2], [3]], "differ in length"),
    "flat": ([1, 2, 3], "shape (3,)"),
    "two channels": (np.zeros((4, 4, 2), int).tolist(), "shape (4, 4, 2)"),
    "no pixels": ([[], []], "no pixels"),
    "too bright": ([[0, 256]], "0 to 255"),
    "negative": ([[0, -1]], "0 to 255"),
    "fraction": ([[0.5, 1.0]], "0 to 255"),
    "nan": ([[float("nan"), 1.0]], "0 to 255"),
    "hole": ([[None, 1]], "not numbers"),
    "number": (7, "type int"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_one_row_error_and_its_neighbours_live(case: str) -> None:
    value, reason = BAD[case]
    encoded = base64.b64encode(GOOD).decode()
    raw = [GOOD, value, GOOD] if isinstance(value, bytes) else [encoded, value, encoded]
    column, errors = KIND.check(KIND.from_json(raw) if not isinstance(value, bytes) else pl.Series("photo", raw))
    assert [error.row for error in errors] == [1] and reason in errors[0].reason and len(errors[0].value) <= 80
    assert column.to_list() == [GOOD, None, GOOD]


def test_strings_of_json_are_base64_and_missing_stays_missing() -> None:
    text = base64.b64encode(GOOD).decode()
    raw = KIND.from_json([text, f"data:image/png;base64,{text}", {"b64": text}, None, "", text[:40] + "\n" + text[40:]])
    column, errors = KIND.check(raw)
    assert errors == [] and column.to_list() == [GOOD, GOOD, GOOD, None, None, GOOD]
    assert KIND.to_json(column)[:4] == [text, text, text, None]


def test_only_a_reader_with_a_folder_opens_paths_and_only_below_it(tmp_path: Path) -> None:
    inside = tmp_path / "pictures"
    inside.mkdir()
    (inside / "a.png").write_bytes(GOOD)
    (tmp_path / "secret.png").write_bytes(GOOD)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    names = [
        "a.png",
        "../secret.png",
        "link.png",
        str(tmp_path / "secret.png"),
        "b.png",
        "../pictures/a.png",
        "nul\0.png",
        "x" * 999,
    ]
    column, errors = Image(inside).check(pl.Series("photo", names))
    assert [e.row for e in errors] == [1, 2, 3, 4, 6, 7]
    assert column.to_list() == [GOOD, *[None] * 4, GOOD, None, None]
    column, errors = KIND.check(pl.Series("photo", names))
    assert len(errors) == len(names) and column.null_count() == len(names)


def test_pixel_columns_of_other_types_and_layouts() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 5, 4))
    for raw in (grey, grey.astype(np.float64), grey[..., None], grey[..., None].astype(np.uint8)):
        column, errors = KIND.check(pl.Series("x", raw))
        assert errors == [] and column.dtype == pl.Array(pl.UInt8, (5, 4))
        np.testing.assert_array_equal(column.to_numpy(), grey)
    column, errors = KIND.check(pl.Series("x", grey + 200))
    assert len(errors) == 3
    column, errors = KIND.check(pl.Series("x", np.zeros((2, 3, 8, 8), np.uint8)))
    assert len(errors) == 2 and "(3, 8, 8)" in errors[0].reason
    opened = [picture(4, 5, "P"), picture(4, 5, "L").convert("RGB")]
    column, errors = KIND.check(pl.Series("x", opened, dtype=pl.Object))
    np.testing.assert_array_equal(column.to_numpy()[0], np.array(opened[0].convert("RGB")))
    mixed, errors = KIND.check(KIND.from_json([[[1, 2]], [[1], [2]], None]))
    assert errors == [] and mixed.dtype == pl.Binary and np.array(decode(mixed[1])).tolist() == [[1], [2]]


def test_missing_pictures_are_the_mean_colour() -> None:
    arrays = np.full((4, 3, 3, 3), [10, 20, 30], np.uint8)
    column = pl.Series("x", arrays)
    state = PIXELS.fit(column)
    holes = column.to_frame().select(pl.when(pl.int_range(4) != 1).then(pl.col("x")).alias("x")).to_series()
    encoded = PIXELS.encode(holes, state, {})["pixels"]
    np.testing.assert_array_equal(encoded, arrays.transpose(0, 3, 1, 2))
    checked, errors = KIND.check(holes)
    assert errors == [] and checked.null_count() == 1 and KIND.to_json(checked)[1] is None


def test_fit_rules_keep_or_change_the_aspect_ratio() -> None:
    wide = np.zeros((1, 4, 8), np.uint8) + 200
    wide[:, :, :2] = 10  # the left quarter is dark
    column = pl.Series("x", wide)

    def encoded(fit: Any) -> np.ndarray:
        config = PixelsConfig(size=4, fit=fit, resize="nearest")
        pixels: np.ndarray = PIXELS.encode(column, PIXELS.fit(column, config), {})["pixels"]
        return np.asarray(pixels[0, 0])

    assert encoded("squash")[0].tolist() == [10, 200, 200, 200]
    assert encoded("crop")[0].tolist() == [200, 200, 200, 200]  # the dark quarter is cut off
    assert encoded("pad")[:, 3].tolist() == [0, 200, 200, 0]


def test_distance_draw_fits_and_summary() -> None:
    a = pl.Series("x", [GOOD, GOOD, GOOD, None, None], dtype=pl.Binary)
    inverted = save(Pillow.fromarray(255 - np.array(picture())))
    b = pl.Series("x", [GOOD, inverted, save(picture(9, 9)), None, GOOD], dtype=pl.Binary)
    expected = np.abs(255 - 2.0 * np.array(picture())).mean() / 255
    np.testing.assert_allclose(KIND.distance(a, b), [0, expected, 1, 0, 1], rtol=1e-12)
    assert (
        KIND.fits(a) == 1
        and KIND.fits(pl.Series(["a.png", "b.JPG"])) == 1
        and KIND.fits(pl.Series(["cat", "dog"])) == 0
    )
    assert KIND.fits(pl.Series([base64.b64encode(GOOD).decode()])) == 1 and KIND.fits(pl.Series([1, 2])) == 0
    assert KIND.summary(a) == {"count": 5, "missing": 2, "sizes": {"20x30": 3}, "formats": {"PNG": 3}, "colour": 1.0}
    drawn = KIND.draw(GOOD)
    shown = Pillow.open(io.BytesIO(base64.b64decode(drawn.split("base64,")[1].split('"')[0])))
    assert shown.size == (30, 20) and drawn.startswith("<img ") and "—" in KIND.draw(None)


@given(st.binary(max_size=300), st.integers(0, len(GOOD) - 1))
@settings(max_examples=150, deadline=None)
def test_hostile_bytes_never_raise(noise: bytes, position: int) -> None:
    spliced = GOOD[:position] + noise
    column, errors = KIND.check(pl.Series("x", [noise, spliced, GOOD]))
    assert len(column) == 3 and column[2] == GOOD
    assert [column[i] is None for i in range(2)] == [any(e.row == i for e in errors) for i in range(2)]
