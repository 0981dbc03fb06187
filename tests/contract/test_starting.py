"""`matryo serve` as its operator starts it: what it says, where it listens, what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.contract.conftest import wait_until

pytestmark = pytest.mark.timeout(300)  # several processes that load a model, on a busy machine

LOOPBACK6 = (
    Path("/proc/net/if_inet6").is_file()
    and "0" * 31 + "1 " in Path("/proc/net/if_inet6").read_text()
)


class Started:
    """A process of `matryo serve`, its log in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def lines(self) -> list[str]:
        """What is on its standard error so far."""
        return self._log.read_text().splitlines()

    @property
    def is_ready(self) -> bool:
        """Whether it has said so."""
        return any("ready: " in line for line in self.lines)

    @property
    def url(self) -> str:
        """Where it says that it listens."""
        found = re.search(r"ready: .* on (http://[^\s\"]+)", self._log.read_text())
        assert found, self.lines
        return found[1]

    def wait_ready(self) -> None:
        """Until it is ready."""
        wait_until(lambda: self.is_ready or self.process.poll() is not None, 120)
        assert self.is_ready, self.lines

    def stop(self) -> int:
        """End it; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a server of a tiny model that is built."""
    root = tmp_path_factory.mktemp("tiny")
    model = make_model(root, "bert")
    build_tiny(root, model)
    return {
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_MODEL": model.id,
        "MATRYO_THREADS": "1",
        "MATRYO_WORKERS": "1",
    }


@pytest.fixture
def start(tmp_path: Path, tiny: dict[str, str]) -> Iterator[Start]:
    """Starts servers with flags and further environment; all are ended after the test."""
    started: list[Started] = []
    with ExitStack() as stack:

        def begin(*flags: str, **environ: str) -> Started:
            log = tmp_path / f"log{len(started)}"
            env = untouched_environment() | tiny | environ
            command = [sys.executable, "-m", "matryo", "serve", *flags]
            with log.open("wb") as stderr:
                process = subprocess.Popen(command, env=env, stderr=stderr, cwd=tmp_path)
            stack.callback(process.wait, 30)
            stack.callback(process.kill)
            started.append(Started(process, log))
            return started[-1]

        yield begin


def untouched_environment() -> dict[str, str]:
    """This environment without what keeps a library from reporting its use."""
    quiet = {"CI", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    return {name: value for name, value in os.environ.items() if name not in quiet}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def assert_json(lines: list[str]) -> list[dict[str, Any]]:
    """Every line as the object that it must be."""
    objects = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in objects), objects
    return objects


class TestAddress:
    """One server on one address, and on every address of a name."""

    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_two_on_one_port(self, start: Start, processes: str) -> None:
        """Of two servers started together one serves; the other ends with a sentence."""
        flags = ("--port", str(free_port()), "--processes", processes)
        both = [start(*flags), start(*flags)]
        wait_until(lambda: any(one.process.poll() is not None for one in both), 120)
        (loser,) = [one for one in both if one.process.poll() is not None]
        (winner,) = [one for one in both if one is not loser]
        winner.wait_ready()
        assert not loser.is_ready
        assert loser.process.returncode == 1
        assert "cannot listen on 127.0.0.1" in assert_json(loser.lines)[-1]["message"]
        assert httpx2.get(f"{winner.url}/readyz").status_code == 200
        assert winner.stop() == 0

    @pytest.mark.parametrize("host", ["localhost", "[::1]"])
    def test_host(self, start: Start, host: str) -> None:
        """A name means each of its addresses, on one port; brackets are no part of an address."""
        if not LOOPBACK6 and host == "[::1]":
            pytest.skip("no IPv6 here")
        server = start("--host", host, "--port", "0")
        server.wait_ready()
        port = int(server.url.rpartition(":")[2])
        for *_, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            with socket.create_connection((str(address[0]), port), timeout=10) as connection:
                connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert httpx2.get(f"{server.url}/livez").status_code == 200

    @pytest.mark.parametrize("host", ["", "no.such.host.invalid"])
    def test_no_address(self, start: Start, host: str) -> None:
        """A host that is no address is refused in one line."""
        server = start("--host", host, "--log-format", "text")
        assert server.process.wait(120) == 1
        (line,) = server.lines
        assert line.startswith("matryo: ")
        assert "--host" in line


