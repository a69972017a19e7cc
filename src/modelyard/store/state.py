"""Dataclasses of JSON values and NumPy arrays to JSON + named arrays and back: how every fitted state is stored.

Arrays become `{"$array": "path"}` in the JSON and go to a safetensors file under that path. No class name is read from
the file: the caller says which dataclass it expects.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from modelyard.errors import ArtefactError

T = TypeVar("T")

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?",
}  # fmt: skip
"""safetensors names of the array types that a folder may hold; bfloat16 is read too, as the float32 of the same value."""

HEADER_LIMIT = 100 * 2**20
"""A safetensors header above 100 MB is refused, as in the reference reader."""


def pack(value: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON form of `value`; arrays are put into `arrays` under `prefix/…`."""
    if isinstance(value, np.ndarray):
        arrays[prefix] = np.ascontiguousarray(value)
        return {"$array": prefix}
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        return {name: pack(getattr(value, name), f"{prefix}/{name}", arrays) for name in names}
    if isinstance(value, dict):
        return {str(k): pack(v, f"{prefix}/{k}", arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [pack(v, f"{prefix}/{i}", arrays) for i, v in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{prefix}: a state may hold JSON values and arrays, not {type(value).__name__}")


def unpack(packed: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value with its arrays put back; dataclasses come back as dicts (see `restore`)."""
    if isinstance(packed, dict):
        if set(packed) == {"$array"}:
            if packed["$array"] not in arrays:
                raise ArtefactError(f"the array {packed['$array']!r} named in the manifest is not in the folder")
            return arrays[packed["$array"]]
        return {k: unpack(v, arrays) for k, v in packed.items()}
    return [unpack(v, arrays) for v in packed] if isinstance(packed, list) else packed


def restore(cls: type[T], packed: Any, arrays: dict[str, np.ndarray]) -> T:
    """An instance of the dataclass `cls`; unknown fields are an error (the folder is from a newer version)."""
    value = unpack(packed, arrays)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or set(value) - known:
        extra = sorted(set(value) - known) if isinstance(value, dict) else type(value).__name__
        raise ArtefactError(f"the folder holds {extra} for {cls.__name__}, which this version does not know; upgrade Modelyard")
    return cls(**value)


def arrays_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file as bytes (the format of the library of that name)."""
    names = {np.dtype(v).str.lstrip("|"): k for k, v in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    pieces: list[bytes] = []
    offset = 0
    for name in sorted(arrays):
        array = arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False)
        code = names.get(array.dtype.str.lstrip("|"))
        if code is None:
            raise TypeError(f"{name}: arrays of {array.dtype} are not stored")
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        pieces.append(np.ascontiguousarray(array).tobytes())
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *pieces])


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file; readers of Hugging Face's layout want the metadata `{"format": "pt"}`."""
    path.write_bytes(arrays_bytes(arrays, metadata))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file; lengths, overlaps and gaps are checked before anything is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, HEADER_LIMIT):
            raise ArtefactError(f"{path.name} is damaged: its header says {length} bytes in a file of {size}")
        try:
            header = json.loads(file.read(length).decode("utf-8"))
            entries = [(n, "<u2" if e["dtype"] == "BF16" else DTYPES[e["dtype"]], tuple(e["shape"]), *e["data_offsets"])
                       for n, e in header.items() if n != "__metadata__"]  # fmt: skip
            halves = {n for n, e in header.items() if n != "__metadata__" and e["dtype"] == "BF16"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path.name} is damaged: its header cannot be read ({error!r})") from None
        data = file.read()
    end = 0
    out: dict[str, np.ndarray] = {}
    for name, dtype, shape, start, stop in sorted(entries, key=lambda e: (e[3], e[4])):
        count = 1
        for n in shape:
            if not isinstance(n, int) or n < 0 or len(shape) > 8:
                raise ArtefactError(f"{path.name} is damaged: {name} has the shape {shape}")
            count *= n
        if start != end or stop - start != count * np.dtype(dtype).itemsize or stop > len(data):
            raise ArtefactError(f"{path.name} is damaged: {name} does not lie where its header says")
        array = np.frombuffer(data, dtype, count, start).reshape(shape)
        # bfloat16 is the upper half of a float32
        out[name] = (array.astype(np.uint32) << np.uint32(16)).view(np.float32) if name in halves else array
        end = stop
    if end != len(data):
        raise ArtefactError(f"{path.name} is damaged: {len(data) - end} bytes belong to nothing")
    return out
