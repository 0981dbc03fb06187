"""HTTPS on real sockets: handshakes, peers that stall, renewal, and every bound of plain HTTP."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import struct
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from matryo.http import connection as wire
from matryo.http.connection import Phase
from matryo.http.tls import TlsLayer
from tests.certificates import Authority, replace
from tests.contract.conftest import Live, is_refused, live_server, wait_until
from tests.contract.test_connections import sample
from tests.contract.test_server import connect, n_connections, post, read_all, read_answer
from tests.contract.test_server import server_end as _server_end
from tests.fakes import FakeEngine, as_float32

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
MUCH = 100_000_000  # bytes, far above what two sockets hold
LARGE = json.dumps({"input": ["t"] * 2000}).encode()  # its answer has some 20 MB


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority of servers and clients."""
    return Authority()


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> dict[str, Any]:
    """The settings of a server with a certificate of `authority`."""
    cert, key = authority.issue().write(tmp_path)
    return {"tls_cert_file": str(cert), "tls_key_file": str(key)}


@pytest.fixture
def asking(tmp_path: Path, files: dict[str, Any], authority: Authority) -> dict[str, Any]:
    """The settings of a server that asks for certificates of `authority`."""
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.pem)
    return files | {"tls_client_ca_file": str(path)}


@pytest.fixture
def live(engine: FakeEngine, files: dict[str, Any]) -> Iterator[Live]:
    """A server that speaks TLS, with one worker."""
    with live_server(engine, workers=1, **files) as server:
        yield server


@pytest.fixture
def secure(authority: Authority) -> Callable[[Live], ssl.SSLSocket]:
    """Opens connections to a server, with the handshake."""

    def open_one(live: Live) -> ssl.SSLSocket:
        context = authority.client_context()
        return context.wrap_socket(connect(live), server_hostname="localhost")

    return open_one


Secure = Callable[[Live], ssl.SSLSocket]


def server_end(live: Live) -> wire.Connection:
    """The server's end of the only open connection."""
    return _server_end(live)


def n_failed(live: Live) -> float:
    """Connections that ended because TLS failed."""
    return sample(live, "matryo_dropped_connections_total", reason="tls")


def client(authority: Authority, live: Live, own: tuple[Path, Path] | None = None) -> httpx2.Client:
    """A client that trusts the authority, with a certificate of its own if given."""
    context = authority.client_context(own)
    return httpx2.Client(verify=context, base_url=f"https://localhost:{live.port}", timeout=30)


