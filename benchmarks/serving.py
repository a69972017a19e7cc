"""Requests a second and latency of one small net behind HTTP: ours, FastAPI + torch, LitServe, MLflow, with one load generator.

    python benchmarks/serving.py --peers PYTHON --seconds 8 --rounds 3

PYTHON is an environment with fastapi, uvicorn[standard], litserve, mlflow and torch. The net is an MLP (16 numbers, 64, 64, 3 labels),
trained here; peers get its weights. Every server runs alone, in turn, round after round, with connections kept open; the generator is an
asyncio protocol on uvloop in a process of its own, and every answer's status is checked. Ours checks every row, as always. The peers are
what their documentation shows first: FastAPI with a pydantic body and a plain function, LitServe's `LitAPI`, `mlflow models serve` of a
pyfunc model. Goals: requests/s at 64 clients >= 5 x FastAPI, >= 3 x LitServe, >= 5 x MLflow, p99 lower than each; p50 of one client <= 0.6 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from _record import hardware, verdict

CLIENTS = (1, 16, 64)

FASTAPI = """
import sys, torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
net = torch.jit.load(sys.argv[2])
app = FastAPI()
class Body(BaseModel):
    instances: list[list[float]]
@app.post("/predict")
def predict(body: Body):
    with torch.inference_mode():
        scores = net(torch.tensor(body.instances)).softmax(1)
    return {"predictions": [{"label": "abc"[int(row.argmax())], "scores": row.tolist()} for row in scores]}
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
LITSERVE = """
import sys, torch, litserve
class API(litserve.LitAPI):
    def setup(self, device):
        self.net = torch.jit.load(sys.argv[2])
    def decode_request(self, request):
        return torch.tensor(request["instances"])
    def predict(self, x):
        with torch.inference_mode():
            return self.net(x).softmax(1)
    def encode_response(self, scores):
        return {"predictions": [{"label": "abc"[int(row.argmax())], "scores": row.tolist()} for row in scores]}
if __name__ == "__main__":
    litserve.LitServer(API(), accelerator="cpu").run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
"""
MLFLOW = """
import sys, mlflow, torch
class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.net = torch.jit.load(context.artifacts["net"])
    def predict(self, context, model_input):
        with torch.inference_mode():
            scores = self.net(torch.tensor(model_input.to_numpy(), dtype=torch.float32)).softmax(1)
        return [{"label": "abc"[int(row.argmax())], "scores": row.tolist()} for row in scores]
mlflow.pyfunc.save_model(sys.argv[1], python_model=Model(), artifacts={"net": sys.argv[2]}, pip_requirements=["torch"])
"""


