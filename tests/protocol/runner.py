"""Runs vectors (`tensorflow_serving.json`, `open_inference.json`) against any server, with the standard library alone.

    python tests/protocol/models.py FOLDER                                     # trains the models that the vectors ask
    modelyard serve serve.models.half_plus_two=FOLDER/runs/half_plus_two-0001 \\
        serve.models.loan=FOLDER/runs/loan-0001 serve.models.note=FOLDER/runs/note-0001 serve.port=8000
    python tests/protocol/runner.py http://127.0.0.1:8000

A vector is `name`, `method`, `path`, `headers`, one of `body` (JSON), `text` and `base64` (bytes), and `expect`: `status` (a number or a
list), `headers`, `body` (a pattern), and `binary`: output → [datatype, values] of tensors that follow the JSON. `{version:NAME}` stands for
the version that is served. In a pattern, numbers are equal within 0.02; an object may have more keys than the pattern, a list not more
elements; `$any`, `$text`, `$sentence` (a text that is not empty), `$number`, `$whole`, `$boolean`, `$list`, `$object`, `$null` stand for any
such value, `$absent` for a key that must not be there, `{"$each": pattern}` for a list of such, `{"$has": text}` for a text with that in it.
"""

from __future__ import annotations

import base64
import http.client
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).parent
SUITES = ("tensorflow_serving", "open_inference")
NEAR = 0.02
"""Of a trained model's number to the line that it was trained on."""
FORMATS = {"FP64": "d", "FP32": "f", "INT64": "q", "INT32": "i", "BOOL": "?"}
TYPES: dict[str, Callable[[Any], bool]] = {
    "$any": lambda v: True, "$text": lambda v: isinstance(v, str), "$sentence": lambda v: isinstance(v, str) and len(v) > 5,
    "$number": lambda v: isinstance(v, int | float) and not isinstance(v, bool), "$whole": lambda v: type(v) is int,
    "$boolean": lambda v: isinstance(v, bool), "$list": lambda v: isinstance(v, list), "$object": lambda v: isinstance(v, dict),
    "$null": lambda v: v is None,
}  # fmt: skip


def vectors(suite: str) -> list[dict[str, Any]]:
    """Those of one file."""
    return list(json.loads((HERE / f"{suite}.json").read_text(encoding="utf-8"))["vectors"])


def differs(pattern: Any, value: Any, where: str = "body") -> str | None:
    """Where a value is not as the pattern says, in a sentence; None where it is."""
    if isinstance(pattern, str) and pattern in TYPES:
        return None if TYPES[pattern](value) else f"{where}: {json.dumps(value)[:80]} is no {pattern}"
    if isinstance(pattern, dict) and set(pattern) == {"$has"}:
        return None if isinstance(value, str) and pattern["$has"] in value else f"{where}: {json.dumps(value)[:120]} has no {pattern['$has']!r}"
    if isinstance(pattern, dict) and set(pattern) == {"$each"}:
        if not isinstance(value, list):
            return f"{where}: no list"
        return next((d for i, v in enumerate(value) if (d := differs(pattern["$each"], v, f"{where}[{i}]"))), None)
    if isinstance(pattern, dict):
        return _object(pattern, value, where)
    if isinstance(pattern, list):
        if not isinstance(value, list) or len(value) != len(pattern):
            return f"{where}: {json.dumps(value)[:120]} is no list of {len(pattern)}"
        return next((d for i, (p, v) in enumerate(zip(pattern, value, strict=True)) if (d := differs(p, v, f"{where}[{i}]"))), None)
    if isinstance(pattern, int | float) and not isinstance(pattern, bool):
        same = TYPES["$number"](value) and abs(value - pattern) <= NEAR
    else:
        same = type(value) is type(pattern) and value == pattern
    return None if same else f"{where}: {json.dumps(value)[:120]} is not {json.dumps(pattern)[:120]}"


