"""What an MLflow server is told: by a stand that answers as MLflow 3 does (tried against the real one), one that refuses, and none at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import polars as pl
import pytest

import modelyard
import servers
from modelyard import cli
from modelyard.store import mirror
from modelyard.store.run import Run

KEY = re.compile(r"[\w./ :-]{1,250}")


class Mlflow:
    """Experiments, runs and models in memory, with the refusals that matter."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.broken = ""

    def answer(self, method: str, path: str, body: Any, raw: bytes, header: str) -> dict[str, Any]:
        self.seen.append(header)
        if path.startswith("/api/2.0/mlflow-artifacts/artifacts/"):
            self.files[path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/")] = raw
            return {}
        name = path.removeprefix("/api/2.0/mlflow/")
        if self.broken and name == self.broken:
            raise KeyError("INTERNAL_ERROR")
        return getattr(self, f"{method.lower()}_{re.sub('[/-]', '_', name)}")(body) or {}  # type: ignore[no-any-return]

    def get_experiments_get_by_name(self, body: Any) -> Any:
        if body["experiment_name"] not in self.experiments:
            raise KeyError("RESOURCE_DOES_NOT_EXIST")
        return {"experiment": {"experiment_id": self.experiments[body["experiment_name"]]}}

    def post_experiments_create(self, body: Any) -> Any:
        self.experiments[body["name"]] = number = str(len(self.experiments) + 1)
        return {"experiment_id": number}

    def post_runs_create(self, body: Any) -> Any:
        number = f"r{len(self.runs)}"
        self.runs[number] = {**body, "params": {}, "metrics": {}, "status": "RUNNING"}
        return {"run": {"info": {"run_id": number, "artifact_uri": f"mlflow-artifacts:/{body['experiment_id']}/{number}/artifacts"}}}

    def post_runs_log_batch(self, body: Any) -> None:
        run = self.runs[body["run_id"]]
        assert len(body.get("params", [])) <= 100 and len(body.get("metrics", [])) <= 1000
        for p in body.get("params", []):
            assert KEY.fullmatch(p["key"]) and isinstance(p["value"], str) and len(p["value"]) <= 6000 and p["key"] not in run["params"]
            run["params"][p["key"]] = p["value"]
        for m in body.get("metrics", []):
            assert KEY.fullmatch(m["key"]) and isinstance(m["timestamp"], int) and isinstance(m["step"], int)
            run["metrics"].setdefault(m["key"], []).append((m["step"], float(m["value"])))

    def post_runs_update(self, body: Any) -> None:
        self.runs[body["run_id"]] |= {"status": body["status"], "end_time": body["end_time"]}

    def post_registered_models_create(self, body: Any) -> None:
        if body["name"] in self.models:
            raise KeyError("RESOURCE_ALREADY_EXISTS")
        self.models[body["name"]] = {"versions": [], "aliases": {}}

    def get_registered_models_get(self, body: Any) -> Any:
        return {"registered_model": {"aliases": [{"alias": a, "version": v} for a, v in self.models[body["name"]]["aliases"].items()]}}

    def get_model_versions_search(self, body: Any) -> Any:
        name = re.fullmatch(r"name='(.*)'", body["filter"])
        assert name is not None
        return {"model_versions": self.models[name[1]]["versions"]}

    def post_model_versions_create(self, body: Any) -> Any:
        assert urlsplit(body["source"]).path.startswith("/")  # MLflow refuses paths that are not absolute
        versions = self.models[body["name"]]["versions"]
        versions.append({**body, "version": str(len(versions) + 1)})
        return {"model_version": versions[-1]}

    def post_registered_models_alias(self, body: Any) -> None:
        self.models[body["name"]]["aliases"][body["alias"]] = body["version"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Mlflow]]:
    known = Mlflow()

    class Take(BaseHTTPRequestHandler):
        def take(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            body = {k: v[0] for k, v in parse_qs(parts.query).items()} if self.command == "GET" else json.loads(raw) if raw[:1] == b"{" else None
            try:
                status, said = 200, known.answer(self.command, parts.path, body, raw, self.headers.get("Authorization", ""))
            except KeyError as error:
                status, said = 400, {"error_code": error.args[0], "message": f"refused: {error.args[0]}"}
            out = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        do_GET = do_POST = do_PUT = do_DELETE = take

        def log_message(self, *_: Any) -> None:
            pass

    stand = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=stand.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{stand.server_address[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    yield address, known
    stand.shutdown()
    stand.server_close()
    thread.join()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    x = np.random.default_rng(0).normal(size=(120, 2))
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.where(x.sum(1) > 0, "yes", "no")}).write_csv(tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(**more: Any) -> Path:
    settings: dict[str, Any] = {"data": "rows.csv", "target": "y", "name": "sums", "model": {"name": "mlp", "hidden": [8]}, "train.epochs": 3}
    return Path(modelyard.train(**{**settings, **more}).run)


def test_a_run_is_told_with_its_course_and_pictures(server: tuple[str, Mlflow], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="nets need the extra 'train'")
    address, mlflow = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", "://ann:s3cret@"))
    run = train()
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))["mlflow"]
    kept = mlflow.runs[told["run"]]
    assert mlflow.experiments == {"sums": "1"} and kept["status"] == "FINISHED" and kept["end_time"] >= kept["start_time"]
    assert kept["params"]["model.name"] == "mlp" and kept["params"]["train.epochs"] == "3" and "train.lr" not in kept["params"]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    for split, found in metrics.items():
        assert any(e["value"] is not None for e in found.values())
        for name, entry in ((n, e) for n, e in found.items() if e["value"] is not None):
            assert kept["metrics"][f"{split}.{name}"] == [(0, entry["value"])] and kept["metrics"][f"{split}.{name}.low"] == [(0, entry["low"])]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept["metrics"]["train.loss"] == [(e["step"], e["loss"]) for e in events if e["event"] == "epoch"]
    files = {name.split("/artifacts/")[1]: raw for name, raw in mlflow.files.items()}
    assert files["report.html"] == (run / "report.html").read_bytes() and any(n.startswith("plots/") for n in files)
    assert not any("safetensors" in n or n.endswith(".onnx") for n in files)
    everything = "".join(p.read_text(encoding="utf-8", errors="replace") for p in run.rglob("*") if p.is_file())
    assert set(mlflow.seen) == {"Basic YW5uOnMzY3JldA=="} and "s3cret" not in everything
    assert modelyard.report(str(run)) and len(mlflow.runs) == 1  # what makes no run tells of none


