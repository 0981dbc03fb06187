"""A stand-in for a collector: takes OTLP over HTTP and over gRPC, and keeps what it parses."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

KINDS = {1: "internal", 2: "server", 3: "client"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}


@dataclass(frozen=True)
class Got:
    """One span that came.

    Attributes:
        links: trace id and span id of each.
    """

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    status: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What came so far."""

    url: str = ""
    grpc_url: str = ""
    spans: list[Got] = field(default_factory=list[Got])
    metrics: list[Any] = field(default_factory=list[Any])
    raw: bytes = b""

    def take_spans(self, content: bytes) -> None:
        """Keep the spans of a message."""
        self.raw += content
        message = ExportTraceServiceRequest.FromString(content)
        for one in message.resource_spans:
            resource = _values(one.resource.attributes)
            for scope in one.scope_spans:
                self.spans += [_got(span, resource) for span in scope.spans]

    def take_metrics(self, content: bytes) -> None:
        """Keep the metrics of a message."""
        self.raw += content
        for one in ExportMetricsServiceRequest.FromString(content).resource_metrics:
            for scope in one.scope_metrics:
                self.metrics += scope.metrics

    def named(self, name: str) -> list[Got]:
        """The spans with a name."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Got:
        """The only span with a name."""
        (span,) = self.named(name)
        return span

    def servers(self) -> list[Got]:
        """The spans of requests."""
        return [span for span in self.spans if span.kind == "server"]

    def children(self, parent: Got) -> dict[str, Got]:
        """The children of a span by name, each name once."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


def _got(span: Any, resource: dict[str, Any]) -> Got:
    return Got(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=STATUSES[span.status.code],
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource=resource,
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collecting(refuse: Callable[[], bool] = lambda: False) -> Generator[Collector, None, None]:
    """A collector on two free ports, until the block ends.

    Args:
        refuse: whether the next message over HTTP is answered with 400.
    """
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            if refuse():
                self.send_response(400)
            else:
                takers = {
                    "/v1/traces": collector.take_spans,
                    "/v1/metrics": collector.take_metrics,
                }
                takers[self.path](content)
                self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
            """Nothing is logged."""

    def export(content: bytes, _context: object) -> bytes:
        collector.take_spans(content)
        return ExportTraceServiceResponse().SerializeToString()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    rpc = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    rpc.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": method}),)
    )
    port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    collector.grpc_url = f"http://127.0.0.1:{port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        rpc.stop(None).wait()
