"""Traces of every door, as a collector gets them over OTLP."""

from __future__ import annotations

import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx2
import pytest
import requests
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client
from opentelemetry import metrics, trace

from matryo.core import trace_names as names
from matryo.core.errors import SettingsInvalid
from matryo.core.otel.warnings import Warnings
from matryo.core.tracing import MOST_LINKS, MOST_STAGES
from matryo.engine import Engine
from matryo.main import create_app, create_mcp_app
from tests.collector import Collector, Got, collecting
from tests.contract.conftest import Live, live_server, settings, wait_until
from tests.contract.wire import Client, field
from tests.fakes import MINILM, NOMIC, FakeEngine

SECRET_TEXT, SECRET_KEY = "zanzibar-quokka", "key-of-a-tenant-1234"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
EMBED, STREAM = "/tei.v1.Embed/Embed", "/tei.v1.Embed/EmbedStream"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which the environment leads."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


@contextmanager
def traced(engine: Engine | list[Engine], **changes: Any) -> Generator[Live, None, None]:
    """A live server that traces; what it has is exported once the block ends."""
    with live_server(engine, tracing=True, **changes) as live:
        yield live


def post(live: Live, body: Any, path: str = "/v1/embeddings", **headers: str) -> requests.Response:
    """The answer to a body of JSON."""
    return requests.post(live.url + path, json=body, headers=headers, timeout=30)


def assert_nested(parent: Got, *children: Got) -> None:
    """Every child lies within its parent, in the same trace."""
    assert children
    for child in children:
        assert child.trace_id == parent.trace_id
        assert parent.start <= child.start <= child.end <= parent.end, child.name


class TestEmbeddings:
    """A request for vectors."""

    def test_the_span_of_a_request(self, engine: FakeEngine, collector: Collector) -> None:
        """The span has the conventions' name, kind and attributes, and a child for each stage."""
        with traced(engine) as live:
            body = {"input": ["a b", "c"], "dimensions": 256, "encoding_format": "base64"}
            answer = post(live, body | {"model": "text-embedding-3-small"})
        assert answer.status_code == 200
        (span,) = collector.servers()
        assert span.name == f"embeddings {NOMIC.id}"
        assert (span.status, span.parent_id) == ("unset", "")
        expected = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": "matryo",
            "gen_ai.request.model": "text-embedding-3-small",
            "gen_ai.response.model": NOMIC.id,
            "gen_ai.embeddings.dimension.count": 256,
            "gen_ai.request.encoding_formats": ["base64"],
            "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
            "server.address": "127.0.0.1",
            "server.port": live.port,
            "http.request.method": "POST",
            "http.route": "/v1/embeddings",
            "url.path": "/v1/embeddings",
            "url.scheme": "http",
            "http.response.status_code": 200,
            "matryo.request.texts": 2,
            "matryo.request.id": answer.headers["x-request-id"],
            "matryo.fingerprint": answer.headers["x-matryo-fingerprint"],
            "matryo.input_type": "document",
        }
        assert span.attributes == expected
        children = collector.children(span)
        assert list(children) == ["tokenize", "queue", "inference", "encode"]
        assert_nested(span, *children.values())
        stages = list(children.values())
        for before, after in itertools.pairwise(stages):
            assert before.end <= after.start
        assert {child.kind for child in stages} == {"internal"}

    def test_a_large_body_has_a_stage_of_its_own(
        self, engine: FakeEngine, collector: Collector
    ) -> None:
        """A body that a thread parses has the stage `parse`."""
        with traced(engine) as live:
            assert post(live, {"input": ["word " * 4000] * 8, "truncate": True}).status_code == 200
        (span,) = collector.servers()
        children = collector.children(span)
        assert next(iter(children)) == "parse"
        assert_nested(span, *children.values())

    @pytest.mark.parametrize("path", ["/embed", "/predict"])
    def test_the_other_doors_over_http(
        self, engine: FakeEngine, collector: Collector, path: str
    ) -> None:
        """TEI's and Encoderfile's routes have the same span."""
        with traced(engine) as live:
            assert post(live, {"inputs": ["a"]}, path).status_code == 200
        (span,) = collector.servers()
        assert span.name == f"embeddings {NOMIC.id}"
        assert span.attributes["http.route"] == path
        assert list(collector.children(span)) == ["tokenize", "queue", "inference", "encode"]

    def test_routes_without_vectors(self, engine: FakeEngine, collector: Collector) -> None:
        """Another route has HTTP's name; an unknown path has no route; a probe has no span."""
        with traced(engine) as live:
            for path in ("/livez", "/readyz", "/health", "/metrics", "/v1/models", "/no/such"):
                requests.get(live.url + path, timeout=30)
        assert [(span.name, span.attributes.get("http.route")) for span in collector.servers()] == [
            ("GET /v1/models", "/v1/models"),
            ("GET", None),
        ]
        assert not [span for span in collector.servers() if names.OPERATION in span.attributes]

    def test_no_text_and_no_key(self, engine: FakeEngine, collector: Collector) -> None:
        """Neither a text, nor a key, nor a name of an unknown model is in what is exported."""
        with traced(engine, api_keys=(SECRET_KEY,)) as live:
            key = f"Bearer {SECRET_KEY}"
            for model in (NOMIC.id, SECRET_TEXT):
                post(live, {"input": [SECRET_TEXT], "model": model}, Authorization=key)
                post(live, {"input": [SECRET_TEXT], "model": model}, Authorization=SECRET_TEXT)
            post(live, {"inputs": SECRET_TEXT}, "/tokenize", Authorization=key)
            requests.get(f"{live.url}/v1/models?q={SECRET_TEXT}", timeout=30)
        assert len(collector.servers()) == 6
        assert SECRET_TEXT.encode() not in collector.raw
        assert SECRET_KEY.encode() not in collector.raw


