"""Each request counts in exactly the right series, and every metric is documented."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from matryo.core import metrics_page
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.http.listening import bind_all
from matryo.main import create_mcp_app
from tests.contract.conftest import Live, client_of, entered_application, live_server, wait_until
from tests.contract.test_mcp import client_over_http
from tests.contract.wire import Client, field, message
from tests.fakes import NOMIC, FakeEngine

URL = "/v1/embeddings"
EMBED, CHECK = "/tei.v1.Embed/Embed", "/grpc.health.v1.Health/Check"
PREDICT = "/encoderfile.sentence_embedding.SentenceEmbeddingInference/Predict"
MODEL = NOMIC.id

Series = dict[str, float]

# What goes on whether or not anybody calls.
_ALWAYS = ("matryo_cpu_seconds", "matryo_loop_lag", "matryo_heartbeats", "process_", "python_")
# What every answered request for vectors counts in, beside `matryo_requests_total` and its time.
_STAGES = (
    "tokenize_seconds_count",
    "queue_seconds_count",
    "inference_seconds_count",
    "postprocess_seconds_count",
    "batch_texts_count",
    "batch_tokens_count",
    "batch_fill_ratio_count",
    "busy_seconds_total",
)


def metrics_of(live: Live) -> Metrics:
    """The metrics of a server."""
    return live.application.state.context.metrics


def counted(live: Live) -> Series:
    """The value of every counter, and the count of every histogram."""
    found: Series = {}
    for family in metrics_of(live).registry.collect():
        for sample in family.samples:
            if sample.name.startswith(_ALWAYS) or not sample.name.endswith(("_total", "_count")):
                continue
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('matryo_')}[{labels}]"] = sample.value
    return found


def news(live: Live, before: Series, n_requests: int = 1) -> Series:
    """What changed since `before`, once so many requests more have ended."""

    def n_ended(series: Series) -> float:
        return sum(value for name, value in series.items() if name.startswith("requests_total"))

    wait_until(lambda: n_ended(counted(live)) == n_ended(before) + n_requests)
    wait_until(lambda: not live.application.state.context.service._scheduler.n_requests)
    after = counted(live)
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if value != before.get(name, 0)
    }


def ended(status: str, input_type: str = "document", **labels: str) -> Series:
    """The series of one request that ended; an operator's has no caller."""
    known = {"door": "openai", "route": URL, "model": MODEL} | labels
    door, route, model = (known[name] for name in ("door", "route", "model"))
    called: Series = {f"caller_requests_total[key=,status={status}]": 1}
    return ({} if door == "operations" else called) | {
        f"requests_total[door={door},model={model},route={route},status={status}]": 1,
        f"request_seconds_count[door={door},input_type={input_type},model={model},"
        f"status={status}]": 1,
    }


def without_stages(series: Series) -> Series:
    """The series without those of stages, which some failures reach and some do not."""
    return {name: value for name, value in series.items() if not name.startswith(_STAGES)}


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """A server with one worker, and a port for gRPC."""
    with live_server(engine, workers=1, grpc_port=0) as server:
        yield server


def post(live: Live, **options: Any) -> httpx2.Response:
    """The answer to a short text."""
    return httpx2.post(f"{live.url}{URL}", json={"input": "a b"}, timeout=20, **options)


