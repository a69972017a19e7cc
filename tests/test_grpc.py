"""The Open Inference Protocol over gRPC: the offline answers, every mistake as its status, the same door, limits, certificates and end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import MissingExtra, UsageError
from modelyard.runtime.answers import compare
from modelyard.runtime.model import Model
from modelyard.store import keys as keys_file
from modelyard.store.keys import ROLES
from modelyard.verbs.serve import Server, access, wire
from modelyard.verbs.serve.access import RIGHTS

grpc = pytest.importorskip("grpc", reason="grpcio comes with the extra 'grpc'")

from modelyard.verbs.serve import rpc  # noqa: E402

HERE = Path(__file__).parent


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"grpc_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`half_plus_two` (a number), `loan` (a table), `note` (a text, a date, a list), `picture`."""
    folder = tmp_path_factory.mktemp("grpc")
    found: dict[str, str] = load(HERE / "protocol" / "models.py").train(folder)
    images = load(HERE / "test_parity.py").images(np.random.default_rng(7))["image"]
    frame = pl.DataFrame({"image": images, "y": ["left" if i % 3 else "right" for i in range(len(images))]})
    settings = {"train.epochs": 1, "train.smoke": False}
    with contextlib.chdir(folder):
        found["picture"] = str(folder / modelyard.train(data=frame[:64], target="y", model="light", name="picture", **settings).model)
    return found


@pytest.fixture(scope="module")
def server(models: dict[str, str]) -> Iterator[Server]:
    with modelyard.serve(models=models, grpc=0) as server:
        yield server


class Client:
    """One channel; `call` gives (answer, code, sentence, metadata)."""

    def __init__(self, address: str, key: str | None = None, credentials: Any = None) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, asked: Any = None, metadata: Any = (), **more: Any) -> tuple[Any, str, str, dict[str, Any]]:
        asked = rpc.protocol().methods[method][0]() if asked is None else asked
        raw = asked if isinstance(asked, bytes) else asked.SerializeToString()
        stub = self.channel.unary_unary(f"/{rpc.protocol().service}/{method}", None, rpc.protocol().methods[method][1].FromString)
        try:
            answer, call = stub.with_call(raw, timeout=30, metadata=(*self.metadata, *metadata), **more)
            return answer, "OK", "", dict(call.trailing_metadata())
        except grpc.RpcError as error:
            return None, error.code().name, error.details(), dict(error.trailing_metadata() or ())


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    assert server.rpc is not None
    with Client(server.rpc.address) as client:
        yield client


def request(model: str = "half_plus_two", version: str = "", **columns: Any) -> Any:
    """A `ModelInferRequest` of typed columns: numbers as FP64, texts as BYTES."""
    asked = rpc.protocol().messages["ModelInferRequest"](model_name=model, model_version=version)
    for name, values in columns.items():
        texts = isinstance(values[0], str | bytes)
        tensor = asked.inputs.add(name=name, datatype="BYTES" if texts else "FP64", shape=[len(values)])
        if texts:
            tensor.contents.bytes_contents.extend(v.encode("utf-8") if isinstance(v, str) else v for v in values)
        else:
            tensor.contents.fp64_contents.extend(values)
    return asked


# --- messages --------------------------------------------------------------------------------------------------------