class TestErrors:
    """Requests that are refused or that fail."""

    @pytest.mark.parametrize(
        ("body", "status", "model"),
        [
            ({"input": []}, 400, NOMIC.id),
            ({"input": "a", "model": "no-such"}, 404, None),
            ({"input": "a", "dimensions": 9999}, 400, NOMIC.id),
        ],
    )
    def test_refused(
        self, engine: FakeEngine, collector: Collector, body: Any, status: int, model: str | None
    ) -> None:
        """A refusal has its status as the kind of the error, and is no error of the span."""
        with traced(engine) as live:
            assert post(live, body).status_code == status
        (span,) = collector.servers()
        assert span.name == (f"embeddings {model}" if model else "embeddings")
        assert span.attributes["error.type"] == str(status)
        assert span.attributes["http.response.status_code"] == status
        assert span.attributes["gen_ai.operation.name"] == "embeddings"
        assert span.status == "unset"

    def test_no_key(self, engine: FakeEngine, collector: Collector) -> None:
        """A request without a key is a request for vectors with the error 401."""
        with traced(engine, api_keys=(SECRET_KEY,)) as live:
            assert post(live, {"input": "a"}).status_code == 401
        (span,) = collector.servers()
        assert (span.name, span.attributes["error.type"]) == ("embeddings", "401")

    def test_overloaded(self, engine: FakeEngine, collector: Collector) -> None:
        """A request that finds no room has the error 429."""
        with traced(engine, max_waiting_requests=1) as live, ExitStack() as stack:
            engine.gate.clear()
            first = threading.Thread(target=post, args=(live, {"input": "a"}))
            first.start()
            stack.callback(first.join)
            stack.callback(engine.gate.set)
            scheduler = live.application.state.context.service._scheduler
            wait_until(lambda: scheduler.n_requests)
            assert post(live, {"input": "b"}).status_code == 429
        refused = [span for span in collector.servers() if "error.type" in span.attributes]
        assert [(span.attributes["error.type"], span.status) for span in refused] == [
            ("429", "unset")
        ]

    def test_a_fault_of_the_server(self, engine: FakeEngine, collector: Collector) -> None:
        """A model that fails makes the spans of request and run errors."""
        with traced(engine) as live:

            def fail(_: object) -> None:
                raise RuntimeError(SECRET_TEXT)

            engine.before = fail
            assert post(live, {"input": "a"}).status_code == 500
        (span,) = collector.servers()
        assert (span.attributes["error.type"], span.status) == ("500", "error")
        runs = [run for run in collector.named(f"inference {NOMIC.id}") if run.links]
        assert {(run.attributes["error.type"], run.status) for run in runs} == {
            ("RuntimeError", "error")
        }
        assert SECRET_TEXT.encode() not in collector.raw

    def test_a_caller_that_hangs_up(self, engine: FakeEngine, collector: Collector) -> None:
        """Its span has the error 499, no status of HTTP, and is no error of the server."""
        with traced(engine) as live, ExitStack() as stack:
            engine.gate.clear()
            stack.callback(engine.gate.set)
            scheduler = live.application.state.context.service._scheduler
            body = json.dumps({"input": "a"})
            with socket.create_connection(("127.0.0.1", live.port)) as connection:
                head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
                connection.sendall(f"{head}\r\n\r\n{body}".encode())
                wait_until(lambda: scheduler.n_requests)
            wait_until(lambda: not scheduler.n_requests)
        (span,) = collector.servers()
        assert span.attributes["error.type"] == "499"
        assert "http.response.status_code" not in span.attributes
        assert span.status == "unset"
        assert_nested(span, *collector.children(span).values())


