"""Image data on disk: folders or zips with a folder per class, folders with a metadata table, IDX files.

Images stay encoded bytes (or raw pixels for IDX); opening them is the kind's business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from modelyard.data import packed
from modelyard.data.read import TEXTS, Reading, bytes_of, of_bytes, read
from modelyard.data.table import SetAside, Table
from modelyard.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SPLITS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""Folder and file names that say which split they hold."""

FILE_LIMIT = 64 * 2**20
"""Bytes of one image after unpacking; a zip entry that says or yields more is set aside."""

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_folder(folder: Path, reading: Reading | None = None) -> dict[str, Table]:
    """Tables by split of a folder: zips or folders per split, classes, a metadata table, or the four IDX files of MNIST."""
    cap = None if reading is None else reading.max_bytes
    idx = sorted(p for p in folder.iterdir() if "idx" in p.name and p.name.endswith(("ubyte", "ubyte.gz", ".idx", ".idx.gz")))
    if idx:
        return _idx_tables(idx, cap)
    zips = {SPLITS[p.stem.lower()]: p for p in folder.glob("*.zip") if p.stem.lower() in SPLITS}
    if zips:
        return {split: _from_zip(path, split, cap) for split, path in zips.items()}
    parts = {SPLITS[p.name.lower()]: p for p in folder.iterdir() if p.is_dir() and p.name.lower() in SPLITS}
    if parts:
        return {split: _one(path, split) for split, path in parts.items()}
    return {"train": _one(folder, "train")}


def read_zip(path: Path, reading: Reading | None = None, name: str = "train") -> dict[str, Table]:
    """Tables by split of a zip of images, or of tables: one, or one for each split (`train.csv`, `test.csv`)."""
    reading = reading or Reading()
    found = _zip_entries(path, reading.max_bytes)
    return _by_split(found, path) if found else _zipped_tables(path, reading, name)


def _zipped_tables(path: Path, reading: Reading, name: str) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    with packed.archive(path) as archive:
        cap = packed.Cap(path, reading.max_bytes)
        inside = [i for i in archive.infolist() if not i.is_dir() and "__MACOSX" not in i.filename and _suffix_of(i.filename) in TEXTS]
        splits = [SPLITS.get(PurePosixPath(i.filename).stem.lower()) for i in inside]
        if not inside:
            raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)}) and no table ({', '.join('.' + t for t in TEXTS)})")
        if len(inside) > 1 and (None in splits or len(set(splits)) < len(splits)):
            names = ", ".join(i.filename for i in inside[:10])
            raise DataError(f"{path} holds {len(inside)} tables ({names}); unpack it and name one, or name them train, valid and test")
        for info, split in zip(inside, splits, strict=True):
            raw = packed.entry(archive, info, cap)
            key = split if len(inside) > 1 and split else name
            tables[key] = of_bytes(raw or b"", _suffix_of(info.filename), Path(f"{path}!{info.filename}"), key, reading)
    return tables


def _suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower().removeprefix(".")


def _one(folder: Path, split: str) -> Table:
    for name in ("metadata.csv", "metadata.jsonl"):
        if (folder / name).is_file():
            table = read(folder / name, name=split)
            if "file_name" not in table.data.columns:
                raise DataError(f"{folder / name} needs a column file_name")
            images = with_images(table.data, "file_name", folder)
            return Table(split, images, table.set_aside, table.notes)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    entries = ((p.relative_to(folder).parts[:-1], p.as_posix(), p.read_bytes()) for p in files)
    return _labelled(entries, split, str(folder))


def with_images(frame: pl.DataFrame, column: str, base: Path) -> pl.DataFrame:
    """A column of paths (relative to `base`) as encoded bytes; a path that leads outside or to nothing is kept as it is,
    so that the kind's check sets that row aside."""
    root = base.resolve()
    values: list[bytes | None] = []
    for text in frame[column].cast(pl.String).to_list():
        path = (root / text).resolve() if text else None
        inside = path is not None and path.is_relative_to(root) and path.is_file()
        values.append(path.read_bytes() if inside and path else (text.encode("utf-8") if text else None))
    return frame.with_columns(pl.Series(column, values, dtype=pl.Binary))


