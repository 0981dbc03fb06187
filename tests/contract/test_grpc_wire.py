"""The gRPC port, called by hand-made frames and by mutated calls."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("grpc")


from matryo.grpc import encoderfile, health, inference, reflection, tei
from matryo.grpc.messages import methods_of
from tests.contract.conftest import Live, live_server, wait_until
from tests.contract.http2 import Exchange, data_frame, headers_frame
from tests.contract.test_grpc import EMBED
from tests.contract.wire import Client, field
from tests.fakes import FakeEngine
from tests.fuzz_grpc import fuzz
from tests.mutated_calls import SEEDS

HEAD = {
    ":method": "POST",
    ":scheme": "http",
    ":path": EMBED,
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """A server with a port for gRPC."""
    with live_server(engine, grpc_port=0) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    """A client of the server."""
    with Client(live) as client:
        yield client


def end(client: Client, **head: str) -> str:
    """The end of a call of `Embed` with another head."""
    raw = field(1, "a")
    changes = {name.replace("_", "-"): value for name, value in head.items()}
    if "path" in changes:
        changes[":path"] = changes.pop("path")
    with Exchange(client.port, 10) as exchange:
        exchange.send(headers_frame(HEAD | changes))
        exchange.send(data_frame(struct.pack(">BI", 0, len(raw)) + raw, last=True))
        return exchange.end()


@pytest.mark.parametrize("path", ["/tei.v1.Embed/No", "", "/\xff", "/tei.v1.Embed/Embed\xc3"])
def test_unknown_methods(client: Client, path: str) -> None:
    """A method that there is not is UNIMPLEMENTED whatever its name is, and the server lives on."""
    for _ in range(100):
        assert end(client, path=path) == "grpc 12"
    assert client.ask(EMBED, field(1, "a"))[1]


def test_metadata_that_are_no_text(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Metadata that are not UTF-8 are those of any caller, and no line of the log quotes them."""
    assert end(client, authorization="Bearer sk-secret\xff") == "grpc 0"
    assert end(client, model="\xff") == "grpc 5"
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]


@pytest.mark.parametrize(("size", "code"), [(15_000, "OK"), (17_000, "RESOURCE_EXHAUSTED")])
def test_large_metadata(live: Live, size: int, code: str) -> None:
    """Metadata are within 16 KiB, or not; nothing is refused at random."""
    with Client(live, trace="x" * size) as client:
        calls = [client.start(EMBED, field(1, "a")) for _ in range(30)]
        assert {call.code().name for call in calls} == {code}


def is_open(one: socket.socket) -> bool:
    """Whether the server has not closed a connection."""
    try:
        while one.recv(4096):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return False


def test_idle_connections(engine: FakeEngine) -> None:
    """Connections past `MATRYO_MAX_CONNECTIONS` are closed, and so are those that say nothing."""
    bounds: dict[str, Any] = {"max_connections": 10, "head_timeout_s": 1}
    with live_server(engine, grpc_port=0, **bounds) as live, Client(live) as client:
        idle = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(30)]
        try:
            for one in idle:
                one.setblocking(False)
            wait_until(lambda: sum(map(is_open, idle)) <= 10)
            wait_until(lambda: not any(map(is_open, idle)))
            assert client.ask(EMBED, field(1, "a"))[1]
        finally:
            for one in idle:
                one.close()


def test_fuzz() -> None:
    """Mutated calls end as they may, and the server stays well; `make integration` makes more."""
    report = fuzz(400)
    assert report.faults == []
    assert report.ends["plain: OK"] > 30
    assert report.ends["plain: INVALID_ARGUMENT"] > 30
    assert report.ends["fault: injected"] > 5


def test_fuzz_reaches_every_method() -> None:
    """No method is left out."""
    services = (*tei.SERVICES, *encoderfile.SERVICES, *inference.SERVICES)
    services += (health.SERVICE, reflection.SERVICE)
    paths = {f"/{service}/{method}" for service in services for method in methods_of(service)}
    older = f"/{reflection.OLDER}/ServerReflectionInfo"
    assert paths | {older} == set(SEEDS)