def main() -> None:
    """Trains, starts the servers in turn, prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python with the peers installed; without it only ours runs")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None, help="ours fastapi litserve mlflow")
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        generate(*given.load, given.seconds)
        return
    print(hardware(), flush=True)
    with tempfile.TemporaryDirectory() as place:
        servers = prepare(Path(place), given.peers)
        servers = {k: v for k, v in servers.items() if given.only is None or k in given.only}
        found: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in CLIENTS} for name in servers}
        for _ in range(given.rounds):
            for name, (command, path, body) in servers.items():
                for clients, result in one(command, path, body, given.seconds).items():
                    found[name][clients].append(result)
                    print(f"  {name:9} {clients:3} clients: {result}", flush=True)
    middle = {n: {c: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for c, rs in by.items()} for n, by in found.items()}
    print("\n| server | " + " | ".join(f"{c}: requests/s, p50 ms, p99 ms" for c in CLIENTS) + " |\n|---|" + "---|" * len(CLIENTS))
    for name, by in middle.items():
        print(f"| {name} | " + " | ".join(f"{r['rate']:.0f}, {r['p50']:.2f}, {r['p99']:.2f}" for r in by.values()) + " |")
    ok = True
    if "ours" in middle:
        ours = middle["ours"]
        ok = verdict("p50 of one client <= 0.6 ms", ours[1]["p50"] <= 0.6, f"{ours[1]['p50']:.2f}")
        for name, goal in (("fastapi", 5), ("litserve", 3), ("mlflow", 5)):
            if name in middle:
                ratio = ours[64]["rate"] / middle[name][64]["rate"]
                mine, theirs = ours[64]["p99"], middle[name][64]["p99"]
                said = f"{ratio:.1f} x, p99 {mine:.1f} / {theirs:.1f} ms"
                ok &= verdict(f"{goal} x {name} at 64 clients, p99 lower", ratio >= goal and mine < theirs, said)
    sys.exit(0 if ok else 1)


def prepare(place: Path, peers: str | None) -> dict[str, tuple[list[str], str, bytes]]:
    """Commands, paths and bodies of the servers, for one model."""
    import torch

    import modelyard

    os.environ["OMP_NUM_THREADS"] = "1"
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 16))
    frame = pl.DataFrame({**{f"n{i}": x[:, i] for i in range(16)}, "y": np.array(["a", "b", "c"])[x[:, :3].argmax(1)]})
    model = {"name": "mlp", "numbers": "plain", "hidden": [64, 64]}
    os.chdir(place)
    run = modelyard.train(data=frame, target="y", model=model, **{"train.epochs": 3}).run
    folder = modelyard.export(str(run)).folder
    row = {f"n{i}": round(float(x[0, i]), 4) for i in range(16)}
    command = [sys.executable, "-m", "modelyard", "serve", folder, "serve.port={port}", "serve.name=model"]
    found = {"ours": (command, "/v1/models/model:predict", {"instances": [row]})}
    if peers:
        net = torch.nn.Sequential(*[m for w in ((16, 64), (64, 64)) for m in (torch.nn.Linear(*w), torch.nn.ReLU())], torch.nn.Linear(64, 3))
        torch.jit.trace(net.eval(), torch.zeros(2, 16)).save(str(place / "net.pt"))
        for name, text in (("fastapi", FASTAPI), ("litserve", LITSERVE), ("make_mlflow", MLFLOW)):
            (place / f"peer_{name}.py").write_text(text, encoding="utf-8")
        plain = {"instances": [list(row.values())]}
        for name in ("fastapi", "litserve"):
            found[name] = ([peers, f"peer_{name}.py", "{port}", str(place / "net.pt")], "/predict", plain)
        made = subprocess.run([peers, "peer_make_mlflow.py", "mlflow", str(place / "net.pt")], capture_output=True, text=True, check=False)
        if made.returncode == 0:
            command = [str(Path(peers).parent / "mlflow"), "models", "serve", "-m", "mlflow", "--env-manager", "local", "-p", "{port}"]
            split = {"dataframe_split": {"columns": list(row), "data": plain["instances"]}}
            found["mlflow"] = (command, "/invocations", split)
        else:
            print(f"mlflow cannot save the model: {made.stderr[-300:]}")
    return {name: (command, path, json.dumps(body).encode("utf-8")) for name, (command, path, body) in found.items()}


def one(command: list[str], path: str, body: bytes, seconds: float) -> dict[int, dict[str, float]]:
    """Starts a server, loads it with each number of clients, ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("body").write_bytes(body)
    environment = {**os.environ, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    arguments = [c.format(port=port) for c in command]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(arguments, **silent, start_new_session=True, env=environment)
    try:
        for _ in range(600):
            time.sleep(0.1)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        time.sleep(3)
        found = {}
        for clients in CLIENTS:
            for warm in (True, False):
                call = [sys.executable, __file__, "--seconds", "1" if warm else str(seconds), "--load", str(port), path, "body", str(clients)]
                told = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[clients] = json.loads(told)
        return found
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def generate(port: str, path: str, file: str, clients: str, seconds: float) -> None:
    """The load generator: prints a JSON object."""
    import uvloop

    body = Path(file).read_bytes()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    request, times, wrong = head.encode("ascii") + body, [], 0
    end = time.perf_counter() + seconds

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.raw = transport, b""
            self.ask()

        def ask(self) -> None:
            if time.perf_counter() > end:
                self.transport.close()
                return
            self.began = time.perf_counter()
            self.transport.write(request)

        def data_received(self, data: bytes) -> None:
            nonlocal wrong
            self.raw += data
            head, found, rest = self.raw.partition(b"\r\n\r\n")
            if not found:
                return
            at = head.lower().find(b"content-length:")
            whole = rest.endswith(b"0\r\n\r\n") if at < 0 else len(rest) >= int(head[at + 15 :].split(b"\r\n")[0])
            if whole:
                wrong += not self.raw.startswith(b"HTTP/1.1 200")
                self.raw = b""
                times.append(time.perf_counter() - self.began)
                self.ask()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(int(clients)):
            await loop.create_connection(Client, "127.0.0.1", int(port))
        await asyncio.sleep(seconds + 0.5)

    uvloop.run(run())
    if wrong or not times:
        raise SystemExit(f"{wrong} of {len(times)} answers are no answers")
    times.sort()
    p50, p99 = (round(1e3 * times[int(len(times) * share)], 3) for share in (0.5, 0.99))
    print(json.dumps({"rate": round(len(times) / seconds), "p50": p50, "p99": p99, "wrong": wrong}))


if __name__ == "__main__":
    main()