class TestOne:
    """One request of each kind, and every series that it changes."""

    def test_answered(self, live: Live) -> None:
        """An answer counts in each stage once, with its model and its input type."""
        before = counted(live)
        assert post(live).status_code == 200
        found = news(live, before)
        stages = {name.partition("[")[0] for name in found if name.startswith(_STAGES)}
        assert stages == set(_STAGES)
        shape = f"[dimensions=768,input_type=document,model={MODEL}]"
        assert without_stages(found) == ended("200") | {
            f"texts_total{shape}": 1,
            f"tokens_total{shape}": pytest.approx(found[f"tokens_total{shape}"]),
            f"encode_seconds_count[model={MODEL}]": 1,
            "caller_tokens_total[key=]": found[f"tokens_total{shape}"],
        }

    def test_hung_up(self, live: Live, engine: FakeEngine) -> None:
        """A caller that leaves is status 499 of its model, and one hang-up."""
        before = counted(live)
        engine.gate.clear()
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{live.url}{URL}", json={"input": "a"}, timeout=0.3)
        wait_until(lambda: counted(live).get("aborts_total[reason=hang_up]"))
        engine.gate.set()
        found = without_stages(news(live, before))
        assert found == ended("499") | {"aborts_total[reason=hang_up]": 1}

    def test_deadline(self, live: Live, engine: FakeEngine) -> None:
        """A deadline that passes is status 408 of its model, and one deadline."""
        before = counted(live)
        engine.gate.clear()
        assert post(live, headers={"x-stainless-read-timeout": "0.3"}).status_code == 408
        engine.gate.set()
        found = without_stages(news(live, before))
        assert found == ended("408") | {"aborts_total[reason=deadline]": 1}

    def test_slow_reader(self, engine: FakeEngine) -> None:
        """A caller that does not read its answer is status 499, and no hang-up."""
        with (
            live_server(engine, workers=1, write_timeout_s=2) as live,
            socket.socket() as caller,
        ):
            before = counted(live)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(("127.0.0.1", live.port))
            body = json.dumps({"input": ["t"] * 2000}).encode()
            head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body)
            out = metrics_of(live).bytes_in_flight.labels("out")
            wait_until(lambda: out._value.get() > 0)
            found = without_stages(news(live, before))
        shape = f"[dimensions=768,input_type=document,model={MODEL}]"
        others = (shape, "caller_tokens_total[key=]")
        found = {name: value for name, value in found.items() if not name.endswith(others)}
        assert found == ended("499") | {
            "aborts_total[reason=slow_reader]": 1,
            "dropped_connections_total[reason=slow_reader]": 1,
        }

    def test_refused(self, engine: FakeEngine) -> None:
        """A request past a bound is status 429 of its model, and one refusal by that bound."""
        with live_server(engine, workers=1, queue_tokens=1) as live:
            service = live.application.state.context.service
            engine.gate.clear()
            answers: list[int] = []
            first = _begun(lambda: answers.append(post(live).status_code))
            wait_until(lambda: service._scheduler.n_requests == 1)
            before = counted(live)
            assert post(live).status_code == 429
            wait_until(lambda: counted(live) != before)
            engine.gate.set()
            first.join(20)
            found = news(live, before, 2)
        assert answers == [200]
        assert found["caller_requests_total[key=,status=429]"] == 1
        assert found["rejections_total[reason=queue_full]"] == 1
        assert not [name for name in found if name.startswith("aborts")]

    def test_a_batch_that_fails(self, live: Live, engine: FakeEngine) -> None:
        """A request whose run fails is status 500 of its model; the batch is a failure."""

        def explode(_: object) -> None:
            raise RuntimeError("boom")

        before = counted(live)
        engine.before = explode
        assert post(live).status_code == 500
        engine.before = lambda _: None
        found = news(live, before)
        assert without_stages(found) == ended("500") | {f"failures_total[model={MODEL}]": 1}
        assert not [name for name in found if name.startswith(("inference", "batch"))]

    def test_not_http(self, live: Live) -> None:
        """What is no HTTP counts as refused, and as no request."""
        before = counted(live)
        with socket.create_connection(("127.0.0.1", live.port)) as peer:
            peer.sendall(b"EVIL\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 400 ")
        assert news(live, before, 0) == {"http_refusals_total[status=400]": 1}

    def test_calls_over_grpc(self, live: Live) -> None:
        """A call over gRPC counts once, with the name of its code; a health check is apart."""
        with Client(live) as client:
            before = counted(live)
            client.ask(PREDICT, message((1, "a")))
            found = without_stages(news(live, before))
            one = ended("OK", door="grpc", route=PREDICT)
            assert {name: found.get(name) for name in one} == one
            before = counted(live)
            client.refused(EMBED, field(1, ""))
            assert news(live, before) == ended("INVALID_ARGUMENT", door="grpc", route=EMBED)
            before = counted(live)
            client.ask(CHECK, b"")
            assert news(live, before) == ended(
                "OK", input_type="", door="operations", route=CHECK, model=""
            )

    def test_a_deadline_over_grpc(self, live: Live, engine: FakeEngine) -> None:
        """A call whose deadline passes is DEADLINE_EXCEEDED, and no hang-up."""
        with Client(live) as client:
            before = counted(live)
            engine.gate.clear()
            call = client.start(EMBED, field(1, "a"), timeout=0.3)
            with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
                call.result()
            wait_until(lambda: counted(live).get("aborts_total[reason=deadline]"))
            engine.gate.set()
            found = without_stages(news(live, before))
        one = ended("DEADLINE_EXCEEDED", door="grpc", route=EMBED)
        assert found == one | {"aborts_total[reason=deadline]": 1}

    @pytest.mark.parametrize(
        "body",
        [
            {"input": ["a", ""]},
            {"input": "a", "model": MODEL, "dimensions": 10**6},
            {"input": 1, "model": MODEL},
        ],
        ids=["no text", "no such size", "no input"],
    )
    def test_a_failure_has_its_model(self, live: Live, body: dict[str, Any]) -> None:
        """A request that can never succeed counts for the model that it asks for."""
        before = counted(live)
        assert httpx2.post(f"{live.url}{URL}", json=body).status_code == 400
        assert news(live, before) == ended("400")


