"""The rules of the house, each short: import direction, verb edges, nothing executable loaded, lazy start, public surface."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modelyard
from modelyard import registry

ROOT = Path(modelyard.__file__).parent
REPOSITORY = ROOT.parent.parent

LAYERS = [
    {"errors"}, {"registry", "settings"}, {"kinds"}, {"store"}, {"data", "nets", "estimators", "losses", "metrics", "rewards", "attacks"},
    {"runtime"}, {"tasks"}, {"verbs"}, {"project_file", "project", "options", "progress"}, {"calls", "cli", "testing", "__main__", "__init__"},
]  # fmt: skip
"""From the bottom up: a module imports from its own layer or below."""

SIDEWAYS = {
    ("nets", "registry"), ("data", "store"), ("verbs", "progress"), ("verbs", "options"), ("verbs", "project"), ("verbs", "project_file"),
}  # fmt: skip
"""Allowed although the layer is above: what verbs are handed by the command line."""

VERB_EDGES = {
    ("train", "evaluate"), ("train", "report"), ("train", "plan"), ("evaluate", "report"), ("evaluate", "train"), ("plan", "train"),
    ("tune", "train"), ("tune", "evaluate"), ("init", "check"), ("export", "train"), ("predict", "train"), ("prepare", "train"),
    ("compress", "train"), ("compress", "evaluate"), ("compress", "export"),
    ("benchmark", "evaluate"), ("benchmark", "export"), ("benchmark", "report"),
}  # fmt: skip
"""verb → verb, each through a public function. evaluate → train: a tuned threshold saves its child as training does.
plan → train: the plan sizes what train would build. prepare → train: self-training and out-of-fold answers are made by models, which train alone makes."""

FORBIDDEN = re.compile(r"\b(pickle|marshal|dill|joblib|shelve)\b|torch\.load|yaml\.load\(|allow_pickle\s*=\s*True|(?<![\w.])(eval|exec)\(")


def modules() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if "_examples" not in p.parts)


def imported(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports, TYPE_CHECKING blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for n in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modelyard"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("modelyard")}
    return found


def layer_of(dotted: str) -> tuple[int, str]:
    part = [*dotted.split("."), "__init__"][1]
    level = next((i for i, names in enumerate(LAYERS) if part in names), -1)
    return level, part


def test_imports_point_down() -> None:
    wrong = []
    for path in modules():
        own = "modelyard." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        level, part = layer_of(own)
        assert level >= 0, f"{path} belongs to no layer"
        for name in imported(path):
            other, target = layer_of(name)
            if other > level and (part, target) not in SIDEWAYS and (ROOT / f"{target}.py").exists() | (ROOT / target).is_dir():
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_verbs_meet_only_at_named_edges() -> None:
    found = set()
    for path in modules():
        parts = path.relative_to(ROOT).parts
        if parts[0] != "verbs" or len(parts) < 3:
            continue
        found |= {
            (parts[1], name.split(".")[2])
            for name in imported(path)
            if name.startswith("modelyard.verbs.") and name.split(".")[2] != parts[1]
        }
    assert found <= VERB_EDGES, f"new edges between verbs: {sorted(found - VERB_EDGES)}"


def test_nothing_executable_is_loaded() -> None:
    wrong = []
    for path in modules():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            if FORBIDDEN.search(code) and not code.lstrip().startswith(('"', "'")) and "`" not in code and "no pickle" not in code:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_every_file_says_what_it_is() -> None:
    bare = [str(p.relative_to(ROOT)) for p in modules() if not (ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "").strip()]
    assert not bare, f"no docstring: {bare}"


def test_no_drawer_of_helpers() -> None:
    names = {p.stem for p in modules()} | {p.name for p in ROOT.rglob("*") if p.is_dir()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_public_surface_is_pinned() -> None:
    assert sorted(modelyard.__all__) == [
        "Model", "ModelyardError", "Project", "Registry", "__version__", "benchmark", "chat", "check", "compress", "doctor", "evaluate", "export", "init",
        "load", "load_model", "plan", "predict", "prepare", "project", "report", "run", "runs", "serve", "train", "tune",
    ]  # fmt: skip
    for name in modelyard.__all__:
        assert getattr(modelyard, name) is not None


@pytest.mark.parametrize("start", ["import modelyard", "import modelyard.cli; modelyard.cli.main(['--help'])"])
def test_lazy_start(start: str) -> None:
    heavy = "torch numpy polars onnxruntime sklearn lightgbm PIL tokenizers starlette ruamel rich"
    code = f"{start}\nimport sys\nloaded = [m for m in '{heavy}'.split() if m in sys.modules]\nassert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_core_modules_import_without_the_extras() -> None:
    """Everything but nets, losses and what trains them imports when no extra is installed."""
    blocked = ["torch", "lightgbm", "sklearn", "scipy", "onnx", "onnxscript", "pyarrow", "pandas", "optuna", "matplotlib", "safetensors"]
    skip = (
        "nets.",
        "losses.",
        "data.batches",
        "data.blocks",
        "verbs.train.loop",
        "verbs.train.fit_net",
        "verbs.train.optimisers",
        "verbs.train.augment",
        "verbs.train.guard",
        "verbs.train.depth",
        "verbs.train.freeze",
        "verbs.train.layer_decay",
        "verbs.train.masking",
        "verbs.train.texts",
        "verbs.train.align",
        "verbs.train.dpo",
        "verbs.train.kto",
        "verbs.train.grpo",
        "verbs.train.lora",
        "verbs.compress._hints",
    )
    names = []
    for path in modules():
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not dotted.startswith(skip) and dotted not in ("nets", "losses", "__main__", "__init__"):
            names.append(f"modelyard.{dotted}")
    code = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name.split('.')[0])
sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
from modelyard import registry
from modelyard.errors import MissingExtra
try:
    registry.load('nets', 'mlp')
except MissingExtra as error:
    assert "pip install 'modelyard[train]'" in str(error), error
else:
    raise SystemExit('a net loaded without torch')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_of_this_machine_is_in_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    wrong = []
    for name in tracked.stdout.splitlines():
        path = REPOSITORY / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", "")
            and path.is_file()
            and path.stat().st_size < 500_000
        ):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if re.search(r"/(root|home|work|opt)/[a-z]", text) and name != "tests/test_house.py":
                wrong.append(name)
    assert not wrong, f"paths of a machine in {wrong}"


@pytest.mark.parametrize(
    "group",
    ["kinds", "tasks", "nets", "estimators", "losses", "metrics", "rewards", "runtime/programs", "runtime/backends", "data/frames", "verbs", "verbs/tune"],
)
def test_every_name_has_a_sentence(group: str) -> None:
    for name in registry.names(group):
        assert len(registry.describe(group, name)) > 20, f"{group}/{name}"
