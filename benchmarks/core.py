"""The environment that only predicts and serves: its size, its start, its memory, and what the command line imports.

    python benchmarks/core.py                 # builds a fresh virtual environment with pip: `pip install .`, no extras
    python benchmarks/core.py --venv FOLDER   # uses one that was built so before

Run with an interpreter that has the training extras: it trains and exports the models that the core then serves. Goals:
installed ≤ 450 MB, first answer ≤ 1.5 s after the process starts, resident ≤ 250 MB, `--help` ≤ 150 ms above an empty
interpreter, and no torch after `import modelyard` or `--help`. Exit code 1 where one is missed. Times are wall and CPU; the less of
the two is judged, since on a busy machine wall time counts the neighbours too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _record import hardware, verdict

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "polars", "sklearn", "lightgbm", "onnx", "onnxruntime")
TABLE: dict[str, Any] = {"a": 0.5, "b": -1.0, "c": "red"}


@dataclass
class Served:
    """One start of the server."""

    seconds: float
    """From starting the process to the last byte of the first answer."""
    cpu: float
    """CPU seconds of the process until then."""
    resident_mb: float
    """VmRSS after 100 answers."""


def build(folder: Path) -> Path:
    """A fresh virtual environment with `pip install .`; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([python, *quiet, str(ROOT)], check=True)
    return python


def megabytes(folder: Path) -> tuple[float, float]:
    """(all, without pip and setuptools) MB of 10^6 bytes on disk, as `du` counts blocks."""
    sizes = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sizes[path] = path.stat().st_blocks * 512
    tools = sum(s for p, s in sizes.items() if {"pip", "setuptools"} & set(p.parts) or any(x.startswith(("pip-", "setuptools-")) for x in p.parts))
    whole = sum(sizes.values())
    return whole / 1e6, (whole - tools) / 1e6


def installed(python: Path) -> set[str]:
    """Names of the distributions in an environment."""
    found = subprocess.run([python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True)
    return {p["name"].lower() for p in json.loads(found.stdout)}


def exported(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Trained and exported models by name, each with a row to ask about: trees on a table and a network on texts."""
    from modelyard.data.source import DataConfig
    from modelyard.verbs.export import export
    from modelyard.verbs.train import Config, train

    random = np.random.default_rng(0)
    colour = random.choice(["red", "blue"], 400)
    a, b = random.normal(size=(2, 400))
    label = np.where((a + (colour == "red") > 0.5), "yes", "no")
    table = pl.DataFrame({"a": a, "b": b, "c": colour, "y": label})
    words = np.array(["rice", "soup", "train", "plane", "the", "very"])
    texts = [" ".join(random.choice(words[:2] if y == "yes" else words[2:], 6)) for y in label]
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    sentences = pl.DataFrame({"t": texts, "y": label})
    jobs: dict[str, tuple[DataConfig, dict[str, Any]]] = {
        "trees": (DataConfig(path=table, target="y"), TABLE),
        "text-cnn": (DataConfig(path=sentences, target="y", inputs={"t": "text"}), {"t": "rice soup"}),
    }
    for name, (data, row) in jobs.items():
        result = train(data, None, name, Config(epochs=1), name=name, base=folder)
        made[name] = Path(export(result.model).folder), row
    return made


def serve(python: Path, model: Path, row: dict[str, Any], environment: dict[str, str], folder: Path) -> Served:
    """Starts `modelyard serve`, asks until it answers, asks 100 times more, and stops it."""
    port = 18000 + os.getpid() % 10_000
    name = json.loads((model / "manifest.json").read_text(encoding="utf-8"))["name"]
    began = time.perf_counter()
    command = [python, "-m", "modelyard", "serve", str(model), f"serve.port={port}"]
    with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ask = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/models/{name}:predict", json.dumps({"instances": [row]}).encode("utf-8"), {"Content-Type": "application/json"}
            )
            seconds = None
            while seconds is None:
                if process.poll() is not None or time.perf_counter() - began > 60:
                    raise SystemExit(f"the server of {model} gave no answer (exit {process.poll()})")
                try:
                    with urllib.request.urlopen(ask, timeout=10) as answer:
                        answer.read()
                    seconds, cpu = time.perf_counter() - began, _cpu(process.pid)
                except (ConnectionError, OSError):
                    time.sleep(0.005)
            for _ in range(100):
                with urllib.request.urlopen(ask, timeout=10) as answer:
                    answer.read()
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            return Served(seconds, cpu, resident * 1024 / 1e6)
        finally:
            process.terminate()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def help_cost(python: Path, environment: dict[str, str], pairs: int = 15) -> tuple[float, float]:
    """(median wall, median CPU) milliseconds of `modelyard --help` above `python -c pass`, started in turn."""
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(pairs):
        cost = []
        for arguments in (["-c", "pass"], ["-m", "modelyard", "--help"]):
            before, began = os.times(), time.perf_counter()
            subprocess.run([python, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            cost.append((time.perf_counter() - began, used))
        wall.append(1e3 * (cost[1][0] - cost[0][0]))
        cpu.append(1e3 * (cost[1][1] - cost[0][1]))
    return statistics.median(wall), statistics.median(cpu)


def imports(environment: dict[str, str]) -> dict[str, list[str]]:
    """Heavy modules in `sys.modules` after `import modelyard` and after `--help`, where all of them are installed."""
    tail = f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    programs = {
        "import modelyard": f"import sys, modelyard; {tail}",
        "--help": f"import sys, contextlib, modelyard.cli\nwith contextlib.suppress(SystemExit):\n    modelyard.cli.main(['--help'])\n{tail}",
    }
    found = {}
    for name, program in programs.items():
        done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stderr.strip().splitlines()[-1].replace("'", '"'))
    return found


def main() -> int:
    """Measures everything and prints one line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    asked = parser.parse_args()
    print(hardware())
    ok = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = (asked.venv / "bin" / "python") if asked.venv else build(folder / "venv")
        plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        names = installed(python)
        ok.append(verdict("no training package installed", not names & {"torch", "lightgbm", "scikit-learn", "onnx"}, f"{len(names)} distributions"))
        whole, without = megabytes(python.parents[1])
        ok.append(verdict("installed size ≤ 450 MB", without <= 450, f"{without:.0f} MB ({whole:.0f} MB with pip and setuptools)"))
        for model, (exports, row) in exported(folder).items():
            serve(python, exports, row, plain, folder)  # compiles .pyc files and warms the page cache, as an installer does
            starts = [serve(python, exports, row, plain, folder) for _ in range(asked.starts)]
            first = statistics.median(s.seconds for s in starts)
            cpu = statistics.median(s.cpu for s in starts)
            spread = f"{min(s.seconds for s in starts):.2f} … {max(s.seconds for s in starts):.2f}"
            found = f"wall {first:.2f} s ({spread}), CPU {cpu:.2f} s, medians of {asked.starts}"
            ok.append(verdict(f"{model}: first answer ≤ 1.5 s", min(first, cpu) <= 1.5, found))
            resident = max(s.resident_mb for s in starts)
            ok.append(verdict(f"{model}: resident ≤ 250 MB", resident <= 250, f"{resident:.0f} MB"))
        wall, cpu = help_cost(python, plain)
        ok.append(verdict("--help ≤ 150 ms above python -c pass", min(wall, cpu) <= 150, f"{wall:.0f} ms wall, {cpu:.0f} ms CPU"))
        for what, loaded in imports({**os.environ}).items():
            ok.append(verdict(f"{what} loads none of {', '.join(HEAVY)}", not loaded, ", ".join(loaded) or "none"))
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
