"""Several server processes share a socket, their metrics and one shutdown."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from matryo.commands.processes import restart_s
from tests.checkpoints import make_model
from tests.collector import collecting
from tests.conftest import build_tiny
from tests.contract.conftest import is_refused, wait_until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc"),
]

READY = "2 processes are ready"

Lines = Callable[[], list[str]]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of servers of a tiny model that is built."""
    root = tmp_path_factory.mktemp("tiny")
    model = make_model(root, "bert")
    build_tiny(root, model)
    return {
        "MATRYO_HOME": str(root / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_MODEL": model.id,
        "MATRYO_LOG_FORMAT": "text",
    }


@pytest.fixture
def url() -> str:
    """The URL of the servers of one test, on a port that nobody listens on yet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start(tmp_path: Path, tiny: dict[str, str], url: str) -> Iterator[Start]:
    """Starts `matryo serve --processes 2`; all of its processes are ended after the test."""
    with ExitStack() as stack:

        def begin(**environ: str) -> subprocess.Popen[bytes]:
            port = url.rpartition(":")[2]
            env = os.environ | tiny | {"MATRYO_PORT": port, "TMPDIR": str(tmp_path)} | environ
            command = [sys.executable, "-m", "matryo", "serve", "--processes", "2"]
            with (tmp_path / "log").open("wb") as log:
                process = subprocess.Popen(command, env=env, stderr=log, start_new_session=True)
            stack.callback(process.wait, 30)
            stack.callback(end_group, process.pid)
            return process

        yield begin


def end_group(pid: int) -> None:
    """Kill a process and its children, even those that it left."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[], list[str]]:
    """Gives the log of the process that was started last."""
    return lambda: (tmp_path / "log").read_text().splitlines()


@pytest.fixture
def server(start: Start, lines: Lines) -> subprocess.Popen[bytes]:
    """A server whose two processes are ready."""
    process = start()
    wait_until(lambda: any(READY in line for line in lines()), 60)
    return process


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


def folders(parent: Path) -> list[Path]:
    """The folders of metrics in a temporary folder."""
    return list(parent.glob("matryo-metrics-*"))


def test_the_port_of_the_metrics(start: Start, lines: Lines, url: str) -> None:
    """One process answers for all on the operators' port, and the port survives each of them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = f"http://127.0.0.1:{port}"
    process = start(MATRYO_METRICS_PORT=str(port), MATRYO_WORKERS="3")
    wait_until(lambda: any(READY in line for line in lines()), 60)
    before = servers_of(process)
    alone = [_resident(number) for number in before]
    found = scrape(own)
    assert found["matryo_processes"] == 2
    assert found["matryo_workers"] == 6
    assert found["matryo_ready"] == 1
    # Files that both map count once, so that the sum is less than that of the processes.
    assert max(alone) < found["matryo_resident_memory_bytes"]
    assert found["matryo_resident_memory_bytes"] < sum(alone) + _resident(process.pid)
    assert found["matryo_open_files"] > 20
    assert found["matryo_cpu_seconds_total"] > 0
    assert found['matryo_start_seconds{step="load"}'] > 0
    assert httpx2.get(f"{url}/metrics").status_code == 404
    for number in sorted(before):
        os.kill(number, signal.SIGKILL)
        assert httpx2.get(f"{own}/livez").status_code == 200
        wait_until(lambda number=number: number not in servers_of(process), 40)
        wait_until(lambda: len(servers_of(process)) == 2, 40)
        wait_until(lambda: scrape(own).get("matryo_workers") == 6, 60)
    assert scrape(own)["matryo_processes"] == 2


def _resident(number: int) -> int:
    """Bytes of resident memory of a process, as the kernel counts them."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
    assert found
    return 1024 * int(found[1])


def test_one_service(server: subprocess.Popen[bytes], url: str, tmp_path: Path) -> None:
    """Counters are summed, a process that dies is replaced, and SIGTERM ends all with status 0."""
    process = server
    for n in range(20):  # a connection each, so that both get some
        answer = httpx2.post(f"{url}/v1/embeddings", json={"input": f"the sky {n}"})
        assert answer.status_code == 200
    name = 'matryo_requests_total{door="openai",model="tiny",route="/v1/embeddings",status="200"}'
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
    assert folders(tmp_path) == []


def test_killed_parent(
    start: Start, server: subprocess.Popen[bytes], lines: Lines, url: str, tmp_path: Path
) -> None:
    """Without their parent the processes end, the next server can start, and nothing stays."""
    children = servers_of(server)
    assert len(children) == 2
    (stale,) = folders(tmp_path)
    server.kill()
    server.wait()
    wait_until(lambda: is_refused(int(url.rpartition(":")[2])))
    wait_until(lambda: not any(map(is_running, children)), 30)
    again = start()
    wait_until(lambda: any(READY in line for line in lines()), 60)
    assert httpx2.get(f"{url}/readyz").status_code == 200
    (folder,) = folders(tmp_path)
    assert folder != stale
    again.terminate()
    assert again.wait(30) == 0
    assert folders(tmp_path) == []


def is_running(pid: int) -> bool:
    """Whether a process runs, and is not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_running_requests_of_a_killed_parent(server: subprocess.Popen[bytes], url: str) -> None:
    """A process that lost its parent drains: it answers what it has begun."""
    port = int(url.rpartition(":")[2])
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as running:
        running.sendall(head)
        wait_until(lambda: scrape(url)["matryo_requests_in_progress"] == 2)
        server.kill()
        server.wait()
        wait_until(lambda: is_refused(port))
        running.sendall(b'{"input": "a"}')
        assert running.recv(100).startswith(b"HTTP/1.1 ")


def test_folder_in_use(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A server that runs keeps its folder when another starts; a folder of nobody goes."""
    (used,) = folders(tmp_path)
    (tmp_path / "matryo-metrics-stale").mkdir()
    (tmp_path / "matryo-metrics-stale" / "counter_1.db").write_bytes(b"x")
    code = (
        "from matryo.commands.metrics_folder import metrics_folder\n"
        "with metrics_folder() as folder: print(folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{tmp_path}/matryo-metrics-")
    assert folders(tmp_path) == [used]
    assert server.poll() is None


def test_a_process_that_does_not_end(start: Start, lines: Lines) -> None:
    """A process that ignores SIGTERM is killed in the end; the status and a line say so."""
    process = start(MATRYO_GRACE_S="0")
    wait_until(lambda: any(READY in line for line in lines()), 60)
    stuck = min(servers_of(process))
    os.kill(stuck, signal.SIGSTOP)
    process.terminate()
    assert process.wait(60) == 1
    assert not is_running(stuck)
    assert any("1 processes did not end in 10 s" in line for line in lines())


def test_second_signal(server: subprocess.Popen[bytes], lines: Lines) -> None:
    """A second signal does not wait for the grace of 25 s."""
    stuck = min(servers_of(server))
    os.kill(stuck, signal.SIGSTOP)

    def was_another_signal_enough() -> bool:
        if any("1 processes did not end" in line for line in lines()):
            return True
        server.terminate()
        return False

    wait_until(was_another_signal_enough, 20)
    assert server.wait(30) == 1
    assert not is_running(stuck)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("group", [False, True])
def test_stopped_while_starting(
    start: Start, lines: Lines, tmp_path: Path, name: str, status: int, *, group: bool
) -> None:
    """A signal before all processes are ready ends all of them, without a traceback."""
    process = start()
    wait_until(lambda: servers_of(process), 60)
    children = servers_of(process)
    (os.killpg if group else os.kill)(process.pid, signal.Signals[name])
    assert process.wait(30) == status
    assert not any(map(is_running, children))
    assert folders(tmp_path) == []
    assert lines() == [f"matryo: stopped by {name}"]


def test_no_semaphores(start: Start, lines: Lines, tmp_path: Path, url: str) -> None:
    """A system without semaphores, as with a /dev/shm that cannot be written, serves as well."""
    (tmp_path / "sitecustomize.py").write_text(
        "import _multiprocessing, errno, os\n"
        "def refuse(*_, **__):\n"
        "    raise OSError(errno.EROFS, os.strerror(errno.EROFS))\n"
        "_multiprocessing.SemLock = refuse\n"
    )
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    process = start(PYTHONPATH=path)
    wait_until(lambda: process.poll() is not None or any(READY in line for line in lines()), 60)
    assert httpx2.get(f"{url}/readyz").status_code == 200


DYING = """
import sys
from matryo.commands.processes import run_processes
from matryo.core import logging as logs
from matryo.core.environment import load_settings
from matryo.http.listening import bind

def serve(settings, listener, on_ready, cores):
    on_ready()
    sys.exit(3)

if __name__ == "__main__":
    logs.configure("info", "text")
    run_processes(load_settings(None, processes=1), bind("127.0.0.1", 0), serve, lambda: None, 1)
"""


def test_dying_again_and_again(tmp_path: Path) -> None:
    """A process that dies at once is replaced later and later, and the parent can be stopped."""
    (tmp_path / "dying.py").write_text(DYING)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, tmp_path / "dying.py"], stderr=stderr)
    try:
        wait_until(lambda: "starting another in 2 s" in log.read_text(), 60)
        assert "ended with status 3; starting another in 1 s" in log.read_text()
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


