"""A process that predicts for a server: rows in, answers out, each a length in eight bytes and then JSON.

    python -m modelyard.verbs.serve.worker FOLDER BACKEND

Started by `workers.Workers`; not a command for people.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import BinaryIO

SIZE = struct.Struct("<Q")


def read(stream: BinaryIO) -> bytes | None:
    """One message; None at the end of the stream, in the middle of a message too."""
    head = stream.read(SIZE.size)
    if len(head) < SIZE.size:
        return None
    (size,) = SIZE.unpack(head)
    body = stream.read(size)
    return body if len(body) == size else None


def write(stream: BinaryIO, body: bytes) -> None:
    """One message."""
    stream.write(SIZE.pack(len(body)) + body)
    stream.flush()


def main(folder: str, backend: str, trust_code: bool) -> None:
    """Loads the model, says its version, and answers until the stream ends."""
    from modelyard.errors import ModelyardError
    from modelyard.runtime.model import Model

    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not stand between answers
    model = Model.load(folder, backend or None, trust_code=trust_code)
    write(out, json.dumps({"version": model.version}).encode("utf-8"))
    while (asked := read(sys.stdin.buffer)) is not None:
        try:
            found = {"answers": model.predict(json.loads(asked)).to_json()}
        except ModelyardError as error:
            found = {"refused": error.message}  # type: ignore[dict-item]
        except Exception as error:
            found = {"failed": repr(error)}  # type: ignore[dict-item]
        write(out, json.dumps(found, ensure_ascii=False).encode("utf-8"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] == ["trust"])