def test_heartbeats(engine: FakeEngine) -> None:
    """A heartbeat counts as a heartbeat, and in no other series."""
    with live_server(engine, ready_interval_s=0.3) as live:
        before = counted(live)
        beats = metrics_of(live).heartbeats.labels(MODEL, "ok")
        wait_until(lambda: beats._value.get() >= 2)
        assert news(live, before, 0) == {}
        busy = metrics_of(live).busy_workers
        assert not busy._value.get()


async def test_one_count_for_a_call_of_a_tool() -> None:
    """A call of a tool over HTTP counts once, with the status of its outcome and its model."""
    route = {"door": "mcp", "route": "/mcp"}
    answered, refused = ended("200", "clustering", **route), ended("404", "", **route, model="")
    with live_server(FakeEngine(), create=create_mcp_app) as live:
        async with client_over_http(live) as client:
            await client.call_tool("similarity", {"a": "x", "b": "y"})
            await client.call_tool("rank", {"query": "x", "texts": ["y"], "model": "nope"})
        wait_until(lambda: not metrics_of(live).n_in_progress)
        found = counted(live)
    of_calls = {name for name in (*answered, *refused) if not name.startswith("caller")}
    assert {name: found[name] for name in of_calls} == dict.fromkeys(of_calls, 1)
    of_tools = {name for name in found if name.startswith("requests_total") and MODEL in name}
    assert of_tools == {name for name in answered if name.startswith("requests_total")}


def _get(live: Live, path: str) -> None:
    httpx2.get(f"{live.url}{path}")


_KINDS: dict[str, Callable[[Live], object]] = {
    "answer": post,
    "no input": lambda live: httpx2.post(f"{live.url}{URL}", json={}),
    "no model": lambda live: httpx2.post(f"{live.url}{URL}", json={"input": "a", "model": "b"}),
    "no JSON": lambda live: httpx2.post(f"{live.url}{URL}", content=b"{"),
    "no route": lambda live: _get(live, "/nothing"),
    "no method": lambda live: _get(live, URL),
    "tei": lambda live: httpx2.post(f"{live.url}/embed", json={"inputs": ["a", "b"]}),
    "tokens": lambda live: httpx2.post(f"{live.url}/tokenize", json={"inputs": "a"}),
    "predict": lambda live: httpx2.post(f"{live.url}/predict", json={"inputs": ["a"]}),
    "probe": lambda live: _get(live, "/readyz"),
    "scrape": lambda live: _get(live, "/metrics"),
    "models": lambda live: _get(live, "/v1/models"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Live]:
    """A server for many examples."""
    with live_server(FakeEngine()) as server:
        yield server


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(sorted(_KINDS)), max_size=8))
def test_every_request_counts_once(shared: Live, kinds: list[str]) -> None:
    """Whatever is sent, there are as many counts and as many times as requests, by all labels."""
    before = counted(shared)
    for kind in kinds:
        _KINDS[kind](shared)
    found = news(shared, before, len(kinds))
    counts: Tally[tuple[str, str, str]] = Tally()
    for name, value in found.items():
        what, _, text = name.partition("[")
        if what in ("requests_total", "request_seconds_count"):
            labels = dict(pair.split("=", 1) for pair in text.removesuffix("]").split(","))
            sign = 1 if what == "requests_total" else -1
            counts[labels["door"], labels["model"], labels["status"]] += sign * int(value)
    n_requests = sum(v for name, v in found.items() if name.startswith("requests_total"))
    assert n_requests == len(kinds)
    assert not any(counts.values())
    assert metrics_of(shared).n_in_progress == 0