class TestBatches:
    """Runs, and the requests that share them."""

    def test_links_lead_both_ways(self, engine: FakeEngine, collector: Collector) -> None:
        """A run is a trace of its own; it links to its requests, and their stages to the run."""
        with traced(engine, workers=1) as live:
            engine.gate.clear()
            scheduler = live.application.state.context.service._scheduler
            threads = [
                threading.Thread(target=post, args=(live, {"input": f"text {n}"})) for n in range(4)
            ]
            for n, thread in enumerate(threads, 1):
                thread.start()
                wait_until(lambda n=n: scheduler.n_requests == n)
            engine.gate.set()
            for thread in threads:
                thread.join()
        requests_ = {span.span_id: span for span in collector.servers()}
        runs = collector.named(f"inference {NOMIC.id}")
        assert len(requests_) == 4
        assert len(runs) == 2  # the first request alone, then the three that waited
        for run in runs:
            assert run.parent_id == ""
            assert run.trace_id not in {span.trace_id for span in requests_.values()}
            assert run.attributes["matryo.batch.requests"] == len(run.links)
            assert run.attributes["matryo.batch.texts"] == len(run.links)
            assert run.attributes["gen_ai.request.model"] == NOMIC.id
            for trace_id, span_id in run.links:
                stage = collector.children(requests_[span_id])["inference"]
                assert requests_[span_id].trace_id == trace_id
                assert stage.links == [(run.trace_id, run.span_id)]
                assert stage.start <= run.start <= run.end <= stage.end
        assert sum(len(run.links) for run in runs) == 4

    def test_a_request_of_many_runs_has_few_spans(
        self, engine: FakeEngine, collector: Collector
    ) -> None:
        """However many runs a request has, it has one stage for them, whose links are bounded."""
        with traced(engine) as live:
            texts = [f"{n} " + "word " * 300 for n in range(400)]
            assert post(live, {"input": texts}).status_code == 200
        (span,) = collector.servers()
        stage = collector.children(span)["inference"]
        runs = [run for run in collector.named(f"inference {NOMIC.id}") if run.links]
        assert len(runs) > MOST_LINKS
        assert stage.attributes["matryo.batches"] == len(runs)
        assert len(stage.links) == MOST_LINKS
        assert len(collector.children(span)) == 5

    def test_runs_of_nobody_have_no_span(self, engine: FakeEngine, collector: Collector) -> None:
        """A run for the heartbeat alone, or for requests that are not sampled, has no span."""
        with traced(engine) as live:
            assert post(live, {"input": "a"}, traceparent=UNSAMPLED).status_code == 200
        assert collector.spans == []


