"""Spans as a collector gets them: over OTLP on loopback, read by OpenTelemetry's own messages."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import MissingExtra
from modelyard.store import keys as keys_file

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry comes with the extra 'otel'")
messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """(address, spans that came), as of a collector."""
    spans: list[Any] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                raw = gzip.decompress(raw)
            assert self.path == "/v1/traces"
            for resource in messages.ExportTraceServiceRequest.FromString(raw).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", spans
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    x = np.random.default_rng(0).normal(size=80)
    folder = tmp_path_factory.mktemp("traces")
    frame = pl.DataFrame({"x": x, "y": np.where(x > 0, "yes", "no")})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return str((folder / modelyard.train(data=frame, target="y", model="linear", quiet=True).model).resolve())


def post(url: str, body: Any, **headers: str) -> int:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(asked, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def said(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_each_answer_is_a_span_of_its_callers_trace(model: str, collector: tuple[str, list[Any]], tmp_path: Path) -> None:
    address, spans = collector
    keys = tmp_path / "keys.json"
    _, key = keys_file.create(keys, "secret-caller", {"m": "caller"})
    with modelyard.serve(model, name="m", traces=address, keys=str(keys)) as server:
        bearer = {"Authorization": f"Bearer {key}"}
        url = f"{server.url}/v1/models/m:predict"
        assert post(url, {"instances": [{"x": 1.0}, {"x": "one"}]}, traceparent=f"00-{TRACE}-{PARENT}-01", **{"X-Request-Id": "r1"}, **bearer) == 200
        assert post(url, {"instances": [{"x": 2.0}]}, **bearer) == 200
        assert post(url, {"instances": [{"x": 2.0}]}) == 401
        tensor = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]}]}
        assert post(f"{server.url}/v2/models/m/infer", tensor, **bearer) == 200
        with urllib.request.urlopen(f"{server.url}/healthz") as response:
            assert response.status == 200
        version = server.model.version
    assert [s.name for s in spans] == ["predict m", "predict m", "predict m", "infer m"]
    first, second, refused, other = spans
    assert first.trace_id.hex() == TRACE and first.parent_span_id.hex() == PARENT and second.trace_id.hex() != TRACE and not second.parent_span_id
    assert said(first) == {
        "modelyard.route": "predict", "modelyard.model": "m", "modelyard.version": version, "modelyard.request": "r1",
        "modelyard.rows": 2, "modelyard.row_errors": 1, "http.response.status_code": 200,
    }  # fmt: skip
    assert said(refused)["http.response.status_code"] == 401 and "modelyard.rows" not in said(refused) and said(other)["modelyard.rows"] == 1
    assert all(s.end_time_unix_nano > s.start_time_unix_nano for s in spans)
    everything = b"".join(s.SerializeToString() for s in spans)
    assert b"secret-caller" not in everything and key.encode() not in everything  # who asks is nobody's business


def test_calls_over_grpc_are_spans_too(model: str, collector: tuple[str, list[Any]]) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    address, spans = collector
    with modelyard.serve(model, name="m", traces=address, grpc=0) as server:
        assert server.rpc is not None
        column = triton.InferInput("x", [1], "FP64")
        column.set_data_from_numpy(np.array([0.5]))
        client = triton.InferenceServerClient(server.rpc.address)
        client.infer("m", [column], headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        with pytest.raises(triton.InferenceServerException):
            client.infer("m", [triton.InferInput("z", [1], "FP64").set_data_from_numpy(np.array([0.5]))])
        client.close()
    assert [s.name for s in spans] == ["grpc_infer m", "grpc_infer m"] and spans[0].trace_id.hex() == TRACE
    assert [said(s)["http.response.status_code"] for s in spans] == [200, 400]


def test_the_variable_asks_for_traces_and_the_library_may_be_absent(
    model: str, collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    with modelyard.serve(model, name="m") as server:
        assert post(f"{server.url}/v1/models/m:predict", {"instances": [{"x": 1.0}]}) == 200
    assert len(spans) == 1
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with modelyard.serve(model, name="m") as server:
        assert server.traces is None
    assert "pip install 'modelyard[otel]'" in capsys.readouterr().err
    with pytest.raises(MissingExtra, match="otel"):
        modelyard.serve(model, name="m", traces=address)


def test_a_collector_that_is_gone_costs_no_answer(model: str) -> None:
    with modelyard.serve(model, name="m", traces="http://127.0.0.1:9") as server:
        assert all(post(f"{server.url}/v1/models/m:predict", {"instances": [{"x": 1.0}]}) == 200 for _ in range(20))