PINNED = """
import os, signal, sys
from matryo.commands import processes
from matryo.core.environment import load_settings
from matryo.http.listening import bind

def serve(settings, listener, on_ready, cores):
    on_ready()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(sorted(os.sched_getaffinity(0)), cores, flush=True)
    signal.pause()

if __name__ == "__main__":
    one, two = sorted(os.sched_getaffinity(0))[:2]
    processes.node_cores = lambda: [frozenset({one}), frozenset({two})]
    settings = load_settings(None, processes=2, pin_processes=sys.argv[1])
    processes.run_processes(settings, bind("127.0.0.1", 0), serve, lambda: None, 1)
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores and affinity masks",
)
@pytest.mark.parametrize("pinned", [True, False])
def test_nodes(tmp_path: Path, pinned: bool) -> None:
    """Each process runs on the cores of its NUMA node, or on every core if that is switched off."""
    (tmp_path / "pinned.py").write_text(PINNED)
    every = sorted(os.sched_getaffinity(0))
    expected = {f"[{core}] 1" for core in every[:2]} if pinned else {f"{every} 1"}
    command = [sys.executable, tmp_path / "pinned.py", str(pinned)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert {process.stdout.readline().strip() for _ in range(2)} == expected
        finally:
            process.terminate()


def test_restart_s() -> None:
    """The pause doubles with each death in a row, up to a minute."""
    assert [restart_s(n) for n in (1, 2, 3, 7, 1_000)] == [1, 2, 4, 60, 60]


def test_killed_before_ready(start: Start, lines: Lines) -> None:
    """A process that the system kills at its start ends the server, with a sentence."""
    process = start()
    wait_until(lambda: servers_of(process), 60)
    os.kill(min(servers_of(process)), signal.SIGKILL)
    assert process.wait(60) == 1
    assert lines()[-1] == "matryo: a server process ended with SIGKILL before it was ready"


_STOPPED_EARLY = """
from multiprocessing import Pipe
from matryo.commands.processes import _child
from matryo.core.environment import load_settings
from matryo.core.signals import Stopped

def serve(*_):
    raise Stopped(15)

_child(load_settings(None), None, serve, Pipe()[1], frozenset(), 1)
"""


def test_a_process_that_is_stopped_early_says_nothing() -> None:
    """A server process that a signal ends before it is ready leaves the words to its parent."""
    done = subprocess.run(
        [sys.executable, "-c", _STOPPED_EARLY], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (143, "")


def test_each_process_exports_its_spans(start: Start, lines: Lines, url: str) -> None:
    """Every process has a provider of its own, whose last spans are exported after SIGTERM."""
    with collecting() as collector:
        # Nothing is exported before the end: the queue is sent once in ten minutes.
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        process = start(MATRYO_TRACING="true", **environ)
        wait_until(lambda: any(READY in line for line in lines()), 60)
        for _ in range(40):  # each on a connection of its own, for either process to take
            assert httpx2.post(f"{url}/v1/embeddings", json={"input": "a"}).status_code == 200
        assert collector.spans == []
        process.terminate()
        assert process.wait(30) == 0
    assert len(collector.servers()) == 40
    assert len({span.resource["service.instance.id"] for span in collector.servers()}) == 2
