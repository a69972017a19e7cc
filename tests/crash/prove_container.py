"""The file set of an image, built without Docker: the export's Dockerfile is followed line by line into an empty root, and the server is started from it.

    python tests/crash/prove_container.py                     # trees on a table and a net on texts
    python tests/crash/prove_container.py --model FOLDER      # any model folder

`COPY` copies, `RUN pip install` installs with `--target`, `ENV` and `ENTRYPOINT` are what the process gets; it runs with `python -S`, so that nothing
of this environment is seen. Shows: no torch in the root, at most 450 MB without the base system, the stored examples answered as the model answers
them, 401 without the token, exit 0 on SIGTERM. Exit code 1 where one of it fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import modelyard
from modelyard.runtime.model import Model
from modelyard.verbs.export import export

LIMIT = 450e6
"""Bytes in the root without the base system."""
TOKEN = "prove-container-1"


def build(context: Path, root: Path) -> tuple[dict[str, str], list[str]]:
    """(environment, command) of the image, its files under `root`. Refuses lines that it cannot follow."""
    environment: dict[str, str] = {}
    command: list[str] = []
    site = root / "usr/local/lib/python/site-packages"
    for line in (context / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            source, target = rest.split()
            place = root / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(context / source, place) if (context / source).is_dir() else shutil.copyfile(context / source, place)
        elif word == "RUN" and rest.startswith("pip install"):
            given = [f"{root}{w}" if w.startswith("/") else w for w in shlex.split(rest)[2:]]
            quiet = ["--quiet", "--only-binary", ":all:", "--target", str(site)]
            done = subprocess.run([sys.executable, "-m", "pip", "install", *quiet, *given], check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"pip could not install what the image needs:\n{done.stderr}")
        elif word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "ENTRYPOINT":
            command = json.loads(rest)
        elif word == "RUN":
            if not rest.startswith("useradd"):
                raise SystemExit(f"the Dockerfile does what is not followed here: {line}")
        elif word not in ("", "#", "FROM", "WORKDIR", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"):
            raise SystemExit(f"the Dockerfile has a line that is not followed here: {line}")
    environment["PYTHONPATH"] = os.pathsep.join([f"{root}{environment['PYTHONPATH']}", str(site)])
    return environment, [f"{root}{w}" if w.startswith("/app") else w for w in command]


def started(root: Path, environment: dict[str, str], command: list[str], port: int) -> subprocess.Popen[bytes]:
    """The server, as the image would start it, on a free port; nothing of this process's environment is handed on."""
    settings = root / "app/serve.yaml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub(r"port: \d+", f"port: {port}", text).replace("0.0.0.0", "127.0.0.1"), encoding="utf-8")
    assert command[0] == "python"
    base = {"PATH": "/usr/bin:/bin", "HOME": str(root), "PYTHONNOUSERSITE": "1", "MODELYARD_TOKEN": TOKEN}
    return subprocess.Popen([sys.executable, "-S", *command[1:]], env=base | environment, cwd=root / "app", stderr=subprocess.PIPE)


def ask(port: int, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, Any]:
    """(status, JSON)."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode("utf-8") if body is not None else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def prove(model: Path, place: Path) -> list[str]:
    """Faults of one model's image; prints what was measured."""
    context = Path(export(model, "docker").folder)
    root = place / "root"
    environment, command = build(context, root)
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
    faults = [f"{size / 1e6:.0f} MB"] if size > LIMIT else []
    faults += [f"holds {name}" for name in ("torch", "lightgbm", "sklearn", "scipy", "pandas", "onnx") if list(root.rglob(f"site-packages/{name}"))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    process = started(root, environment, command, port)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}: {process.stderr.read().decode() if process.stderr else ''}")
            try:
                ask(port, "/v2/health/ready")
                break
            except OSError:
                time.sleep(0.02)
        seconds = time.perf_counter() - began
        loaded = Model.load(model)
        path = f"/v1/models/{loaded.name}:predict"
        status, found = ask(port, path, {"instances": loaded.examples})
        expected = loaded.predict(loaded.examples).to_json()
        outputs = [c.name for c in loaded.pipeline.outputs]
        faults += differences(expected, found["predictions"], outputs) if status == 200 else [f"status {status}: {found}"]
        if (status := ask(port, path, {"instances": []}, token=None)[0]) != 401:
            faults.append(f"status {status} without a token")
        status_lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        resident = next(int(line.split()[1]) / 1e3 for line in status_lines if "VmRSS" in line)
        process.send_signal(signal.SIGTERM)
        if process.wait(30) != 0:
            faults.append(f"exit {process.returncode} on SIGTERM")
    finally:
        process.kill()
    packages = len(list((root / "usr/local/lib/python/site-packages").glob("*.dist-info")))
    told = f"{size / 1e6:.0f} MB in {packages} packages, first answer after {seconds:.2f} s, {resident:.0f} MB resident"
    print(f"{loaded.name}: {told}, {len(loaded.examples)} examples answered{'' if not faults else '; FAULTS: ' + '; '.join(faults)}", flush=True)
    return faults


def differences(expected: list[dict[str, Any]], found: list[Any], outputs: list[str]) -> list[str]:
    """Answers whose output is not the model's own (numbers within 1e-4 of it)."""
    wrong = []
    for i, (want, got) in enumerate(zip(expected, found, strict=True)):
        got = got if isinstance(got, dict) else {outputs[0]: got}
        for name in outputs:
            a, b = want.get(name), got.get(name)
            same = abs(a - b) <= 1e-4 * max(1, abs(a)) if isinstance(a, float) and isinstance(b, int | float) else a == b
            wrong += [] if same else [f"example {i}: {name} is {b!r}, not {a!r}"]
    return wrong[:5]


def trained(place: Path) -> list[Path]:
    """Model folders: trees on a table, a net on texts."""
    random = np.random.default_rng(0)
    a, b, colour = random.normal(size=400), random.normal(size=400), random.choice(["red", "blue"], 400)
    label = np.where(a + (colour == "red") > 0.5, "yes", "no")
    texts = [" ".join(random.choice(["rice", "soup", "the"] if y == "yes" else ["train", "plane", "the"], 6)) for y in label]
    os.chdir(place)
    table = modelyard.train(data=pl.DataFrame({"a": a, "b": b, "c": colour, "y": label}), target="y", name="trees", quiet=True)
    text = modelyard.train(
        data=pl.DataFrame({"t": texts, "y": label}), target="y", model="text-cnn", name="texts", quiet=True, **{"data.inputs": {"t": "text"}, "train.epochs": 1}
    )
    return [place / table.model, place / text.model]


def main() -> None:
    """Prints a line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; without it two are trained")
    given = parser.parse_args()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        for i, model in enumerate([given.model.resolve()] if given.model else trained(Path(place))):
            (Path(place) / str(i)).mkdir()
            faults += prove(model, Path(place) / str(i))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