def _object(pattern: dict[str, Any], value: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where}: {json.dumps(value)[:120]} is no object"
    for key, inner in pattern.items():
        if inner == "$absent":
            if key in value:
                return f"{where}.{key}: must not be there"
        elif key not in value:
            return f"{where}.{key}: is absent from {json.dumps(value)[:120]}"
        elif found := differs(inner, value[key], f"{where}.{key}"):
            return found
    return None


def unpacked(raw: bytes, datatype: str) -> list[Any]:
    """Values of a binary tensor."""
    if datatype != "BYTES":
        return [v for (v,) in struct.iter_unpack("<" + FORMATS[datatype], raw)]
    found, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + size].decode("utf-8"))
        at += 4 + size
    return found


def binary(expected: dict[str, Any], found: Any, rest: bytes) -> str | None:
    """Where the binary tensors are not as expected, every byte accounted for."""
    seen = {}
    for tensor in found["outputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is not None:
            if "data" in tensor:
                return f"{tensor['name']}: has data and binary_data_size"
            seen[tensor["name"]] = [tensor["datatype"], unpacked(rest[:size], tensor["datatype"])]
            rest = rest[size:]
    return f"{len(rest)} bytes are left" if rest else differs(expected, seen, "binary")


class Target:
    """A server."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.parts, self.token = urlsplit(url), token
        self.versions: dict[str, str] = {}

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes, Any]:
        """(status, body, headers)."""
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.parts.hostname or "", self.parts.port, timeout=30)
        try:
            more = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request(method, path, body, {**(headers or {}), **more})
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def version(self, name: str) -> str:
        """That is served of a model."""
        if name not in self.versions:
            self.versions[name] = json.loads(self.ask("GET", f"/v1/models/{name}")[1])["model_version_status"][0]["version"]
        return self.versions[name]

    def run(self, vector: dict[str, Any]) -> str | None:
        """What is wrong with the answer to one vector; None where nothing is."""
        text = json.dumps(vector, ensure_ascii=False)
        for name in ("half_plus_two", "loan", "note"):
            if f"{{version:{name}}}" in text:
                text = text.replace(f"{{version:{name}}}", self.version(name))
        vector = json.loads(text)
        body, headers = None, dict(vector.get("headers", {}))
        if "body" in vector:
            body, headers = json.dumps(vector["body"], ensure_ascii=False).encode("utf-8"), {"Content-Type": "application/json", **headers}
        elif "text" in vector:
            body = vector["text"].encode("utf-8")
        elif "base64" in vector:
            body = base64.b64decode(vector["base64"])
        status, raw, answered = self.ask(vector["method"], vector["path"], body, headers)
        return judge(vector["expect"], status, raw, answered)


def judge(expect: dict[str, Any], status: int, raw: bytes, headers: Any) -> str | None:
    """What is wrong with an answer."""
    allowed = expect["status"] if isinstance(expect["status"], list) else [expect["status"]]
    if status not in allowed:
        return f"status {status}, expected {allowed}: {raw[:160]!r}"
    for name, pattern in expect.get("headers", {}).items():
        if found := differs(pattern, headers.get(name), name):
            return found
    if "body" not in expect:
        return None
    size = headers.get("Inference-Header-Content-Length")
    end = len(raw) if size is None else int(size)
    try:
        found = json.loads(raw[:end], parse_constant=_constant)
    except ValueError as error:
        return f"the body is no JSON: {error}"
    if "binary" in expect and (wrong := binary(expect["binary"], found, raw[end:])):
        return wrong
    return differs(expect["body"], found)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def main() -> None:
    """Prints each failure and the counts; exit code 1 where there are any."""
    target = Target(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    failed = 0
    for suite in SUITES:
        every = vectors(suite)
        wrong = {v["name"]: found for v in every if (found := target.run(v))}
        failed += len(wrong)
        for name, found in wrong.items():
            print(f"FAILED {suite} · {name}: {found}")
        print(f"{suite}: {len(every) - len(wrong)} of {len(every)} answered as expected")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