class TestUnix:
    """A Unix socket in place of a port."""

    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_serves(self, start: Start, tmp_path: Path, processes: str) -> None:
        """Owner and group may call; the ready line shows how; the file goes with the server."""
        path = tmp_path / "matryo.sock"
        server = start("--uds", str(path), "--processes", processes, "--log-format", "text")
        server.wait_ready()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert f"curl --unix-socket {path} http://localhost/v1/embeddings" in server.lines[-1]
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url="http://x") as client:
            assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        second = start(MATRYO_UDS=str(path))
        assert second.process.wait(120) == 1
        assert "Address already in use" in second.lines[-1]
        assert server.stop() == 0
        assert not path.exists()
        assert not list(tmp_path.glob(".*"))

    def test_stale_file(self, start: Start, tmp_path: Path) -> None:
        """The file of a server that was killed is replaced; a file that is no socket is kept."""
        path = tmp_path / "matryo.sock"
        killed = start("--uds", str(path))
        killed.wait_ready()
        killed.process.kill()
        killed.process.wait()
        assert path.exists()
        start("--uds", str(path)).wait_ready()
        other = tmp_path / "notes"
        other.write_text("x")
        refused = start("--uds", str(other))
        assert refused.process.wait(120) == 1
        assert "this file is no socket" in refused.lines[-1]
        assert other.read_text() == "x"

    def test_two_on_one_path(self, start: Start, tmp_path: Path) -> None:
        """Of two servers started together one serves; the other ends."""
        path = str(tmp_path / "matryo.sock")
        both = [start("--uds", path), start("--uds", path)]
        wait_until(lambda: any(one.process.poll() is not None for one in both), 120)
        (winner,) = [one for one in both if one.process.poll() is None]
        winner.wait_ready()
        transport = httpx2.HTTPTransport(uds=path)
        with httpx2.Client(transport=transport, base_url="http://x") as client:
            assert client.get("/readyz").status_code == 200

    def test_stopped_before_ready(self, start: Start, tmp_path: Path) -> None:
        """SIGTERM before the server is ready leaves no file either."""
        server = start("--uds", str(tmp_path / "matryo.sock"))
        wait_until(lambda: list(tmp_path.glob(".*")), 120)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        assert not list(tmp_path.glob(".*"))
        assert not (tmp_path / "matryo.sock").exists()