def test_messages_are_those_of_protoc(tmp_path: Path) -> None:
    """What `wire.parse` reads of the .proto is, byte for byte but for the names in JSON, what Google's compiler reads of it."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is needed to compare with")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    source = Path(wire.__file__).parent / "static" / "open_inference.proto"
    assert protoc.main(["", f"-I{source.parent}", f"--descriptor_set_out={tmp_path / 'set'}", str(source)]) == 0
    theirs = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file[0]
    ours, _ = wire.parse(source.read_text(encoding="utf-8"))
    ours.name = theirs.name
    for message in (open_ := list(theirs.message_type)):
        open_ += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
    assert ours == theirs and len(theirs.message_type) == 14 and len(theirs.service[0].method) == 6
    for wrong in ("message A { group B = 1; }", "enum A {}", "service S { rpc A(B) returns B {} }"):
        with pytest.raises((ValueError, StopIteration)):
            wire.parse(f'syntax = "proto3"; package p; {wrong}')


def test_messages_are_those_of_tritonclient() -> None:
    """The bytes of their classes are read by ours, and the other way: one of every field."""
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient[grpc] is needed to compare with")
    kinds = rpc.protocol().messages
    one = theirs.ModelInferRequest(model_name="m", model_version="v", id="i", raw_input_contents=[b"a", b"b"])
    for way, value in {"bool_param": True, "int64_param": -5, "string_param": "s", "double_param": 0.5, "uint64_param": 2**63}.items():
        setattr(one.parameters[way], way, value)
    tensor = one.inputs.add(name="x", datatype="FP64", shape=[2, 1])
    tensor.parameters["p"].int64_param = 1
    for i, field in enumerate(dict.fromkeys(rpc.CONTENTS.values())):
        getattr(tensor.contents, field).append(b"z" if field.startswith("bytes") else i)
    one.outputs.add(name="y").parameters["q"].bool_param = False
    ours = kinds["ModelInferRequest"].FromString(one.SerializeToString())
    assert str(ours) == str(one) and theirs.ModelInferRequest.FromString(ours.SerializeToString()) == one
    said = kinds["ModelInferResponse"](model_name="m", model_version="v", id="i", raw_output_contents=[b"c"])
    said.outputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(0.5)
    assert str(theirs.ModelInferResponse.FromString(said.SerializeToString())) == str(said)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("name", ["half_plus_two", "loan", "note", "picture"])
def test_answers_are_the_offline_ones(server: Server, models: dict[str, str], name: str, raw: bool) -> None:
    """Parity: a number, a table with gaps, a text with a date and a list, and pictures; labels equal, numbers within 1e-5."""
    model = Model.load(models[name])
    rows = [r for r in model.examples if all(v is not None or f.kind == "number" for f in model.signature.inputs for v in [r[f.name]])]
    offline = model.predict(rows)
    assert server.rpc is not None
    found = load(HERE.parent / "benchmarks" / "_rpc.py").over_grpc(server.rpc.address, name, model, rows, offline, 7, raw)
    judged = compare(offline, found, model.pipeline.scales())
    assert judged.ok and judged.rows == len(rows) >= 8 and judged.max_difference <= 1e-5, judged.to_json()


def test_the_server_and_its_models_are_told_of(server: Server, client: Client) -> None:
    assert client.call("ServerLive")[0].live and client.call("ServerReady")[0].ready
    about = client.call("ServerMetadata")[0]
    assert (about.name, about.version) == ("modelyard", modelyard.__version__)
    loan = server.fleet.endpoints["loan"].arms[0].service.model
    kind = rpc.protocol().messages["ModelMetadataRequest"]
    for version in ("", loan.version, "champion", "1"):
        told, *_, metadata = client.call("ModelMetadata", kind(name="loan", version=version))
        assert (told.name, list(told.versions), metadata["modelyard-version"]) == ("loan", [loan.version], loan.version)
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("age", "FP64", [-1]), ("job", "BYTES", [-1]), ("owner", "BYTES", [-1])]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [("approved", "BYTES", [-1]), ("approved.scores", "FP32", [-1, 2])]
    ready = rpc.protocol().messages["ModelReadyRequest"]
    assert client.call("ModelReady", ready(name="note"))[0].ready
    for wrong in (kind(name="other"), kind(name="loan", version="other"), kind()):
        assert client.call("ModelReady", ready(name=wrong.name, version=wrong.version))[:2] == (rpc.protocol().messages["ModelReadyResponse"](), "OK")
        for method in ("ModelMetadata", "ModelInfer"):
            assert client.call(method, wrong.SerializeToString())[1] == "NOT_FOUND"


def test_an_answer_says_what_http_says(server: Server, client: Client) -> None:
    """Versions, the number of the request, chosen outputs; rows that fail have a sentence, and with `strict` they are a status."""
    asked = request("loan", age=[30.0, 50.0, float("nan")], job=["cook", "clerk", "new"], owner=["true", "false", "true"])
    asked.id = "seven"
    answer, code, _, metadata = client.call("ModelInfer", asked, metadata=[("x-request-id", "abc-1")])
    assert code == "OK" and answer.id == "seven" and metadata["modelyard-request-id"] == "abc-1"
    assert answer.model_name == "loan" and answer.model_version == metadata["modelyard-version"] == server.fleet.endpoints["loan"].arms[0].service.model.version
    assert [(o.name, list(o.shape)) for o in answer.outputs] == [("approved", [3]), ("approved.scores", [3, 2])]
    asked.outputs.add(name="approved.scores")
    assert [o.name for o in client.call("ModelInfer", asked)[0].outputs] == ["approved.scores"]
    asked.outputs.add(name="other")
    assert client.call("ModelInfer", asked)[1:3] == ("INVALID_ARGUMENT", "no output other; there is approved, approved.scores")
    failing = request("note", text=["rice", "soup"], day=["2024-01-02T00:00:00", "never"], tags=["[]", '["warm"]'])
    answer = client.call("ModelInfer", failing)[0]
    error = next(o for o in answer.outputs if o.name == "error").contents.bytes_contents
    assert error[0] == b"" and b"day" in error[1]
    failing.parameters["strict"].bool_param = True
    _, code, said, _ = client.call("ModelInfer", failing)
    assert code == "INVALID_ARGUMENT" and said.startswith("row 1: day")
    failing.parameters["strict"].string_param = "yes"
    assert client.call("ModelInfer", failing)[1:3] == ("INVALID_ARGUMENT", "strict must be true or false")


def raws(tensor: dict[str, Any], raw: list[bytes], **fields: Any) -> Any:
    asked = rpc.protocol().messages["ModelInferRequest"](model_name="half_plus_two", raw_input_contents=raw)
    one = asked.inputs.add(**{"name": "x", "datatype": "FP64", "shape": [1], **tensor})
    for field, values in fields.items():
        getattr(one.contents, field).extend(values)
    return asked


WRONG: dict[str, tuple[Any, str]] = {
    "no inputs": (lambda: rpc.protocol().messages["ModelInferRequest"](model_name="half_plus_two"), "inputs must be"),
    "one raw too many": (lambda: raws({}, [b"\0" * 8] * 2), "2 raw_input_contents came for 1"),
    "raw and typed": (lambda: raws({}, [b"\0" * 8], fp64_contents=[1.0]), "beside raw_input_contents"),
    "raw too short": (lambda: raws({}, [b"\0" * 7]), "7 bytes came for 1 values"),
    "raw too long": (lambda: raws({}, [b"\0" * 16]), "16 bytes came for 1 values"),
    "another field": (lambda: raws({}, [], fp32_contents=[1.0]), "come in fp64_contents, not in fp32_contents"),
    "no field": (lambda: raws({}, []), "0 values came"),
    "half typed": (lambda: raws({"datatype": "FP16"}, [], fp32_contents=[1.0]), "FP16 come in raw_input_contents"),
    "no datatype": (lambda: raws({"datatype": "FP128"}, []), "expected BYTES, BOOL"),
    "no shape": (lambda: raws({"shape": []}, [], fp64_contents=[1.0]), "expected"),
    "negative shape": (lambda: raws({"shape": [-1]}, [], fp64_contents=[1.0]), "expected"),
    "huge shape": (lambda: raws({"shape": [2**62, 2**62]}, [], fp64_contents=[1.0]), "a column is"),
    "another input": (lambda: raws({"name": "z"}, [], fp64_contents=[1.0]), "'z' is no input; there is x"),
    "beyond int8": (lambda: raws({"datatype": "INT8"}, [], int_contents=[300]), "300 is beyond INT8"),
    "a text that is no text": (lambda: raws({"datatype": "BYTES"}, [], bytes_contents=[b"\xff"]), "not UTF-8"),
    "a text that is too long": (lambda: raws({"datatype": "BYTES"}, [struct.pack("<I", 2**32 - 1) + b"abc"]), "longer than the bytes"),
    "a length that is cut": (lambda: raws({"datatype": "BYTES"}, [b"\x01\x00"]), "'x'"),
    "more texts than rows": (lambda: raws({"datatype": "BYTES"}, [b"\0\0\0\0" * 100_000]), "more than 1 values"),
    "no message": (lambda: b"\xff\xff\xff", "no inference.ModelInferRequest"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_as_invalid_arguments(client: Client, name: str) -> None:
    make, said = WRONG[name]
    asked = make()
    if isinstance(asked, bytes):  # the model's name is read, what follows is broken
        asked = request().SerializeToString() + b"\x2a\x01\xff"
    _, code, sentence, _ = client.call("ModelInfer", asked)
    assert code == "INVALID_ARGUMENT" and said in sentence, sentence


def test_every_mistake_is_told_at_once_and_too_many_rows_are_refused(client: Client) -> None:
    _, code, said, _ = client.call("ModelInfer", request("loan", age=["old"], z=[1.0], job=["cook", "cook"]))
    assert code == "INVALID_ARGUMENT" and "'z' is no input" in said and "different numbers of rows" in said
    _, code, said, _ = client.call("ModelInfer", raws({"shape": [100_001], "datatype": "UINT8"}, [b"\0" * 100_001]))
    assert code == "RESOURCE_EXHAUSTED" and "100001 rows" in said
    assert client.call("ModelInfer", raws({"shape": [0]}, []))[0].outputs[0].shape == [0]


def test_whole_numbers_of_any_type_and_half_floats_are_read(client: Client) -> None:
    for datatype, form in (("INT32", "<i4"), ("UINT8", "u1"), ("INT64", "<i8"), ("FP32", "<f4")):
        field = rpc.CONTENTS[datatype]
        typed, raw = raws({"datatype": datatype}, [], **{field: [6]}), raws({"datatype": datatype}, [np.array([6], form).tobytes()])
        first, second = client.call("ModelInfer", typed)[0], client.call("ModelInfer", raw)[0]
        assert abs(first.outputs[0].contents.fp64_contents[0] - 5) < 0.02 and not first.raw_output_contents
        assert np.frombuffer(second.raw_output_contents[0]) == first.outputs[0].contents.fp64_contents[0]
    half = client.call("ModelInfer", raws({"datatype": "FP16"}, [np.array([6], np.float16).tobytes()]))[0]
    assert half.raw_output_contents[0] == second.raw_output_contents[0]


# --- the door --------------------------------------------------------------------------------------------------------


def test_every_method_asks_for_its_right(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys: dict[str, str | None] = {role: keys_file.create(path, role, {"one": role})[1] for role in ROLES}
    keys |= {"other": keys_file.create(path, "x", {"two": "admin"})[1], "nobody": None, "wrong": "my_000000000000_" + "A" * 43}
    slow = keys_file.create(path, "slow", {"one": "caller"}, rate=2.0)[1]
    log = tmp_path / "log.jsonl"
    served = {"one": models["half_plus_two"], "two": models["half_plus_two"]}
    with modelyard.serve(models=served, keys=str(path), grpc=0, log=str(log)) as server:
        assert server.rpc is not None
        for who, key in keys.items():
            with Client(server.rpc.address, key) as client:
                for method, (label, _) in rpc.WORK.items():
                    asked = request("one", x=[2.0]) if label == "infer" else rpc.protocol().methods[method][0]()
                    if label in ("ready", "metadata"):
                        asked.name = "one"
                    right = RIGHTS[label]
                    may = right is None or (who in ROLES and right in ROLES[who]) or (who == "other" and label in access.SOME)
                    expected = "OK" if may else "UNAUTHENTICATED" if who in ("nobody", "wrong") else "PERMISSION_DENIED"
                    assert client.call(method, asked)[1] == expected, (who, method)
        with Client(server.rpc.address, slow) as client:
            found = [client.call("ModelInfer", request("one", x=[2.0])) for _ in range(4)]
        assert [code for _, code, *_ in found[:3]] == ["OK", "OK", "RESOURCE_EXHAUSTED"] and int(found[2][3]["retry-after"]) >= 1
        metrics = server.fleet.all()[0].service.telemetry.requests
        assert metrics["grpc_infer", 200] >= 3 and metrics["grpc_infer", 401] == 2 and metrics["grpc_infer", 429] >= 1
    said = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {s["caller"] for s in said} == {"caller", "admin", "slow"} and all(len(s["answers"]) == 1 for s in said)


def test_shares_labels_and_shadows_are_those_of_http(models: dict[str, str], tmp_path: Path) -> None:
    x = np.linspace(-50, 50, 100)
    with contextlib.chdir(tmp_path):
        settings = {"model": {"name": "linear", "numbers": "scaled"}, "quiet": True}
        two, ten = (str(tmp_path / modelyard.train(data=pl.DataFrame({"x": x, "y": s * x}), target="y", name="m", **settings).model) for s in (2, 10))
    arms = {"champion": models["half_plus_two"], "challenger": {"model": two, "share": 0.5}, "shadow": ten}
    with modelyard.serve(models={"a": arms}, grpc=0) as server, Client(server.rpc.address) as client:  # type: ignore[union-attr]
        def ask(version: str = "", unit: str = "u") -> float:
            return float(client.call("ModelInfer", request("a", version, x=[4.0]), metadata=[("modelyard-unit", unit)])[0].outputs[0].contents.fp64_contents[0])

        found = {unit: ask(unit=unit) for unit in map(str, range(40))}
        endpoint = server.fleet.endpoints["a"]
        for unit, value in found.items():
            assert abs(value - (4 if endpoint.pick(unit).label == "champion" else 8)) < 0.05
        assert len({round(v) for v in found.values()}) == 2
        assert [round(ask(label)) for label in ("champion", "challenger", "shadow")] == [4, 8, 40]
        assert endpoint.shadow is not None
        until = time.monotonic() + 5
        while endpoint.shadow.service.telemetry.rows < 43 and time.monotonic() < until:
            time.sleep(0.01)
        assert endpoint.shadow.service.telemetry.rows == 43  # a copy of each of 42, and the one that asked it itself


# --- limits, certificates, the end -----------------------------------------------------------------------------------


def test_messages_are_bounded_packed_and_unpacked(models: dict[str, str]) -> None:
    """A message above the limit, and a packed one that is small until it is unpacked, are refused by the library; others still answer."""
    with modelyard.serve(models["half_plus_two"], grpc=0, limit=100_000) as server, Client(server.rpc.address) as client:  # type: ignore[union-attr]
        large = raws({"shape": [20_000]}, [bytes(160_000)])
        assert client.call("ModelInfer", large)[1] == "RESOURCE_EXHAUSTED"
        assert len(large.SerializeToString()) > 100_000
        assert client.call("ModelInfer", large, compression=grpc.Compression.Gzip)[1] == "RESOURCE_EXHAUSTED"
        small = raws({"shape": [10_000]}, [bytes(80_000)])
        answer, code, *_ = client.call("ModelInfer", small, compression=grpc.Compression.Gzip)
        assert code == "OK" and len(answer.raw_output_contents[0]) == 80_000


def test_a_server_that_is_full_says_when_to_come_back(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with modelyard.serve(models["half_plus_two"], grpc=0) as server, Client(server.rpc.address) as client:  # type: ignore[union-attr]
        monkeypatch.setattr(server.service.batcher, "waiting", 0)
        _, code, said, metadata = client.call("ModelInfer", request(x=[1.0]))
        assert code == "UNAVAILABLE" and "come back later" in said and int(metadata["retry-after"]) >= 1


def test_model_processes_answer_too(models: dict[str, str]) -> None:
    with modelyard.serve(models["half_plus_two"], grpc=0, workers=1) as server, Client(server.rpc.address) as client:  # type: ignore[union-attr]
        assert abs(client.call("ModelInfer", request(x=[4.0]))[0].outputs[0].contents.fp64_contents[0] - 4) < 0.02
        assert server.service.workers is not None
        next(iter(server.service.workers.all)).process.kill()
        assert abs(client.call("ModelInfer", request(x=[6.0]))[0].outputs[0].contents.fp64_contents[0] - 5) < 0.02


def test_what_is_begun_is_answered_and_nobody_is_lost_at_the_end(models: dict[str, str]) -> None:
    """Calls that were sent before the server closed its port are answered; later ones hear that it is gone, and were not begun."""
    model = Model.load(models["half_plus_two"])
    plain = model.graphs["main"]

    begun: list[int] = []

    def slow(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        begun.append(len(next(iter(inputs.values()))))
        time.sleep(0.02)
        return plain(inputs)

    codes: list[tuple[str, str]] = []
    stop = threading.Event()
    with modelyard.serve(model, grpc=0) as server:
        model.graphs["main"] = slow
        address = server.rpc.address  # type: ignore[union-attr]

        def caller() -> None:
            with Client(address) as client:
                while not stop.is_set():
                    _, code, said, _ = client.call("ModelInfer", request(x=[1.0]))
                    codes.append((code, said))
                    if code != "OK":
                        return

        threads = [threading.Thread(target=caller) for _ in range(6)]
        for thread in threads:
            thread.start()
        while len(codes) < 30:
            time.sleep(0.01)
        served = server.service.telemetry
    stop.set()
    for thread in threads:
        thread.join(20)
    # gRPC's core tells CANCELLED to a call that it had taken when the server stopped, and not handed on yet
    assert {code for code, _ in codes} <= {"OK", "UNAVAILABLE", "CANCELLED"}
    assert sum(code == "OK" for code, _ in codes) == served.requests["grpc_infer", 200] == sum(begun)


def test_tls_with_a_certificate_that_is_renewed(models: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="a certificate is made with the extra 'access'")
    make = load(HERE / "test_access.py").certificate
    make(tmp_path, "first")
    tls = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}

    def ask(server: Server, trusted: bytes) -> str:
        assert server.rpc is not None
        with Client(server.rpc.address, "secret", grpc.ssl_channel_credentials(trusted)) as client:
            return client.call("ModelInfer", request(x=[1.0]))[1]

    with modelyard.serve(models["half_plus_two"], tls=tls, grpc=0, token="secret") as server:
        first = (tmp_path / "cert.pem").read_bytes()
        assert ask(server, first) == "OK"
        with Client(server.rpc.address, "secret") as client:  # type: ignore[union-attr]
            assert client.call("ServerLive")[1] == "UNAVAILABLE"  # without TLS
        make(tmp_path, "second")
        second = (tmp_path / "cert.pem").read_bytes()
        assert ask(server, second) == "OK" and ask(server, first) == "UNAVAILABLE"
        (tmp_path / "cert.pem").write_text("half", encoding="utf-8")
        assert ask(server, second) == "OK"


def test_ports_and_the_library_are_looked_at_first(models: dict[str, str], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.rpc is not None
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{server.rpc.port}.*serve\.grpc"):
        modelyard.serve(models["half_plus_two"], grpc=server.rpc.port)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtra, match=r"modelyard\[grpc\]"):
        modelyard.serve(models["half_plus_two"], grpc=0)


# --- other people's clients ------------------------------------------------------------------------------------------


def triton(kind: Any, name: str, values: Any) -> Any:
    tensor = kind.InferInput(name, [len(values)], "FP64" if values.dtype == np.float64 else "BYTES")
    tensor.set_data_from_numpy(values)
    return tensor


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_tritonclient_asks_unchanged(models: dict[str, str], server: Server, way: str) -> None:
    kind = pytest.importorskip(f"tritonclient.{way}", reason=f"tritonclient[{way}] is needed to ask with")
    errors = pytest.importorskip("tritonclient.utils")
    assert server.rpc is not None
    ours = Model.load(models["loan"])
    offline = ours.predict([{"age": 30.0, "job": "cook", "owner": "true"}, {"age": None, "job": "驾驶员", "owner": "false"}]).to_json()
    columns = [("age", np.array([30.0, np.nan])), ("job", np.array(["cook", "驾驶员"], object)), ("owner", np.array([b"true", b"false"], object))]
    there = kind.InferenceServerClient(server.rpc.address if way == "grpc" else f"127.0.0.1:{server.port}")
    try:
        assert there.is_server_live() and there.is_server_ready() and there.is_model_ready("loan") and not there.is_model_ready("other")
        told = there.get_model_metadata("loan")
        told = told if isinstance(told, dict) else SimpleNamespace(**{f.name: v for f, v in told.ListFields()}).__dict__
        assert told["name"] == "loan" and list(told["versions"]) == [ours.version]
        wanted = [kind.InferRequestedOutput("approved"), kind.InferRequestedOutput("approved.scores")]
        for outputs in (None, wanted):
            found = there.infer("loan", [triton(kind, *c) for c in columns], outputs=outputs, request_id="9", model_version=ours.version)
            labels = [v.decode("utf-8") for v in found.as_numpy("approved")]
            assert labels == [a["approved"] for a in offline]
            expected = [list(a["approved.scores"].values()) for a in offline]
            np.testing.assert_allclose(found.as_numpy("approved.scores"), expected, atol=1e-6)
        if way == "http":
            for packing in ("gzip", "deflate"):
                again = there.infer("loan", [triton(kind, *c) for c in columns], request_compression_algorithm=packing, response_compression_algorithm=packing)
                assert [v.decode("utf-8") for v in again.as_numpy("approved")] == labels
            plain = [kind.InferInput(n, [2], "FP64" if v.dtype == np.float64 else "BYTES") for n, v in columns[1:]]
            for tensor, (_, values) in zip(plain, columns[1:], strict=True):
                tensor.set_data_from_numpy(values.astype(str).astype(object), binary_data=False)
            text = [kind.InferRequestedOutput("approved", binary_data=False)]
            assert list(there.infer("loan", [triton(kind, *columns[0]), *plain], outputs=text).as_numpy("approved")) == labels
        with pytest.raises(errors.InferenceServerException, match="is no input"):
            there.infer("loan", [triton(kind, "z", np.array([1.0]))])
        with pytest.raises(errors.InferenceServerException, match="no model 'other'"):
            there.infer("other", [triton(kind, "x", np.array([1.0]))])
        pending = [there.infer("half_plus_two", [triton(kind, "x", np.array([float(i)]))]) for i in range(3)]
        assert [round(float(p.as_numpy("y")[0]), 1) for p in pending] == [2.0, 2.5, 3.0]
    finally:
        there.close()
