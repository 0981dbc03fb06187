"""HTTPS from several processes of `matryo serve`: renewal under load, metrics, the end."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.certificates import Authority, Pair, replace
from tests.contract.conftest import wait_until
from tests.contract.test_processes import (
    READY,
    Lines,
    Start,
    lines,
    servers_of,
    start,
    tiny,
    url,
)

pytestmark = pytest.mark.timeout(300)
__all__ = ["lines", "start", "tiny", "url"]  # fixtures

N_RENEWALS = 25


class Secured:
    """A server of two processes that asks for clients' certificates."""

    def __init__(self, folder: Path, url: str) -> None:
        self.authority = Authority()
        self.folder, self.url = folder, url.replace("http://127.0.0.1", "https://localhost")
        self.port = int(url.rpartition(":")[2])
        self.cert, self.key = self.authority.issue().write(folder)
        (folder / "ca.pem").write_bytes(self.authority.pem)
        own = self.authority.issue(name="client").write(folder, "client-")
        self.context = self.authority.client_context(own)
        self.environ = {
            "MATRYO_TLS_CERT_FILE": str(self.cert),
            "MATRYO_TLS_KEY_FILE": str(self.key),
            "MATRYO_TLS_CLIENT_CA_FILE": str(folder / "ca.pem"),
            "MATRYO_FORWARDED_ALLOW_IPS": "none",
        }

    def client(self) -> httpx2.Client:
        """A client with a certificate."""
        return httpx2.Client(verify=self.context, base_url=self.url, timeout=30)

    def seen(self) -> bytes | None:
        """The certificate that a new connection sees."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=30) as plain,
            self.context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def sample(self, name: str) -> float:
        """A metric of all processes together."""
        with self.client() as client:
            text = client.get("/metrics").text
        found = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.fixture
def secured(tmp_path: Path, url: str) -> Secured:
    """The files of a server, which `start` has yet to start."""
    return Secured(tmp_path, url)


def test_renewal_under_load(secured: Secured, start: Start, lines: Lines) -> None:
    """Both processes take 25 renewals while clients call: no call fails, and the end is in order."""
    process = start(**secured.environ)
    wait_until(lambda: any(READY in line for line in lines()), 60)
    address = f"on https://127.0.0.1:{secured.port}"  # a line of its own, behind that one
    wait_until(lambda: any(address in line for line in lines()), 60)
    stopping = threading.Event()
    pairs = [secured.authority.issue(days=20 + number) for number in range(N_RENEWALS)]

    def call(*, reuse: bool) -> int:
        """Call until the end, each time on a connection of its own or always on one."""
        n_calls = 0
        with secured.client() as client:
            headers = {} if reuse else {"connection": "close"}
            while not stopping.is_set():
                answer = client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
                assert answer.status_code == 200
                n_calls += 1
        return n_calls

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call, reuse=number % 2 == 0) for number in range(4)]
        try:
            for number, pair in enumerate(pairs, 1):
                renew(secured, process, number, pair)
        finally:
            stopping.set()
        assert all(one.result(60) > 0 for one in calls)
    name = 'matryo_tls_certificate_expiry_timestamp_seconds{port="http"}'
    assert secured.sample(name) == pairs[-1].certificate.not_valid_after_utc.timestamp()
    assert secured.sample('matryo_dropped_connections_total{reason="tls"}') == 0
    assert len(servers_of(process)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not any("Traceback" in line for line in lines())


def renew(secured: Secured, process: subprocess.Popen[bytes], number: int, pair: Pair) -> None:
    """Replace certificate and key; returns when both processes use them.

    Every second renewal is announced by SIGHUP between the two files: the half is refused.
    """
    replace(secured.cert, pair.cert_pem)
    if number % 2:
        process.send_signal(signal.SIGHUP)
    replace(secured.key, pair.key_pem)
    process.send_signal(signal.SIGHUP)
    end = pair.certificate.not_valid_after_utc.timestamp()
    expiry = 'matryo_tls_certificate_expiry_timestamp_seconds{port="http"}'
    # The least of both processes; certificates are renewed for later each time.
    wait_until(lambda: secured.sample(expiry) == end, 30)
    assert secured.seen() == pair.cert_der


def test_a_client_without(secured: Secured, start: Start, lines: Lines) -> None:
    """Whichever process takes the connection, a client without a certificate gets no answer."""
    start(**secured.environ)
    wait_until(lambda: any(READY in line for line in lines()), 60)
    context = secured.authority.client_context()
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", secured.port), timeout=30) as plain:
            connection = context.wrap_socket(plain, server_hostname="localhost")
            with connection, pytest.raises((ssl.SSLError, ConnectionError)):
                connection.recv(1)


def test_files_that_do_not_fit(secured: Secured, start: Start, lines: Lines) -> None:
    """A wrong pair ends the start at once, in one line."""
    replace(secured.key, Authority().issue().key_pem)
    process = start(**secured.environ)
    assert process.wait(60) == 1
    assert [
        line for line in lines() if "is not the key of the first certificate" in line
    ] == lines()
