"""Several models and versions behind one address: sticky shares, shadows, swaps under load, batches, and a protocol with an end to its patience."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import Problem, UsageError
from modelyard.runtime.model import Model
from modelyard.verbs.serve import Server, protocol, shares
from modelyard.verbs.serve.batching import MOST, Batcher
from modelyard.verbs.serve.body import Refused


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`one` answers x, `two` 2 x, `ten` 10 x."""
    folder = tmp_path_factory.mktemp("fleet")
    x = np.random.default_rng(0).uniform(-100, 100, 200)
    found = {}
    with contextlib.chdir(folder):
        for name, slope in (("one", 1), ("two", 2), ("ten", 10)):
            frame = pl.DataFrame({"x": x, "y": slope * x})
            model = {"name": "linear", "numbers": "scaled"}
            found[name] = str(folder / modelyard.train(data=frame, target="y", model=model, name=name).model)
    return found


def ask(server: Server, path: str, x: float = 3.0, unit: str | None = None) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        headers = {"Content-Type": "application/json", **({"Modelyard-Unit": unit} if unit else {})}
        connection.request("POST", path, json.dumps({"instances": [{"x": x}]}), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def get(server: Server, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8")
    finally:
        connection.close()


def test_callers_keep_their_version_and_shares_are_kept(folders: dict[str, str]) -> None:
    arms = {"champion": folders["one"], "challenger": {"model": folders["two"], "share": 0.3}, "shadow": folders["ten"]}
    with modelyard.serve(models={"a": arms, "b": folders["ten"]}) as server:
        units = [f"user-{i}" for i in range(400)]
        with ThreadPoolExecutor(8) as pool:
            first, again = (list(pool.map(lambda u: ask(server, "/v1/models/a:predict", unit=u), units)) for _ in range(2))
        slopes = [round(found["predictions"][0] / 3) for _, found, _ in first]
        assert set(slopes) == {1, 2} and 0.22 < slopes.count(2) / 400 < 0.38  # 3.5 deviations of a share of 0.3
        assert [h["Modelyard-Version"] for *_, h in first] == [h["Modelyard-Version"] for *_, h in again]
        versions = {slope: h["Modelyard-Version"] for slope, (_, _, h) in zip(slopes, first, strict=True)}
        assert versions == {1: Model.load(folders["one"]).version, 2: Model.load(folders["two"]).version}
        assert round(ask(server, "/v1/models/b:predict")[1]["predictions"][0]) == 30
        for way, slope in (("versions/" + versions[2], 2), ("labels/challenger", 2), ("labels/champion", 1), ("labels/shadow", 10)):
            assert round(ask(server, f"/v1/models/a/{way}:predict")[1]["predictions"][0] / 3) == slope
        assert ask(server, "/v1/models/a/labels/other:predict")[0] == 404 and ask(server, "/v1/models/c:predict")[0] == 404
        listed = json.loads(get(server, "/v1/models")[1])["data"]
        assert [(e["id"], e["label"], round(e["share"], 2)) for e in listed] == [("a", "champion", 0.7), ("a", "challenger", 0.3), ("b", "champion", 1)]
        text = get(server, "/metrics")[1]
        assert text.count("# HELP modelyard_rows_total") == 1 and text.count("modelyard_rows_total{") == 4
        copied = next(line for line in text.splitlines() if f'version="{Model.load(folders["ten"]).version}"' in line and "rows_total{model=\"a\"" in line)
        assert int(copied.split()[-1]) == 804  # the shadow saw both rounds and what three asked of a version or label, and was asked once itself


def test_mistakes_in_shares_are_all_told(folders: dict[str, str]) -> None:
    problems: list[Problem] = []
    shares("a", {"x": 3, "y": {"model": "m", "share": 2}, "z": {"modle": "m"}}, problems)
    assert [p.where for p in problems] == ["serve.models.a.x", "serve.models.a.y.share", "serve.models.a.z", "serve.models.a"][: len(problems)]
    for wrong in ({"x": {"model": "m", "share": 0.4}}, {"shadow": "m"}, {}, 3):
        problems = []
        shares("a", wrong, problems)
        assert problems, wrong
    with pytest.raises(UsageError, match=r"serve\.models"):
        modelyard.serve(models={"a": {"x": {"model": folders["one"], "share": 0.4}}})


def test_swaps_under_load_lose_nothing_and_mix_nothing(folders: dict[str, str]) -> None:
    slopes = {Model.load(folders[n]).version: s for n, s in (("one", 1), ("two", 2))}
    with modelyard.serve(models={"a": folders["one"]}) as server:
        wrong: list[Any] = []
        count, stop = [0], threading.Event()

        def client(seed: int) -> None:
            random = np.random.default_rng(seed)
            while not stop.is_set():
                x = float(random.integers(1, 50))
                status, found, headers = ask(server, "/v1/models/a:predict", x)
                count[0] += 1
                if status != 200 or round(found["predictions"][0] / x) != slopes[headers["Modelyard-Version"]]:
                    wrong.append((status, found))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for i in range(8):
            server.swap(folders["two" if i % 2 == 0 else "one"], "a")
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong and count[0] > 50
        with pytest.raises(UsageError, match="a/champion"):
            server.swap(folders["one"], "a", "other")


def line(x: float, tail: str = "") -> bytes:
    body = json.dumps({"instances": [{"x": x}]}).encode("ascii")
    head = f"POST /v1/models/one:predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n{tail}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def answers(connection: socket.socket, count: int) -> list[tuple[int, Any]]:
    """Status and JSON of so many answers, in the order in which they come."""
    raw, found = b"", []
    while len(found) < count:
        head, _, rest = raw.partition(b"\r\n\r\n")
        size = next((int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")), None)
        if (not rest and size != 0) or size is None or len(rest) < size:
            piece = connection.recv(65536)
            assert piece, "the connection was closed"
            raw += piece
            continue
        found.append((int(head.split()[1]), json.loads(rest[:size])))
        raw = rest[size:]
    return found


def test_pipelined_requests_are_answered_in_order(folders: dict[str, str]) -> None:
    with modelyard.serve(folders["one"]) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        health = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
        connection.sendall(line(1) + line(2) + health + line(3) + b"POST /v1/models/one:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{]" + line(4))
        found = answers(connection, 6)
        assert [s for s, _ in found] == [200, 200, 200, 200, 400, 200]
        assert [round(found[i][1]["predictions"][0]) for i in (0, 1, 3, 5)] == [1, 2, 3, 4] and found[2][1] == {"live": True}
        connection.sendall(line(5, "Connection: close\r\n"))
        assert answers(connection, 1)[0][0] == 200 and connection.recv(10) == b""


def test_slow_clients_and_huge_heads_are_sent_away(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PATIENCE", 0.3)
    with modelyard.serve(folders["one"], limit=2048) as server:
        connect = lambda: socket.create_connection(("127.0.0.1", server.port), timeout=10)  # noqa: E731
        with connect() as silent, connect() as dribbling, connect() as huge, connect() as large, connect() as fine:
            dribbling.sendall(b"POST /v1/models/one:predict HTTP/1.1\r\nContent-Le")
            huge.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n")
            large.sendall(b"POST /v1/models/one:predict HTTP/1.1\r\nContent-Length: 999999\r\n\r\n" + b" " * 80_000)
            fine.sendall(line(7))
            assert answers(fine, 1)[0][0] == 200
            assert answers(huge, 1)[0][0] == 400 and answers(large, 1)[0][0] == 413
            for gone in (silent, dribbling):
                with contextlib.suppress(ConnectionResetError):
                    assert gone.recv(100) == b""


def test_a_batch_gives_everyone_their_own(folders: dict[str, str]) -> None:
    """Requests that gather are answered together; a poisoned one fails alone; too many, or too old ones, are refused with a time to come back."""
    calls: list[int] = []

    def predict(rows: list[Any]) -> list[dict[str, Any]]:
        calls.append(len(rows))
        time.sleep(0.02)
        if any(r == "poison" for r in rows):
            raise ValueError("poison")
        return [{"y": r} for r in rows]

    async def scene() -> None:
        with ThreadPoolExecutor(2) as pool:
            batcher = Batcher(predict, pool, waiting=MOST, patience=5)
            told: dict[int, Any] = {}
            batcher.submit([0], lambda found: told.__setitem__(0, found))
            await asyncio.sleep(0.005)  # the first is on its way; the rest gather behind it
            for i in range(1, 21):
                batcher.submit(["poison" if i == 13 else i] * 3, lambda found, i=i: told.__setitem__(i, found))
            while len(told) < 21:
                await asyncio.sleep(0.005)
            assert calls[:2] == [1, 60]
            assert all(told[i] == [{"y": i}] * (3 if i else 1) for i in range(21) if i != 13) and isinstance(told[13], ValueError)
            batcher.submit([1] * MOST, lambda found: None)
            await asyncio.sleep(0.005)
            batcher.submit([1] * MOST, lambda found: None)
            with pytest.raises(Refused) as full:
                batcher.submit([1], lambda found: None)
            assert full.value.status == 503 and int(full.value.headers["Retry-After"]) >= 1
            while batcher.running:
                await asyncio.sleep(0.005)
            old = Batcher(predict, pool, waiting=MOST, patience=0.001)
            late: list[Any] = []
            old.submit([1], late.append)
            old.submit([2], late.append)
            old.seconds = 1.0
            while len(late) < 2:
                await asyncio.sleep(0.005)
            assert late[0] == [{"y": 1}] or late[0].status == 503

    asyncio.run(scene())


def test_killed_processes_lose_nothing_and_poison_harms_nobody_else(folders: dict[str, str]) -> None:
    with modelyard.serve(folders["two"], workers=2) as server:
        workers = server.service.workers
        assert workers is not None and workers.version == server.model.version
        stop = threading.Event()

        def client(seed: int) -> tuple[int, list[Any]]:
            count, wrong = 0, []
            while not stop.is_set():
                count += 1
                status, found, _ = ask(server, "/v1/models/two:predict", float(count))
                if status != 200 or round(found["predictions"][0] / count) != 2:
                    wrong.append((status, found))
            return count, wrong

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, i) for i in range(8)]
            for _ in range(4):
                before = workers.deaths
                next(p for p in list(workers.all) if p.ready).process.kill()
                while workers.deaths == before or sum(p.ready for p in list(workers.all)) < 2:
                    time.sleep(0.02)
            stop.set()
            found = [c.result() for c in clients]
        assert not [w for _, wrong in found for w in wrong] and sum(n for n, _ in found) > 20 and workers.deaths >= 4


def test_what_is_begun_is_answered_when_the_server_stops(folders: dict[str, str]) -> None:
    model = Model.load(folders["one"])
    plain = model.graphs["main"]

    def slow(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(0.3)
        return plain(inputs)

    with modelyard.serve(model) as server, ThreadPoolExecutor(8) as pool:
        model.graphs["main"] = slow
        found = [pool.submit(ask, server, "/v1/models/one:predict", float(i)) for i in range(8)]
        time.sleep(0.15)
    assert [f.result()[0] for f in found] == [200] * 8
    assert [round(f.result()[1]["predictions"][0]) for f in found] == list(range(8))


def test_a_folder_is_found_by_its_path(folders: dict[str, str]) -> None:
    with modelyard.serve(models={"名字 x": Path(folders["one"]).as_posix()}) as server:
        assert ask(server, "/v1/models/%E5%90%8D%E5%AD%97%20x:predict")[0] == 200
