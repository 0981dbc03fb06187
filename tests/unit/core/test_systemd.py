"""What is read of systemd's variables, and what is sent."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from pathlib import Path

import pytest

from matryo.core.systemd import Reporter, take_sockets


@pytest.mark.parametrize("is_abstract", [False, True])
def test_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_abstract: bool) -> None:
    """Each state is one datagram; processes that are started later know nothing of the socket."""
    name = f"@{secrets.token_hex(8)}" if is_abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(10)
        reporter = Reporter()
        assert "NOTIFY_SOCKET" not in os.environ
        reporter.ready()
        assert manager.recv(100) == b"READY=1"
        reporter.stopping()
        assert manager.recv(100) == b"STOPPING=1"


def test_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A report that does not arrive is a warning; without systemd nothing is reported."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Reporter().ready()
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING, "matryo"):
        Reporter().ready()
    assert "No such file" in caplog.text


@pytest.mark.parametrize(
    "variables",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "all"}],
)
def test_sockets_of_others(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Sockets that are meant for another process are not taken, and the variables go."""
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if "all" in variables.values() else "")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert take_sockets() == []
    assert not {name for name in os.environ if name.startswith("LISTEN_")}
