"""Open Inference Protocol v2 over HTTP: named tensors in and out, as JSON or in the binary form that `tritonclient` sends.

Every input column is a tensor of shape `[rows]` or `[rows, 1]`: numbers as FP and INT types, texts, labels, dates and pictures as BYTES
(UTF-8, or the file itself), lists as BYTES holding JSON. An output `y` is a tensor `[rows]`; `y.scores` has shape `[rows, labels]`. The
protocol has no error of a row: where rows fail there is an output `error` with a sentence for each of them, and "" for the others.

https://github.com/kserve/open-inference-protocol, with its extension for binary data.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelyard.runtime.answers import Field
from modelyard.runtime.model import Model
from modelyard.verbs.serve.body import ROWS, Refused, read

TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8, "INT16": np.int16,
    "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
WRITTEN = {"number": "FP64", "cluster": "INT64", "timestamp": "BYTES"}
"""Types of answers by kind; BYTES otherwise."""

Piece = memoryview | ValueError | None
Tensor = tuple[str, list[int], list[Any]]
"""(datatype, shape, elements)."""
LIKE = '{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]}]}'


def metadata(model: Model, name: str) -> dict[str, Any]:
    """What `GET /v2/models/NAME` answers."""
    inputs = [{"name": f.name, "datatype": _datatype(f), "shape": [-1]} for f in model.signature.inputs]
    outputs: list[dict[str, Any]] = []
    for field in model.signature.outputs:
        outputs.append({"name": field.name, "datatype": _datatype(field), "shape": [-1]})
        if field.kind in ("category", "label-set") and field.labels:
            outputs.append({"name": f"{field.name}.scores", "datatype": "FP32", "shape": [-1, len(field.labels)], "parameters": {"labels": field.labels}})
    return {"name": name, "versions": [model.version], "platform": f"modelyard_{model.backend}", "inputs": inputs, "outputs": outputs}


def _datatype(field: Field) -> str:
    return WRITTEN.get(field.kind, "BYTES")


def rows_of(raw: bytes, header: str, fields: Sequence[Field]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows, the request) of a body; `header` is `Inference-Header-Content-Length` where binary tensors follow the JSON.

    Raises `Refused` with every mistake of the request.
    """
    size = len(raw)
    if header:
        if not header.isdecimal() or int(header) > len(raw):
            raise Refused(400, f"Inference-Header-Content-Length is {header[:40]!r}; the body has {len(raw)} bytes")
        size = int(header)
    asked = read(raw[:size], LIKE)
    tensors = asked.get("inputs")
    if not isinstance(tensors, list) or not tensors or not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tensors):
        raise Refused(400, f"inputs must be a list of tensors with names, such as {LIKE}")
    _check(asked)
    rest = memoryview(raw)[size:]
    pieces: list[Piece] = []
    for tensor in tensors:
        count = (tensor.get("parameters") or {}).get("binary_data_size")
        if count is None:
            pieces.append(None)
        elif type(count) is not int or not 0 <= count <= len(rest):
            pieces.append(ValueError(f"binary_data_size is {str(count)[:40]!r} and {len(rest)} bytes are left"))
        else:
            pieces.append(rest[:count])
            rest = rest[count:]
    return rows(tensors, pieces, fields, [f"{len(rest)} bytes follow the last tensor"] * bool(rest)), asked


