"""Open Inference Protocol v2 over gRPC, on a port of its own: the same door, queue, checks and answers as `/v2` over HTTP.

A tensor's elements are read as over HTTP, from `contents` or from `raw_input_contents`, and come back the way they came; what is wrong has
the status that belongs to HTTP's (`CODES`). gRPC's core keeps the limit of a message's size, packed and unpacked, before a byte of
it is seen here; the name of the model is read before all else, so that who may not ask it does not make us read the rest.

Runs on the event loop of the HTTP server (`grpcio`, `pip install 'modelyard[grpc]'`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from modelyard import __version__
from modelyard.errors import MachineError, MissingExtra
from modelyard.verbs.serve import Config, inference, listen, wire
from modelyard.verbs.serve.app import Service
from modelyard.verbs.serve.attendance import Attended
from modelyard.verbs.serve.body import Refused
from modelyard.verbs.serve.fleet import Fleet

CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip
"""gRPC's status for HTTP's."""
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Field of `contents` by datatype; FP16 comes raw only."""
STREAMS = 1024
"""Calls that one connection may have open."""

Work = Callable[[Service, bytes, Any, Attended], Awaitable[Any]]


def library() -> Any:
    """grpcio. Raises `MissingExtra`."""
    try:
        import google.protobuf  # noqa: F401
        import grpc
        import grpc.aio  # noqa: F401
    except ImportError:
        raise MissingExtra("serve.grpc needs grpcio, which", "grpc") from None
    return grpc


@cache
def protocol() -> wire.Wire:
    """The messages of static/open_inference.proto."""
    return wire.load((Path(__file__).parent / "static" / "open_inference.proto").read_text(encoding="utf-8"))


