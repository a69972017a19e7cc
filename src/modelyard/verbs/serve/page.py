"""The try-it page: a form made from the signature, answers drawn, and the same request as curl, Python and JavaScript.

The files under `static/` are served as they are; what differs between models is one JSON object, in a data block of the
page or, where a token is needed, from `/page.json`. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from modelyard.options import clean
from modelyard.runtime.model import Model

FILES = {
    "page.js": "text/javascript; charset=utf-8", "form.js": "text/javascript; charset=utf-8", "words.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "open_inference.proto": "text/plain; charset=utf-8",
}  # fmt: skip
EXAMPLES = 12
EXAMPLE_SIZE = 200_000
"""Characters of the examples that travel with the page."""
LABELS = 200
"""Labels of a column that travel with the page; beyond that any text can be typed."""
ARGUMENT = 100_000
"""Bytes of a row that are given to curl as an argument; Linux allows 131,072 for one. Longer rows go by a here-document."""


def data(model: Model, name: str, chat: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the page needs to know: signature with labels and ranges, example rows, name and version; `chat` of a model that writes."""
    examples: list[Any] = []
    size = 0
    for row in model.examples:
        size += len(json.dumps(row))
        if len(examples) < EXAMPLES and (size < EXAMPLE_SIZE or not examples):
            examples.append(row)
    signature = model.signature.to_json()
    for entry in [*signature["inputs"], *signature["outputs"]]:
        labels = entry["labels"] or []
        entry["labels"] = labels[:LABELS] if entry["kind"] in ("category", "label-set") else None
        entry["open"] = len(labels) > LABELS
        quantiles = entry.pop("summary").get("quantiles", {})
        entry["range"] = [quantiles["0"], quantiles["1"]] if entry["kind"] == "number" and {"0", "1"} <= set(quantiles) else None
    found = {"name": name, "version": model.version, "signature": signature, "examples": examples, "argument": ARGUMENT, "chat": chat}
    return clean(found)  # type: ignore[no-any-return]


def html(name: str, found: dict[str, Any] | None) -> str:
    """The page; its data travels as JSON in a data block, escaped so that no value can end it. None: it is behind a token."""
    block = json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")
    text = (Path(__file__).parent / "static" / "page.html").read_text(encoding="utf-8")
    before, after = (part.replace("{{title}}", escape(name)) for part in text.split("{{data}}"))
    return f"{before}{block}{after}"


def curl(url: str, body: str, token: bool) -> str:
    """Lines for a shell that send a JSON body, as the page writes them."""
    head = f"curl -sS '{url}' -H 'Content-Type: application/json'"
    head += ' -H "Authorization: Bearer $MODELYARD_TOKEN"' if token else ""
    if len(body.encode("utf-8")) > ARGUMENT:
        return f"{head} --data-binary @- <<'JSON'\n{body}\nJSON"
    quoted = body.replace("'", "'\\''")
    return f"{head} -d '{quoted}'"


@cache
def static(name: str) -> tuple[bytes, str] | None:
    """(content, type) of the page's own files; nothing else is served."""
    if name not in FILES:
        return None
    return (Path(__file__).parent / "static" / name).read_bytes(), FILES[name]
