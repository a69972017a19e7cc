"""Request bodies: size counted after decompression, depth, JSON, and the two forms of TensorFlow Serving's predict."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

SIZE = 64 * 2**20
DEPTH = 100
ROWS = 100_000
SIGNATURE = "serving_default"
JSON_TYPE = re.compile(r"application/[\w.+-]+\+json")
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""A surrogate written as an escape; only then is the body searched for half a pair."""
TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|([\[{])|([\]}])', re.DOTALL)
"""A string (also one that never ends) or a bracket. Possessive, so that the scan is linear in hostile bodies too."""


class Refused(Exception):
    """A request that cannot be answered: status, one sentence, and headers that go with them."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass(frozen=True)
class Request:
    """What a predict call asks for."""

    rows: list[Any]
    columnar: bool
    """Whether it came as `inputs` (columns) and the answer goes back as `outputs`."""
    params: dict[str, Any] | None
    seed: int | None
    strict: bool


def unpack(raw: bytes, encoding: str, limit: int = SIZE) -> bytes:
    """The body after gzip or deflate, never more than `limit` bytes."""
    if encoding in ("", "identity"):
        if len(raw) > limit:
            raise Refused(413, f"the body is larger than {limit} bytes")
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refused(415, f"Content-Encoding {encoding!r} is not read; send gzip, deflate or nothing")
    engine = zlib.decompressobj(47 if "gzip" in encoding else 15)
    try:
        out = engine.decompress(raw, limit + 1)  # stops there: 64 MiB of zeros come as 65 kB
    except zlib.error:
        raise Refused(400, f"the body is not {encoding}") from None
    if len(out) > limit:
        raise Refused(413, f"the body unpacks to more than {limit} bytes")
    if not engine.eof or engine.unused_data:
        raise Refused(400, f"the {encoding} body is cut short or followed by other bytes; send one stream")
    return out


def check_type(content_type: str) -> None:
    """Raises `Refused` unless a body of this type may hold JSON.

    None, and curl's own default for `-d`, are taken as JSON: TensorFlow Serving's documented calls name no type.
    """
    if content_type == "application/json":
        return
    kind, _, rest = content_type.lower().partition(";")
    kind = kind.strip()
    if kind not in ("", "application/json", "application/x-www-form-urlencoded") and not JSON_TYPE.fullmatch(kind):
        raise Refused(415, f"Content-Type {kind[:80]!r} is not read; send application/json")
    charset = re.search(r"charset\s*=\s*\"?([\w.:-]+)", rest)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, f"charset {charset[1][:40]!r} is not read; send UTF-8")


def read(raw: bytes, like: str) -> dict[str, Any]:
    """The object of a JSON body. Raises `Refused` with what came and what is allowed; `like` shows what is expected."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    if _depth(text) > DEPTH:
        raise Refused(400, f"the JSON is nested deeper than {DEPTH} levels")
    try:
        body = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:120]}") from None
    if HALF.search(text):
        _whole(body)
    if not isinstance(body, dict):
        raise Refused(400, f"the body must be an object such as {like}")
    return body


def parse(raw: bytes, files: frozenset[str] | None = None) -> Request:
    """The request of a JSON body. Raises `Refused` with what came and what is allowed.

    `files`: the inputs whose `{"b64": …}` stays what it is (pictures); of all others it is a text in UTF-8. None: no input is looked at.
    """
    body = read(raw, '{"instances": [{…}]}')
    if files is not None and b'"b64"' in raw:
        body = {k: [texts_of(v, "", files) for v in value] if isinstance(value, list) else texts_of(value, "", files) for k, value in body.items()}
    known = {"instances", "inputs", "signature_name", "params", "seed", "strict"}
    if extra := sorted(set(body) - known):
        raise Refused(400, f"unknown key(s) {', '.join(map(str, extra))[:200]}; expected {', '.join(sorted(known))}")
    if ("instances" in body) == ("inputs" in body):
        raise Refused(400, "send either instances (rows) or inputs (columns)")
    params, seed, strict = body.get("params"), body.get("seed"), body.get("strict", False)
    if params is not None and not isinstance(params, dict):
        raise Refused(400, "params must be an object")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise Refused(400, "seed must be a whole number from 0")
    signature = body.get("signature_name")
    if signature not in (None, "", SIGNATURE):
        raise Refused(400, f"unknown signature_name {str(signature)[:80]!r}; there is {SIGNATURE!r}")
    if not isinstance(strict, bool):
        raise Refused(400, "strict must be true or false")
    if "instances" in body:
        rows = body["instances"]
        if not isinstance(rows, list):
            raise Refused(400, "instances must be a list of rows")
    else:
        rows = _rows(body["inputs"])
    if len(rows) > ROWS:
        raise Refused(413, f"{len(rows)} rows came; at most {ROWS} are answered at once")
    return Request(rows, "inputs" in body, params, seed, strict)


