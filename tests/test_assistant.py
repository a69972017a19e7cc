# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""The assistant of the examples from conversations to a streamed answer, smaller; and the same file on a base from a hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import modelyard
from modelyard import cli, project
from modelyard.runtime.model import Model

FOLDER = Path(__file__).parent.parent / "examples" / "assistant"
SMALL = ["data.limit=60", "train.batch=8", "train.smoke=false"]


def command(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    capfd.readouterr()
    assert cli.main([*args, "--json"]) == 0, capfd.readouterr().err[-2000:]
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_from_conversations_to_a_streamed_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    command(capfd, "init", "assistant")
    monkeypatch.chdir(tmp_path / "assistant")
    shape = "model={name: causal, width: 48, layers: 2, heads: 2, context: 512, vocabulary: 600}"
    command(capfd, "train", *SMALL, shape, "train.epochs=8", "train.lr=0.005")
    planned = command(capfd, "plan", "-f", "prefer.yaml", *SMALL)  # a base is found from the project's folder, as in training
    assert planned["parameters"] > 10_000 and planned["training"]["weight_decay"] == 0
    preferred = command(capfd, "train", "-f", "prefer.yaml", *SMALL, "train.epochs=1", "train.lr=0.00005")
    judged = command(capfd, "evaluate", preferred["run"])["metrics"]["test"]
    assert 0 <= judged["win_rate"]["value"] <= 1 and judged["perplexity"]["value"] < 200
    model = Model.load(preferred["model"])
    question = "I'm looking for a place to eat in San Jose."
    answer = model.predict([{"messages": [{"role": "user", "content": question}]}], {"max_tokens": 60, "temperature": 0.0}).to_json()[0]["completion"]
    with modelyard.serve(preferred["model"], slots=2) as running:
        done = subprocess.run([sys.executable, "client.py", running.url, question], capture_output=True, text=True, timeout=60, check=True, encoding="utf-8")
    assert done.stdout.removesuffix("\n") == answer and len(answer.strip()) > 5

    # a name of the hub is looked up in its cache first: here stands the small model under the large one's name
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cli.main(["train", "-f", "qwen.yaml", *SMALL]) == 2
    assert "hf download Qwen/Qwen3-0.6B" in capfd.readouterr().err
    entry = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc", encoding="utf-8")
    shutil.copytree(preferred["model"], entry / "snapshots" / "abc")
    tuned = command(capfd, "train", "-f", "qwen.yaml", *SMALL, "train.epochs=1", "train.lr=0.00005")
    small = json.loads((Path(tuned["model"]) / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert small["r"] == 16 and small["base_model_name_or_path"] and Model.load(tuned["model"]).parity


def test_the_example_says_where_its_data_is_from() -> None:
    about = (FOLDER / "DATA.md").read_text(encoding="utf-8")
    for file in sorted(FOLDER.glob("*.yaml")):
        lines = [x for x in file.read_text(encoding="utf-8").splitlines() if x.strip()]
        data = FOLDER / project.load_project(file).data.path
        assert 8 <= len(lines) <= 22 and lines[0].startswith("# ") and data.is_file() and data.name in about and data.stat().st_size < 500_000
    assert re.search(r"CC BY-SA 4\.0", about)