class TestLogLines:
    """Away from a terminal every line of standard error is one JSON object."""

    @pytest.mark.parametrize(
        ("flags", "environ"),
        [
            (["--port", "x"], {}),
            (["--prot", "1"], {}),
            (["--port"], {}),
            (["--model", "nothing"], {}),
            ([], {"MATRYO_API_KEY": "x"}),
            ([], {"MATRYO_LOG_FORMAT": "xml"}),
            (["--log-format", "json"], {"MATRYO_LOG_FORMAT": "text", "MATRYO_PORT": "x"}),
            (["--log-format=json"], {"MATRYO_LOG_FORMAT": "text", "MATRYO_PORT": "x"}),
            ([], {"MATRYO_DIMENSIONS": "33"}),
            (["--processes", "2"], {"MATRYO_DIMENSIONS": "33"}),
            (["--host", "192.0.2.1"], {}),
        ],
    )
    def test_refusals(self, start: Start, flags: list[str], environ: dict[str, str]) -> None:
        """A server that cannot start says why in one line, and its status is not 0."""
        server = start(*flags, **environ)
        assert server.process.wait(120) in {1, 2}
        assert assert_json(server.lines)[-1]["level"] == "error"

    def test_pull_and_build(self, start: Start, tmp_path: Path) -> None:
        """So are the warnings before the settings are read, and the lines of a build."""
        model = make_model(tmp_path, "bert")
        environ = {"MATRYO_HOME": str(tmp_path / "home"), "MATRYO_MODELS": str(model.models)}
        server = start("--port", "0", MATRYO_OTHER="1", **environ)
        server.process.wait(120)  # a tiny model has no source to pull from
        lines = assert_json(server.lines)
        assert lines[0]["message"] == "MATRYO_OTHER is no setting and is ignored"
        assert server.process.returncode == 1
        assert lines[-1]["level"] == "error"

    def test_crash(self, tiny: dict[str, str]) -> None:
        """A bug's traceback, in the main thread or another, is part of an object too."""
        code = (
            "import sys, threading, warnings\n"
            "import matryo.commands.serve as serve\n"
            "from matryo.cli import main\n"
            "def crash(settings):\n"
            "    warnings.warn('odd')\n"
            "    thread = threading.Thread(target=lambda: 1 / 0)\n"
            "    thread.start(); thread.join()\n"
            "    raise RuntimeError('a bug')\n"
            "serve.run = crash\n"
            "sys.argv = ['matryo', 'serve']\n"
            "main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | tiny,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        warned, thread, last = assert_json(done.stderr.splitlines())
        assert "odd" in warned["message"]
        assert "ZeroDivisionError" in thread["exception"]
        assert "a bug" in last["exception"]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_nobody_reads_the_log(tiny: dict[str, str], processes: str) -> None:
    """A server whose standard error nobody reads answers every request, and SIGTERM ends it."""
    port = free_port()
    flags = ["--port", str(port), "--processes", processes]
    with subprocess.Popen(
        [sys.executable, "-m", "matryo", "serve", *flags],
        env=untouched_environment() | tiny,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr
        while b"try: curl" not in process.stderr.readline():
            assert process.poll() is None
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            for n in range(1_000):  # 64 KiB of a pipe are full after some 250 lines
                assert client.get(f"/none/{n}").status_code == 404
            assert "matryo_log_lines_dropped_total 0.0" in client.get("/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_help_lists_the_settings() -> None:
    """`serve --help` names every setting and each default, also where a setting is wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "matryo", "serve", "--help"],
        env=os.environ | {"MATRYO_PORT": "x"},
        capture_output=True,
        text=True,
        check=True,
    )
    from matryo.core.settings import Settings

    text = " ".join(done.stdout.split())
    assert "[default: 8080]" in text
    assert "docs/serve.md" in text
    for name in Settings.model_fields:
        assert f"MATRYO_{name.upper()} " in text


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")
class TestNothingLeaves:
    """No process of ours writes outside of the store, or opens a socket of its own accord."""

    @pytest.mark.parametrize("environ", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
    def test_serve(
        self, start: Start, tmp_path: Path, tiny: dict[str, str], environ: dict[str, str]
    ) -> None:
        """A server that works has its listening socket and its callers', and makes no file."""
        user, here = tmp_path / "user", tmp_path / "here"
        user.mkdir()
        here.mkdir()
        server = start("--port", "0", HOME=str(user), XDG_CACHE_HOME=str(user / "x"), **environ)
        server.wait_ready()
        port = int(server.url.rpartition(":")[2])
        with httpx2.Client(base_url=server.url) as client:
            for n in range(30):
                answer = client.post("/v1/embeddings", json={"input": [f"text {n}"] * 8})
                assert answer.status_code == 200
                ports = local_ports(server.process.pid)
                assert ports == {port}, ports
        assert server.stop() == 0
        assert list(user.rglob("*")) == []
        assert {path.name for path in tmp_path.iterdir()} == {"user", "here", "log0"}

    @pytest.mark.parametrize(
        "code",
        [
            "from matryo.cli import main; main(['verify', 'tiny'])",
            "from matryo.cli import main; main(['build', 'tiny'])",
            "import matryo; matryo.Embedder('tiny').embed(['a'])",
        ],
    )
    def test_commands(self, tmp_path: Path, tiny: dict[str, str], code: str) -> None:
        """Nor do commands and the library."""
        subprocess.run(
            [sys.executable, "-c", code],
            env=untouched_environment() | tiny | {"HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert list(tmp_path.rglob("*")) == []


def local_ports(pid: int) -> set[int]:
    """The local ports of every IP socket of a process, its threads' and native code's included."""
    inodes: set[str] = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports: set[int] = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_a_start_imports_what_serving_needs(start: Start) -> None:
    """No library of a build, of another door or of several processes is loaded to serve HTTP."""
    server = start("--port", "0", PYTHONPROFILEIMPORTTIME="1")
    server.wait_ready()
    found = re.findall(r"^import time:.*\| +(\S+)$", "\n".join(server.lines), re.MULTILINE)
    assert {"numpy", "onnxruntime", "fastapi", "matryo.http.openai.routes"} <= set(found)
    unused = ("onnx", "grpc", "httpx", "httpx2", "huggingface_hub", "mcp", "gguf", "safetensors")
    unused += ("transformers", "pyarrow", "pydantic.v1", "multiprocessing.resource_tracker")
    unused += ("sqlalchemy", "matryo.batch", "matryo.http.openai.files", "matryo.http.openai.lines")
    unused += ("matryo.build", "matryo.mcp", "matryo.embedder", "matryo.commands.processes")
    loaded = [name for name in found if f"{name}.".startswith(tuple(f"{one}." for one in unused))]
    assert loaded == []
    assert len({name for name in found if name.partition(".")[0] == "matryo"}) < 190
    assert len(set(found)) < 850
    assert server.stop() == 0


class TestBatch:
    """A server with a Batch API."""

    def test_a_storage_that_cannot_be_used(self, start: Start, tmp_path: Path) -> None:
        """A wrong folder ends the start in one line, before a model is looked for."""
        path = tmp_path / "a-file"
        path.write_text("")
        flags = ("--model", "no-such-model", "--log-format", "text")
        server = start(*flags, MATRYO_BATCH="true", MATRYO_BATCH_DIR=str(path))
        assert server.process.wait(120) == 1
        (line,) = server.lines
        assert line.startswith("matryo: ")
        assert "MATRYO_BATCH_DIR" in line
        assert str(path) in line

    @pytest.mark.parametrize("processes", ["1", "2"])
    def test_serves(self, start: Start, tmp_path: Path, processes: str) -> None:
        """What one server keeps, the next one has; all processes of a server share the files."""
        variables = {"MATRYO_BATCH": "true", "MATRYO_BATCH_DIR": str(tmp_path / "batches")}
        server = start("--port", "0", "--processes", processes, **variables)
        server.wait_ready()
        form: Any = {"files": {"file": ("a.jsonl", b"{}\n" * 1000)}, "data": {"purpose": "batch"}}
        file = httpx2.post(f"{server.url}/v1/files", **form).json()
        for _ in range(8):
            assert httpx2.get(f"{server.url}/v1/files/{file['id']}").json() == file
        assert server.stop() == 0
        server = start("--port", "0", **variables)
        server.wait_ready()
        answer = httpx2.get(f"{server.url}/v1/files/{file['id']}/content")
        assert answer.content == b"{}\n" * 1000
        assert server.stop() == 0