class TestHandshake:
    """Who gets a connection."""

    def test_a_client(self, live: Live, authority: Authority, engine: FakeEngine) -> None:
        """A client that trusts the authority gets a vector."""
        with client(authority, live) as caller:
            answer = caller.post("/v1/embeddings", json={"input": "search_document: a"})
        vector = as_float32(answer.json()["data"][0]["embedding"])
        assert vector.tolist() == engine.expected("search_document: a").tolist()

    def test_versions(self, live: Live, authority: Authority, secure: Secure) -> None:
        """TLS 1.3 is spoken by default, 1.2 with authenticated ciphers alone, and nothing older."""
        with secure(live) as found:
            assert found.version() == "TLSv1.3"
        older = authority.client_context()
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with older.wrap_socket(connect(live), server_hostname="localhost") as found:
            assert found.version() == "TLSv1.2"
        older.set_ciphers("ECDHE+AES+SHA384:ECDHE+AES+SHA256:!AESGCM:!AESCCM:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError), closing(connect(live)) as plain:
            older.wrap_socket(plain, server_hostname="localhost")

    def test_alpn(self, live: Live, authority: Authority) -> None:
        """The server speaks HTTP/1.1, also to a client that would prefer HTTP/2."""
        context = authority.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(connect(live), server_hostname="localhost") as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"

    def test_scheme(self, live: Live, secure: Secure) -> None:
        """Requests over TLS have the scheme https."""
        with secure(live):
            here = server_end(live)
            assert here._reader
            assert here._reader._ends["scheme"] == "https"

    def test_small_pieces(self, live: Live, authority: Authority) -> None:
        """A handshake that arrives byte by byte is as good as any."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with connect(live) as connection:
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    for one in outgoing.read():
                        connection.sendall(bytes([one]))
                    incoming.write(connection.recv(65_536))
                else:
                    break
            tls.write(GET)
            connection.sendall(outgoing.read())
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                incoming.write(connection.recv(65_536))
                with suppress(ssl.SSLWantReadError):
                    while True:
                        answer += tls.read(65_536)
        assert answer.startswith(b"HTTP/1.1 200 OK")


class TestWrongPeers:
    """What is no TLS ends calmly: one line, one count, no traceback."""

    @pytest.fixture(autouse=True)
    def _calm(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        caplog.set_level(logging.INFO)
        yield
        assert [one for one in caplog.records if one.exc_info] == []
        assert [one for one in caplog.records if one.levelno > logging.INFO] == []

    def test_plain_http(self, live: Live, caplog: pytest.LogCaptureFixture) -> None:
        """A plain request is told to write https, and the connection closes."""
        with connect(live) as connection:
            connection.sendall(GET)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Write https:// in the URL." in answer
        assert n_failed(live) == 1
        assert [one.getMessage() for one in caplog.records if "TLS failed" in one.msg] == [
            "TLS failed: http request"
        ]
        wait_until(lambda: not n_connections(live))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"\x00" * 100, id="zeros"),
            pytest.param(b"\xff" * 70_000, id="much"),
            pytest.param(b"\x16\x03\x01\x00\x05hello", id="a record of nonsense"),
            pytest.param(b"SSH-2.0-x\r\n", id="ssh"),
        ],
    )
    def test_garbage(self, live: Live, data: bytes) -> None:
        """Bytes that are no handshake end the connection."""
        with connect(live) as connection, suppress(ConnectionError):
            connection.sendall(data)
            read_all(connection)
        wait_until(lambda: n_failed(live) == 1)
        wait_until(lambda: not n_connections(live))

    def test_garbage_after_the_handshake(self, live: Live, secure: Secure) -> None:
        """A record that nobody encrypted ends a connection that was in order."""
        connection = secure(live)
        wait_until(lambda: n_connections(live) == 1)
        raw = socket.socket(fileno=connection.detach())
        raw.settimeout(30)
        with raw, suppress(ConnectionError):
            raw.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
            read_all(raw)
        wait_until(lambda: n_failed(live) == 1)
        wait_until(lambda: not n_connections(live))

    def test_another_authority(self, live: Live) -> None:
        """A client that does not trust the certificate leaves, which is counted."""
        context = Authority("stranger").client_context()
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            closing(connect(live)) as plain,
        ):
            context.wrap_socket(plain, server_hostname="localhost")
        wait_until(lambda: n_failed(live) == 1)

    def test_old_tls(self, live: Live, authority: Authority) -> None:
        """TLS 1.1 is refused."""
        context = authority.client_context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):  # Python's own, of old versions
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError), closing(connect(live)) as plain:
            context.wrap_socket(plain, server_hostname="localhost")
        wait_until(lambda: n_failed(live) == 1)

    def test_resets(self, live: Live) -> None:
        """Peers that reset the connection within the handshake leave nothing behind."""
        for _ in range(20):
            one = connect(live)
            one.sendall(b"\x16\x03\x01\x02\x00\x01")
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        connect(live).close()
        wait_until(lambda: not n_connections(live))


class TestClientCertificates:
    """A server with authorities of clients."""

    def test_with_one(
        self, engine: FakeEngine, asking: dict[str, Any], authority: Authority, tmp_path: Path
    ) -> None:
        """A client with a certificate of the authority is answered."""
        own = authority.issue(name="client").write(tmp_path, "client-")
        with live_server(engine, **asking) as live, client(authority, live, own) as caller:
            assert caller.get("/v1/models").status_code == 200

    @pytest.mark.parametrize("whose", ["nobody's", "a stranger's", "an expired one"])
    def test_without(
        self,
        engine: FakeEngine,
        asking: dict[str, Any],
        authority: Authority,
        tmp_path: Path,
        whose: str,
    ) -> None:
        """A client without a certificate, or with a wrong one, gets no answer on any path."""
        signers = {"a stranger's": Authority("stranger"), "an expired one": authority}
        own = None
        if signer := signers.get(whose):
            days = -1 if signer is authority else 90
            own = signer.issue(days=days).write(tmp_path, "client-")
        with live_server(engine, **asking) as live:
            for path in ("/v1/models", "/livez", "/metrics"):
                with client(authority, live, own) as caller, pytest.raises(httpx2.TransportError):
                    caller.get(path)
            wait_until(lambda: n_failed(live) == 3)
            assert sample(live, "matryo_dropped_connections_total", reason="silent") == 0


class TestBounds:
    """Whatever a peer may send and hold is bounded as without TLS."""

    @pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
    def test_stalled_handshake(
        self, engine: FakeEngine, files: dict[str, Any], sent: bytes
    ) -> None:
        """A peer that never ends its handshake is dropped by the deadline of the first byte."""
        with live_server(engine, head_timeout_s=0.2, **files) as live, connect(live) as connection:
            connection.sendall(sent)
            assert read_all(connection) == b""
            wait_until(lambda: not n_connections(live))
            assert sample(live, "matryo_dropped_connections_total", reason="silent") == 1

    def test_silence_after_the_handshake(
        self, engine: FakeEngine, files: dict[str, Any], secure: Secure
    ) -> None:
        """A peer that is silent after its handshake is dropped by the same deadline."""
        with live_server(engine, head_timeout_s=0.3, **files) as live, secure(live) as connection:
            assert read_all(connection) == b""

    def test_slow_headers(self, engine: FakeEngine, files: dict[str, Any], secure: Secure) -> None:
        """A peer that never ends its headers gets an error over TLS, and the end of TLS."""
        with live_server(engine, head_timeout_s=0.3, **files) as live, secure(live) as connection:
            connection.sendall(GET[:-2])
            assert read_all(connection).startswith(b"HTTP/1.1 408 ")

    def test_number(self, engine: FakeEngine, files: dict[str, Any], secure: Secure) -> None:
        """Peers within a handshake count as connections, and make room for new ones."""
        with live_server(engine, max_connections=3, **files) as live:
            silent = [connect(live) for _ in range(3)]
            wait_until(lambda: n_connections(live) == 3)
            with secure(live) as connection:
                connection.sendall(GET)
                assert read_answer(connection).startswith(b"HTTP/1.1 200 ")
            assert read_all(silent[0]) == b""
            for one in silent:
                one.close()

    def test_no_room(self, engine: FakeEngine, files: dict[str, Any], secure: Secure) -> None:
        """With a request on every connection, a new peer's handshake is cut off."""
        with live_server(engine, max_connections=1, workers=1, **files) as live:
            engine.gate.clear()
            with secure(live) as connection:
                connection.sendall(post())
                wait_until(lambda: server_end(live).has_whole_request)
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    secure(live)
                assert sample(live, "matryo_dropped_connections_total", reason="full") == 1
                engine.gate.set()
                assert read_answer(connection).startswith(b"HTTP/1.1 200 ")

    def test_bytes_without_end(self, live: Live, engine: FakeEngine, secure: Secure) -> None:
        """What a peer sends behind a request that runs waits in the socket, not in memory."""
        engine.gate.clear()
        with secure(live) as connection:
            connection.sendall(post())
            here = server_end(live)
            wait_until(lambda: here.has_whole_request)
            connection.settimeout(0.5)  # without any progress
            n_sent = 0
            with suppress(TimeoutError):
                while n_sent < MUCH:
                    n_sent += connection.send(GET * 300)
            assert n_sent < MUCH
            assert not here._reading
            layer = here._transport
            assert isinstance(layer, TlsLayer)
            assert len(here._held) + layer._incoming.pending < 300_000
            engine.gate.set()

    def test_nobody_reads(self, engine: FakeEngine, files: dict[str, Any], secure: Secure) -> None:
        """An answer that nobody reads is dropped with its connection, and so is its memory."""
        with live_server(engine, workers=1, write_timeout_s=0.5, **files) as live:
            budget = live.application.state.context.service.budget
            with secure(live) as connection:
                connection.sendall(post(LARGE))
                here = server_end(live)
                wait_until(lambda: here._drained and budget.held > 2000 * 768 * 4)
                layer = here._transport
                assert isinstance(layer, TlsLayer)
                # One slice of the answer, and what TLS adds to it.
                assert layer._outgoing.pending + layer.get_write_buffer_size() < 300_000
                wait_until(lambda: not n_connections(live))
                wait_until(lambda: not budget.held)
            assert sample(live, "matryo_dropped_connections_total", reason="slow_reader") == 1

    def test_a_slow_reader(self, live: Live, secure: Secure) -> None:
        """A peer that reads slowly, but goes on reading, gets its whole answer."""
        with secure(live) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            body = json.dumps({"input": ["t"] * 300}).encode()
            connection.sendall(post(body, "Connection: close"))
            pieces: list[bytes] = []
            while piece := connection.recv(5000):
                pieces.append(piece)
        assert b"".join(pieces).count(b'"index"') == 300
        assert b"".join(pieces).endswith(b"\r\n0\r\n\r\n")

    def test_a_large_body(self, live: Live, authority: Authority) -> None:
        """A body of many records is read as a whole."""
        body = b'{"input": "t"' + b" " * 5_000_000 + b"}"
        with client(authority, live) as caller:
            answer = caller.post(
                "/v1/embeddings", content=body, headers={"content-type": "application/json"}
            )
        assert answer.status_code == 200

    def test_renegotiation(self, live: Live) -> None:
        """The context allows no renegotiation, which costs a server more than its peer."""
        context: ssl.SSLContext = live.application.state.tls.http.current.context
        assert context.options & ssl.OP_NO_RENEGOTIATION

    def test_body_after_a_refusal(
        self, engine: FakeEngine, files: dict[str, Any], secure: Secure
    ) -> None:
        """After a refusal the peer reads the answer and the end of TLS; its body is dropped."""
        with live_server(engine, api_keys="k", **files) as live, secure(live) as connection:
            connection.sendall(post(b"x" * 1000)[:-500])
            answer = read_all(connection)  # the server ends its side of TLS
            assert answer.startswith(b"HTTP/1.1 401 ")
            here = server_end(live)
            assert here.phase is Phase.LINGER
            connection.sendall(b"x" * 500)
            connection.close()
            wait_until(lambda: not n_connections(live))
            assert n_failed(live) == 0

    def test_end_of_the_peer(self, live: Live, secure: Secure, engine: FakeEngine) -> None:
        """A peer that ends its side of TLS has hung up, as one that ends plain HTTP has."""
        engine.gate.clear()
        connection = secure(live)
        connection.sendall(post())
        wait_until(lambda: server_end(live).has_whole_request)
        connection.unwrap().close()  # the server ended its side at once
        wait_until(lambda: not n_connections(live))
        engine.gate.set()


class TestStopping:
    """A server that stops answers what runs, over TLS too."""

    def test_drain(self, live: Live, engine: FakeEngine, secure: Secure) -> None:
        """Running requests are answered; silent peers and handshakes do not delay the end."""
        engine.gate.clear()
        with secure(live) as running, secure(live) as idle, connect(live) as half:
            half.sendall(b"\x16\x03")
            running.sendall(post())
            scheduler = live.application.state.context.service._scheduler
            wait_until(lambda: scheduler.n_requests == 1)
            wait_until(lambda: n_connections(live) == 3)
            live.server.stop()
            wait_until(lambda: is_refused(live.port))
            assert read_all(idle) == b""
            assert read_all(half) == b""
            engine.gate.set()
            assert read_all(running).startswith(b"HTTP/1.1 200 ")


class TestRenewal:
    """Files that change are used for new connections, and open ones go on."""

    def test_new_connections(
        self,
        engine: FakeEngine,
        files: dict[str, Any],
        authority: Authority,
        secure: Secure,
        tmp_path: Path,
    ) -> None:
        """After a renewal a new connection sees the new certificate; an open one still answers."""
        with live_server(engine, **files) as live:
            with secure(live) as old:
                before = old.getpeercert(binary_form=True)
                renewed = authority.issue(days=30)
                renewed.write(tmp_path)
                wait_until(lambda: peer_certificate(secure, live) == renewed.cert_der)
                assert before != renewed.cert_der
                old.sendall(GET)
                assert read_answer(old).startswith(b"HTTP/1.1 200 ")
            assert sample(live, "matryo_reloads_total", what="tls", outcome="ok") == 1
            end = renewed.certificate.not_valid_after_utc.timestamp()
            name = "matryo_tls_certificate_expiry_timestamp_seconds"
            assert sample(live, name, port="http") == end

    def test_half_renewed(
        self,
        engine: FakeEngine,
        files: dict[str, Any],
        authority: Authority,
        secure: Secure,
    ) -> None:
        """A certificate without its key is refused, and the pair of before is shown."""
        with live_server(engine, **files) as live:
            before = peer_certificate(secure, live)
            replace(Path(files["tls_cert_file"]), authority.issue().cert_pem)
            wait_until(
                lambda: sample(live, "matryo_reloads_total", what="tls", outcome="refused") == 1
            )
            assert peer_certificate(secure, live) == before

    def test_an_authority_is_removed(
        self, engine: FakeEngine, asking: dict[str, Any], authority: Authority, tmp_path: Path
    ) -> None:
        """Clients of an authority that is removed get no new connection, by no old session."""
        own = authority.issue(name="client").write(tmp_path, "client-")
        context = authority.client_context(own)
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # has its session after the handshake
        with live_server(engine, **asking) as live:
            with context.wrap_socket(connect(live), server_hostname="localhost") as connection:
                session = connection.session
            replace(Path(asking["tls_client_ca_file"]), Authority("another").pem)
            wait_until(lambda: sample(live, "matryo_reloads_total", what="tls", outcome="ok") == 1)
            with pytest.raises((ssl.SSLError, ConnectionError)), closing(connect(live)) as plain:
                context.wrap_socket(plain, server_hostname="localhost", session=session)

    def test_under_load(
        self, engine: FakeEngine, files: dict[str, Any], authority: Authority, tmp_path: Path
    ) -> None:
        """Twenty renewals while clients call on new and on old connections: no call fails."""
        with live_server(engine, **files) as live, ThreadPoolExecutor(4) as threads:
            pairs = [authority.issue(days=days) for days in range(20, 40)]
            stopped: list[bool] = []

            def call(reuse: bool) -> int:
                done = 0
                with client(authority, live) as caller:
                    while not stopped or done < 20:
                        headers = {} if reuse else {"connection": "close"}
                        answer = caller.post("/v1/embeddings", json={"input": "a"}, headers=headers)
                        assert answer.status_code == 200
                        done += 1
                return done

            calls = [threads.submit(call, number % 2 == 0) for number in range(4)]
            reloads = live.application.state.reloads
            loop = live.server._loop
            assert loop
            for number, pair in enumerate(pairs, 1):
                pair.write(tmp_path)
                loop.call_soon_threadsafe(live.server._hung_up.set)  # as SIGHUP does
                ok: dict[str, Any] = {"what": "tls", "outcome": "ok"}
                wait_until(
                    lambda number=number, ok=ok: (
                        sample(live, "matryo_reloads_total", **ok) >= number
                    )
                )
            stopped.append(True)
            assert reloads
            assert all(one.result(60) >= 20 for one in calls)
            assert n_failed(live) == 0


def peer_certificate(secure: Secure, live: Live) -> bytes | None:
    """The certificate that a new connection sees."""
    with secure(live) as connection:
        return connection.getpeercert(binary_form=True)
