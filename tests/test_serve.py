"""The server against TensorFlow Serving's REST form, hostile bodies, many clients at once, and signals."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import ParityError, UsageError
from modelyard.runtime.model import Model
from modelyard.verbs.serve import Config, Server, listen
from modelyard.verbs.serve import body as bodies

SOURCE = Path(modelyard.__file__).parent.parent
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """`line`: one number in, one number out (bare values). `plan`: three inputs, one category with scores."""
    folder = tmp_path_factory.mktemp("serve")
    random_ = np.random.default_rng(0)
    x = random_.uniform(-100, 100, 200)
    pl.DataFrame({"x": x, "y": 3 * x + 7}).write_csv(folder / "line.csv")
    age = random_.integers(18, 80, 300)
    job = random_.choice(["clerk", "cook", "驾驶员"], 300)
    city = random_.choice(["Bern", "Wien"], 300)
    target = np.where((age > 45) ^ (job == "cook"), "yes", "no")
    columns = {"age": [None if i % 17 == 0 else int(a) for i, a in enumerate(age)], "job": job, "city": city, "churned": target}
    pl.DataFrame(columns).write_csv(folder / "plan.csv")
    with contextlib.chdir(folder):
        line = modelyard.train(data="line.csv", target="y", model={"name": "linear", "numbers": "scaled"})
        plan = modelyard.train(data="plan.csv", target="churned", model="linear")
    return {"line": Model.load(folder / line.model), "plan": Model.load(folder / plan.model)}


class Client:
    """Plain HTTP, so that odd requests can be sent."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = server.service.name

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        """(status, decoded JSON or text, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        found = json.loads(raw) if response.headers.get("content-type", "").startswith("application/json") and raw else raw.decode()
        return response.status, found, response.headers

    def predict(self, body: Any, path: str = "", **headers: str) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        status, found, _ = self.ask("POST", f"/v1/models/{self.name}{path}:predict", raw, JSON | headers)
        return status, found


@pytest.fixture(scope="module")
def line(models: dict[str, Model]) -> Iterator[Client]:
    with modelyard.serve(models["line"], limit=2**20) as server:
        yield Client(server)


@pytest.fixture(scope="module")
def plan(models: dict[str, Model]) -> Iterator[Client]:
    with modelyard.serve(models["plan"]) as server:
        yield Client(server)


def row(**changes: Any) -> dict[str, Any]:
    return {"age": 50, "job": "cook", "city": "Bern"} | changes


# --- the protocol ------------------------------------------------------------------------------------------------


def test_rows_and_columns_give_what_predict_gives(plan: Client, models: dict[str, Model]) -> None:
    rows = [row(age=a, job=j) for a in (20, 50, None) for j in ("cook", "驾驶员", "never seen")]
    expected = models["plan"].predict(rows).to_json()
    assert plan.predict({"instances": rows, "signature_name": "serving_default"}) == (200, {"predictions": expected})
    columns = {key: [r[key] for r in rows] for key in rows[0]}
    status, found = plan.predict({"inputs": columns})
    assert status == 200 and set(found["outputs"]) == {"churned", "churned.scores"}
    assert [dict(zip(found["outputs"], values, strict=True)) for values in zip(*found["outputs"].values(), strict=True)] == expected
    version = models["plan"].version
    assert plan.predict({"instances": rows}, f"/versions/{version}")[1] == {"predictions": expected}
    assert plan.predict({"instances": []}) == (200, {"predictions": []})


def test_bare_values_where_the_model_has_one_input_and_one_output(line: Client) -> None:
    for body in ({"instances": [1, 2.5]}, {"instances": [{"x": 1}, {"x": 2.5}]}):
        status, found = line.predict(body)
        assert status == 200 and found["predictions"] == pytest.approx([10, 14.5], abs=0.05)
    for columnar in ({"inputs": {"x": [1, 2.5]}}, {"inputs": [1, 2.5]}):
        assert line.predict(columnar)[1]["outputs"] == pytest.approx([10, 14.5], abs=0.05)


def test_a_failed_row_leaves_its_neighbours_alone(plan: Client, line: Client) -> None:
    good = plan.predict({"instances": [row()]})[1]["predictions"][0]
    rows = [row(), row(age="old"), {"job": "cook"}, 7, row(age=10**400), row()]
    status, found = plan.predict({"instances": rows})
    assert status == 200 and found["predictions"][0] == found["predictions"][5] == good
    errors = [p["error"] for p in found["predictions"][1:5]]
    assert [e["column"] for e in errors] == ["age", "city", "", "age"] and "not a finite number" in errors[0]["reason"]
    status, found = plan.predict({"instances": rows, "strict": True})
    assert status == 400 and found["error"].startswith("row 1: age is not a finite number")
    status, found = plan.predict({"inputs": {"age": [50, "old"], "job": ["cook"] * 2, "city": ["Bern"] * 2}})
    assert found["outputs"]["churned"][0] == good["churned"] and found["outputs"]["churned"][1]["error"]["column"] == "age"
    status, found = line.predict(b'{"instances": [1, NaN, Infinity, -Infinity, 1e999]}')  # the tokens TensorFlow Serving takes
    assert status == 200 and [isinstance(p, dict) for p in found["predictions"]] == [False, False, True, True, True]


def test_status_metadata_health_and_headers(plan: Client, models: dict[str, Model]) -> None:
    model = models["plan"]
    status, found, headers = plan.ask("GET", "/v1/models/plan")
    assert status == 200 and found["model_version_status"][0]["state"] == "AVAILABLE" and found["object"] == "model"
    assert headers["Modelyard-Model"] == "plan" and headers["Modelyard-Version"] == model.version
    assert plan.ask("GET", "/v1/models")[1]["data"][0]["id"] == "plan"
    found = plan.ask("GET", "/v1/models/plan/metadata")[1]
    assert found["metadata"]["signature_def"] == json.loads(json.dumps(model.signature.to_json()))
    assert plan.ask("GET", f"/v1/models/plan/versions/{model.version}/metadata")[1] == found
    for path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
        assert plan.ask("GET", path)[0] == 200 and plan.ask("HEAD", path)[0] == 200
    assert plan.ask("GET", "/healthz", headers={"X-Request-Id": "abc-1:2.3"})[2]["Modelyard-Request-Id"] == "abc-1:2.3"
    for bad in ("a b", "é", "x" * 129, "<script>"):
        given = plan.ask("GET", "/healthz", headers={"X-Request-Id": bad})[2]["Modelyard-Request-Id"]
        assert given != bad and len(given) == 16


def test_metrics_count_what_was_asked(models: dict[str, Model]) -> None:
    parse = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families
    with modelyard.serve(models["line"], name='li"n\\e') as server:
        client = Client(server)
        path = server.service.path
        for body in ([1, 2, "no"], [3]):
            client.ask("POST", path, json.dumps({"instances": body}), JSON)
        client.ask("POST", path, "{", JSON)
        client.ask("GET", "/nowhere")
        client.ask("GET", "/v1/models/some-random-name")
        text = client.ask("GET", "/metrics")[1]
    samples = [s for family in parse(text) for s in family.samples]
    total = {(s.labels["route"], s.labels["code"]): s.value for s in samples if s.name == "modelyard_requests_total"}
    assert total == {("predict", "200"): 2, ("predict", "400"): 1, ("unknown", "404"): 1, ("status", "404"): 1}
    value = {s.name: s.value for s in samples if len(s.labels) == 2}
    assert value["modelyard_rows_total"] == 4 and value["modelyard_row_errors_total"] == 1 and value["modelyard_model_info"] == 1
    assert {s.labels["model"] for s in samples} == {'li"n\\e'}
    assert set().union(*(s.labels for s in samples)) == {"model", "version", "route", "code", "le"}
    buckets = [s.value for s in samples if s.name.endswith("_bucket") and s.labels["route"] == "predict"]
    assert buckets == sorted(buckets) and buckets[-1] == 3


def test_openapi_describes_bodies_and_answers(plan: Client, line: Client) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for client, good, bad in (
        (
            plan,
            [{"instances": [row(), row(age=None)]}, {"inputs": {"age": [1], "job": ["x"], "city": ["y"]}}],
            [{"instances": [{"age": 1}]}, {"instances": [1]}, {"instances": row()}],
        ),
        (
            line,
            [{"instances": [1, 2]}, {"instances": [{"x": 1}]}, {"inputs": [1, 2]}, {"inputs": {"x": [1]}, "seed": 3}],
            [{"instances": [[1, 2]]}, {"instances": [1], "strict": 1}, {"inputs": 1}, {"instances": [1], "params": {"unknown": 1}}],
        ),
    ):
        document = client.ask("GET", "/openapi.json")[1]
        assert document["openapi"].startswith("3.1") and {"info", "paths", "components"} <= set(document)
        operations = [o["operationId"] for item in document["paths"].values() for k, o in item.items() if k in ("get", "post")]
        assert len(set(operations)) == len(operations) == 14
        content = document["paths"][f"/v1/models/{client.name}:predict"]["post"]
        asked = content["requestBody"]["content"]["application/json"]["schema"] | {"components": document["components"]}
        answered = content["responses"]["200"]["content"]["application/json"]["schema"] | {"components": document["components"]}
        for schema in [*document["components"]["schemas"].values(), asked, answered]:
            jsonschema.Draft202012Validator.check_schema(schema)
        asked_is, answered_is = (jsonschema.Draft202012Validator(s).is_valid for s in (asked, answered))
        for body in [*good, content["requestBody"]["content"]["application/json"]["example"]]:
            status, found = client.predict(body)
            assert status == 200 and asked_is(body) and answered_is(found), body
        for body in bad:
            status, found = client.predict(body)
            assert not asked_is(body) and (status == 400 or "error" in found["predictions"][0]), body


# --- what is refused ---------------------------------------------------------------------------------------------

DEEP = b'{"instances":' + b"[" * 101 + b"]" * 101 + b"}"
REFUSED = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b"[1]", 400, "must be an object"),
    (b"null", 400, "must be an object"),
    (b"\xff\xfe{", 400, "not UTF-8"),
    (b'{"instances":[1],"instances":[2]}', 400, "twice"),
    (b'{"instances":[{"x":1,"x":2}]}', 400, "twice"),
    (DEEP, 400, "deeper than 100"),
    (b"[" * 200_000, 400, "deeper than 100"),
    (b'{"instances":[1],"inputs":[1]}', 400, "either instances"),
    (b"{}", 400, "either instances"),
    (b'{"instances":{"x":1}}', 400, "list of rows"),
    (b'{"instance":[1]}', 400, "unknown key"),
    (b'{"inputs":{"x":[1],"z":[1,2]}}', 400, "different lengths"),
    (b'{"inputs":{}}', 400, "object of columns"),
    (b'{"instances":[1],"params":[]}', 400, "params must be"),
    (b'{"instances":[1],"params":{"beam":3}}', 400, "unknown parameter"),
    (b'{"instances":[1],"seed":-1}', 400, "seed must be"),
    (b'{"instances":[1],"signature_name":"other"}', 400, "signature_name"),
    (b'{"instances":["\\ud800"]}', 400, "surrogate"),
    (b'{"instances":[' + b"1," * 600_000 + b"1]}", 413, "larger than 1048576"),
    (b'{"instances":[' + b"1," * 100_000 + b"1]}", 413, "100001 rows"),
    (b'{"instances":[' + b"9" * 5000 + b"]}", 400, "not JSON"),
]


@pytest.mark.parametrize(("body", "code", "said"), REFUSED, ids=[f"{i}-{s}" for i, (_, _, s) in enumerate(REFUSED)])
def test_wrong_bodies_are_refused_with_a_sentence(line: Client, body: bytes, code: int, said: str) -> None:
    status, found = line.predict(body)
    assert (status, set(found)) == (code, {"error"}) and said in found["error"]


def test_wrong_addresses_methods_and_types(line: Client, plan: Client) -> None:
    good = json.dumps({"instances": [1]})
    for method, path, code, said in (
        ("GET", "/v1/models/line:predict", 405, "use POST"),
        ("PUT", "/v1/models/line", 405, "use GET"),
        ("DELETE", "/metrics", 405, "use GET"),
        ("POST", "/v1/models/other:predict", 404, "no model 'other'"),
        ("POST", "/v1/models/line/versions/9:predict", 404, "no version '9'"),
        ("POST", "/v1/models/line:classify", 400, "unknown key"),
        ("POST", "/v1/models/line:explain", 405, "use GET"),
        ("GET", "/v3/x", 404, "no such route"),
        ("GET", "/static/../app.py", 404, "no such"),
        ("GET", "/static/page.html", 404, "no such"),
        ("BREW", "/metrics", 400, "Invalid HTTP"),
    ):
        status, found, headers = line.ask(method, path, good if method == "POST" else None, JSON)
        assert (status, set(found)) == (code, {"error"}) and said in found["error"], (method, path)
        assert headers["Modelyard-Request-Id"] or method == "BREW"  # no request was understood
    for kind, code in (
        ("application/json; charset=utf-8", 200),
        ("application/x-www-form-urlencoded", 200),
        ("application/vnd.a+json", 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=gb18030", 415),
    ):
        assert line.ask("POST", "/v1/models/line:predict", good, {"Content-Type": kind})[0] == code, kind


def test_packed_bodies_and_bombs(line: Client) -> None:
    raw = json.dumps({"instances": [1]}).encode("utf-8")
    packed = gzip.compress(raw)
    assert line.predict(packed, **{"Content-Encoding": "gzip"}) == line.predict(zlib.compress(raw), **{"Content-Encoding": "deflate"})
    assert line.predict(packed, **{"Content-Encoding": "gzip"})[0] == 200
    bomb = gzip.compress(b" " * (64 * 2**20))  # 64 kB on the wire, limit 1 MiB
    assert len(bomb) < 2**17
    for body, encoding, code in (
        (bomb, "gzip", 413),
        (raw, "gzip", 400),
        (packed[:-5], "gzip", 400),
        (packed + b"x", "gzip", 400),
        (packed, "br", 415),
        (gzip.compress(packed), "gzip, gzip", 415),
    ):
        status, found = line.predict(body, **{"Content-Encoding": encoding})
        assert (status, set(found)) == (code, {"error"}), encoding


def test_the_depth_scan_is_linear_and_right() -> None:
    began = time.process_time()
    for text, deep in (
        ("[" * 101 + '"\\"' * 2_000_000, True),  # quadratic in a scan that starts again at every quote
        ('"' + "[" * 3_000_000, False),
        ('{"a":"' + "\\\\" * 2_000_000 + '"}' + "[]" * 200, False),
        ('"[[\\"[["' * 200, False),
        ("[" * 100 + "]" * 100 + "[]", False),
        ("[" * 101, True),
        ('["]"' * 101, True),
    ):
        assert (bodies._depth(text) > bodies.DEPTH) is deep, text[:20]
    assert time.process_time() - began < 5


# --- hostile traffic ---------------------------------------------------------------------------------------------


def _value(r: random.Random, depth: int = 0) -> Any:
    simple = [
        None,
        True,
        0,
        -1,
        1.5,
        1e308,
        10**30,
        "",
        "cook",
        "0",
        " ",
        "💥\u0000\u202e",
        "a" * 300,
        float("nan"),
        float("inf"),
        -0.0,
        2**63,
    ]
    kind = r.randrange(8)
    if kind < 5 or depth > 3:
        return r.choice(simple)
    if kind == 5:
        return [_value(r, depth + 1) for _ in range(r.randrange(4))]
    return {r.choice(["age", "job", "city", "error", "", "churned", "x"]): _value(r, depth + 1) for _ in range(r.randrange(4))}


def _body(r: random.Random) -> bytes:
    rows = [{k: _value(r) if r.random() < 0.5 else v for k, v in row().items() if r.random() < 0.9} for _ in range(r.randrange(5))]
    body: dict[str, Any] = {"instances": rows}
    shape = r.randrange(6)
    if shape == 1:
        body = {"inputs": {k: [_value(r) for _ in range(r.choice([2, 2, 2, 3]))] for k in row()}}
    elif shape == 2:
        body = {"instances": [_value(r) for _ in range(3)]}
    elif shape == 3:
        body[r.choice(["params", "seed", "strict", "signature_name", "other"])] = _value(r)
    elif shape == 4:
        body = _value(r)
    raw = bytearray(json.dumps(body, ensure_ascii=r.random() < 0.5).encode("utf-8"))
    if shape == 5 and raw:
        for _ in range(r.randrange(1, 4)):
            raw[r.randrange(len(raw))] = r.randrange(256)
    return bytes(raw)


def test_a_thousand_odd_bodies_never_give_a_server_error(plan: Client) -> None:
    r = random.Random(7)
    connection = http.client.HTTPConnection("127.0.0.1", plan.server.port, timeout=30)
    seen: dict[int, int] = {}
    for _ in range(1000):
        body = _body(r)
        connection.request("POST", "/v1/models/plan:predict", body, JSON)
        response = connection.getresponse()
        found = json.loads(response.read(), parse_constant=pytest.fail)
        seen[response.status] = seen.get(response.status, 0) + 1
        assert response.status in (200, 400), (response.status, found, body)
        if response.status == 400:
            assert isinstance(found["error"], str) and len(found["error"]) > 5
    connection.close()
    assert seen[200] > 200 and seen[400] > 200  # the bodies reach both sides
    assert plan.predict({"instances": [row()]})[0] == 200


def test_each_of_32_threads_gets_its_own_answers(line: Client, models: dict[str, Model]) -> None:
    values = [[me + i / 64, -me - i / 64] for me in range(32) for i in range(12)]
    expected = models["line"].predict([v for pair in values for v in pair])["y"].to_list()
    assert len({round(y, 4) for y in expected}) > 700  # an answer tells who asked

    def caller(me: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", line.server.port, timeout=60)
        for i in range(12):
            at = 12 * me + i
            connection.request(
                "POST", "/v1/models/line:predict", json.dumps({"instances": values[at]}), JSON | {"X-Request-Id": f"{me}.{i}"}
            )
            response = connection.getresponse()
            assert response.headers["Modelyard-Request-Id"] == f"{me}.{i}"
            assert json.loads(response.read())["predictions"] == pytest.approx(expected[2 * at : 2 * at + 2], abs=1e-3)
        connection.close()

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(caller, range(32)))


def test_health_is_answered_while_a_prediction_runs(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()
    original = Model.predict

    def slow(self: Model, *args: Any, **keys: Any) -> Any:
        entered.set()
        leave.wait(20)
        return original(self, *args, **keys)

    with modelyard.serve(models["line"]) as server:
        client = Client(server)
        monkeypatch.setattr(Model, "predict", slow)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(client.predict, {"instances": [i]}) for i in range(8)]  # more than there are workers
            assert entered.wait(10)
            assert client.ask("GET", "/v2/health/ready")[0] == 200
            assert not any(a.done() for a in asked)
            leave.set()
            assert [a.result()[0] for a in asked] == [200] * 8


# --- who may ask, and what is kept -------------------------------------------------------------------------------


def test_a_token_guards_all_but_health(models: dict[str, Model]) -> None:
    with pytest.raises(UsageError, match=r"serve\.keys"):
        modelyard.serve(models["line"], host="0.0.0.0")
    for bad in ("s3cret-词", "two words", " "):
        with pytest.raises(UsageError, match=r"serve\.token"):
            modelyard.serve(models["line"], token=bad)
    with modelyard.serve(models["line"], token="s3cret-1") as server:
        client = Client(server)
        body = json.dumps({"instances": [1]})
        for given in (None, "Bearer wrong", "Basic s3cret", "Bearer", "Bearer s3cret", "Bearer s3cret-\xe9"):
            headers = JSON | ({"Authorization": given} if given else {})
            for method, path in (
                ("POST", server.service.path),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("GET", "/page.json"),
                ("GET", "/v1/models"),
            ):
                status, found, answer = client.ask(method, path, body if method == "POST" else None, headers)
                assert status == 401 and answer["WWW-Authenticate"] == "Bearer" and "token" in found["error"]
        assert client.ask("GET", "/healthz")[0] == 200
        page = client.ask("GET", "/")[1]
        assert str(models["line"].examples[0]["x"]) not in page  # examples are rows of real data
        assert client.ask("POST", server.service.path, body, JSON | {"Authorization": "bearer s3cret-1"})[0] == 200
        assert "s3cret" not in repr(vars(server.service)) + repr(Config(token="s3cret"))


def test_the_log_is_one_object_a_line(models: dict[str, Model], tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with modelyard.serve(models["plan"], log=str(log)) as server:
        client = Client(server)
        rows = [row(job='a\n{"time": 0}\r\u2028'), row(age=float("nan")), row(age="x")]
        answers = client.predict({"instances": rows})[1]["predictions"]
        client.predict({"instances": [row()]}, **{"X-Request-Id": "mine"})
        client.predict(b"{")
    entries = [json.loads(text, parse_constant=pytest.fail) for text in log.read_text(encoding="utf-8").splitlines()]
    assert len(entries) == 2 and entries[0]["answers"] == answers and entries[0]["rows"][0] == rows[0]
    assert entries[1]["request"] == "mine" and 0 < entries[1]["seconds"] < 20 and entries[0]["rows"][1]["age"] is None
    with pytest.raises(UsageError, match="cannot be written"):
        modelyard.serve(models["plan"], log=str(tmp_path))


def test_ports_settings_and_altered_models(models: dict[str, Model], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="choose another"):
            modelyard.serve(models["line"], port=taken.getsockname()[1])
    first, second = listen("127.0.0.1", None), listen("127.0.0.1", None)
    assert 8000 <= first.getsockname()[1] < second.getsockname()[1] < 8100
    first.close()
    second.close()
    with pytest.raises(UsageError) as caught:
        modelyard.serve(models["line"], port=70000, hots="x")
    assert len(caught.value.details) == 2
    altered = dataclasses.replace(models["line"])
    altered.graphs = {"main": lambda inputs: {k: v + 1 for k, v in models["line"].graphs["main"](inputs).items()}}
    with pytest.raises(ParityError):
        modelyard.serve(altered)


def test_a_bug_is_a_500_with_its_id_and_the_server_lives(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with modelyard.serve(models["line"]) as server:
        client = Client(server)
        with monkeypatch.context() as patch:
            patch.setattr(Model, "predict", lambda *_: 1 / 0)
            status, found = client.predict({"instances": [1]}, **{"X-Request-Id": "find-me"})
        assert status == 500 and "bug in Modelyard (ZeroDivisionError)" in found["error"]
        assert client.predict({"instances": [1]})[0] == 200
    assert "find-me" in capfd.readouterr().err


# --- the process -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(model: Model, *args: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "modelyard", "serve", str(model.folder), "serve.port=0", "--json", *args]
    child = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", cwd=model.folder.parent
    )
    assert child.stdout is not None
    try:
        yield child, json.loads(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(models: dict[str, Model], number: int) -> None:
    with process(models["line"]) as (child, ready):
        assert ready["ready"] is True and ready["schema_version"] == 1 and ready["model"] == "line"
        port = urlsplit(ready["url"]).port
        body = json.dumps({"instances": [1.0] * 50_000}).encode("utf-8")
        connections = []
        for _ in range(4):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/healthz")
            connection.getresponse().read()  # accepted: from here on the request must be answered
            connection.request("POST", "/v1/models/line:predict", body, JSON)
            connections.append(connection)
        deadline = time.monotonic() + 10
        probe = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        probe.request("GET", "/healthz")  # the loop has read what was sent before
        probe.getresponse().read()
        probe.close()
        child.send_signal(number)
        for connection in connections:
            response = connection.getresponse()
            assert response.status == 200 and len(json.loads(response.read())["predictions"]) == 50_000
            connection.close()
        assert child.wait(15) == 0 and time.monotonic() < deadline + 15
        assert child.stdout is not None and child.stdout.read() == ""  # exactly one object
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port or 0), timeout=2)


def test_serving_an_estimator_needs_the_core_only(models: dict[str, Model]) -> None:
    with process(models["line"]) as (child, _):
        if not Path(f"/proc/{child.pid}/maps").exists():
            pytest.skip("no /proc on this system")
        maps = Path(f"/proc/{child.pid}/maps").read_text(encoding="utf-8")
        assert not any(name in maps for name in ("libtorch", "sklearn", "lightgbm", "pyarrow"))
        resident = int(
            next(t for t in Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8").splitlines() if "VmRSS" in t).split()[1]
        )
        assert resident < 250_000  # kB
