"""Limits of a key over gRPC."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest

from matryo.engine import Engine
from tests.contract.conftest import live_server, wait_until
from tests.contract.test_grpc import EMBED, INFER, PREDICT, STREAM
from tests.contract.test_keys import auth, line
from tests.contract.wire import Client, answers, field
from tests.fakes import MINILM, FakeEngine

Code = grpc.StatusCode


def trailers(call: Any) -> dict[str, Any]:
    """The trailing metadata of a call that ended."""
    return dict(call.trailing_metadata())


def test_requests(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Trailers count down; then RESOURCE_EXHAUSTED, with the time to wait."""
    caplog.set_level(logging.INFO)
    keys = line("a", ", requests_per_minute = 1")
    with live_server(engine, grpc_port=0, keys=keys) as live, Client(live, **auth("a")) as client:
        call = client.start(EMBED, field(1, "x"))
        call.result()
        assert trailers(call)["x-ratelimit-remaining-requests"] == "0"
        for path in (EMBED, PREDICT, INFER):
            refused = client.refused(path, field(1, "x"))
            assert refused.code() is Code.RESOURCE_EXHAUSTED
            assert "on requests per min (RPM): Limit 1" in refused.details()
            assert 0 < int(trailers(refused)["retry-after"]) <= 60
            assert int(trailers(refused)["grpc-retry-pushback-ms"]) > 0
        registry = live.application.state.context.metrics.registry
        labels = {"key": "a", "status": "RESOURCE_EXHAUSTED"}
        wait_until(
            lambda: registry.get_sample_value("matryo_caller_requests_total", labels) == 3
        )  # a call is counted after its caller has its answer
    records = [record for record in caplog.records if record.name == "matryo.request"]
    assert {record.__dict__["key"] for record in records if "gRPC" in record.message} == {"a"}


def test_never(engine: FakeEngine) -> None:
    """What no wait mends is refused with gRPC's word for no retries."""
    keys = line("a", ", tokens_per_minute = 20") + "\n" + line("b", ", tokens_per_day = 20")
    with live_server(engine, grpc_port=0, keys=keys) as live:
        for name, words in (("a", "Request too large"), ("b", "exceeded your current quota")):
            with Client(live, **auth(name)) as client:
                refused = client.refused(EMBED, field(1, "x " * 40))
                assert refused.code() is Code.RESOURCE_EXHAUSTED
                assert words in refused.details()
                assert trailers(refused)["grpc-retry-pushback-ms"] == "-1"


def test_models(engine: FakeEngine) -> None:
    """A model that the key may not use is PERMISSION_DENIED."""
    engines: list[Engine] = [engine, FakeEngine(MINILM)]
    keys = line("a", f', models = ["{MINILM.id}"]')
    with live_server(engines, grpc_port=0, keys=keys) as live:
        with Client(live, **auth("a")) as client:
            refused = client.refused(EMBED, field(1, "x"))
            assert refused.code() is Code.PERMISSION_DENIED
        with Client(live, **auth("a"), model=MINILM.id) as client:
            client.ask(EMBED, field(1, "x"))


def test_streams_wait(engine: FakeEngine) -> None:
    """A stream is one call; its messages wait for tokens, however many of them come at once."""
    keys = line("a", ", requests_per_minute = 1, tokens_per_minute = 6000")
    with live_server(engine, grpc_port=0, keys=keys) as live, Client(live, **auth("a")) as client:
        raws = [field(1, f"x{n} " * 610) for n in range(10)]
        assert len(answers(client.stream(STREAM, raws))) == 10


def test_streams_end(engine: FakeEngine) -> None:
    """A message that can never pass ends its stream, after the answers before the message."""
    keys = line("a", ", tokens_per_minute = 6000")
    with live_server(engine, grpc_port=0, keys=keys) as live, Client(live, **auth("a")) as client:
        stream = client.stream(STREAM, [field(1, "x"), field(1, "y " * 6001), field(1, "z")])
        found: list[bytes] = []
        with pytest.raises(grpc.RpcError) as refused:
            found.extend(stream)
        assert refused.value.code() is Code.RESOURCE_EXHAUSTED
        assert len(found) <= 1
