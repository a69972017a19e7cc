"""One OpenTelemetry span for each request that a model answers, a child of what the header `traceparent` names (W3C Trace Context).

The span is named after route and model and says version, rows, rows that failed, status and the request's number; no value of a row, no caller
and no key is in it. Spans are sent in batches by a thread of the library's (OTLP over HTTP, `pip install 'modelyard[otel]'`), which
is steered by OpenTelemetry's own variables, such as OTEL_TRACES_SAMPLER and OTEL_SERVICE_NAME. Without traces nothing is imported and a
request costs one comparison more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard import __version__
from modelyard.errors import MissingExtra
from modelyard.verbs.serve.access import RIGHTS

if TYPE_CHECKING:
    from modelyard.verbs.serve.app import Service

VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PATIENCE = 2.0
"""Seconds that a collector has to take spans: one that is gone keeps no server from stopping."""
PARENT = (b"traceparent", b"tracestate")


class Traces:
    """Spans of one server."""

    def __init__(self, address: str | None = None, processor: Any = None) -> None:
        """Sends to a collector's `address`, such as http://localhost:4318, or to where the variables say; or gives spans to a `processor`.

        Raises `MissingExtra`.
        """
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if processor is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                where = None if address is None else f"{address.rstrip('/')}/v1/traces"
                processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=where, timeout=PATIENCE))
        except ImportError:
            raise MissingExtra("serve.traces needs OpenTelemetry, which", "otel") from None
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "modelyard"}
        self.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("modelyard", __version__)
        self.parents, self.kind = TraceContextTextMapPropagator(), SpanKind.SERVER
        self.failed = Status(StatusCode.ERROR)

    @classmethod
    def wanted(cls, address: str | None) -> Traces | None:
        """Those of `serve.traces`, else of the environment's variables, which may be meant for others: without the library they are left alone."""
        if address is not None:
            return cls(address)
        if not any(os.environ.get(name) for name in VARIABLES):
            return None
        try:
            return cls()
        except MissingExtra as error:
            print(f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and no traces are sent: {error.message}", file=sys.stderr, flush=True)
            return None

    def begin(self, service: Service, route: str, number: str, given: Mapping[bytes, bytes]) -> Any:
        """A span, or None for routes that no model answers."""
        if RIGHTS.get(route.removeprefix("grpc_")) != "predict":
            return None
        said = {
            "modelyard.route": route, "modelyard.model": service.name, "modelyard.version": service.model.version, "modelyard.request": number,
        }  # fmt: skip
        carried = {k.decode("ascii"): given[k].decode("latin-1") for k in PARENT if k in given}
        return self.tracer.start_span(f"{route} {service.name}", self.parents.extract(carried), self.kind, said)

    def end(self, span: Any, status: int) -> None:
        """It is answered, with HTTP's status or the one that belongs to gRPC's."""
        if span is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(self.failed)
            span.end()

    def close(self) -> None:
        """Sends what is left."""
        self.provider.shutdown()