class TestContext:
    """The trace context of a caller."""

    def test_the_caller_is_the_parent(self, engine: FakeEngine, collector: Collector) -> None:
        """W3C's headers make the span a child of the caller's; baggage is ignored."""
        with traced(engine) as live:
            headers = {"tracestate": "vendor=1", "baggage": f"user={SECRET_TEXT}"}
            post(live, {"input": "a"}, traceparent=SAMPLED, **headers)
        (span,) = collector.servers()
        assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
        assert SECRET_TEXT.encode() not in collector.raw

    @pytest.mark.parametrize(
        "malformed",
        [
            "",
            "00",
            SAMPLED.upper(),
            SAMPLED + "-00",
            f"ff-{TRACE}-{PARENT}-01",
            f"00-{'0' * 32}-{PARENT}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            "x" * 5000,
            f"{SAMPLED},{SAMPLED}",
        ],
    )
    def test_a_malformed_context_is_ignored(
        self, engine: FakeEngine, collector: Collector, malformed: str
    ) -> None:
        """The request is answered, and its trace is a new one."""
        with traced(engine) as live:
            assert post(live, {"input": "a"}, traceparent=malformed).status_code == 200
        (span,) = collector.servers()
        assert span.parent_id == ""
        assert span.trace_id != TRACE

    @pytest.mark.parametrize("state", ["=", "a" * 9000, "a=1," * 200, "\xff=1"])
    def test_a_malformed_state_does_no_harm(
        self, engine: FakeEngine, collector: Collector, state: str
    ) -> None:
        """The context is taken without its state."""
        with traced(engine) as live:
            headers = {"traceparent": SAMPLED, "tracestate": state.encode("latin-1")}
            url = f"{live.url}/v1/embeddings"
            answer = requests.post(url, json={"input": "a"}, headers=headers, timeout=30)
            assert answer.status_code in (200, 431)
        for span in collector.servers():
            assert span.trace_id == TRACE

    @pytest.mark.parametrize(
        ("sampler", "argument", "header", "n_spans"),
        [
            (None, None, {}, 1),
            (None, None, {"traceparent": UNSAMPLED}, 0),
            ("parentbased_always_off", None, {}, 0),
            ("parentbased_always_off", None, {"traceparent": SAMPLED}, 1),
            ("parentbased_traceidratio", "0", {}, 0),
            ("always_off", None, {"traceparent": SAMPLED}, 0),
        ],
    )
    def test_the_sampler_of_the_environment(
        self,
        engine: FakeEngine,
        collector: Collector,
        monkeypatch: pytest.MonkeyPatch,
        sampler: str | None,
        argument: str | None,
        header: dict[str, str],
        n_spans: int,
    ) -> None:
        """OTEL_TRACES_SAMPLER decides, and by default the caller's flag; unsampled, nothing goes."""
        for name, value in (("", sampler), ("_ARG", argument)):
            if value:
                monkeypatch.setenv(f"OTEL_TRACES_SAMPLER{name}", value)
        with traced(engine) as live:
            assert post(live, {"input": "a"}, **header).status_code == 200
        assert len(collector.servers()) == n_spans
        assert bool(collector.spans) == bool(n_spans)

    def test_log_lines_name_the_trace(
        self, engine: FakeEngine, collector: Collector, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The line of a request has both ids; without a recorded span it has none."""
        caplog.set_level(logging.INFO, "matryo.request")
        with traced(engine) as live:
            post(live, {"input": "a"})
            post(live, {"input": "a"}, traceparent=UNSAMPLED)
        (span,) = collector.servers()
        first, second = [one for one in caplog.records if one.name == "matryo.request"]
        assert (vars(first)["trace_id"], vars(first)["span_id"]) == (span.trace_id, span.span_id)
        assert "trace_id" not in vars(second)


class TestGrpc:
    """Calls over gRPC."""

    def test_a_call(self, engine: FakeEngine, collector: Collector) -> None:
        """A call has the span of embeddings with RPC's attributes, under its caller's context."""
        with traced(engine, grpc_port=0) as live, Client(live, traceparent=SAMPLED) as client:
            client.ask(EMBED, field(1, "a b"))
        (span,) = collector.servers()
        assert (span.name, span.parent_id) == (f"embeddings {NOMIC.id}", PARENT)
        for name, value in (
            ("rpc.system.name", "grpc"),
            ("rpc.method", EMBED[1:]),
            ("rpc.response.status_code", "OK"),
            ("gen_ai.operation.name", "embeddings"),
            ("gen_ai.response.model", NOMIC.id),
        ):
            assert span.attributes[name] == value
        assert span.attributes["gen_ai.usage.input_tokens"] > 0
        assert list(collector.children(span)) == ["tokenize", "queue", "inference", "encode"]
        assert_nested(span, *collector.children(span).values())

    def test_a_refused_call(self, engine: FakeEngine, collector: Collector) -> None:
        """The error's kind is the code's name; a caller's fault is no error of the span."""
        with traced(engine, grpc_port=0) as live, Client(live) as client:
            client.refused(EMBED, field(1, ""))
        (span,) = collector.servers()
        assert (span.name, span.status) == (f"embeddings {engine.manifest.id}", "unset")
        assert span.attributes["error.type"] == "INVALID_ARGUMENT"

    def test_health_checks_have_no_span(self, engine: FakeEngine, collector: Collector) -> None:
        """A probe over gRPC has no span."""
        with traced(engine, grpc_port=0) as live, Client(live) as client:
            client.ask("/grpc.health.v1.Health/Check", b"")
        assert collector.servers() == []

    def test_a_long_stream_has_few_spans(self, engine: FakeEngine, collector: Collector) -> None:
        """The stages of a stream are bounded, and the span says how many have no span."""
        with traced(engine, grpc_port=0) as live, Client(live) as client:
            messages = [field(1, f"text {n}") for n in range(2000)]
            assert len(list(client.stream(STREAM, messages))) == 2000
        (span,) = collector.servers()
        children = [one for one in collector.spans if one.parent_id == span.span_id]
        assert len(children) == MOST_STAGES
        assert span.attributes["matryo.stages.dropped"] > 0
        assert span.attributes["matryo.request.texts"] == 2000


class TestMcp:
    """Tools over MCP."""

    async def test_a_call(self, engine: FakeEngine, collector: Collector) -> None:
        """A call is a child of its HTTP request, with a child for each request for vectors."""
        with traced(engine, create=create_mcp_app) as live:
            async with tools_client(live) as client:
                arguments = {"query": SECRET_TEXT, "texts": ["a", "b"]}
                assert not (await client.call_tool("rank", arguments)).is_error
        call = collector.one("tools/call rank")
        assert call.kind == "server"
        assert call.attributes["mcp.method.name"] == "tools/call"
        assert call.attributes["gen_ai.tool.name"] == "rank"
        assert call.attributes["gen_ai.operation.name"] == "execute_tool"
        carriers = {span.span_id: span for span in collector.named("POST /mcp")}
        assert call.parent_id in carriers
        calls = [span for span in collector.spans if span.parent_id == call.span_id]
        assert [span.name for span in calls] == [f"embeddings {NOMIC.id}"] * 2
        assert_nested(call, *calls)
        for one in calls:
            assert {"tokenize", "queue", "inference"} <= set(collector.children(one))
        assert SECRET_TEXT.encode() not in collector.raw

    async def test_a_refused_call(self, engine: FakeEngine, collector: Collector) -> None:
        """A result that is an error is an error of the span, as the conventions say."""
        with traced(engine, create=create_mcp_app) as live:
            async with tools_client(live) as client:
                assert (await client.call_tool("rank", {"query": "a", "texts": []})).is_error
        call = collector.one("tools/call rank")
        assert (call.attributes["error.type"], call.status) == ("tool_error", "error")


@asynccontextmanager
async def tools_client(live: Live) -> AsyncGenerator[McpClient, None]:
    """The SDK's client of a live server."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=20))
        transport = streamable_http_client(f"{live.url}/mcp", http_client=http)
        yield await stack.enter_async_context(McpClient(transport, mode="legacy"))


class TestExport:
    """Where spans and the metric go, and what happens if nobody takes them."""

    def test_the_metric(
        self, engine: FakeEngine, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Requests for vectors are in `gen_ai.server.request.duration`, sampled or not."""
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        with traced(engine) as live:
            for body in ({"input": "a"}, {"input": "a"}, {"input": []}):
                post(live, body)
            requests.get(f"{live.url}/v1/models", timeout=30)
        assert collector.spans == []
        (metric,) = {one.name: one for one in collector.metrics}.values()
        assert (metric.name, metric.unit) == ("gen_ai.server.request.duration", "s")
        points = list(metric.histogram.data_points)
        assert sorted(point.count for point in points) == [1, 2]
        bounds = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56]
        bounds += [5.12, 10.24, 20.48, 40.96, 81.92]
        assert list(points[0].explicit_bounds) == pytest.approx(bounds)
        good = next(point for point in points if point.count == 2)
        facts = {pair.key: pair.value.string_value for pair in good.attributes}
        assert facts["gen_ai.operation.name"] == "embeddings"
        assert facts["gen_ai.response.model"] == NOMIC.id
        assert "error.type" not in facts

    def test_grpc(
        self, engine: FakeEngine, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OTEL_EXPORTER_OTLP_PROTOCOL=grpc sends the spans over gRPC."""
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.grpc_url)
        with traced(engine) as live:
            post(live, {"input": "a"})
        assert len(collector.servers()) == 1

    def test_the_resource(
        self, engine: FakeEngine, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The service is `matryo` until the environment names another; attributes are added."""
        with traced(engine) as live:
            post(live, {"input": "a"})
        assert collector.servers()[0].resource["service.name"] == "matryo"
        assert collector.servers()[0].resource["service.instance.id"]
        monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        collector.spans.clear()
        with traced(engine) as live:
            post(live, {"input": "a"})
        resource = collector.servers()[0].resource
        assert resource["service.name"] == "search"
        assert resource["deployment.environment.name"] == "test"

    def test_a_dead_collector(
        self,
        engine: FakeEngine,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Requests are answered, one line says what is lost, and the server stops in time."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        with traced(engine) as live:
            for _ in range(20):
                assert post(live, {"input": "a"}).status_code == 200
            wait_until(lambda: _lines(caplog))
        assert len(_lines(caplog)) == 1

    def test_a_collector_that_hangs(
        self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A collector that takes a connection and never answers does not hold up the end."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
            with ExitStack() as stack:
                live = stack.enter_context(traced(engine))
                assert post(live, {"input": "a"}).status_code == 200
                started = time.monotonic()
            assert time.monotonic() - started < 8  # the exporter itself would wait for 10 s

    def test_nothing_is_global(self, engine: FakeEngine, collector: Collector) -> None:
        """The API's global providers stay as they were, and the SDK's loggers come back."""
        with traced(engine) as live:
            post(live, {"input": "a"})
        assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
        assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
        theirs = logging.getLogger("opentelemetry")
        assert theirs.propagate
        assert not [one for one in theirs.handlers if isinstance(one, Warnings)]

    def test_each_server_has_its_own(self, collector: Collector) -> None:
        """Each of two servers in one process exports its own spans, once."""
        with traced(FakeEngine()) as one, traced(FakeEngine(MINILM)) as other:
            post(one, {"input": "a"})
            post(other, {"input": "a"})
        found = sorted(span.name for span in collector.servers())
        assert found == [f"embeddings {MINILM.id}", f"embeddings {NOMIC.id}"]

    @pytest.mark.parametrize(
        ("variable", "value", "expected"),
        [
            ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER is 'zipkin'"),
            ("OTEL_METRICS_EXPORTER", "prometheus", "OTEL_METRICS_EXPORTER is 'prometheus'"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf or grpc"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "OTEL_"),
        ],
    )
    def test_variables_that_cannot_be_used(
        self,
        engine: FakeEngine,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
        value: str,
        expected: str,
    ) -> None:
        """The start is refused with the variable's name."""
        monkeypatch.setenv(variable, value)
        with pytest.raises(SettingsInvalid, match=expected):
            create_app(settings(tracing=True), engine)

    def test_disabled(
        self, engine: FakeEngine, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OTEL_SDK_DISABLED=true sends nothing."""
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        with traced(engine) as live:
            assert post(live, {"input": "a"}).status_code == 200
        assert collector.spans == []


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("matryo.tracing")]