def rows(tensors: Sequence[Mapping[str, Any]], pieces: Sequence[Piece], fields: Sequence[Field], wrong: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of tensors, each with the bytes of its elements, None where they are in its `data`, or what is the matter with them.

    Raises `Refused` with every mistake, `wrong` being those that are known.
    """
    known = {f.name: f for f in fields}
    mistakes = [f"{t['name'][:80]!r} is no input; there is {', '.join(known)}" for t in tensors if t["name"] not in known]
    mistakes += ["a tensor comes twice"] * (len({t["name"] for t in tensors}) < len(tensors))
    columns: dict[str, list[Any]] = {}
    for tensor, piece in zip(tensors, pieces, strict=True):
        try:
            if isinstance(piece, ValueError):
                raise piece
            columns[tensor["name"]] = _values(tensor, piece, known[tensor["name"]].kind if tensor["name"] in known else "")
        except (ValueError, KeyError, TypeError, struct.error, OverflowError) as error:
            mistakes.append(f"{tensor['name'][:80]!r}: {f'{error.args[0]} is absent' if isinstance(error, KeyError) else str(error)[:120]}")
    mistakes += wrong
    if len({len(v) for v in columns.values()}) > 1:
        mistakes.append("the tensors have different numbers of rows: " + ", ".join(f"{k} {len(v)}" for k, v in columns.items()))
    if mistakes:
        raise Refused(400, "; ".join(mistakes[:10]))
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(tensor: Mapping[str, Any], piece: memoryview | None, kind: str) -> list[Any]:
    shape, datatype = tensor["shape"], tensor["datatype"]
    if not isinstance(shape, list) or not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise ValueError(f"shape is {shape!r}; expected [rows] or [rows, 1]")
    if len(shape) > 2 or shape[1:] not in ([], [1]):
        raise ValueError(f"shape is {shape}; a column is [rows] or [rows, 1]")
    if shape[0] > ROWS:
        raise Refused(413, f"{shape[0]} rows came; at most {ROWS} are answered at once")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in TYPES):
        raise ValueError(f"datatype is {datatype!r}; expected BYTES, {', '.join(TYPES)}")
    if piece is not None:
        found = _texts(piece, shape[0]) if datatype == "BYTES" else _numbers(piece, datatype, shape[0])
    else:
        if not isinstance(tensor["data"], list):
            raise ValueError(f"data is {json.dumps(tensor['data'])[:40]}; expected a list")
        found = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in tensor["data"]]
        if datatype != "BYTES":
            found = [_number(v, datatype) for v in found]
    if len(found) != shape[0]:
        raise ValueError(f"{len(found)} values came for the shape {shape}")
    if datatype == "BYTES":
        return [_text(v, kind) for v in found]
    return [None if isinstance(v, float) and v != v else v for v in found]  # NaN is a missing number


def _number(value: Any, datatype: str) -> Any:
    """A JSON number that the datatype can hold; null is a missing one. Numbers of floats may be written without a point, not the other way."""
    if value is None or (isinstance(value, bool) and datatype == "BOOL"):
        return value
    whole = "INT" in datatype
    if isinstance(value, bool) or datatype == "BOOL" or not isinstance(value, int if whole else int | float):
        raise ValueError(f"{json.dumps(value)[:40]} is no {datatype}")
    if whole and not np.iinfo(TYPES[datatype]).min <= value <= np.iinfo(TYPES[datatype]).max:
        raise ValueError(f"{str(value)[:40]} is beyond {datatype}")
    return value


def _numbers(piece: memoryview, datatype: str, count: int) -> list[Any]:
    """Elements of a binary tensor of numbers. Counted first: 64 MiB of UINT8 would be 512 MiB as a list."""
    size = np.dtype(TYPES[datatype]).itemsize
    if len(piece) != count * size:
        raise ValueError(f"{len(piece)} bytes came for {count} values of {datatype}, {size} bytes each")
    return np.frombuffer(piece, TYPES[datatype]).tolist()


def _texts(piece: memoryview, count: int) -> list[bytes]:
    """Elements of a binary BYTES tensor: each its length in four bytes (little-endian), then itself."""
    found: list[bytes] = []
    at = 0
    while at < len(piece):
        if len(found) == count:
            raise ValueError(f"more than {count} values came")
        (size,) = struct.unpack_from("<I", piece, at)
        if at + 4 + size > len(piece):
            raise ValueError("a text is longer than the bytes that are left")
        found.append(bytes(piece[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def _text(value: Any, kind: str) -> Any:
    if isinstance(value, bytes):
        if kind == "image":
            return base64.b64encode(value).decode("ascii")
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a text is not UTF-8") from None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{json.dumps(value)[:40]} is no text; elements of BYTES are texts")
    if kind in ("label-set", "words", "messages") and value is not None and value.startswith("["):
        return read(b'{"list": %b}' % value.encode("utf-8"), LIKE)["list"]
    return value


def _check(asked: Mapping[str, Any]) -> None:
    """Raises `Refused` where a part of the request is not of its JSON type; what is in it is looked at later."""
    outputs = asked.get("outputs")
    if outputs is not None and not (isinstance(outputs, list) and all(isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs)):
        raise Refused(400, 'outputs must be a list of objects such as {"name": "y"}')
    if not isinstance(asked.get("id", ""), str):
        raise Refused(400, "id must be a text")
    for holder in (asked, *asked["inputs"], *(outputs or [])):
        if not isinstance(holder.get("parameters") or {}, dict):
            raise Refused(400, "parameters must be an object")
        for name in ("binary_data", "binary_data_output"):
            if not isinstance((holder.get("parameters") or {}).get(name, False), bool):
                raise Refused(400, f"{name} must be true or false")


def tensors_of(answers: Sequence[Mapping[str, Any]], asked: Mapping[str, Any], model: Model) -> list[tuple[Mapping[str, Any], Tensor]]:
    """The outputs that are asked for, each with its tensor, of the answers to the rows.

    Raises `Refused` where outputs are asked for that the model has not.
    """
    failed = [a["error"] if set(a) == {"error"} else None for a in answers]
    tensors: dict[str, Tensor] = {}
    for field in model.signature.outputs:
        values = [None if bad else a.get(field.name) for a, bad in zip(answers, failed, strict=True)]
        tensors[field.name] = (_datatype(field), [len(values)], values)
        scores = [None if bad else a.get(f"{field.name}.scores") for a, bad in zip(answers, failed, strict=True)]
        if field.labels and any(s is not None for s in scores):
            flat = [0.0 if s is None else s[label] for s in scores for label in field.labels]
            tensors[f"{field.name}.scores"] = ("FP32", [len(values), len(field.labels)], flat)
    if any(failed):
        tensors["error"] = ("BYTES", [len(answers)], ["" if bad is None else f"{bad['column']} {bad['reason']}".strip() for bad in failed])
    wanted = asked.get("outputs") or [{"name": n} for n in tensors]
    if unknown := [w["name"][:80] for w in wanted if w["name"] not in tensors]:
        raise Refused(400, f"no output {', '.join(unknown)}; there is {', '.join(tensors)}")
    if any(failed) and asked.get("outputs") and "error" not in {w["name"] for w in wanted}:
        wanted = [*wanted, {"name": "error"}]
    return [(want, tensors[want["name"]]) for want in wanted]


def answer(answers: Sequence[Mapping[str, Any]], asked: Mapping[str, Any], model: Model, name: str) -> tuple[bytes, int | None]:
    """(body, length of its JSON where binary tensors follow) of the answers to the rows. Raises what `tensors_of` raises."""
    whole = bool((asked.get("parameters") or {}).get("binary_data_output", False))
    entries, pieces = [], []
    for want, (datatype, shape, values) in tensors_of(answers, asked, model):
        entry: dict[str, Any] = {"name": want["name"], "datatype": datatype, "shape": shape}
        if (want.get("parameters") or {}).get("binary_data", whole):
            pieces.append(packed(datatype, values))
            entry["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            entry["data"] = plain(datatype, values)
        entries.append(entry)
    found = {"model_name": name, "model_version": model.version, **({"id": asked["id"]} if "id" in asked else {}), "outputs": entries}
    head = json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return b"".join([head, *pieces]), len(head) if pieces else None


def plain(datatype: str, values: Sequence[Any]) -> list[Any]:
    """Elements as texts or numbers; what is not there is "" or 0."""
    return [_told(v) for v in values] if datatype == "BYTES" else [0 if v is None else v for v in values]


def _told(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def packed(datatype: str, values: Sequence[Any]) -> bytes:
    """Elements as bytes, little-endian; those of BYTES each behind its length in four bytes."""
    if datatype != "BYTES":
        return np.array(plain(datatype, values), TYPES[datatype]).tobytes()
    return b"".join(struct.pack("<I", len(t)) + t for t in (v.encode("utf-8") for v in plain(datatype, values)))