def test_versions_and_aliases_follow(server: tuple[str, Mlflow], place: Path) -> None:
    _, mlflow = server
    runs = [train(model="linear", **{"train.seed": seed}) for seed in (1, 2)]
    for run in runs:
        assert cli.main(["models", "register", str(run)]) == 0
    versions = mlflow.models["sums"]["versions"]
    assert [v["version"] for v in versions] == ["1", "2"] and [v["run_id"] for v in versions] == ["r0", "r1"]
    assert cli.main(["models", "register", str(runs[0])]) == 0 and len(versions) == 2  # the same model is one version
    for words in (["promote", "sums", "1"], ["promote", "sums", "2", "force=true"]):
        assert cli.main(["models", *words]) == 0
    assert mlflow.models["sums"]["aliases"] == {"champion": "2"}
    assert cli.main(["models", "rollback", "sums"]) == 0 and mlflow.models["sums"]["aliases"] == {"champion": "1"}


def test_a_server_that_refuses_or_is_gone_costs_a_note(
    server: tuple[str, Mlflow], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, mlflow = server
    mlflow.broken = "runs/log-batch"
    run = train(model="linear")
    assert (run / "report.html").is_file() and mlflow.runs["r0"]["status"] == "KILLED" and "mlflow" not in json.loads((run / "run.json").read_text("utf-8"))
    assert "refused: INTERNAL_ERROR. The run itself is whole" in capsys.readouterr().err
    for address, reason in (("http://me:s3cret@127.0.0.1:9", "refused"), ("sqlite:///mlflow.db", "start one with: mlflow server")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert cli.main(["train", "data=rows.csv", "data.target=y", "model=linear", "name=sums"]) == 0
        assert cli.main(["models", "register"]) == 0
        said = capsys.readouterr().err
        assert reason in said and "s3cret" not in said and said.count("was not told") == 2


def test_what_is_no_mlflow_costs_a_note_and_gets_no_password(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The page of a proxy, answers of another shape, a redirect to another host; and a network that is out of bounds."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # --offline sets it for the process; here it ends with the test
    seen: list[str] = []
    answers = {
        "page": (200, b"<html>log in</html>"), "list": (200, b"[]"), "shape": (200, b'{"experiment": 3}'), "utf": (200, b"\xff\xfe{"),
        "moved": (302, b""), "elsewhere": (200, b'{"experiment": {"experiment_id": "1"}}'),
    }  # fmt: skip

    class Take(BaseHTTPRequestHandler):
        def take(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = self.path.split("/")[1]
            seen.append(f"{name} {self.headers.get('Authorization', '')}")
            status, body = answers[name]
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://localhost:{stand.server_address[1]}/elsewhere/api")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = take

        def log_message(self, *_: Any) -> None:
            pass

    stand = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=stand.serve_forever, daemon=True)
    thread.start()
    try:
        run = train(model="linear")
        for name in ("page", "list", "shape", "utf", "moved"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cret@127.0.0.1:{stand.server_address[1]}/{name}")
            said: list[str] = []
            mirror.run(run, "sums", said.append)
            assert len(said) == 1 and "was not told" in said[0] and "s3cret" not in said[0], name
        assert {s.split(" ")[0] for s in seen} == {"page", "list", "shape", "utf", "moved"}  # nobody followed
        count = len(seen)
        assert cli.main(["models", "register", str(run), "--offline"]) == 0
        assert "out of bounds" in capsys.readouterr().err and len(seen) == count
    finally:
        stand.shutdown()
        stand.server_close()
        thread.join()


def test_a_loss_that_overflowed_is_left_out(server: tuple[str, Mlflow], place: Path) -> None:
    _, mlflow = server
    run = train(model="linear")
    kept = Run(run)
    kept.write("run.json", {k: v for k, v in kept.read("run.json").items() if k != "mlflow"})
    for loss in (1.5, float("nan"), float("inf"), 0.5):
        kept.event({"event": "epoch", "step": int(loss * 2) if loss < 2 else 9, "loss": loss})
    said: list[str] = []
    mirror.run(run, "sums", said.append)
    assert not said and mlflow.runs["r1"]["metrics"]["train.loss"] == [(3, 1.5), (1, 0.5)]


@pytest.mark.skipif("MODELYARD_MLFLOW" not in os.environ, reason="set MODELYARD_MLFLOW to the program mlflow (it starts in 20 s)")
def test_a_real_server_keeps_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = servers.free_port()
    kept_at = ["--backend-store-uri", f"sqlite:///{place}/m.db", "--workers", "1"]
    command = [os.environ["MODELYARD_MLFLOW"], "server", "--host", "127.0.0.1", "--port", str(port), *kept_at]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        servers.listening(process, port, 120)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        run = train(model="linear")
        told = json.loads((run / "run.json").read_text(encoding="utf-8"))["mlflow"]
        for words in (["register", str(run)], ["promote", "sums", "1"]):
            assert cli.main(["models", *words]) == 0
        server = mirror.Server(f"http://127.0.0.1:{port}")
        kept = server.ask("GET", "runs/get", {"run_id": told["run"]})["run"]
        test = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
        values = {m["key"]: m["value"] for m in kept["data"]["metrics"]}
        assert kept["info"]["status"] == "FINISHED" and all(values[f"test.{k}"] == v["value"] for k, v in test.items() if v["value"] is not None)
        champion = server.ask("GET", "registered-models/alias", {"name": "sums", "alias": "champion"})["model_version"]
        assert champion["run_id"] == told["run"] and champion["version"] == "1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
