"""Tracing that is off, without its packages, and the names of spans."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys

import pytest

from matryo.assembly.traces import build_tracer
from matryo.core import trace_names as names
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from matryo.core.otel.warnings import PAUSE_S, Warnings
from matryo.core.tracing import NO_SPAN, NO_TRACER

_LOADED = """
import asyncio, sys
from matryo.core.environment import load_settings
from matryo.main import create_app
from tests.fakes import FakeEngine
import httpx2
async def ask():
    application = create_app(load_settings(None, tracing={tracing}), FakeEngine())
    async with application.router.lifespan_context(application):
        transport = httpx2.ASGITransport(application)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/v1/embeddings", json={{"input": "a"}})
            assert answer.status_code == 200, answer.text
asyncio.run(ask())
parts = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "matryo.core.otel")
print(*(part for part in parts if part in sys.modules))
"""


@pytest.mark.parametrize("tracing", [False, True])
def test_what_is_loaded(tracing: bool) -> None:
    """Without tracing a process that answers loads neither the SDK nor an exporter."""
    # FastAPI itself loads the package opentelemetry-api, always.
    done = subprocess.run(
        [sys.executable, "-c", _LOADED.format(tracing=tracing)],
        check=True,
        capture_output=True,
        text=True,
        env={"OTEL_TRACES_SAMPLER": "always_off", "PYTHONPATH": ":".join(sys.path)},
    )
    found = done.stdout.split()
    assert ("opentelemetry.sdk" in found) is tracing
    assert ("matryo.core.otel" in found) is tracing
    assert tracing or not found


def test_off() -> None:
    """Without MATRYO_TRACING the tracer is the one that does nothing."""
    assert build_tracer(load_settings(None), "1") is NO_TRACER
    span = NO_TRACER.request("a", lambda _: None, {}, under=NO_SPAN)
    assert span is NO_SPAN
    assert span.trace_id is None
    assert not span.facts
    with span.stage("b"):
        span.call("c").end("c")
    span.passage().end()


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_packages(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with tracing and without a package names the extra."""
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        if name.startswith(missing):
            raise ModuleNotFoundError(name)
        return find(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(SettingsInvalid, match=r"MATRYO_TRACING .*pip install 'matryo\[otel\]'"):
        build_tracer(load_settings(None, tracing=True), "1")


def test_a_protocol_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that asks for gRPC without its exporter names the other extra."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    name = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsInvalid, match=r"pip install 'matryo\[otel-grpc\]'"):
        build_tracer(load_settings(None, tracing=True), "1")


def test_warnings_are_few(caplog: pytest.LogCaptureFixture) -> None:
    """Of the SDK's lines one is passed on in a minute, with the number of those left out."""
    now_s = 0.0
    theirs = logging.getLogger("opentelemetry.sdk._shared_internal.tests")
    warnings = Warnings(lambda: now_s)
    try:
        for _ in range(1000):
            theirs.warning("Queue full, dropping %s.", "Span")
        now_s = PAUSE_S
        theirs.warning("Queue full, dropping %s.", "Span")
        theirs.debug("nothing")
    finally:
        warnings.close()
    first, second = [one for one in caplog.records if one.name == "matryo.tracing"]
    assert first.getMessage().endswith("Queue full, dropping Span.")
    assert (vars(first)["left_out"], vars(second)["left_out"]) == (None, 999)


def test_names_are_the_sdks() -> None:
    """Each name of a convention is one that the SDK's own tables have."""
    from opentelemetry.semconv._incubating.attributes import (
        gen_ai_attributes,
        mcp_attributes,
        rpc_attributes,
    )
    from opentelemetry.semconv.attributes import (
        client_attributes,
        error_attributes,
        http_attributes,
        server_attributes,
        url_attributes,
    )

    tables = (
        gen_ai_attributes,
        mcp_attributes,
        rpc_attributes,
        client_attributes,
        error_attributes,
        http_attributes,
        server_attributes,
        url_attributes,
    )
    known = {value for table in tables for value in vars(table).values() if isinstance(value, str)}
    ours = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    attributes = {name for name in ours if "." in name and not name.startswith("matryo.")}
    assert len(attributes) > 15
    assert attributes - known == {names.REQUEST_DURATION}
