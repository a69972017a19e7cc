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
    kind = (
        f"{model['combine']} of {', '.join(model['parts'])}"
        if "parts" in model
        else model.get("estimator") or ", ".join(n["name"] for n in model.get("net", {}).get("nets", {}).values()) or "own module"
    )
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
        *_promises(manifest),
        "",
        "## How values that are not there behave",
        *(f"- {k}: {MISSING[k]}." for k in sorted({f.kind for f in signature.inputs} & MISSING.keys())),
        *_filled(manifest),
        "- Infinity, words in a number column and unreadable images are errors of their row; the other rows are answered.",
        "- NaN is a missing value. A key that is absent is an error unless training had missing values in that column.",
        "",
        "## Use",
        "```python",
        "import modelyard as my",
        'model = my.load_model("FOLDER")',
        "model.predict(rows).to_json()",
        "```",
        "`examples.json` holds rows with their answers; `model.replay()` predicts them again and compares.",
        "",
    ]
    return "\n".join(lines)


def _filled(manifest: Mapping[str, Any]) -> list[str]:
    """A line for each input with a rule of its own about missing values."""
    values = manifest["pipeline"].get("imputation", {}).get("values", {})
    lines = []
    for column in manifest["pipeline"]["inputs"]:
        rule = column.get("missing", {"method": "keep"})
        method, name = rule["method"], _cell(column["name"])
        says = {
            "keep": "", "knn": f"the mean of the {rule.get('neighbours')} nearest of the stored training rows",
            "iterative": "what the other numbers suggest (a chain of regressions fitted in training)",
            "delete": "an error of its row, as such rows were left out of training",
        }.get(method, f"`{_cell(values.get(column['name']))}` ({method} of the training rows)" if method != "constant" else
              f"`{_cell(values.get(column['name']))}` (a constant)")  # fmt: skip
        told = "; a further number tells that it was missing" if rule.get("indicator") else ""
        lines += [f"- `{name}`: a missing value becomes {says}{told}." if says else f"- `{name}`{told}."] if says or told else []
    return lines


def _promises(manifest: Mapping[str, Any]) -> list[str]:
    """What was fitted after training: calibrated scores and the promise of sets and intervals."""
    lines = []
    for name, told in manifest.get("promises", {}).items():
        if found := told.get("calibration"):
            before, after = (list(found["calibration_error"].values())[-1][k] for k in ("before", "after"))
            split = list(found["calibration_error"])[-1]
            how = f"by {found['method']} on {found['rows']} validation rows" if found["method"] != "none" else "not changed (nothing was better)"
            lines.append(f"- `{_cell(name)}.scores`: {how}; calibration error {before:.4f} before, {after:.4f} after ({split} rows).")
        if found := told.get("coverage"):
            where = f"`{_cell(name)}.set`" if found["step"] == "sets" else f"`{_cell(name)}.low` … `{_cell(name)}.high`"
            seen = f"; {found['test']['coverage']:.1%} of the test rows" if "test" in found else ""
            lines.append(
                f"- {where} ({found['method']}) holds the truth in {found['promised']:.1%} of rows like those of training, averaged over "
                f"all of them, not for every group{seen}."
            )
    return ["", *lines] if lines else []


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
