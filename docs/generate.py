"""Writes `docs/reference/` from the code: settings, commands, JSON, metrics, kinds, models, and the schema for editors.

    PYTHONPATH=src python -m docs.generate            # write
    PYTHONPATH=src python -m docs.generate --check    # exit 1 where a page is not what the code says

Needs the `train` extra (the settings of nets are read from their files). Pages are the same on every machine.
"""

from __future__ import annotations

# ruff: noqa: E501 - the long lines are sentences of the pages
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from modelyard import cli, errors, metrics, project, registry, settings
from modelyard.data.split import SplitConfig

OUT = Path(__file__).parent / "reference"
HEAD = "<!-- Written by `python -m docs.generate`; edit the docstrings in src/modelyard instead. -->\n\n"


def pages() -> dict[str, str]:
    """File name → text of every page."""
    return {
        "project-file.md": project_file(),
        "commands.md": commands(),
        "json.md": machine_readable(),
        "metrics.md": metric_table(),
        "kinds-and-encodings.md": kinds(),
        "models.md": models(),
        "modelyard.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }


def schema() -> dict[str, Any]:
    """JSON Schema of `modelyard.yaml` (2020-12)."""
    texts = {key: {"type": "string", "description": project.TOP[key]} for key in ("name", "task", "preset")}
    tasks = [*registry.names("tasks"), *project._aliases()]
    texts["task"] = {"anyOf": [{"enum": tasks}, {"type": "string", "pattern": "/"}], "description": project.TOP["task"]}
    sections: dict[str, Any] = {}
    for name in project.sections():
        cls = project.section_class(name)
        assert cls is not None
        sections[name] = settings.json_schema(cls)
    model = {"anyOf": [{"type": "string"}, {"type": "object"}], "description": project.TOP["model"], "default": "auto"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "modelyard.yaml",
        "type": "object",
        "properties": {
            "version": {"const": 1, "description": project.TOP["version"]},
            **texts,
            "seed": {"type": "integer", "minimum": 0, "description": project.TOP["seed"]},
            "model": model,
            **sections,
        },
        "patternProperties": {"/": {}},
        "additionalProperties": False,
    }


def project_file() -> str:
    """Every key of `modelyard.yaml`."""
    lines = [
        HEAD + "# The project file",
        "",
        "`modelyard.yaml`, YAML 1.2 (`1e-4` is a number, `no` a text). Paths are relative to the file. Any key can be given on the command line as",
        "`section.key=value`; where only one section has the key, `key=value` is enough. The command line wins over the file, the file over the",
        "preset, the preset over the default. An unknown key is an error that names the nearest one; all mistakes of a file are reported at once.",
        "`${env:NAME}` takes a value from the environment; it is never written to a run folder.",
        "",
        "In an editor with YAML support: `# yaml-language-server: $schema=…/docs/reference/modelyard.schema.json`.",
        "",
        "## Top level",
        "",
        "| key | meaning |",
        "|---|---|",
        *(f"| `{key}` | {meaning} |" for key, meaning in project.TOP.items()),
        "",
        "## Sections",
        "",
    ]
    for name in project.sections():
        cls = project.section_class(name)
        assert cls is not None
        short = getattr(cls, "SHORTHAND", None)
        lines.append(settings.reference(cls, name))
        if short:
            lines.append(f"A value that is no map stands for `{name}.{short}`.\n")
        if name == "data":
            lines.append(settings.reference(SplitConfig, "data.split"))
            lines.append("A number alone stands for `data.split.test`.\n")
    return _page(lines)


def commands() -> str:
    """Every verb: its help as printed."""
    lines = [
        HEAD + "# Commands",
        "",
        "Results go to stdout, everything else to stderr. `modelyard` without a verb shows:",
        "",
        "```text",
        cli.help_text(),
        "```",
        "",
        "Short names: " + ", ".join(f"`{a}` is `{v}`" for a, v in cli.ALIASES.items()) + ". The command `my` is `modelyard`.",
        "",
        "## Exit codes",
        "",
        "```text",
        (errors.__doc__ or "").split("\n\n", 1)[1].strip("\n"),
        "```",
        "",
    ]
    for verb in registry.names("verbs"):
        lines += [f"## {verb}", "", "```text", _without_flags(cli.verb_help(verb)), "```", ""]
    return _page(lines)


def _without_flags(text: str) -> str:
    """The flags are the same for every verb and stand at the top."""
    for mark in ("\nother keys:", "\nflags:"):
        text = text.split(mark)[0]
    return text.strip()


RESULTS: dict[str, tuple[str, ...]] = {
    "train": ("modelyard.verbs.train:Trained",),
    "tune": ("modelyard.verbs.tune:Tuned",),
    "predict": ("modelyard.verbs.predict:Predicted",),
    "evaluate": ("modelyard.verbs.evaluate:Evaluated",),
    "report": ("modelyard.verbs.report:Written",),
    "export": ("modelyard.verbs.export:Exported",),
    "run": ("modelyard.verbs.run:Ran",),
    "check": ("modelyard.verbs.check:Checked",),
    "plan": ("modelyard.verbs.plan:Plan",),
    "prepare": ("modelyard.verbs.prepare:Prepared",),
    "init": ("modelyard.verbs.init:Written",),
    "runs": ("modelyard.verbs.runs:Listing", "modelyard.verbs.runs:Comparison"),
    "doctor": ("modelyard.verbs.doctor:Findings",),
    "chat": ("modelyard.verbs.chat:Talked",),
    "compress": ("modelyard.verbs.compress:Compressed",),
    "benchmark": ("modelyard.verbs.benchmark:Benchmarked",),
    "models": ("modelyard.verbs.models:Told",),
    "keys": ("modelyard.verbs.keys:Created", "modelyard.verbs.keys:Listing"),
}
"""What each verb returns (`serve` prints one line and does not end)."""
LEFT_OUT = {"tune": ("gate", "interrupted"), "train": ("gate", "interrupted"), "run": ("seconds",)}
"""Fields that a verb keeps to itself; `tests/test_docs.py` compares this page with what the commands print."""


def machine_readable() -> str:
    """The JSON of every verb."""
    lines = [
        HEAD + "# JSON",
        "",
        "`modelyard VERB … --json` prints exactly one object, in one line, on stdout. Whatever else a library prints goes to stderr.",
        "NaN and infinity, which JSON lacks, are `null`. Keys may be added; `schema_version` rises when one changes its meaning or goes.",
        "",
        "| key | always there | meaning |",
        "|---|---|---|",
        "| `schema_version` | yes | 1 |",
        "| `seconds` | yes | wall time of the command |",
        "| `warnings` | yes | notices, the same that people see on stderr |",
        "| `error` | where it failed | `{kind, message, details: [{message, where, hint}]}`; the exit code says the rest (see [commands](commands.md#exit-codes)) |",
        "",
        "A gate that is missed (exit code 1) prints the result and `error` together.",
        "",
        "A metric is `{value, low, high, better}`: the value, its 95 % interval, and whether `higher` or `lower` is better; `note` says why there is no value or",
        "no interval. `metrics` is split → metric, with several outputs split → output → metric.",
        "",
    ]
    for verb in registry.names("verbs"):
        lines += [f"## {verb}", ""]
        if verb == "serve":
            lines += ["One line as soon as requests are answered: `{url, ready: true, model, version}`; the command then goes on until it is stopped.", ""]
            continue
        for place in RESULTS[verb]:
            module, _, name = place.partition(":")
            cls = getattr(registry.load("verbs", module.rpartition(".")[2]), name)
            text = " ".join((cls.__doc__ or "").split())
            keys = [f.name for f in dataclasses.fields(cls) if f.name not in LEFT_OUT.get(verb, ())]
            meanings = settings.docs(cls)
            lines += [text, "", *(f"- `{key}`{': ' + meanings[key] if key in meanings else ''}" for key in keys), ""]
    return _page(lines)


def metric_table() -> str:
    """Metrics by kind of output."""
    lines = [
        HEAD + "# Metrics",
        "",
        "Named in `evaluate.metrics` and `evaluate.gate`; with several outputs a gate is written `output.metric`. Every value has a 95 % interval: an exact or score interval where",
        "there is one, else a bootstrap over examples with a fixed seed. A metric that is undefined (ROC-AUC with one class) has no value and says why; it fails a gate.",
        "",
        "| metric | better | of | default for | meaning |",
        "|---|---|---|---|---|",
    ]
    for name in metrics.names():
        metric = metrics.get(name)
        default = ", ".join(kind for kind, names in metrics.DEFAULTS.items() if name in names)
        meaning = registry.describe("metrics", name.replace("_", "-")).replace("|", "\\|")
        lines.append(f"| `{name}` | {metric.better} | {', '.join(metric.kinds)} | {default} | {meaning} |")
    return _page(lines)


def kinds() -> str:
    """Kinds with their encodings and settings."""
    lines = [
        HEAD + "# Kinds and encodings",
        "",
        "A *kind* says what the values of a column are; an *encoding* turns them into arrays. Kinds are guessed from the data and set in `data.inputs` and `data.outputs`:",
        "`{review: text}` or `{review: {kind: text, encoding: chars}}`; further keys are the settings of the encoding.",
        "",
    ]
    for name in registry.names("kinds"):
        rules = registry.load("kinds", name).KIND
        target = f"as a target: `{rules.target_encoding}`" if rules.target_encoding else "not a target"
        lines += [f"## {name}", "", registry.describe("kinds", name), "", f"Encodings: {', '.join(f'`{e}`' for e in rules.encodings) or 'none'}; {target}.", ""]
        for encoding in rules.encodings.values():
            about = " ".join((type(encoding).__doc__ or "").split("\n\n")[0].split())
            if dataclasses.fields(encoding.Config):
                lines += [settings.reference(encoding.Config, f"{name} · {encoding.name}")]
            else:
                lines += [f"### `{name} · {encoding.name}`", ""]
            lines += [about, ""]
    return _page(lines)


def models() -> str:
    """Nets and estimators with their settings."""
    lines = [
        HEAD + "# Models",
        "",
        "The `model` section: `auto`, a name, `{name: NAME, …settings}`, a map input → net (numbers, categories and timestamps together are the input `table`), or your own",
        "`{module: FILE.py:Class, args: {…}}`. Nets are trained by gradient with the `train` section; estimators fit themselves.",
        "",
    ]
    for group, title in (("estimators", "Estimators"), ("nets", "Nets")):
        lines += [f"## {title}", ""]
        for name in registry.names(group):
            module = registry.load(group, name)
            lines += [settings.reference(module.Config, name) if dataclasses.fields(module.Config) else f"### `{name}`\n"]
            lines += [registry.describe(group, name), "", f"Reads {', '.join(f'`{a}`' for a in module.ACCEPTS)}."]
            if group == "nets" and module.TRAIN:
                lines += ["", "Training settings that it brings: " + ", ".join(f"`{k}: {v}`" for k, v in module.TRAIN.items()) + "."]
            lines.append("")
    return _page(lines)


def _page(lines: list[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them."""
    stale = []
    for name, text in pages().items():
        path = OUT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
    done = "differ from the code" if "--check" in arguments else "written"
    print(f"{', '.join(stale)} {done}" if stale else "all pages are as the code says")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
