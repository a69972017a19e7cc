"""The service on a real Ray cluster of one machine: the same answers over the same routes, replicas that die, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import MissingExtra, Unsupported
from modelyard.runtime.model import Model
from modelyard.store import keys as keys_file
from modelyard.verbs.serve import cluster

serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("cluster")
    x = np.random.default_rng(0).normal(size=(200, 2))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": np.where(x.sum(1) > 0, "yes", "no")})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("one", "two"):
            modelyard.train(data=frame, target="y", model="linear", name=name, quiet=True)
    return folder


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[tuple[Any, str]]:
    """(the cluster, a caller's key)."""
    _, key = keys_file.create(place / "keys.json", "me", {"*": "caller"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        models = {"one": "runs/one-0001", "two": {"champion": "runs/two-0001", "shadow": "runs/one-0001"}}
        with modelyard.serve(models=models, engine="ray", replicas=2, keys="keys.json") as found:
            yield found, key


def ask(url: str, body: Any, key: str = "") -> tuple[int, Any, dict[str, str]]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read()), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), dict(error.headers)


def replicas() -> set[int]:
    """Processes of replicas, by the titles that Ray gives them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ServeReplica" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def test_replicas_answer_as_the_model_does(running: tuple[Any, str], place: Path) -> None:
    found, key = running
    for name in ("one", "two"):
        model = Model.load(place / f"runs/{name}-0001/model")
        rows = model.examples
        expected = model.predict(rows).to_json()
        status, body, headers = ask(f"{found.url}/v1/models/{name}:predict", {"instances": rows}, key)
        assert status == 200 and {k.lower(): v for k, v in headers.items()}["modelyard-version"] == model.version
        assert [p if isinstance(p, str) else p["y"] for p in body["predictions"]] == [e["y"] for e in expected]
        tensors = {"inputs": [{"name": n, "shape": [2], "datatype": "FP64", "data": [rows[0][n], rows[1][n]]} for n in ("a", "b")]}
        status, body, _ = ask(f"{found.url}/v2/models/{name}/infer", tensors, key)
        assert status == 200 and body["outputs"][0]["data"] == [e["y"] for e in expected[:2]]
    status, body, _ = ask(f"{found.url}/v1/models/one:predict", {"instances": [{"a": 1.0, "b": 0.5}, {"a": "x", "b": 0.5}]}, key)
    assert status == 200 and "error" in body["predictions"][1] and "error" not in str(body["predictions"][0])
    assert ask(f"{found.url}/v1/models/one:predict", {"instances": []})[0] == 401  # the door is the same
    assert ask(f"{found.url}/v1/models/three:predict", {"instances": []}, key)[0] == 404


def test_a_replica_that_dies_is_replaced(running: tuple[Any, str], place: Path) -> None:
    found, key = running
    row = Model.load(place / "runs/one-0001/model").examples[:1]
    first = replicas()
    assert len(first) == 2
    os.kill(min(first), signal.SIGKILL)
    answered = 0
    deadline = time.monotonic() + 90
    while answered < 200 and time.monotonic() < deadline:
        answered += ask(f"{found.url}/v1/models/one:predict", {"instances": row}, key)[0] == 200
    assert answered == 200
    while len(replicas() - {min(first)}) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(replicas() - {min(first)}) == 2


def test_what_a_cluster_has_no_place_for_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(Unsupported, match=r"serve\.grpc, serve\.workers") as raised:
        modelyard.serve("runs/one-0001", engine="ray", grpc=0, workers=2)
    assert "serve.replicas" in str(raised.value.details)
    with pytest.raises(Unsupported, match=r"set serve\.engine=ray"):
        modelyard.serve("runs/one-0001", replicas=2)
    assert cluster.placed({"a": "models:/x@champion", "b": {"champion": "runs/one-0001", "shadow": {"model": "runs/two-0001", "share": 0.1}}}) == {
        "a": "models:/x@champion",
        "b": {"champion": str(place / "runs/one-0001/model"), "shadow": {"model": str(place / "runs/two-0001/model"), "share": 0.1}},
    }
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"modelyard\[ray\]"):
        modelyard.serve("runs/one-0001", engine="ray")
