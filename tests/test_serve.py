"""The server against a real model: the protocol, refusals, fuzzed bodies, concurrency, shutdown and the curl line."""

from __future__ import annotations

import concurrent.futures
import gzip
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from sklearn.datasets import load_wine

import modelyard
from modelyard.errors import UsageError
from modelyard.verbs.serve import Server, serve

NUMBERS = ("alcohol", "hue", "proline")
LIMIT = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model of the three cultivars of wine with one category column and missing values in `hue`."""
    data = load_wine()
    columns = [data.feature_names.index(n) for n in NUMBERS]
    rows = [dict(zip(NUMBERS, map(float, data.data[i, columns]), strict=True)) for i in range(len(data.target))]
    for i, row in enumerate(rows):
        row |= {"cellar": ("north", "south", "O'Neill")[i % 3], "cultivar": f"class {data.target[i]}"}  # type: ignore[dict-item]
        if i % 10 == 0:
            row["hue"] = None  # type: ignore[assignment]
    base = tmp_path_factory.mktemp("wine")
    here = Path.cwd()
    os.chdir(base)
    try:
        modelyard.train(data=rows, target="cultivar", model="linear", quiet=True)
    finally:
        os.chdir(here)
    return next(base.glob("runs/*/model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder, limit=LIMIT) as running:
        yield running


def call(
    server: Server, body: Any = None, path: str | None = None, method: str = "POST", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """(status, decoded JSON or text, headers); `body` is sent as it is where it is bytes."""
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=30)
    raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode("utf-8")
    path = f"/v1/models/{server.model.name}:predict" if path is None else path
    connection.request(method, path, raw, {k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    text = response.read().decode("utf-8")
    found = {k.lower(): v for k, v in response.getheaders()}
    connection.close()
    return response.status, json.loads(text) if "json" in found.get("content-type", "") else text, found


def examples(server: Server, count: int = 4) -> list[dict[str, Any]]:
    return [dict(row) for row in server.model.examples[:count]]


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_rows_and_columns_are_the_model_s_own_answers(server: Server) -> None:
    rows = examples(server)
    own = server.model.predict(rows).to_json()
    status, body, headers = call(server, {"instances": rows})
    assert status == 200 and set(body) == {"predictions"}
    assert [p["cultivar"] for p in body["predictions"]] == [p["cultivar"] for p in own]
    for served, direct in zip(body["predictions"], own, strict=True):
        assert served["cultivar.scores"] == pytest.approx(direct["cultivar.scores"], abs=1e-6)
        assert sum(served["cultivar.scores"].values()) == pytest.approx(1, abs=1e-5)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    status, by_column, _ = call(server, {"inputs": columns})
    assert status == 200 and by_column == {"outputs": body["predictions"]}
    assert headers["modelyard-model"] and headers["modelyard-version"] == server.model.version
    assert headers["x-content-type-options"] == "nosniff"


def test_bare_values_stand_for_the_only_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    modelyard.train(data=[{"x": float(i), "y": 2.0 * i + 1} for i in range(80)], target="y", model="linear", quiet=True)
    with serve(next(tmp_path.glob("runs/*/model"))) as server:
        status, body, _ = call(server, {"instances": [3.0, 10.5]})
        assert status == 200 and body["predictions"] == pytest.approx([7, 22], abs=0.5)
        assert call(server, {"inputs": [3.0, 10.5]})[1]["outputs"] == body["predictions"]
        status, mixed, _ = call(server, {"instances": [3.0, "no number", 10.5]})
        assert status == 200
        assert [mixed["predictions"][0], mixed["predictions"][2]] == body["predictions"]
        assert mixed["predictions"][1]["error"]["column"] == "x"


def test_a_bad_row_gets_its_error_and_leaves_its_neighbours_alone(server: Server) -> None:
    good = examples(server, 3)
    alone = call(server, {"instances": good})[1]["predictions"]
    worse = [{**good[1], "alcohol": "strong"}, {k: v for k, v in good[1].items() if k != "proline"}, 7, None, [], {**good[1], "alcohol": 10**400}]
    for bad in worse:
        status, body, _ = call(server, {"instances": [good[0], bad, good[1], good[2]]})
        assert status == 200
        error = body["predictions"][1]["error"]
        assert set(error) >= {"column", "reason"} and error["reason"]
        assert [body["predictions"][i] for i in (0, 2, 3)] == alone
    status, body, _ = call(server, {"instances": [good[0], worse[0]], "strict": True})
    assert status == 400 and "row 1: alcohol" in body["error"]


def test_unseen_labels_missing_values_and_extra_keys_are_answered(server: Server) -> None:
    row = examples(server, 1)[0]
    for change in ({"cellar": "never seen"}, {"cellar": None}, {"hue": None}, {"alcohol": None}, {"note": "extra"}, {"alcohol": 1e300}):
        status, body, _ = call(server, {"instances": [{**row, **change}]})
        assert status == 200 and body["predictions"][0]["cultivar"].startswith("class "), change
        assert sum(body["predictions"][0]["cultivar.scores"].values()) == pytest.approx(1, abs=1e-5)


REFUSED: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "is not JSON"),
    ("empty", b"", 400, "is not JSON"),
    ("not UTF-8", b'{"instances": ["\xff"]}', 400, "not UTF-8"),
    ("a list", b"[1]", 400, "must be an object"),
    ("no rows", b"{}", 400, "either instances"),
    ("both", b'{"instances": [], "inputs": {}}', 400, "either instances"),
    ("rows as a map", b'{"instances": {"a": 1}}', 400, "must be a list"),
    ("unknown key", b'{"instances": [], "instance": 1}', 400, "unknown key"),
    ("columns of two lengths", b'{"inputs": {"alcohol": [1], "hue": [1, 2]}}', 400, "different lengths"),
    ("scalar columns", b'{"inputs": {"alcohol": 1}}', 400, "each a list"),
    ("duplicate keys", b'{"instances": [], "instances": []}', 400, "appears twice"),
    ("duplicate keys in a row", b'{"instances": [{"hue": 1, "hue": 2}]}', 400, "appears twice"),
    ("too deep", b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "nested deeper"),
    ("bad seed", b'{"instances": [], "seed": -1}', 400, "seed"),
    ("bad strict", b'{"instances": [], "strict": 1}', 400, "strict"),
    ("bad params", b'{"instances": [], "params": []}', 400, "params"),
    ("too large", b'{"instances": ["' + b"x" * LIMIT + b'"]}', 413, "larger than"),
    ("digits without end", b'{"instances": [' + b"9" * 5000 + b"]}", 400, "JSON"),
]


@pytest.mark.parametrize(("name", "body", "status", "said"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_cannot_be_answered_is_refused_in_a_sentence(server: Server, name: str, body: bytes, status: int, said: str) -> None:
    code, answer, _ = call(server, body)
    assert code == status and set(answer) == {"error"} and said in answer["error"]


def test_nan_is_missing_and_infinity_an_error_of_its_row(server: Server) -> None:
    """TensorFlow Serving takes these tokens; the answers are strict JSON all the same."""
    row = examples(server, 1)[0]
    missing = call(server, {"instances": [{**row, "alcohol": None}]})[1]
    for token in ("NaN", "Infinity", "-Infinity"):
        text = json.dumps({"instances": [{**row, "alcohol": "@"}]}).replace('"@"', token)
        status, answer, _ = call(server, text.encode("utf-8"))
        assert status == 200
        if token == "NaN":
            assert answer == missing
        else:
            assert answer["predictions"][0]["error"]["column"] == "alcohol"


def test_no_rows_are_no_answers(server: Server) -> None:
    assert call(server, {"instances": []})[:2] == (200, {"predictions": []})


def test_compressed_bodies(server: Server) -> None:
    raw = json.dumps({"instances": examples(server, 2)}).encode("utf-8")
    plain = call(server, raw)[1]
    assert call(server, gzip.compress(raw), Content_Encoding="gzip")[:2] == (200, plain)
    assert call(server, zlib.compress(raw), Content_Encoding="deflate")[:2] == (200, plain)
    assert call(server, gzip.compress(raw)[:-9], Content_Encoding="gzip")[0] == 400
    assert call(server, raw, Content_Encoding="gzip")[0] == 400
    assert call(server, raw, Content_Encoding="br")[0] == 415
    assert call(server, gzip.compress(b"[" * 2**26), Content_Encoding="gzip")[0] == 413  # 64 MiB from 64 kB


def test_routes_names_and_methods(server: Server) -> None:
    name, version = server.model.name, server.model.version
    row = {"instances": examples(server, 1)}
    assert call(server, row, f"/v1/models/{name}/versions/{version}:predict")[0] == 200
    assert call(server, row, f"/v1/models/{name}/versions/1:predict")[0] == 200
    for path in ("/v1/models/other:predict", f"/v1/models/{name}/versions/99:predict", "/v1/nothing"):
        status, answer, _ = call(server, row, path)
        assert status == 404 and answer["error"]
    assert call(server, path=f"/v1/models/{name}:predict", method="GET")[0] == 405
    assert call(server, row, "/metrics")[0] == 405
    status, state, _ = call(server, path=f"/v1/models/{name}", method="GET")
    assert status == 200 and state["model_version_status"][0]["state"] == "AVAILABLE"
    metadata = call(server, path=f"/v1/models/{name}/metadata", method="GET")[1]
    assert metadata["model_spec"]["name"] == name
    for path in ("/healthz", "/v2/health/live", "/v2/health/ready"):
        assert call(server, path=path, method="GET")[0] == 200
    assert call(server, path="/static/..%2f__init__.py", method="GET")[0] == 404


def test_request_ids_come_back_and_cannot_smuggle_headers(server: Server) -> None:
    row = {"instances": examples(server, 1)}
    assert call(server, row, X_Request_Id="abc-1.2:3")[2]["modelyard-request-id"] == "abc-1.2:3"
    for odd in ("a b", "x" * 200, "<script>"):
        assert re.fullmatch(r"[0-9a-f]{16}", call(server, row, X_Request_Id=odd)[2]["modelyard-request-id"])


# --- who may ask -----------------------------------------------------------------------------------------------------


def test_a_token_is_needed_where_one_is_set(folder: Path) -> None:
    with serve(folder, token="s3cret") as server:
        row = {"instances": examples(server, 1)}
        status, answer, headers = call(server, row)
        assert status == 401 and headers["www-authenticate"] == "Bearer" and "s3cret" not in json.dumps(answer)
        assert call(server, row, Authorization="Bearer wrong")[0] == 401
        assert call(server, row, Authorization="Basic s3cret")[0] == 401
        assert call(server, row, Authorization="Bearer s3cret")[0] == 200
        for path in ("/metrics", "/openapi.json", "/v1/models"):
            assert call(server, path=path, method="GET")[0] == 401
        assert call(server, path="/healthz", method="GET")[0] == 200
        assert call(server, path="/", method="GET")[0] in (200, 401)


def test_others_may_ask_only_with_a_token(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"serve\.token"):
        serve(folder, host="0.0.0.0")
    with serve(folder, host="0.0.0.0", token="t") as server:
        assert server.url.startswith("http://0.0.0.0:")


# --- descriptions ----------------------------------------------------------------------------------------------------


def test_openapi_describes_what_is_answered(server: Server) -> None:
    document = call(server, path="/openapi.json", method="GET")[1]
    assert document["openapi"].startswith("3.1") and document["info"]["title"] and document["info"]["version"]

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    schemas = document["components"]["schemas"]
    assert all(r.removeprefix("#/components/schemas/") in schemas for r in references(document))
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, item in document["paths"].items():
        assert path.startswith("/")
        for method, operation in item.items():
            assert operation["responses"] and operation["summary"]
            if method == "get":
                assert call(server, path=path, method="GET")[0] == 200, path
    predict = next(item["post"] for item in document["paths"].values() if "post" in item)
    rooted = lambda schema: {**schema, "components": document["components"]}  # noqa: E731
    asked = predict["requestBody"]["content"]["application/json"]["schema"]
    answered = predict["responses"]["200"]["content"]["application/json"]["schema"]
    body = {"instances": examples(server)}
    jsonschema.Draft202012Validator(rooted(asked)).validate(body)
    jsonschema.Draft202012Validator(rooted(asked)).validate(asked["example"])
    jsonschema.Draft202012Validator(rooted(answered)).validate(call(server, body)[1])
    jsonschema.Draft202012Validator(rooted(answered)).validate(call(server, {"instances": [5]})[1])
    first = call(server, body)[1]["predictions"][0]
    assert set(first) <= set(schemas["Answer"]["properties"])


def test_metrics_are_prometheus_text_and_count(server: Server) -> None:
    def series() -> dict[str, float]:
        text = call(server, path="/metrics", method="GET")[1]
        line = re.compile(r'([a-z_]+)(\{(?:[a-z]+="(?:[^"\\]|\\.)*",?)*\})? (-?[0-9.e+-]+|\+Inf|NaN)')
        found = {}
        kinds = {m[1] for m in re.finditer(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", text, re.M)}
        for entry in text.splitlines():
            if entry and not entry.startswith("#"):
                match = line.fullmatch(entry)
                assert match, entry
                assert re.sub(r"_(bucket|sum|count)$", "", match[1]) in kinds or match[1] in kinds
                found[match[1] + (match[2] or "")] = float(match[3])
        return found

    before = series()
    call(server, {"instances": [*examples(server, 2), 5]})
    after = series()
    total = lambda s, name: sum(v for k, v in s.items() if k.startswith(name))  # noqa: E731
    assert total(after, "modelyard_rows_total") - total(before, "modelyard_rows_total") == 3
    assert total(after, "modelyard_row_errors_total") - total(before, "modelyard_row_errors_total") == 1
    buckets = [v for k, v in after.items() if k.startswith("modelyard_request_seconds_bucket") and 'route="predict"' in k]
    assert buckets == sorted(buckets)
    assert buckets[-1] == next(v for k, v in after.items() if k.startswith("modelyard_request_seconds_count") and 'route="predict"' in k)


# --- abuse and load --------------------------------------------------------------------------------------------------


def fuzzed(chance: random.Random, rows: list[dict[str, Any]]) -> bytes:
    """A request body with something wrong in it, or not."""
    values: list[Any] = [None, True, 0, -1, 1e308, 2**70, "", "x", "\ud83d\ude00", "\x00", [], {}, [[]], "NaN", {"b64": "!"}, " 1 ", "1,5", "O'N"]

    def value(depth: int = 0) -> Any:
        if depth < 3 and chance.random() < 0.2:
            return [value(depth + 1) for _ in range(chance.randrange(4))]
        if depth < 3 and chance.random() < 0.2:
            return {chance.choice(["alcohol", "hue", "", "\x00", "b64"]): value(depth + 1) for _ in range(chance.randrange(4))}
        return chance.choice(values)

    body: Any = {"instances": [dict(chance.choice(rows)) for _ in range(chance.randrange(1, 4))]}
    for _ in range(chance.randrange(1, 4)):
        way = chance.randrange(6)
        if way == 0:
            body[chance.choice(["params", "seed", "strict", "inputs", "signature_name", "instances", "zz"])] = value()
        elif way == 1:
            body = {"inputs": {k: value() for k in rows[0]}}
        elif way == 2:
            body = {"inputs": {k: [value() for _ in range(2)] for k in rows[0]}}
        elif isinstance(body.get("instances"), list) and body["instances"]:
            row = chance.choice(body["instances"])
            if isinstance(row, dict) and row:
                row[chance.choice([*row, "more"])] = value()
            else:
                body["instances"].append(value())
    raw = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance.random() < 0.3:
        place = chance.randrange(len(raw))
        raw = chance.choice([raw[:place], raw[:place] + chance.randbytes(3) + raw[place:], raw[:place] + raw[place + 1 :]])
    return raw


def test_no_body_makes_the_server_fail(server: Server) -> None:
    chance = random.Random(7)
    rows = examples(server)
    seen: dict[int, int] = {}
    for i in range(1000):
        raw = fuzzed(chance, rows)
        status, answer, _ = call(server, raw)
        seen[status] = seen.get(status, 0) + 1
        assert status < 500, (i, raw[:300], answer)
        assert ("error" in answer) == (status >= 400)
    assert seen.get(200, 0) > 100 and seen.get(400, 0) > 100, seen  # else the fuzzing tests one side only
    assert call(server, {"instances": rows})[0] == 200


def test_answers_reach_their_askers(server: Server) -> None:
    base = examples(server, 1)[0]
    batches = [[{**base, "alcohol": 10 + 0.1 * i + 0.01 * j, "proline": 300.0 + 40 * i} for j in range(1 + i % 5)] for i in range(32)]
    alone = [server.model.predict(rows).to_json() for rows in batches]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        jobs = [i % 32 for i in range(320)]
        for i, (status, body, _) in zip(jobs, pool.map(lambda i: call(server, {"instances": batches[i]}), jobs), strict=True):
            assert status == 200 and len(body["predictions"]) == len(batches[i])
            for served, direct in zip(body["predictions"], alone[i], strict=True):
                assert served["cultivar.scores"] == pytest.approx(direct["cultivar.scores"], abs=1e-6)


def test_the_curl_line_works_in_a_shell(server: Server) -> None:
    first = next(r for r in server.model.examples if "'" in str(r.get("cellar")))
    server.model.examples.insert(0, first)
    try:
        done = subprocess.run(["sh", "-c", server.curl], capture_output=True, text=True, timeout=30, check=True)
    finally:
        server.model.examples.pop(0)
    assert json.loads(done.stdout)["predictions"][0]["cultivar"].startswith("class ")


def test_sigterm_answers_what_is_in_flight_first(folder: Path) -> None:
    """A process of its own: the request is half sent when the signal comes, and is still answered."""
    source = str(Path(modelyard.__file__).parent.parent)
    command = [sys.executable, "-m", "modelyard", "serve", str(folder.parent), "serve.port=0", "--json"]
    environment = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=folder.parent) as process:
        assert process.stdout is not None and process.stderr is not None
        ready = json.loads(process.stdout.readline())
        where = urlsplit(ready["url"])
        row = modelyard.load_model(folder).examples[0]
        raw = json.dumps({"instances": [row]}).encode("utf-8")
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=20)
        connection.putrequest("POST", f"/v1/models/{ready['model']}:predict")
        connection.putheader("Content-Length", str(len(raw)))
        connection.endheaders(raw[:20])
        probe = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=20)
        probe.request("GET", "/healthz")  # once this is answered the half request has been taken up
        assert probe.getresponse().read()
        probe.close()
        process.send_signal(signal.SIGTERM)
        connection.send(raw[20:])
        response = connection.getresponse()
        assert response.status == 200 and json.loads(response.read())["predictions"]
        connection.close()
        assert process.wait(15) in (0, -signal.SIGTERM)
        assert b"Traceback" not in process.stderr.read()
