"""What the documentation says is true: commands and Python run, project files parse, links lead somewhere, the reference is current."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard import cli, project
from modelyard.registry import names as listed

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
TRANSLATED = ("README.md", "docs/tutorials/first-model.md")
"""Pages whose Chinese page prints the same blocks."""
HOW_TO = (
    "missing-values", "calibrate", "encoders", "translation", "tagging", "language-models", "fine-tune", "registry", "compress",
)
RUN = (*TRANSLATED, *(f"docs/how-to/{name}.md" for name in HOW_TO))
"""Pages whose ```bash and ```python blocks are run, in order, in one empty folder."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytest.importorskip("torch", reason="the documents train, which needs the extra 'train'")


def blocks(page: Path, language: str) -> list[str]:
    return [m[2] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m[1] == language]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment whose `modelyard` is this source tree."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("modelyard", "python"):
        start = f'"{sys.executable}"' + (" -m modelyard" if name == "modelyard" else "")
        (bin_ / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n', encoding="utf-8")
        (bin_ / name).chmod(0o755)
    return {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}


@pytest.mark.skipif(os.name == "nt", reason="the printed commands are for a POSIX shell")
@pytest.mark.parametrize("page", RUN)
def test_printed_commands_and_python_run(page: str, tmp_path: Path, shell: dict[str, str]) -> None:
    """In one shell, so that `cd` of one block holds for the next; Python blocks run where the shell stands."""
    script = ["set -e"]
    for i, match in enumerate(m for m in FENCE.finditer((ROOT / page).read_text(encoding="utf-8")) if m[1] in ("bash", "python")):
        if match[1] == "bash":
            script.append(match[2])
        else:
            (tmp_path / f"block{i}.py").write_text(match[2], encoding="utf-8")
            script.append(f'python "{tmp_path}/block{i}.py"')
    assert len(script) > 1
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        ["sh", "-c", "\n".join(script)], cwd=tmp_path / "work", env=shell, capture_output=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr and list((tmp_path / "work").rglob("runs/*/report.html"))


def test_quick_start_is_short() -> None:
    """At most five commands; the Python shown is at most a dozen lines."""
    first = blocks(ROOT / "README.md", "bash")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 5
    python = blocks(ROOT / "README.md", "python")[0]
    assert len([line for line in python.splitlines() if line.strip()]) <= 12


def yaml_blocks() -> list[Any]:
    return [pytest.param(text, id=f"{p.relative_to(ROOT)}-{i}") for p in PAGES for i, text in enumerate(blocks(p, "yaml"))]


@pytest.mark.parametrize("text", yaml_blocks())
def test_printed_project_files_parse(text: str, tmp_path: Path) -> None:
    (tmp_path / "modelyard.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "net.py").write_text("", encoding="utf-8")
    assert project.load_project(tmp_path).version == 1


def test_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == text, f"{name} is old: run `make docs`"


def test_schema_accepts_the_examples_and_refuses_a_typing_mistake() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from ruamel.yaml import YAML

    schema = json.loads((ROOT / "docs" / "reference" / "modelyard.schema.json").read_text(encoding="utf-8"))
    for file in sorted(ROOT.glob("examples/*/modelyard.yaml")):
        value = json.loads(json.dumps(YAML(typ="safe").load(file.read_text(encoding="utf-8"))))
        jsonschema.validate(value, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**value, "trian": {}}, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**value, "train": {"epoch": 3}}, schema)


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            if not other.exists() or (anchor and anchor not in anchors(other)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    explicit = re.findall(r'<a id="([^"]+)">', page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found} | set(explicit)


def test_both_readmes_have_the_same_sections() -> None:
    english = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    chinese = re.findall(r'^<a id="([^"]+)"></a>$', (ROOT / "README.zh.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in english] == chinese


@pytest.mark.parametrize("page", TRANSLATED)
def test_chinese_pages_print_the_same_blocks(page: str) -> None:
    """Comments apart: what was run for one language was run for the other."""
    for language in ("bash", "python", "yaml"):
        a, b = (
            ["\n".join(x.split("#")[0].rstrip() for x in t.splitlines()) for t in blocks(ROOT / f, language)]
            for f in (page, page.replace(".md", ".zh.md"))
        )
        assert a == b, f"the {language} blocks differ"


def test_every_verb_is_in_the_readmes() -> None:
    for page in ("README.md", "README.zh.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [v for v in listed("verbs") if f"| `{v}` |" not in text] == []


def test_json_page_names_what_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Keys printed by the commands are those of docs/reference/json.md, in both directions."""
    page = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    sections = {s.split("\n", 1)[0]: set(re.findall(r"^- `(\w+)`", s, re.MULTILINE)) for s in page.split("\n## ")[1:]}
    monkeypatch.chdir(tmp_path)
    calls = (
        ("init", "init", "segments"), ("check", "check"), ("plan", "plan"), ("train", "train"), ("evaluate", "evaluate"),
        ("export", "export"),
        ("predict", "predict", "data=customers.csv"), ("report", "report"), ("run", "run"), ("doctor", "doctor"), ("runs", "runs"),
        ("runs", "runs", "compare", "segments-0001", "segments-0002"),
    )  # fmt: skip
    seen: dict[str, set[str]] = {}
    for verb, *args in calls:
        code = cli.main([*args, "--json"])
        out = capfd.readouterr().out
        assert code == 0, out
        keys = set(json.loads(out)) - {"schema_version", "seconds", "warnings"}
        assert keys <= sections[verb] | {"set_aside_count"}, verb
        seen.setdefault(verb, set()).update(keys)
        if verb == "init":
            monkeypatch.chdir(tmp_path / "segments")
    assert {v: sections[v] - keys for v, keys in seen.items() if sections[v] - keys} == {}


def test_code_shown_in_contributing_is_the_code() -> None:
    """Blocks that begin with a path are parts of that file."""
    shown = blocks(ROOT / "CONTRIBUTING.md", "python")
    assert len(shown) >= 4
    for text in shown:
        first, _, rest = text.partition("\n")
        assert rest.strip() in (ROOT / first.removeprefix("# ")).read_text(encoding="utf-8"), first