class TestPort:
    """The operators' port, and the key of the metrics."""

    def test_own_port(self, engine: FakeEngine) -> None:
        """The metrics leave the service's port; the own port has nothing but the operators'."""
        with live_server(engine, metrics_port=0, api_keys="sk-right") as live:
            own = f"http://127.0.0.1:{live.operators_port}"
            assert live.operators_port != live.port
            assert httpx2.get(f"{live.url}/metrics").status_code == 404
            for path in ("/livez", "/readyz", "/health"):
                assert httpx2.get(f"{own}{path}").status_code == 200
                assert httpx2.get(f"{live.url}{path}").status_code == 200
            assert "matryo_ready 1.0" in httpx2.get(f"{own}/metrics").text
            for path in (URL, "/v1/models", "/docs", "/openapi.json"):
                assert httpx2.get(f"{own}{path}").status_code == 404

    def test_open_until_the_end(self, engine: FakeEngine) -> None:
        """While a server drains, the own port says so."""
        with live_server(engine, metrics_port=0, workers=1) as live:
            own = f"http://127.0.0.1:{live.operators_port}"
            engine.gate.clear()
            waiting = _begun(lambda: post(live))
            service = live.application.state.context.service
            wait_until(lambda: service._scheduler.n_requests == 1)
            live.server.stop()
            wait_until(lambda: httpx2.get(f"{own}/readyz").status_code == 503)
            text = httpx2.get(f"{own}/metrics").text
            assert "matryo_ready 0.0" in text
            assert "matryo_busy_workers 1.0" in text
            engine.gate.set()
            waiting.join(20)

    def test_a_port_in_use(self) -> None:
        """A port in use is refused before anything is loaded, with the name of its setting."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            settings = load_settings(None, port=0, metrics_port=port)
            with pytest.raises(SettingsInvalid, match=rf"{port}: .*MATRYO_METRICS_PORT"):
                bind_all(settings)

    def test_the_port_of_the_service(self) -> None:
        """One port for both is refused as a setting."""
        with pytest.raises(SettingsInvalid, match="MATRYO_PORT"):
            load_settings(None, port=8080, metrics_port=8080)

    async def test_key(self, engine: FakeEngine) -> None:
        """A scrape shows the key; probes need none, and an API key is no key of the metrics."""
        async with client_of(engine, metrics_key="scrape-me", api_keys="sk-right") as client:
            for headers in (
                {},
                {"authorization": "Bearer scrape-m"},
                {"authorization": "Bearer sk-right"},
                {"api-key": "scrape-me"},
            ):
                refused = await client.get("/metrics", headers=headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"].startswith("Bearer")
                assert "matryo_" not in refused.text
            bearer = {"authorization": "Bearer scrape-me"}
            assert (await client.get("/metrics", headers=bearer)).status_code == 200
            assert (await client.get("/metrics", auth=("x", "scrape-me"))).status_code == 200
            assert (await client.get("/readyz")).status_code == 200


async def test_exemplars(engine: FakeEngine) -> None:
    """A traced request is the exemplar of its bucket, in OpenMetrics' format alone."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with entered_application(engine) as (application, client):

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {"trace_id": trace}
            await application(scope, receive, send)

        transport = httpx2.ASGITransport(traced)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as caller:
            await caller.post(URL, json={"input": "a"})
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        lines = (await client.get("/metrics", headers=accept)).text.splitlines()
        plain = (await client.get("/metrics")).text
    found = [line for line in lines if trace in line]
    assert len(found) == 1
    assert found[0].startswith('matryo_request_seconds_bucket{door="openai"')
    assert trace not in plain


PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_page() -> None:
    """docs/metrics.md is what the code makes; `make metrics-page` writes it."""
    assert PAGE.read_text("utf-8") == metrics_page.page()


def test_the_page_has_what_a_server_has(live: Live) -> None:
    """After every kind of traffic a scrape has each documented metric and no other."""
    for kind in _KINDS.values():
        kind(live)
    with Client(live) as client:
        client.ask(PREDICT, message((1, "a")))
    text = httpx2.get(f"{live.url}/metrics").text
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    served = {name for name in families if not name.startswith(("process_", "python_"))}
    assert served == set(metrics_page.uses())
    assert "_created" not in text


def _begun(work: Callable[[], object]) -> threading.Thread:
    """A thread that does some work."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread
