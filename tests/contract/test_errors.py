"""Every error is OpenAI's error object with a request id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest

from matryo.engine import TokenIds
from tests.contract.conftest import client_of, entered_application
from tests.fakes import FakeEngine

URL = "/v1/embeddings"
JSON = {"content-type": "application/json"}


def assert_openai_error(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Check that a response is a complete error object; returns the error."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    answer = response.json()
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/", 405),
        ("GET", "/v1", 404),
        ("POST", "/v1/foo", 404),
        ("POST", "/v1/embeddings/", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/unknown", 404),
        ("GET", "/v1/embeddings", 405),
        ("PUT", "/v1/embeddings", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/livez", 405),
    ],
)
async def test_router_errors(
    client: httpx2.AsyncClient, method: str, path: str, status: int
) -> None:
    """Unknown URLs and methods are answered as OpenAI answers them."""
    error = assert_openai_error(await client.request(method, path), status)
    assert method in error["message"] or "unknown" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"input": NaN}',
        b"[" * 100_000,
        b'{"input": "\\ud83d"}',
        b'{"input": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b"null",
        b"{}",
        b'{"input": "a", "input_typ": 1}',
        b'{"input": "a", "\\ud83d": 1}',
        b'{"input": "a", "model": "\\u0000"}',
    ],
)
async def test_hostile_bodies(client: httpx2.AsyncClient, body: bytes) -> None:
    """No wrong body gives a 500."""
    response = await client.post(URL, content=body, headers=JSON)
    assert_openai_error(response, 404 if b"model" in body else 400)


async def test_large_bodies(engine: FakeEngine) -> None:
    """A body over the limit is refused by its Content-Length, or once it has too many bytes."""
    async with client_of(engine, max_body_bytes=10_000) as client:
        body = b'{"input": "' + b"a" * 20_000 + b'"}'
        error = assert_openai_error(await client.post(URL, content=body, headers=JSON), 413)
        assert "10000 bytes" in error["message"]
        n_read = 0

        async def stream() -> AsyncIterator[bytes]:
            nonlocal n_read
            for _ in range(1000):
                n_read += 1000
                yield b"a" * 1000

        assert_openai_error(await client.post(URL, content=stream(), headers=JSON), 413)
        assert n_read <= 12_000


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "unsupported_content_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_content_type"),
        (JSON | {"content-encoding": "gzip"}, "unsupported_content_encoding"),
    ],
)
async def test_media_types(client: httpx2.AsyncClient, headers: dict[str, str], code: str) -> None:
    """The error for a body that is not plain JSON says what to send."""
    response = await client.post(URL, content=b'{"input": "a"}', headers=headers)
    assert assert_openai_error(response, 415)["code"] == code


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/ld+json", ""],
)
async def test_media_types_that_pass(client: httpx2.AsyncClient, content_type: str) -> None:
    """JSON is accepted with any of its media types and without one."""
    response = await client.post(
        URL, content=b'{"input": "a"}', headers={"content-type": content_type}
    )
    assert response.status_code == 200


async def test_overload(engine: FakeEngine) -> None:
    """A full queue is 429 with a time to wait, and `type` names the resource."""
    async with entered_application(engine, queue_tokens=10) as (application, client):
        engine.gate.clear()
        running = asyncio.create_task(client.post(URL, json={"input": "a " * 20}))
        while application.state.context.service._scheduler.n_requests == 0:
            await asyncio.sleep(0.001)
        response = await client.post(URL, json={"input": "b"})
        error = assert_openai_error(response, 429)
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        assert "Limit 10, Used 23" in error["message"]
        assert 1 <= int(response.headers["retry-after"]) <= 60
        engine.gate.set()
        assert (await running).status_code == 200


async def test_too_long_a_wait(engine: FakeEngine) -> None:
    """A request whose answer would come too late is 429 at once, with the time to wait."""
    async with entered_application(engine) as (application, client):
        engine.gate.clear()
        scheduler = application.state.context.service._scheduler
        ahead = [
            asyncio.create_task(client.post(URL, json={"input": f"{n} " + "a " * 90}))
            for n in range(40)
        ]
        while scheduler.n_requests < len(ahead):
            await asyncio.sleep(0.001)
        patient = {"x-stainless-read-timeout": "0.0001"}
        response = await client.post(URL, json={"input": "b"}, headers=patient)
        error = assert_openai_error(response, 429)
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        assert (
            "waits at most 0.0001 s (x-stainless-read-timeout, or a gRPC deadline)"
            in error["message"]
        )
        assert response.headers["retry-after"] == "1"
        engine.gate.set()
        assert {(await task).status_code for task in ahead} == {200}


async def test_failed_runs(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the engine is a 500, and only the log has its cause."""

    def explode(batch: Sequence[TokenIds]) -> None:
        if len(batch[0]) == 5:
            raise RuntimeError("secret path /etc/x")

    async with client_of(engine) as client:
        engine.before = explode
        with caplog.at_level(logging.ERROR):
            response = await client.post(URL, json={"input": "a b"})
        error = assert_openai_error(response, 500)
        assert error["type"] == "server_error"
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in error["message"]
        assert "secret path" in caplog.text
        logged = [vars(record).get("request_ids") for record in caplog.records]
        assert [response.headers["x-request-id"]] in logged
        assert (await client.post(URL, json={"input": "a"})).status_code == 200


async def test_bugs(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a route is a 500 with OpenAI's error object, and the service continues."""
    from matryo.service import service

    async with client_of(engine) as client:
        with monkeypatch.context() as patch:
            patch.setattr(service, "choose", lambda *_: 1 / 0)
            assert_openai_error(await client.post(URL, json={"input": "a"}), 500)
        assert (await client.post(URL, json={"input": "a"})).status_code == 200


async def test_draining(engine: FakeEngine) -> None:
    """A stopping server answers 503 to callers and to its load balancer."""
    async with entered_application(engine) as (application, client):
        application.state.context.service.drain(30)
        response = await client.post(URL, json={"input": "a"})
        error = assert_openai_error(response, 503)
        assert error["type"] == "service_unavailable_error"
        assert response.headers["retry-after"] == "1"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("value", ["0.05", "5e-2"])
async def test_deadlines(engine: FakeEngine, value: str) -> None:
    """Work is dropped after the read timeout that the caller announced."""
    async with client_of(engine) as client:
        engine.gate.clear()
        headers = {"x-stainless-read-timeout": value}
        answer = await client.post(URL, json={"input": "a b c"}, headers=headers)
        assert assert_openai_error(answer, 408)["code"] == "request_timeout"
        engine.gate.set()
        assert (await client.post(URL, json={"input": "a b c"})).status_code == 200


@pytest.mark.parametrize("value", ["600", "not given", "", "-1", "0", "nan", "inf", "1e999"])
async def test_other_deadlines(client: httpx2.AsyncClient, value: str) -> None:
    """A read timeout that is not a number, or is long, has no effect."""
    headers = {"x-stainless-read-timeout": value}
    assert (await client.post(URL, json={"input": "a"}, headers=headers)).status_code == 200