def _from_zip(path: Path, split: str, cap: int | None) -> Table:
    return _labelled(((names, where, data) for names, where, data in _zip_entries(path, cap)), split, str(path))


def _zip_entries(path: Path, max_bytes: int | None) -> list[tuple[tuple[str, ...], str, bytes | None]]:
    found = []
    with packed.archive(path) as archive:
        cap = packed.Cap(path, max_bytes)
        for info in sorted(archive.infolist(), key=lambda i: i.filename):
            parts = PurePosixPath(info.filename).parts
            if info.is_dir() or PurePosixPath(info.filename).suffix.lower() not in SUFFIXES or "__MACOSX" in parts:
                continue
            found.append((parts[:-1], f"{path}!{info.filename}", packed.entry(archive, info, cap, FILE_LIMIT)))
    return found


def _by_split(entries: list[tuple[tuple[str, ...], str, bytes | None]], path: Path) -> dict[str, Table]:
    groups: dict[str, list[tuple[tuple[str, ...], str, bytes | None]]] = {}
    for names, where, data in entries:
        place = next((i for i, n in enumerate(names) if n.lower() in SPLITS), None)
        split = "train" if place is None else SPLITS[names[place].lower()]
        groups.setdefault(split, []).append((names if place is None else names[place + 1 :], where, data))
    if not groups:
        raise DataError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    return {split: _labelled(found, split, str(path)) for split, found in groups.items()}


def _labelled(entries: Iterable[tuple[tuple[str, ...], str, bytes | None]], split: str, where: str) -> Table:
    """Columns `image` and `label`; the label is the innermost folder."""
    images: list[bytes] = []
    labels: list[str] = []
    aside: list[SetAside] = []
    for number, (names, place, data) in enumerate(entries, 1):
        if data is None:
            aside.append(SetAside(place, number, "image", f"is larger than {FILE_LIMIT} bytes"))
        elif not names:
            aside.append(SetAside(place, number, "label", "lies in no class folder"))
        else:
            images.append(data)
            labels.append(names[-1])
    if not images:
        raise DataError(f"{where} holds no images in class folders; expected CLASS/IMAGE.png (or train/CLASS/IMAGE.png)")
    frame = pl.DataFrame({"image": pl.Series(images, dtype=pl.Binary), "label": pl.Series(labels, dtype=pl.String)})
    return Table(split, frame, aside)


def read_idx(path: Path, max_bytes: int | None = None) -> np.ndarray:
    """The array of an IDX file (LeCun: the magic `0 0 type rank`, big-endian sizes, then the values)."""
    raw = bytes_of(path, max_bytes)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or not 1 <= raw[3] <= 4:
        raise DataError(f"{path} is no IDX file: it begins with {raw[:4].hex() or 'nothing'}")
    rank = raw[3]
    if len(raw) < 4 + 4 * rank:
        raise DataError(f"{path} is cut short in its header")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    dtype = np.dtype(IDX_TYPES[raw[2]])
    count = 1
    for n in shape:
        count *= n
    if len(raw) - 4 - 4 * rank != count * dtype.itemsize:
        raise DataError(f"{path} says {shape} values of {dtype.itemsize} byte(s) and holds {len(raw) - 4 - 4 * rank} bytes")
    return np.frombuffer(raw, dtype, offset=4 + 4 * rank).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_tables(files: list[Path], max_bytes: int | None) -> dict[str, Table]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in files:
        split = "test" if path.name.startswith(("t10k", "test")) else "train"
        array = read_idx(path, max_bytes)
        found.setdefault(split, {})["label" if array.ndim == 1 else "image"] = array
    tables = {}
    for split, pair in found.items():
        if set(pair) != {"image", "label"} or len(pair["image"]) != len(pair["label"]):
            sizes = {k: len(v) for k, v in pair.items()}
            raise DataError(f"the IDX files of {split} do not pair up: {sizes}; expected images and as many labels")
        images = np.ascontiguousarray(pair["image"].astype(np.uint8))
        frame = pl.DataFrame({"image": pl.Series("image", images), "label": pl.Series("label", pair["label"].astype(np.int64))})
        tables[split] = Table(split, frame)
    return tables
