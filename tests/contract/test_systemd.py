"""A server under systemd: it reports its state, and serves on sockets that systemd has opened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.contract.test_starting import Started

pytestmark = pytest.mark.timeout(300)  # processes that load a model, on a busy machine

# systemd runs a program with the sockets from descriptor 3 on, and names the program's own process.
_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_ANSWER = b"HTTP/1.1 200 OK"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a server of a tiny model that is built."""
    root = tmp_path_factory.mktemp("tiny")
    model = make_model(root, "bert")
    build_tiny(root, model)
    return os.environ | {
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_MODEL": model.id,
        "MATRYO_THREADS": "1",
        "MATRYO_WORKERS": "1",
    }


@contextmanager
def served(
    listening: socket.socket, folder: Path, environment: dict[str, str]
) -> Generator[Started, None, None]:
    """`matryo serve` on a socket that listens already; killed at the end of the block."""
    log = folder / "log"
    fd = listening.fileno()
    serve = ["-m", "matryo", "serve", "--log-format", "text"]
    command = [sys.executable, "-c", _AS_SYSTEMD, str(fd), *serve]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, env=environment, stderr=stderr, cwd=folder, pass_fds=[fd]
        ) as process,
    ):
        try:
            yield Started(process, log)
        finally:
            process.kill()


def opened(kind: str, folder: Path) -> tuple[socket.socket, str]:
    """A socket that listens, and how the ready line of a server on the socket names it."""
    if kind == "unix":
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(folder / "given.sock"))
        name = str(folder / "given.sock")
    else:
        one = socket.socket(socket.AF_INET)
        one.bind(("127.0.0.1", 0))
        name = f"http://127.0.0.1:{one.getsockname()[1]}"
    one.listen()
    return one, name


@pytest.mark.parametrize(("kind", "processes"), [("tcp", "1"), ("unix", "2")])
def test_life_under_systemd(
    tiny: dict[str, str], tmp_path: Path, kind: str, processes: str
) -> None:
    """A call from before the start is answered; readiness and the stop are reported, once each.

    The socket outlives the server: the next call waits for the next server. The port and the path
    of the settings are not used.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket() as other:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(120)
        other.bind(("127.0.0.1", 0))  # MATRYO_PORT is in use
        listening, name = opened(kind, tmp_path)
        environment = tiny | {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "MATRYO_PROCESSES": processes,
            "MATRYO_PORT": str(other.getsockname()[1]),
        }
        with (
            listening,
            socket.socket(listening.family) as early,
            served(listening, tmp_path, environment) as server,
        ):
            early.settimeout(120)
            early.connect(listening.getsockname())
            early.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert early.recv(65_536).startswith(_ANSWER), server.lines
            assert manager.recv(100) == b"READY=1", server.lines
            server.wait_ready()
            assert any(f"on {name}" in line for line in server.lines)
            assert server.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(100)
            with socket.socket(listening.family) as late:
                late.connect(listening.getsockname())