def examples(raw: bytes, method: str, outputs: list[str], files: frozenset[str]) -> tuple[list[Any], str]:
    """(rows, the output that is asked for) of TensorFlow Serving's `:classify` and `:regress`; `outputs` are those that the method can tell of.

    Raises `Refused` with what came and what is allowed.
    """
    body = read(raw, '{"examples": [{…}]}')
    if extra := sorted(set(body) - {"examples", "context", "signature_name"}):
        raise Refused(400, f"unknown key(s) {', '.join(map(str, extra))[:200]}; expected examples, context, signature_name")
    found, context, signature = body.get("examples"), body.get("context"), body.get("signature_name")
    if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        raise Refused(400, "examples must be a list of objects")
    if context is not None and not isinstance(context, dict):
        raise Refused(400, "context must be an object of what all examples share")
    if len(found) > ROWS:
        raise Refused(413, f"{len(found)} examples came; at most {ROWS} are answered at once")
    if not outputs:
        raise Refused(400, f"this model has no output that :{method} could tell; use :predict")
    if signature in (None, "", SIGNATURE, f"tensorflow/serving/{method}"):
        if len(outputs) > 1:
            raise Refused(400, f"there are several outputs; name one as signature_name: {', '.join(outputs)}")
        signature = outputs[0]
    if signature not in outputs:
        raise Refused(400, f"unknown signature_name {str(signature)[:80]!r}; there is {', '.join(outputs)}")
    return [texts_of({k: _single(v) for k, v in {**(context or {}), **e}.items()}, "", files) for e in found], str(signature)


def _single(value: Any) -> Any:
    """A feature of an example may be written as a list of one value."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def texts_of(value: Any, name: str, files: frozenset[str]) -> Any:
    """`{"b64": …}` as the text that it encodes, where the input `name` is none of `files`. Raises `Refused` where it is no UTF-8."""
    if isinstance(value, list):
        return [texts_of(v, name, files) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"b64"} and isinstance(value["b64"], str):
        if name in files or (not name and len(files) == 1):
            return value
        try:
            return base64.b64decode(value["b64"], validate=True).decode("utf-8")
        except ValueError:  # binascii.Error and UnicodeDecodeError
            raise Refused(400, f"a value b64{' of ' + name[:80] if name else ''} is not base64 of a text in UTF-8") from None
    return {k: texts_of(v, str(k), files) for k, v in value.items()}


def _rows(columns: Any) -> list[Any]:
    """Columns to rows; a bare list is the only column."""
    if isinstance(columns, list):
        return columns
    if not isinstance(columns, dict) or not columns or not all(isinstance(v, list) for v in columns.values()):
        raise Refused(400, "inputs must be an object of columns, each a list")
    if len({len(v) for v in columns.values()}) != 1:
        raise Refused(400, "the columns of inputs have different lengths")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _whole(body: Any) -> None:
    """Refuses half of a surrogate pair: no UTF-8 text can hold it, so neither a model nor an answer could."""
    try:
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(400, "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None


def _depth(text: str) -> int:
    """Nesting of brackets outside strings, found before a parser recurses into it."""
    if text.count("[") + text.count("{") <= DEPTH:  # nearly every request of a few rows
        return 0
    deepest = depth = 0
    for token in TOKENS.finditer(text):
        if token.lastindex == 1:
            depth += 1
            deepest = max(deepest, depth)
            if deepest > DEPTH:
                return deepest
        elif token.lastindex == 2:
            depth -= 1
    return deepest
