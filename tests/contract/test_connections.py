"""What a peer may send and hold is bounded, in bytes, in time and in number."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests

from matryo.http import connection as wire
from matryo.http import server
from matryo.http.connection import Phase
from matryo.http.connections import allow_open_files
from matryo.http.reader import MAX_HEADERS
from tests.contract.conftest import Live, is_refused, live_server, wait_until
from tests.contract.test_server import (
    BODY,
    assert_error,
    connect,
    n_connections,
    post,
    read_all,
    read_answer,
    server_end,
)
from tests.fakes import FakeEngine

CHUNKED = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """A server with the fake engine and one worker."""
    with live_server(engine, workers=1) as server:
        yield server


def sample(live: Live, name: str, **labels: str) -> float:
    """The value of a metric; 0 if there is no such series."""
    registry = live.application.state.context.metrics.registry
    return registry.get_sample_value(name, labels) or 0.0


def flood(connection: socket.socket, piece: bytes, n_bytes: int) -> int:
    """Send `piece` again and again; the number of bytes sent when the server closed."""
    sent = 0
    connection.settimeout(20)
    try:
        while sent < n_bytes:
            connection.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


class TestFraming:
    """Bytes beside a body are bounded, however a peer sends them."""

    @pytest.mark.parametrize(
        "piece",
        [
            pytest.param(b"1;" + b"e" * 8000 + b"\r\n \r\n", id="extensions"),
            pytest.param(b"1\r\n \r\n", id="tiny chunks"),
            pytest.param(b"0" * 30 + b"1;x=" + b"y" * 40 + b"\r\n \r\n", id="padded sizes"),
        ],
    )
    def test_chunks(self, live: Live, piece: bytes) -> None:
        """Chunks that frame a body with far more than its bytes are refused early."""
        with connect(live) as connection:
            connection.sendall(CHUNKED)
            assert flood(connection, piece * 100, 80_000_000) < 40_000_000
        wait_until(lambda: not n_connections(live))
        labels = {"door": "openai", "route": "/v1/embeddings", "model": "", "status": "400"}
        assert sample(live, "matryo_requests_total", **labels) == 1
        assert not sample(live, "matryo_http_refusals_total", status="400")

    @pytest.mark.parametrize("keys", [None, "secret"])
    def test_trailers(self, engine: FakeEngine, keys: str | None) -> None:
        """Trailers without end are refused, whether or not the caller has a key."""
        with live_server(engine, api_keys=keys) as live, connect(live) as connection:
            connection.sendall(CHUNKED + b"2\r\n{}\r\n0\r\n")
            trailer = b"X-Filler: " + b"a" * 4000 + b"\r\n"
            assert flood(connection, trailer * 10, 400_000_000) < 300_000_000
            assert requests.get(f"{live.url}/livez", timeout=10).status_code == 200

    def test_one_endless_line(self, live: Live) -> None:
        """A trailer, an extension or a header that is one endless line is refused."""
        starts = (CHUNKED + b"0\r\nX: ", CHUNKED + b"5;", b"GET / HTTP/1.1\r\nX: ", b"GET /")
        for start in starts:
            with connect(live) as connection:
                connection.sendall(start)
                assert flood(connection, b"a" * 65536, 80_000_000) < 40_000_000

    def test_small_chunks_of_an_honest_client(self, live: Live) -> None:
        """A body in chunks of a few bytes is taken: a client may write its JSON bit by bit."""
        body = json.dumps({"input": "word " * 20_000, "truncate": True}).encode()
        pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        with connect(live) as connection:
            connection.sendall(CHUNKED + chunks + b"0\r\nX-Checksum: 1\r\n\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200 OK")
            connection.sendall(GET)
            assert read_answer(connection).startswith(b"HTTP/1.1 200 OK")

    def test_many_headers(self, live: Live) -> None:
        """More headers than any client sends are refused, and their number is named."""
        with connect(live) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n")
            raw = read_all(connection)
        assert_error(raw, 431)
        assert str(MAX_HEADERS).encode() in raw


class TestPipelining:
    """A peer may send requests ahead; what is behind the one in work costs nothing yet."""

    def test_more_than_fit(self, live: Live) -> None:
        """Of many requests in one piece the first few are answered; then the connection ends."""
        with connect(live) as connection:
            connection.sendall(GET * 80)
            raw = read_all(connection)
        n_answers = raw.count(b"HTTP/1.1 200 OK")
        assert 1 <= n_answers <= 80
        assert raw.count(b"connection: close") <= 1

    def test_a_large_request_behind_another(self, live: Live, engine: FakeEngine) -> None:
        """A request that waits behind another is read once its turn has come."""
        big = json.dumps({"input": ["text " * 100] * 400}).encode()
        engine.gate.clear()
        with connect(live) as connection:
            connection.sendall(post())
            here = server_end(live)
            wait_until(lambda: here.phase is Phase.BUSY)
            head, _, body = post(big, "Connection: close").partition(b"\r\n\r\n")
            connection.sendall(head[:50])
            connection.sendall(head[50:] + b"\r\n\r\n" + body[:1000])
            engine.gate.set()
            connection.sendall(body[1000:])
            raw = read_all(connection)
        assert raw.count(b"HTTP/1.1 200 OK") == 2

    def test_bytes_without_end(self, live: Live, engine: FakeEngine) -> None:
        """What a peer sends behind a request that runs waits in the socket, not in memory."""
        engine.gate.clear()
        with connect(live) as connection:
            connection.sendall(post())
            here = server_end(live)
            wait_until(lambda: here.has_whole_request)
            connection.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    connection.send(GET * 1000)
            wait_until(lambda: not here._reading)
            assert len(here._held) < 1_000_000
            engine.gate.set()


class TestReaders:
    """A peer that does not read its answer, or is gone, holds nothing for long."""

    def test_reset_connections(self, live: Live) -> None:
        """A connection that its peer reset is forgotten at once."""
        for _ in range(50):
            connection = connect(live)
            connection.sendall(GET)
            read_answer(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        wait_until(lambda: not n_connections(live))

    def test_nobody_reads(self, engine: FakeEngine) -> None:
        """An answer that nobody reads is dropped with its connection, and so is its memory."""
        with live_server(engine, workers=1, write_timeout_s=0.2) as live:
            budget = live.application.state.context.service.budget
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", live.port))
            connection.sendall(post(json.dumps({"input": ["t"] * 2000}).encode()))
            wait_until(lambda: budget.held > 2000 * 768 * 4)
            wait_until(lambda: not n_connections(live))
            wait_until(lambda: not budget.held)
            connection.close()
            assert sample(live, "matryo_dropped_connections_total", reason="slow_reader") == 1
            gone = sample(
                live,
                "matryo_requests_total",
                door="openai",
                route="/v1/embeddings",
                status="499",
                model=FULL,
            )
            assert gone == 1

    def test_a_slow_reader(self, engine: FakeEngine) -> None:
        """A peer that reads slowly, but goes on reading, gets its whole answer."""
        with live_server(engine, workers=1) as live, connect(live) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            connection.sendall(
                post(json.dumps({"input": ["t"] * 300}).encode(), "Connection: close")
            )
            pieces: list[bytes] = []
            while piece := connection.recv(5000):
                pieces.append(piece)
            raw = b"".join(pieces)
        assert raw.count(b'"index"') == 300
        assert raw.endswith(b"\r\n0\r\n\r\n")


FULL = "nomic-embed-text-v1.5"


class TestNumber:
    """Connections are bounded, and idle ones make room for new ones."""

    def test_the_longest_idle_makes_room(
        self, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With every place taken by silent peers, a new one is served, and the oldest closed."""
        with live_server(engine, max_connections=3) as live:
            silent = [connect(live) for _ in range(3)]
            wait_until(lambda: n_connections(live) == 3)
            assert requests.get(f"{live.url}/livez", timeout=10).status_code == 200
            assert read_all(silent[0]) == b""
            assert sample(live, "matryo_dropped_connections_total", reason="displaced") == 1
            assert sample(live, "matryo_connections") <= 3
            assert "all 3 connections are in use; 1 were closed" in caplog.text
            for one in silent:
                one.close()

    @pytest.mark.parametrize(
        "part", [b"G", post()[:60], post()[:-3], CHUNKED + b"5\r\n{", b"\x00\r\n\r\n"]
    )
    def test_parts_of_requests_make_room(self, engine: FakeEngine, part: bytes) -> None:
        """Peers that send a part of a request, or garbage, take no room from those with a whole."""
        with live_server(engine, max_connections=3, body_timeout_s=600) as live:
            partial = [connect(live) for _ in range(3)]
            for one in partial:
                one.sendall(part)
            for _ in range(3):
                answer = requests.post(f"{live.url}/v1/embeddings", json={"input": "a"}, timeout=10)
                assert answer.status_code == 200
            for one in partial:
                one.close()

    def test_no_room_at_all(self, engine: FakeEngine) -> None:
        """If every connection has a request in work, a new one is told to come later."""
        with live_server(engine, max_connections=2) as live:
            engine.gate.clear()
            wait_until(lambda: not n_connections(live))
            busy = [connect(live) for _ in range(2)]
            for one in busy:
                one.sendall(post(BODY, "Connection: close"))
            service = live.application.state.context.service
            wait_until(lambda: service._scheduler.n_requests == 2)
            with connect(live) as late:
                assert_error(read_all(late), 503)
            assert sample(live, "matryo_dropped_connections_total", reason="full") == 1
            engine.gate.set()
            for one in busy:
                assert read_all(one).startswith(b"HTTP/1.1 200 OK")
                one.close()

    def test_open_files(self) -> None:
        """The limit of open files is raised as far as allowed; connections never exceed it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            assert allow_open_files(300) == 300
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
            assert allow_open_files(10**7) < 10**7
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_keep_alive(self, engine: FakeEngine) -> None:
        """A connection without a request is closed after the time that the operator chose."""
        with live_server(engine, keep_alive_s=0.1) as live, connect(live) as connection:
            connection.sendall(GET)
            raw = read_all(connection)
            assert raw.startswith(b"HTTP/1.1 200 OK")
            assert b"connection: close" not in raw


class TestBudget:
    """What requests hold together is bounded, and refused before it is read."""

    def test_refused_before_it_is_read(self, engine: FakeEngine) -> None:
        """A body that does not fit beside others gets 429 at its head; the others are served."""
        most = 5_000_000
        with live_server(engine, memory_budget_bytes=most, max_body_bytes=1_000_000) as live:
            engine.gate.clear()
            budget = live.application.state.context.service.budget
            body = json.dumps({"input": ["t"] * 1100}).encode()
            with connect(live) as first, connect(live) as second:
                first.sendall(post(body, "Connection: close"))
                wait_until(lambda: budget.held > 1100 * 768 * 4)
                head = post(b"x" * 900_000).partition(b"\r\n\r\n")[0]
                second.sendall(head + b"\r\n\r\n")
                raw = read_all(second)
                assert_error(raw, 429)
                assert b"\r\nretry-after: 1\r\n" in raw
                assert b"MATRYO_MEMORY_BUDGET_BYTES" in raw
                engine.gate.set()
                assert read_all(first).startswith(b"HTTP/1.1 200 OK")
            wait_until(lambda: not budget.held)

    @pytest.mark.parametrize("keys", [None, "secret"])
    def test_everything_is_given_back(self, engine: FakeEngine, keys: str | None) -> None:
        """However a request ends, the budget is whole again."""
        with live_server(engine, api_keys=keys, body_timeout_s=0.1) as live:
            budget = live.application.state.context.service.budget
            raws = [
                post(b"[" * 1000),
                post(b"{}"),
                post(json.dumps({"input": "a " * 9000}).encode()),
                post()[:-3],
                b"GET / HTTP/1.1\r\nX: " + b"a" * 60_000,
                CHUNKED + b"5\r\n{",
                post() * 3,
            ]
            for raw in raws:
                for wait in (False, True):
                    with connect(live) as connection:
                        connection.sendall(raw)
                        if wait and b"X: a" not in raw:
                            connection.recv(10)
            wait_until(lambda: not n_connections(live) and not budget.held)


class TestStopping:
    """A stop answers what was admitted, refuses the rest at once, and waits for nobody in vain."""

    def test_half_a_body(self, live: Live) -> None:
        """A request whose body is not complete is refused when the server stops."""
        with connect(live) as connection:
            connection.sendall(post()[:-3])
            here = server_end(live)
            wait_until(lambda: here.phase is Phase.BUSY)
            live.server.stop()
            assert_error(read_all(connection), 503)

    def test_half_a_head(self, live: Live) -> None:
        """So is a request whose head is not complete."""
        with connect(live) as connection:
            connection.sendall(post()[:40])
            here = server_end(live)
            wait_until(lambda: here.phase is Phase.HEAD)
            live.server.stop()
            assert_error(read_all(connection), 503)

    def test_nobody_reads(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A caller that does not read its answer does not delay the end to that of the grace."""
        monkeypatch.setattr(wire, "_STALLED_DRAINING_S", 0.2)
        with live_server(engine, workers=1, grace_s=600) as live:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", live.port))
            connection.sendall(post(json.dumps({"input": ["t"] * 2000}).encode()))
            here = server_end(live)
            wait_until(lambda: here._drained)
            live.server.stop()
            wait_until(lambda: not n_connections(live))
            connection.close()

    def test_drain_delay(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """During the delay requests are served while /readyz is red; a second signal ends it."""
        monkeypatch.setattr(server, "AGAIN_S", 0)
        with live_server(engine, drain_delay_s=600, grace_s=600) as live:
            live.server.stop()
            wait_until(lambda: requests.get(f"{live.url}/readyz", timeout=10).status_code == 503)
            answer = requests.post(f"{live.url}/v1/embeddings", json={"input": "a"}, timeout=10)
            assert answer.status_code == 200
            live.server.stop(signal.SIGINT)
            wait_until(lambda: is_refused(live.port))


def test_refusals_are_logged_without_their_bytes(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal of HTTP itself leaves one line and one count, and quotes nothing of the peer."""
    with caplog.at_level("INFO", logger="matryo.http"), connect(live) as connection:
        connection.sendall(b"EVIL\x1b[2J /\r\n\r\n")
        assert_error(read_all(connection), 400)
    lines: list[Any] = [record for record in caplog.records if record.name == "matryo.http"]
    assert [line.status for line in lines] == [400]
    assert not re.search("EVIL|\x1b", lines[0].getMessage())
    assert sample(live, "matryo_http_refusals_total", status="400") == 1


def lines_of(caplog: pytest.LogCaptureFixture, n: int) -> list[Any]:
    """The log lines of `n` requests, once they are there."""

    def found() -> list[Any]:
        return [one for one in caplog.records if one.name == "matryo.request"]

    wait_until(lambda: len(found()) >= n)
    return found()


def test_log_lines_of_requests(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A line has the path as it came, cut; the peer's address and a failed request's model."""
    with (
        caplog.at_level("INFO", logger="matryo.request"),
        live_server(engine, log_client=True) as live,
    ):
        requests.get(f"{live.url}/a%0Ab%20200%1b[2J" + "x" * 3000, timeout=10)
        body = {"input": "a " * 20_000, "model": "nomic-embed-text"}
        requests.post(f"{live.url}/v1/embeddings", json=body, timeout=10)
        path, failed = lines_of(caplog, 2)
        labels = {"door": "openai", "route": "/v1/embeddings", "status": "400", "model": FULL}
        assert sample(live, "matryo_requests_total", **labels) == 1
    message = path.getMessage()
    assert message.startswith("GET /a%0Ab%20200%1B%5B2Jxxx")
    assert len(message) < 300
    assert path.client == "127.0.0.1"
    assert failed.model == FULL


def test_the_peers_address_is_private(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """By default no line has the address of a peer."""
    with caplog.at_level("INFO", logger="matryo.request"):
        requests.get(f"{live.url}/v1/models", timeout=10)
        (line,) = lines_of(caplog, 1)
    assert not hasattr(line, "client")
