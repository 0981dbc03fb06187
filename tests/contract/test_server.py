"""The server on a real socket: disconnects, bad bytes, slow peers and signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import requests

from matryo.http import connection as wire
from matryo.http import server as serving
from matryo.http.connection import Connection, Phase
from matryo.http.reader import MAX_HEAD_BYTES
from tests.checkpoints import make_model
from tests.contract.conftest import Live, is_refused, live_server, n_refused, wait_until
from tests.fakes import FakeEngine, as_float32

BODY = json.dumps({"input": "a"}).encode()


@pytest.fixture
def live(engine: FakeEngine) -> Iterator[Live]:
    """A server with the fake engine and one worker."""
    with live_server(engine, workers=1) as server:
        yield server


def connect(live: Live) -> socket.socket:
    """A TCP connection to the server."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    pieces: list[bytes] = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_answer(connection: socket.socket) -> bytes:
    """A complete answer on a connection that stays open; head and body may arrive separately."""
    with connection.makefile("rb") as stream:
        lines = list(iter(stream.readline, b"\r\n"))
        length = next(line for line in lines if line.startswith(b"content-length:"))
        return b"".join(lines) + b"\r\n" + stream.read(int(length.partition(b":")[2]))


def post(body: bytes = BODY, *headers: str) -> bytes:
    """The bytes of a POST request."""
    head = [
        "POST /v1/embeddings HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def assert_error(raw: bytes, status: int) -> None:
    """Check that a raw response is OpenAI's error object with a request id."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), raw
    assert re.search(rb"\r\nx-request-id: \S+", head)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def n_connections(live: Live) -> int:
    """Open connections of the server."""
    assert live.server.connections is not None
    return len(live.server.connections)


def server_end(live: Live) -> Connection:
    """The server's end of the only open connection."""
    wait_until(lambda: n_connections(live) == 1)
    assert live.server.connections is not None
    (found,) = live.server.connections._all
    assert isinstance(found, Connection)
    return found


def in_progress(url: str) -> float:
    """Number of requests that a server works on, including the scrape itself."""
    text = requests.get(f"{url}/metrics", timeout=30).text
    found = re.search(r"^matryo_requests_in_progress (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


class TestClients:
    """Behaviour of real clients."""

    def test_requests(self, live: Live, engine: FakeEngine) -> None:
        """The requests library gets a vector."""
        answer = requests.post(
            f"{live.url}/v1/embeddings", json={"input": ["search_document: a"]}, timeout=30
        )
        vector = as_float32(answer.json()["data"][0]["embedding"])
        assert np.array_equal(vector, engine.expected("search_document: a"))

    def test_openai(self, live: Live, engine: FakeEngine) -> None:
        """The official synchronous client gets a vector."""
        with openai.OpenAI(api_key="none", base_url=f"{live.url}/v1") as client:
            answer = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
        assert np.array_equal(
            as_float32(answer.data[1].embedding), engine.expected("search_document: b")
        )

    def test_openai_retries_when_told(self, engine: FakeEngine) -> None:
        """A client sends a request with Retry-After again, and gets its answer once there is room."""
        with (
            live_server(engine, queue_tokens=5) as live,
            openai.OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=3) as client,
        ):
            create = partial(client.embeddings.create, model="nomic-embed-text")
            with ThreadPoolExecutor(2) as threads:
                engine.gate.clear()
                first = threads.submit(create, input="a b c d")
                wait_until(lambda: live.application.state.context.service._scheduler.queued_tokens)
                second = threads.submit(create, input="b")
                wait_until(lambda: n_refused(live))
                assert not second.done()
                engine.gate.set()
                answers = [first.result(10), second.result(10)]
        for answer, text in zip(answers, ["a b c d", "b"], strict=True):
            expected = engine.expected(f"search_document: {text}")
            assert np.array_equal(as_float32(answer.data[0].embedding), expected)

    def test_a_slash_in_a_model_id(self, live: Live) -> None:
        """A model id that an SDK percent-encoded is found."""
        answer = requests.get(f"{live.url}/v1/models/nomic-ai%2Fnomic-embed-text-v1.5", timeout=30)
        assert answer.json()["id"] == "nomic-embed-text-v1.5"

    def test_upgrade_offers_are_ignored(self, live: Live) -> None:
        """A request with a body that offers h2c, as Java's client does, is answered."""
        with connect(live) as connection:
            offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA")
            connection.sendall(post(BODY, *offer))
            assert read_answer(connection).startswith(b"HTTP/1.1 200 OK")
            here = server_end(live)
            head, _, body = post(BODY, *offer).partition(b"\r\n\r\n")
            connection.sendall(head[:70])
            wait_until(lambda: here.phase is Phase.HEAD)
            connection.sendall(head[70:] + b"\r\n\r\n" + body[:5])
            wait_until(lambda: here.phase is Phase.BUSY)
            connection.sendall(body[5:] + post(BODY, "Connection: close"))
            assert read_all(connection).count(b"HTTP/1.1 200 OK") == 2

    def test_expect_continue(self, live: Live) -> None:
        """Curl's Expect: 100-continue before a large body is answered."""
        with connect(live) as connection:
            head, _, body = post(BODY, "Expect: 100-continue", "Connection: close").partition(
                b"\r\n\r\n"
            )
            connection.sendall(head + b"\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
            connection.sendall(body)
            assert read_all(connection).startswith(b"HTTP/1.1 200 OK")

    def test_pipelining(self, live: Live, engine: FakeEngine) -> None:
        """Pipelined requests are answered in order, each with its own vector."""
        bodies = [json.dumps({"input": text, "dimensions": 2}).encode() for text in "abc"]
        with connect(live) as connection:
            connection.sendall(
                b"".join(map(post, bodies[:2])) + post(bodies[2], "Connection: close")
            )
            raw = read_all(connection)
        found = [json.loads(line)["data"][0]["embedding"] for line in re.findall(rb"\{.*\}", raw)]
        expected = [engine.expected(f"search_document: {text}", 2) for text in "abc"]
        assert all(map(np.array_equal, as_float32(found), expected))


class TestHangUps:
    """A caller that disconnects frees its room in the queue, and no other caller notices."""

    def test_waiting_request(self, live: Live, engine: FakeEngine) -> None:
        """A caller that disconnects while waiting frees its room in the queue at once."""
        scheduler = live.application.state.context.service._scheduler
        engine.gate.clear()
        with connect(live) as stays, connect(live) as leaves:
            stays.sendall(post(BODY, "Connection: close"))
            wait_until(lambda: scheduler.n_requests == 1)
            leaves.sendall(post(json.dumps({"input": "b " * 50}).encode()))
            wait_until(lambda: scheduler.n_requests == 2)
            leaves.close()
            wait_until(lambda: scheduler.n_requests == 1)
            assert scheduler.queued_tokens == 4
            engine.gate.set()
            assert read_all(stays).startswith(b"HTTP/1.1 200 OK")
        wait_until(lambda: not scheduler.n_requests)
        assert not [batch for batch in engine.batches if 53 in batch]

    def test_half_a_body(self, live: Live) -> None:
        """A caller that disconnects in the middle of its body leaves no request behind."""
        for _ in range(20):
            with connect(live) as connection:
                connection.sendall(post(b"x" * 1000)[:-500])
        wait_until(lambda: not n_connections(live))
        assert requests.get(f"{live.url}/readyz", timeout=30).status_code == 200

    def test_two_hundred_connections_half_of_them_leave(self, engine: FakeEngine) -> None:
        """If half of many callers disconnect, the others get their vectors and no request remains."""
        engine.delay_s = 0.002
        with live_server(engine, workers=2) as live:
            scheduler = live.application.state.context.service._scheduler

            async def caller(n: int, client: httpx2.AsyncClient) -> None:
                texts = [f"t{n} " * (1 + (n * k) % 40) for k in range(1, 8)]
                call = client.post("/v1/embeddings", json={"input": texts, "dimensions": 8})
                if n % 2:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(call, timeout=0.02 + n / 5000)
                    return
                answer = (await call).json()
                for text, item in zip(texts, answer["data"], strict=True):
                    expected = engine.expected(f"search_document: {text}", 8)
                    assert np.array_equal(as_float32(item["embedding"]), expected)

            async def storm() -> None:
                limits = httpx2.Limits(max_connections=200)
                async with httpx2.AsyncClient(
                    base_url=live.url, limits=limits, timeout=30
                ) as client:
                    results = await asyncio.gather(
                        *(caller(n, client) for n in range(200)), return_exceptions=True
                    )
                # A few of the impatient may have been answered in time after all.
                failed = [r for n, r in enumerate(results) if r is not None and not n % 2]
                assert not failed, failed[:3]

            asyncio.run(storm())
            wait_until(lambda: not scheduler.n_requests and not scheduler.queued_tokens)
            assert requests.get(f"{live.url}/readyz", timeout=30).status_code == 200


class TestBadBytes:
    """Errors of the HTTP protocol have OpenAI's object, and no connection stays for ever."""

    @pytest.mark.parametrize(
        "raw",
        [
            b"GARBAGE\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        ],
    )
    def test_not_http(self, live: Live, raw: bytes) -> None:
        """Bytes that are not HTTP are answered with 400, and the connection is closed."""
        with connect(live) as connection:
            connection.sendall(raw)
            assert_error(read_all(connection), 400)

    def test_headers_at_the_limit(self, live: Live) -> None:
        """Headers may fill the limit; one byte more is a 431 and closes the connection."""
        with connect(live) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            here = server_end(live)
            connection.sendall(b"a" * (MAX_HEAD_BYTES - 20))
            wait_until(lambda: here._reader and here._reader.framing > MAX_HEAD_BYTES - 20)
            assert here.phase is Phase.HEAD
            connection.sendall(b"a" * 20 + b"\r\n\r\n")
            assert_error(read_all(connection), 431)

    def test_endless_headers(self, live: Live) -> None:
        """The server closes the connection of a peer that sends endless headers and reads nothing."""
        with connect(live) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            with pytest.raises(ConnectionError):
                # 40 MB are more than the sockets of both sides hold.
                connection.sendall((b"X-Filler: " + b"a" * 4000 + b"\r\n") * 10_000)

    def test_large_headers_in_one_piece(self, live: Live) -> None:
        """Headers and URLs over the limit are refused, in one piece or in many."""
        for line in (
            b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
            b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
        ):
            with connect(live) as connection:
                connection.sendall(line + b"\r\n\r\n")
                assert_error(read_all(connection), 431)

    def test_garbage_after_a_request(self, live: Live, engine: FakeEngine) -> None:
        """The request before a bad one gets its own answer, and then the connection closes."""
        engine.gate.clear()
        with connect(live) as connection:
            connection.sendall(post() + b"GARBAGE\r\n\r\n")
            wait_until(lambda: live.application.state.context.service._scheduler.n_requests)
            engine.gate.set()
            raw = read_all(connection)
        assert raw.startswith(b"HTTP/1.1 200 OK")
        assert raw.count(b"HTTP/1.1") == 1

    def test_body_after_a_refusal(
        self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a refusal the rest of a body is dropped unparsed for a while; then it is over."""
        with live_server(engine, api_keys="k") as live:
            with connect(live) as connection:
                connection.sendall(post(b"x" * 1000)[:-500])
                answer = read_all(connection)  # the server ends its side after the answer
                assert_error(answer, 401)
                assert b"\r\nconnection: close\r\n" in answer
                here = server_end(live)
                assert here.phase is Phase.LINGER
                connection.sendall(b"x" * 500)
            wait_until(lambda: not n_connections(live))
            monkeypatch.setattr(wire, "LINGER_S", 0.1)
            with connect(live) as connection:
                connection.sendall(post(b"x" * 1000)[:-500])
                assert_error(read_all(connection), 401)
                wait_until(lambda: not n_connections(live))

    def test_slow_headers(self, engine: FakeEngine) -> None:
        """A peer that never ends its headers gets an error and is disconnected."""
        with live_server(engine, head_timeout_s=0.1) as live, connect(live) as connection:
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n")
            assert_error(read_all(connection), 408)

    def test_slow_body(self, engine: FakeEngine) -> None:
        """A body that does not arrive gives an error, and the connection is closed."""
        with live_server(engine, body_timeout_s=0.1) as live, connect(live) as connection:
            connection.sendall(post(b"x" * 1000)[:-500])
            assert_error(read_all(connection), 408)

    def test_silent_peer(self, engine: FakeEngine) -> None:
        """A connection that sends nothing is closed."""
        with live_server(engine, head_timeout_s=0.1) as live, connect(live) as connection:
            assert read_all(connection) == b""

    def test_a_hundred_megabytes(self, live: Live) -> None:
        """A huge body is refused by its Content-Length, and the caller can read the error."""
        answer = requests.post(
            f"{live.url}/v1/embeddings",
            data=b" " * 100_000_000,
            headers={"content-type": "application/json"},
            timeout=30,
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


class TestStopping:
    """On shutdown, running requests are answered before the process ends."""

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_drain(self, live: Live, engine: FakeEngine, signum: signal.Signals) -> None:
        """After a signal the running request is answered, and a new one is refused."""
        scheduler = live.application.state.context.service._scheduler
        engine.gate.clear()
        with connect(live) as running, connect(live) as waiting:
            running.sendall(post())
            waiting.sendall(post()[:-1])  # the server has the head, and waits for the body
            wait_until(lambda: scheduler.n_requests == 1)
            wait_until(lambda: live.server.connections and len(live.server.connections._tasks) == 2)
            live.server.stop(signum)
            wait_until(lambda: is_refused(live.port))
            waiting.sendall(post()[-1:])
            refused = read_all(waiting)
            assert scheduler.n_requests == 1
            engine.gate.set()
            answered = read_all(running)
        assert_error(refused, 503)
        assert b"\r\nretry-after: 1\r\n" in refused
        assert answered.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answered

    def test_connected_before_the_stop(self, live: Live) -> None:
        """Who has connected and not sent yet gets an answer that says that the server stops."""
        with connect(live) as late:
            wait_until(lambda: live.server.connections and len(live.server.connections) == 1)
            live.server.stop()
            wait_until(lambda: is_refused(live.port))
            late.sendall(post())
            refused = read_all(late)
        assert_error(refused, 503)
        assert b"\r\nretry-after: 1\r\n" in refused

    def test_last_answers_of_connections(
        self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the delay before the drain requests are answered, each as its connection's last."""
        monkeypatch.setattr(serving, "AGAIN_S", 0)
        with live_server(engine, drain_delay_s=600) as live:
            engine.gate.clear()
            with connect(live) as running, connect(live) as behind, connect(live) as idle:
                running.sendall(post())
                behind.sendall(post() + post())
                scheduler = live.application.state.context.service._scheduler
                wait_until(lambda: scheduler.n_requests == 2)
                live.server.stop()
                wait_until(lambda: live.server.connections and live.server.connections.is_leaving)
                engine.gate.set()
                first, both = read_all(running), read_all(behind)
                idle.sendall(post())
                late = read_all(idle)
            with connect(live) as fresh:
                fresh.sendall(post())
                new = read_all(fresh)
            live.server.stop(signal.SIGINT)
        for answer in (first, late, new):
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"\r\nconnection: close\r\n" in answer
        # A request that was sent behind another one is answered, too.
        assert both.count(b"HTTP/1.1 200 OK") == 2
        assert both.count(b"\r\nconnection: close\r\n") == 1

    def test_grace_ends(self, engine: FakeEngine) -> None:
        """A request that still runs when the grace period ends is answered with 503."""
        with live_server(engine, grace_s=0.1) as live, connect(live) as connection:
            engine.gate.clear()
            connection.sendall(post())
            wait_until(lambda: live.application.state.context.service._scheduler.n_requests)
            live.server.stop()
            assert_error(read_all(connection), 503)
            engine.gate.set()

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_signals_exit_zero(self, tmp_path: Path, signum: signal.Signals) -> None:
        """`matryo serve` serves until a signal, refuses what comes later, and exits 0."""
        model = make_model(tmp_path, "bert")
        env = os.environ | {
            "MATRYO_HOME": str(tmp_path / "home"),
            "MATRYO_MODELS": str(model.models),
        }
        command = [sys.executable, "-m", "matryo"]
        subprocess.run(
            [*command, "build", "tiny", "--checkpoint", str(model.checkpoint)], env=env, check=True
        )
        process = subprocess.Popen(
            [*command, "serve", "--model", "tiny", "--port", "0", "--log-format", "json"],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", json.loads(line)["message"])
        assert found, line
        url = f"{found[0]}/v1/embeddings"
        answer = requests.post(url, json={"input": "the sky is blue"}, timeout=30)
        assert len(answer.json()["data"][0]["embedding"]) == 32
        port = int(found[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as late:
            late.sendall(post()[:-1])
            wait_until(lambda: in_progress(found[0]) == 2)  # the other one is the scrape
            process.send_signal(signum)
            wait_until(lambda: is_refused(port))
            assert process.poll() is None
            late.sendall(post()[-1:])
            assert_error(read_all(late), 503)
        _, rest = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in rest


def test_port_in_use(live: Live) -> None:
    """A port in use gives an error of one line before a model is loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "matryo", "serve", "--port", str(live.port), "--log-format", "text"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"matryo: cannot listen on 127.0.0.1:{live.port}")
    assert "--port" in done.stderr