class Rpc:
    """The gRPC side of a server. Its port is held from the start, and answered after `start`."""

    def __init__(self, fleet: Fleet, config: Config) -> None:
        """Raises `MissingExtra`, `UsageError` where the port is taken."""
        self.grpc = library()
        self.fleet, self.limit, self.tls = fleet, config.limit, config.tls
        self.held = listen(config.host, config.grpc, "serve.grpc")
        host, self.port = self.held.getsockname()[:2]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.server: Any = None

    async def start(self) -> None:
        """Answers from now on, on the running event loop. Raises `MachineError` where the port has been taken in the meantime."""
        options = [
            ("grpc.max_receive_message_length", self.limit), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", STREAMS),
        ]  # fmt: skip
        self.server = self.grpc.aio.server(options=options)
        handlers = {name: self.grpc.unary_unary_rpc_method_handler(self._handler(name)) for name in protocol().methods}
        self.server.add_generic_rpc_handlers((self.grpc.method_handlers_generic_handler(protocol().service, handlers),))
        self.held.close()
        try:
            if self.tls is None:
                self.server.add_insecure_port(self.address)
            else:
                self.server.add_secure_port(self.address, self._credentials(Path(self.tls.cert), Path(self.tls.key)))
        except RuntimeError:
            raise MachineError(f"serve.grpc cannot listen at {self.address}; choose another port") from None
        await self.server.start()

    def close(self) -> None:
        """Frees the port where it was never answered."""
        self.held.close()

    async def stop(self, seconds: float) -> None:
        """Takes no one new and ends what it has begun, in so many seconds at most."""
        if self.server is not None:
            await self.server.stop(seconds)

    def _credentials(self, chain: Path, key: Path) -> Any:
        """Those of the files, which are looked at with every handshake."""
        import ssl

        def pair() -> tuple[bytes, bytes]:
            found = key.read_bytes(), chain.read_bytes()
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
            return found

        last = pair()

        def changed() -> Any:
            nonlocal last
            try:
                found = pair()
            except OSError:  # half a renewal: the old certificate stays until both files fit
                return None
            if found == last:
                return None
            last = found
            return self.grpc.ssl_server_certificate_configuration([found])

        return self.grpc.dynamic_ssl_server_credentials(self.grpc.ssl_server_certificate_configuration([last]), changed)

    def _handler(self, method: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        label, work = WORK[method]

        async def call(raw: bytes, context: Any) -> bytes:
            given = {k.encode("ascii"): v.encode("latin-1", "replace") for k, v in context.invocation_metadata() or () if isinstance(v, str)}
            name, version, wrong = _addressed(raw) if label in NAMED else ("", "", None)
            service = self.fleet.chosen(name, version, given)
            answer = b""
            with Attended(service, label, given, "grpc_") as seen:
                seen.admit()
                wrong = wrong or (self._absent(service, name, version) if label in NAMED else None)
                if wrong is not None and label != "ready":
                    raise wrong
                if wrong is None:  # else the answer is no bytes: not ready, as Triton says of a model that it has not
                    answer = await work(service, raw, protocol().methods[method], seen)
            said = [("modelyard-request-id", seen.id), *((k.decode("ascii"), v.decode("ascii")) for k, v in service.stamps[:2])]
            said += [(k.lower(), v) for k, v in seen.headers.items()]
            if seen.error is not None:
                code = getattr(self.grpc.StatusCode, CODES.get(seen.status, "INVALID_ARGUMENT"))
                await context.abort(code, seen.message, tuple(said))
            context.set_trailing_metadata(tuple(said))
            return answer

        return call

    def _absent(self, service: Service, name: str, version: str) -> Refused | None:
        """What is wrong with a model's name and version or label."""
        endpoint = self.fleet.endpoints.get(name)
        if endpoint is not None and version and endpoint.named(version) is not None:
            return None
        try:
            service.named(name, version or None)
        except Refused as error:
            return error
        return None


def _addressed(raw: bytes) -> tuple[str, str, Refused | None]:
    """Model and version that a message names, or what is wrong with it.

    Requests of metadata and of answers have them in the same fields as those of readiness, which hold nothing else: the rest is stepped over.
    """
    try:
        asked = _read(protocol().messages["ModelReadyRequest"], raw)
        return asked.name, asked.version, None
    except Refused as error:
        return "", "", error


def _read(kind: Any, raw: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(raw)
    except DecodeError:
        raise Refused(400, f"the message is no {kind.DESCRIPTOR.full_name}") from None


async def _live(service: Service, raw: bytes, types: tuple[Any, Any], seen: Attended) -> bytes:
    return types[1](live=True).SerializeToString()


async def _ready(service: Service, raw: bytes, types: tuple[Any, Any], seen: Attended) -> bytes:
    return types[1](ready=service.ready).SerializeToString()


async def _about(service: Service, raw: bytes, types: tuple[Any, Any], seen: Attended) -> bytes:
    return types[1](name="modelyard", version=__version__).SerializeToString()


async def _metadata(service: Service, raw: bytes, types: tuple[Any, Any], seen: Attended) -> bytes:
    said = inference.metadata(service.model, service.name)
    for tensor in said["outputs"]:
        tensor.pop("parameters", None)  # names of labels, for which gRPC's form has no place
    return types[1](**said).SerializeToString()


async def _infer(service: Service, raw: bytes, types: tuple[Any, Any], seen: Attended) -> bytes:
    service.batcher.turn_away()
    way: list[bool] = []  # whether the tensors came raw, and go back so

    def read() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        message = _read(types[0], raw)
        way.append(bool(message.raw_input_contents))
        return rows_of(message, service)

    def write(answers: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> bytes:
        return written(types[1], answers, asked, service, way[0]).SerializeToString()

    return await service.inferred(read, write, len(raw), seen.origin)


def rows_of(message: Any, service: Service) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows, the request as HTTP has it, without its elements) of a `ModelInferRequest`. Raises `Refused` with every mistake."""
    raws = message.raw_input_contents
    if not message.inputs:
        raise Refused(400, "inputs must be a list of tensors with names")
    if raws and len(raws) != len(message.inputs):
        raise Refused(400, f"{len(raws)} raw_input_contents came for {len(message.inputs)} inputs; there must be one for each")
    tensors, pieces = [], []
    for i, tensor in enumerate(message.inputs):
        tensors.append({"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)})
        pieces.append(_piece(tensor, raws[i] if raws else None, tensors[-1]))
    asked = {
        "parameters": _parameters(message), "outputs": [{"name": o.name} for o in message.outputs], **({"id": message.id} if message.id else {}),
    }  # fmt: skip
    return inference.rows(tensors, pieces, service.model.signature.inputs), asked


def _piece(tensor: Any, raw: bytes | None, seen: dict[str, Any]) -> inference.Piece:
    """Its bytes; or None, and its elements are in `data` of what is `seen` of it; or what is the matter."""
    fields = [f.name for f, _ in tensor.contents.ListFields()]
    if raw is not None:
        return ValueError(f"has {fields[0]} beside raw_input_contents") if fields else memoryview(raw)
    place = CONTENTS.get(tensor.datatype)
    if place is None:
        if tensor.datatype == "FP16":
            return ValueError("elements of FP16 come in raw_input_contents")
        seen["data"] = []  # a datatype that there is not: `rows` says which there are
        return None
    if others := [f for f in fields if f != place]:
        return ValueError(f"elements of {tensor.datatype} come in {place}, not in {', '.join(others)}")
    seen["data"] = list(getattr(tensor.contents, place))
    return None


def _parameters(message: Any) -> dict[str, Any]:
    """Those of a request, as JSON would have them."""
    return {k: getattr(v, way) for k, v in message.parameters.items() if (way := v.WhichOneof("parameter_choice")) is not None}


def written(kind: Any, answers: Sequence[Mapping[str, Any]], asked: Mapping[str, Any], service: Service, raw: bool) -> Any:
    """The `ModelInferResponse`; its tensors raw or typed. Raises what `inference.tensors_of` raises."""
    message = kind(model_name=service.name, model_version=service.model.version, id=asked.get("id", ""))
    for want, (datatype, shape, values) in inference.tensors_of(answers, asked, service.model):
        tensor = message.outputs.add(name=want["name"], datatype=datatype, shape=shape)
        if raw:
            message.raw_output_contents.append(inference.packed(datatype, values))
        else:
            found = inference.plain(datatype, values)
            getattr(tensor.contents, CONTENTS[datatype]).extend([t.encode("utf-8") for t in found] if datatype == "BYTES" else found)
    return message


NAMED = ("ready", "metadata", "infer")
"""Labels of requests that name a model."""
WORK: dict[str, tuple[str, Work]] = {
    "ServerLive": ("health", _live), "ServerReady": ("health", _ready), "ModelReady": ("ready", _ready), "ServerMetadata": ("server", _about),
    "ModelMetadata": ("metadata", _metadata), "ModelInfer": ("infer", _infer),
}  # fmt: skip
"""Label (`access.RIGHTS`) and work of each method."""
