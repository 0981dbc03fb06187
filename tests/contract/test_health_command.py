"""`matryo health`, which the health checks of containers call."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from matryo.commands.health import Question, ask
from matryo.core.environment import load_settings
from matryo.core.errors import SettingsInvalid
from matryo.http.listening import bind
from matryo.main import build_server, create_app
from tests.certificates import Authority
from tests.contract.conftest import live_server, settings
from tests.fakes import FakeEngine

_DEAD = "http://127.0.0.1:9"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_HEAVY = ("fastapi", "httpx2", "numpy", "onnxruntime", "tokenizers")


@pytest.fixture(autouse=True)
def dead_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that names a proxy names a dead one."""
    for name in _PROXIES:
        monkeypatch.setenv(name, _DEAD)


@pytest.mark.parametrize(
    ("question", "is_ready", "is_well", "sentence"),
    [
        ("ready", True, True, "ready: http://127.0.0.1:{port}"),
        ("live", False, True, "live: http://127.0.0.1:{port}"),
        ("ready", False, False, "not ready: http://127.0.0.1:{port} answered 503: the model slept"),
    ],
)
def test_asks_the_server(
    engine: FakeEngine, question: Question, is_ready: bool, is_well: bool, sentence: str
) -> None:
    """The server's own address is asked, whatever proxies are named; a wildcard is the loopback."""
    with live_server(engine) as live:
        if not is_ready:
            live.application.state.context.service.why_not_ready = lambda: "the model slept"
        for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - what an image has
            found = ask(load_settings(None, host=host, port=live.port), question, 10)
            assert (found.is_well, found.sentence) == (is_well, sentence.format(port=live.port))


def test_over_a_unix_socket(engine: FakeEngine, tmp_path: Path) -> None:
    """MATRYO_UDS is asked in place of host and port."""
    path = tmp_path / "matryo.sock"
    with _unix_server(engine, path):
        found = ask(load_settings(None, uds=path, port=9), "ready", 10)
    assert (found.is_well, found.sentence) == (True, f"ready: {path}")
    found = ask(load_settings(None, uds=path), "ready", 10)
    assert not found.is_well
    assert found.sentence.startswith(f"no answer from {path}: No such file or directory. ")


@contextmanager
def _unix_server(engine: FakeEngine, path: Path, **changes: Any) -> Generator[None, None, None]:
    chosen = settings(uds=path, **changes)
    listener = bind("", 0, path)
    ready = threading.Event()

    def on_ready() -> None:
        listener.publish()
        ready.set()

    server = build_server(create_app(chosen, engine), listener, chosen, on_ready=on_ready)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(10)
        yield
    finally:
        server.stop()
        thread.join(20)
        listener.close()


@pytest.mark.parametrize("over_unix", [False, True])
def test_over_tls(engine: FakeEngine, tmp_path: Path, over_unix: bool) -> None:
    """A server with a certificate is asked over TLS; the names in the certificate do not matter."""
    cert, key = Authority().issue(name="embeddings.example").write(tmp_path)
    files: dict[str, Any] = {"tls_cert_file": cert, "tls_key_file": key}
    path = tmp_path / "matryo.sock"
    if over_unix:
        with _unix_server(engine, path, **files):
            found = ask(load_settings(None, uds=path, **files), "ready", 10)
        assert (found.is_well, found.sentence) == (True, f"ready: {path}")
        return
    with live_server(engine, **files) as live:
        found = ask(load_settings(None, port=live.port, **files), "ready", 10)
        assert (found.is_well, found.sentence) == (True, f"ready: https://127.0.0.1:{live.port}")
        plain = ask(load_settings(None, port=live.port), "ready", 10)
        assert not plain.is_well


def test_clients_with_certificates(engine: FakeEngine, tmp_path: Path) -> None:
    """A server that asks for certificates is shown its own; another authority's is not enough."""
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    for issuer, is_well in ((authority, True), (Authority(), False)):
        cert, key = issuer.issue().write(tmp_path)
        files: dict[str, Any] = {
            "tls_cert_file": cert,
            "tls_key_file": key,
            "tls_client_ca_file": tmp_path / "ca.pem",
        }
        with live_server(engine, **files) as live:
            found = ask(load_settings(None, port=live.port, **files), "ready", 10)
        assert found.is_well == is_well, found
        assert ("MATRYO_TLS_CLIENT_CA_FILE" in found.sentence) != is_well
    key.unlink()
    with pytest.raises(SettingsInvalid, match="and its key: No such file or directory"):
        ask(load_settings(None, **files), "ready", 1)


def test_clients_without_certificates_ask_the_operators_port(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """Beside a port that asks for certificates, the operators' port is asked, in plain HTTP."""
    with live_server(engine) as live:
        found = ask(
            settings(
                port=1,
                metrics_port=live.port,
                tls_cert_file=tmp_path / "none.pem",
                tls_key_file=tmp_path / "none.key",
                tls_client_ca_file=tmp_path / "none-ca.pem",
            ),
            "ready",
            10,
        )
    assert found.is_well
    assert f"http://127.0.0.1:{live.port}" in found.sentence


def test_nobody_answers() -> None:
    """A dead port, a server that stays silent and one that speaks something else are not well."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        found = ask(load_settings(None, port=port), "live", 10)
        assert found.sentence.startswith(
            f"no answer from http://127.0.0.1:{port}: Connection refused. Start the server"
        )
        silent.listen()
        found = ask(load_settings(None, port=port), "live", 0.1)
        assert (found.is_well, "timed out" in found.sentence) == (False, True)
        thread = threading.Thread(target=_answer_all, args=(silent, b"SSH-2.0-x\r\n"))
        thread.start()
        found = ask(load_settings(None, port=port), "live", 10)
        thread.join()
        assert (found.is_well, "SSH-2.0" in found.sentence) == (False, True)


def _answer_all(listening: socket.socket, answer: bytes) -> None:
    """Answer the connection that was given up, and the next one."""
    for _ in range(2):
        connection, _ = listening.accept()
        with connection:
            connection.sendall(answer)
            connection.recv(65_536)


def test_unknown_port() -> None:
    """Nobody but the server knows the port that stands for any free one."""
    with pytest.raises(SettingsInvalid, match="MATRYO_PORT is 0"):
        ask(load_settings(None, port=0), "ready", 1)


@pytest.mark.parametrize(("is_ready", "status"), [(True, 0), (False, 1)])
def test_command(engine: FakeEngine, is_ready: bool, status: int, tmp_path: Path) -> None:
    """The command reads MATRYO_PORT, says one sentence, and imports nothing heavy."""
    with live_server(engine) as live:
        if not is_ready:
            live.application.state.context.service.why_not_ready = lambda: "not now"
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "matryo", "health"],
            env=os.environ | {"MATRYO_PORT": str(live.port)},
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )
    imported = {
        line.rpartition("|")[2].strip().split(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "matryo" in imported
    assert not imported.intersection(_HEAVY)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == status
    assert (done.stdout + "\n".join(said)).count("ready: http://127.0.0.1") == 1
