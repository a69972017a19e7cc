"""The model card: README.md of the model folder, with the Hugging Face metadata header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.runtime.answers import Field, Signature

MISSING = {
    "number": "a missing value is read as the training mean (nets, linear) or takes its own branch (trees)",
    "category": "a missing and an unseen label each have an id of their own",
    "timestamp": "a missing time is a neutral value",
    "text": "a missing text is an empty one",
    "image": "an image is required",
    "label-set": "a missing set is an empty one; unknown labels do not count",
}
"""What happens to values that are not there, by kind."""


def card(manifest: Mapping[str, Any], signature: Signature) -> str:
    """Markdown with what goes in, what comes out, how bad values behave, and where the model comes from."""
    tasks = ", ".join(f"{o} ({t})" for o, t in manifest["tasks"].items())
    model = manifest["model"]
    kind = f"{model['combine']} of {', '.join(model['parts'])}" if "parts" in model else model.get("estimator") or ", ".join(n["name"] for n in model.get("net", {}).get("nets", {}).values()) or "own module"
    rows = ", ".join(f"{n} {split}" for split, n in manifest["data"]["rows"].items())
    lines = [
        "---",
        "library_name: modelyard",
        f"pipeline_tag: {_tag(manifest, signature)}",
        f"tags: [modelyard, {', '.join(sorted(set(manifest['tasks'].values())))}]",
        "---",
        f"# {manifest['name']}",
        "",
        f"Predicts {tasks} with {kind}. Trained {manifest['created']} on {rows} examples "
        f"(data fingerprint `{manifest['data']['fingerprint'][:12]}`).",
        "",
        "## What goes in",
        "| column | kind | required key | labels |",
        "|---|---|---|---|",
        *(_row(f) for f in signature.inputs),
        "",
        "## What comes out",
        "| column | kind | labels |",
        "|---|---|---|",
        *(f"| {_cell(f.name)} | {f.kind} | {_labels(f)} |" for f in signature.outputs),
        "",
        "## How values that are not there behave",
        *(f"- {k}: {MISSING[k]}." for k in sorted({f.kind for f in signature.inputs} & MISSING.keys())),
        "- Infinity, words in a number column and unreadable images are errors of their row; the other rows are answered.",
        "- NaN is a missing value. A key that is absent is an error unless training had missing values in that column.",
        "",
        "## Use",
        "```python",
        "import modelyard as my",
        "model = my.load_model(\"FOLDER\")",
        "model.predict(rows).to_json()",
        "```",
        "`examples.json` holds rows with their answers; `model.replay()` predicts them again and compares.",
        "",
    ]
    return "\n".join(lines)


def _row(f: Field) -> str:
    return f"| {_cell(f.name)} | {f.kind} | {'yes' if f.required else 'no'} | {_labels(f)} |"


def _labels(f: Field) -> str:
    shown = ", ".join(_cell(x) for x in (f.labels or [])[:10])
    return shown + (f" … ({len(f.labels)})" if f.labels and len(f.labels) > 10 else "")


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")[:80]


def _tag(manifest: Mapping[str, Any], signature: Signature) -> str:
    """The Hugging Face pipeline tag nearest to the task; tables unless all inputs are text or images."""
    kinds = {f.kind for f in signature.inputs}
    task = next(iter(manifest["tasks"].values()))
    domain = "text" if kinds == {"text"} else "image" if kinds == {"image"} else "tabular"
    return f"{domain}-{task}" if task in ("classification", "regression") else str(task)
