"""The try-it page: a form made from the signature, answers drawn, and the same request as curl, Python and JavaScript."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from modelyard.runtime.model import Model

FILES = {"page.js": "text/javascript; charset=utf-8", "page.css": "text/css; charset=utf-8"}
EXAMPLES = 12
EXAMPLE_SIZE = 200_000
"""Characters of the examples that travel with the page."""


def html(model: Model) -> str:
    """The page; its data travels as JSON in a data block, escaped so that no value can end it."""
    examples: list[Any] = []
    size = 0
    for row in model.examples:
        size += len(json.dumps(row))
        if len(examples) < EXAMPLES and (size < EXAMPLE_SIZE or not examples):
            examples.append(row)
    signature = model.signature.to_json()
    for entry in signature["inputs"]:
        entry["labels"] = (entry["labels"] or [])[:200] if entry["kind"] in ("category", "label-set") else None
        entry["summary"] = {}
    data = {"name": model.name, "version": model.version, "signature": signature, "examples": examples}
    block = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    title = escape(model.name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/static/page.css"></head>
<body><main><header><h1>{title}</h1><p class="soft"><span data-say="version">version</span> <code>{model.version}</code></p>
<button id="lang" type="button" aria-label="language">中文</button></header>
<div class="columns"><form id="form" aria-label="inputs"></form><section id="answer" aria-live="polite"></section></div>
<section><h2 id="batch-title" data-say="batch">Many rows</h2><p class="soft" data-say="batch_hint">One JSON object a line, or CSV with a header.</p>
<textarea id="batch" rows="4" aria-labelledby="batch-title"></textarea>
<p><button id="run-batch" type="button" data-say="predict_all">Predict all</button></p><div id="batch-answer" class="scroll"></div></section>
<section><h2 data-say="code">The same from a program</h2><div class="tabs" role="tablist"></div>
<div class="code"><button id="copy" type="button" data-say="copy">Copy</button><pre id="snippet"></pre></div></section>
<footer class="soft"><a href="/openapi.json">OpenAPI</a> · <a href="/metrics">metrics</a></footer></main>
<script type="application/json" id="model">{block}</script><script src="/static/page.js"></script></body></html>
"""


@cache
def static(name: str) -> tuple[bytes, str] | None:
    """(content, type) of the page's own files; nothing else is served."""
    if name not in FILES:
        return None
    return (Path(__file__).parent / "static" / name).read_bytes(), FILES[name]
