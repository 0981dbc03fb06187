"""Several server processes share a socket, their metrics and one shutdown."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.contract.conftest import is_refused, wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`matryo serve --processes 2` on a tiny model, after all processes are ready."""
    model = make_model(tmp_path, "bert")
    build_tiny(tmp_path, model)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = os.environ | {
        "MATRYO_HOME": str(tmp_path / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_MODEL": model.id,
        "MATRYO_PORT": str(port),
    }
    command = [sys.executable, "-m", "matryo", "serve", "--processes", "2", "--log-format", "text"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stderr=log)
    try:
        wait_until(lambda: b"2 processes are ready" in (tmp_path / "log").read_bytes(), 40)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def scrape(url: str) -> dict[str, float]:
    """Every sample by its name and labels."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def servers_of(process: subprocess.Popen[bytes]) -> set[int]:
    """Ids of the child processes that serve."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == process.pid and b"spawn_main" in command:
            found.add(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_one_service(server: tuple[subprocess.Popen[bytes], str]) -> None:
    """Counters are summed, a process that dies is replaced, and SIGTERM ends all with status 0."""
    process, url = server
    for n in range(20):  # a connection each, so that both get some
        answer = httpx2.post(f"{url}/v1/embeddings", json={"input": f"the sky {n}"})
        assert answer.status_code == 200
    name = 'matryo_requests_total{model="tiny",route="/v1/embeddings",status="200"}'
    assert scrape(url)[name] == 20
    assert scrape(url)["matryo_ready"] == 1
    assert any(re.match(r"matryo_build_info\{.*tiny/fp32/", sample) for sample in scrape(url))

    before = servers_of(process)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(servers_of(process) - before) == 1, 40)
    assert httpx2.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
    assert scrape(url)[name] == 21

    port = int(url.rpartition(":")[2])
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as running:
        running.sendall(head)
        # The other one is the scrape itself.
        wait_until(lambda: scrape(url)["matryo_requests_in_progress"] == 2)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(port))
        assert servers_of(process)  # one request is still under way
        running.sendall(b'{"input": "a"}')
        # The body came after the signal: nothing new is admitted.
        assert running.recv(100).startswith(b"HTTP/1.1 503 ")
    assert process.wait(30) == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/livez")
