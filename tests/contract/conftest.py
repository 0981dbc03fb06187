"""The application with a fake engine, in process and on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI

from matryo.core.environment import load_settings
from matryo.core.settings import Settings
from matryo.engine import Engine
from matryo.http.listening import bind_all
from matryo.http.server import Server
from matryo.main import build_server, create_app
from tests.fakes import MINILM, FakeEngine


def settings(**changes: Any) -> Settings:
    """Settings for one test."""
    return load_settings(None, **changes)


@asynccontextmanager
async def entered_application(
    engine: Engine | list[Engine], **changes: Any
) -> AsyncGenerator[tuple[FastAPI, httpx2.AsyncClient], None]:
    """An application in this process and its client, running until the block ends."""
    application = create_app(settings(**changes), engine)
    async with application.router.lifespan_context(application):
        transport = httpx2.ASGITransport(application)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield application, client


@asynccontextmanager
async def client_of(
    engine: Engine | list[Engine], **changes: Any
) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """The client of `entered_application`."""
    async with entered_application(engine, **changes) as (_, client):
        yield client


def openai_of(client: httpx2.AsyncClient, **options: Any) -> openai.AsyncOpenAI:
    """The official client, which sends through an in-process client."""
    defaults: dict[str, Any] = {"api_key": "none", "base_url": "http://test/v1", "max_retries": 0}
    return openai.AsyncOpenAI(http_client=client, **defaults | options)


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx2.AsyncClient]:
    """Two models: the fake v1.5 as default, and a fake MiniLM."""
    async with client_of([engine, FakeEngine(MINILM)]) as client:
        yield client


@pytest.fixture
def sdk(client: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    """The official client."""
    return openai_of(client)


@dataclass
class Live:
    """A server in a thread, on a socket of the loopback interface."""

    application: FastAPI
    server: Server
    port: int
    operators_port: int | None = None

    @property
    def url(self) -> str:
        """The root URL of the server."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def live_server(
    engine: Engine | list[Engine],
    *,
    grace_s: float = 5,
    create: Callable[[Settings, Engine | list[Engine]], FastAPI] = create_app,
    **changes: Any,
) -> Generator[Live, None, None]:
    """Serve an engine on a free port until the block ends, by the application of `create`."""
    chosen = settings(grace_s=grace_s, **changes)
    application = create(chosen, engine)
    listener = bind_all(chosen.model_copy(update={"host": "127.0.0.1", "port": 0}))
    ready = threading.Event()
    server = build_server(application, listener, chosen, on_ready=ready.set)
    thread = threading.Thread(target=server.run)
    thread.start()
    port = listener.port
    try:
        assert ready.wait(10)
        beside = listener.beside
        yield Live(application, server, port, beside.port if beside else None)
    finally:
        server.stop()
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Return once `condition` is true; fail the test if that takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def is_refused(port: int) -> bool:
    """Whether no process listens on `port`. A connection that hangs is not refused."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionResetError:  # it closed between the knock and the answer
        return False
    except ConnectionRefusedError:
        return True
    return False


def n_refused(live: Live) -> float:
    """Requests that the server refused because its queue was full."""
    registry = live.application.state.context.metrics.registry
    return registry.get_sample_value("matryo_rejections_total", {"reason": "queue_full"}) or 0.0
