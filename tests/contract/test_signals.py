"""Signals to `matryo`: a build never outlives its command, and a server ends only when asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from matryo.store.layout import Store
from tests.checkpoints import TinyModel, make_model
from tests.conftest import build_tiny
from tests.contract.conftest import wait_until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc"),
]

MATRYO = [sys.executable, "-m", "matryo"]
EMBED = [sys.executable, "-c", "import matryo; matryo.Embedder('tiny').embed(['a'])"]
APART = {  # commands that have the model made ready by another process
    "serve": [*MATRYO, "serve", "--model", "tiny", "--port", "0"],
    "serve twice": [*MATRYO, "serve", "--model", "tiny", "--port", "0", "--processes", "2"],
    "verify": [*MATRYO, "verify", "tiny"],
    "embed": [*MATRYO, "embed", "tiny", os.devnull],
}
WITHIN = {
    "pull": [*MATRYO, "pull", "tiny", "--from", "CHECKPOINT"],
    "build": [*MATRYO, "build", "tiny", "--checkpoint", "CHECKPOINT"],
}


def children_of(pid: int) -> set[int]:
    """The processes whose parent is `pid`, and theirs."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found |= {child} | children_of(child)
    return found


def is_running(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent's interest does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Started:
    """A command in a process group of its own, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def text(self) -> str:
        """Standard error so far."""
        return self._log.read_text()

    def wait_for(self, words: str) -> None:
        """Until standard error has these words."""
        wait_until(lambda: words in self.text or self.process.poll() is not None, 120)
        assert words in self.text

    def wait_gone(self, pids: set[int]) -> None:
        """Until none of these processes runs."""
        wait_until(lambda: not any(map(is_running, pids)), 30)


Start = Callable[..., Started]


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that is not built."""
    model = make_model(tmp_path, "bert")
    (model.models / model.id / "golden.json").write_text('{"checks": []}')
    return model


@pytest.fixture
def start(tmp_path: Path, model: TinyModel) -> Iterator[Start]:
    """Starts commands; all of their processes are ended after the test."""
    with ExitStack() as stack:

        def begin(command: list[str], style: str = "text") -> Started:
            arguments = [str(model.checkpoint) if one == "CHECKPOINT" else one for one in command]
            env = os.environ | {
                "MATRYO_HOME": str(tmp_path / "home"),
                "MATRYO_MODELS": str(model.models),
                "MATRYO_LOG_FORMAT": style,
                "TMPDIR": str(tmp_path),
            }
            log = tmp_path / "log"
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    arguments, env=env, stderr=stderr, cwd=tmp_path, start_new_session=True
                )
            stack.callback(process.wait, 30)
            stack.callback(process.kill)
            return Started(process, log)

        yield begin


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[str]:
    """A store that another process has locked: a pull or build waits, and says these words."""
    home = tmp_path / "home"
    home.mkdir()
    with Store(home).lock("tiny"):
        yield "waiting"


class TestMakingReady:
    """A signal during a pull or build ends both the command and the process that builds."""

    @pytest.mark.parametrize("style", ["text", "json"])
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
    @pytest.mark.parametrize("command", APART)
    def test_one_process(
        self, start: Start, busy: str, command: str, name: str, style: str
    ) -> None:
        """The command alone gets the signal: one sentence, and a status of its own."""
        started = start(APART[command], style)
        started.wait_for(busy)
        children = children_of(started.process.pid)
        assert children
        started.process.send_signal(signal.Signals[name])
        assert started.process.wait(30) == 128 + signal.Signals[name]
        started.wait_gone(children)
        assert started.text.count("stopped by") == 1
        assert started.text.splitlines()[-1].count(f"stopped by {name}") == 1
        assert "Traceback" not in started.text

    @pytest.mark.parametrize("command", [*APART, *WITHIN])
    def test_ctrl_c(self, start: Start, busy: str, command: str) -> None:
        """A terminal sends Ctrl-C to every process of the command."""
        started = start((APART | WITHIN)[command])
        started.wait_for(busy)
        children = children_of(started.process.pid)
        os.killpg(started.process.pid, signal.SIGINT)
        assert started.process.wait(30) == 130
        started.wait_gone(children)
        assert started.text.count("stopped by SIGINT") == 1
        assert "Traceback" not in started.text

    @pytest.mark.parametrize("command", [*APART.values(), EMBED])
    @pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
    def test_killed(self, start: Start, busy: str, command: list[str], name: str) -> None:
        """The process that builds ends, although the one that waits for it was killed."""
        started = start(command)
        started.wait_for(busy)
        children = children_of(started.process.pid)
        assert children
        started.process.send_signal(signal.Signals[name])
        started.process.wait(30)
        started.wait_gone(children)

    def test_ctrl_c_in_a_program(self, start: Start, busy: str) -> None:
        """In a program that uses the library, Ctrl-C is a KeyboardInterrupt of the program."""
        started = start(EMBED)
        started.wait_for(busy)
        children = children_of(started.process.pid)
        os.killpg(started.process.pid, signal.SIGINT)
        started.process.wait(30)
        started.wait_gone(children)
        assert started.text.count("Traceback") == 1
        assert started.text.splitlines()[-1] == "KeyboardInterrupt"

    def test_a_builder_that_is_killed(self, start: Start, busy: str) -> None:
        """If the system kills the process that builds, the command says so."""
        started = start(APART["embed"])
        started.wait_for(busy)
        for pid in children_of(started.process.pid):
            os.kill(pid, signal.SIGKILL)
        assert started.process.wait(30) == 1
        assert "making tiny ready was ended by SIGKILL" in started.text.splitlines()[-1]

    @pytest.mark.parametrize("command", ["serve", "serve twice"])
    def test_hangup(self, start: Start, busy: str, command: str) -> None:
        """SIGHUP, SIGUSR1 and SIGUSR2 end neither a server that makes ready, nor its build."""
        started = start(APART[command])
        started.wait_for(busy)
        children = children_of(started.process.pid)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.killpg(started.process.pid, number)
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(30) == 143
        started.wait_gone(children)

    @pytest.mark.parametrize("command", [*APART, *WITHIN])
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
    def test_first_process(self, start: Start, busy: str, command: str, name: str) -> None:
        """A process with the id 1, as in a container, has no default for a signal."""
        unshare = [shutil.which("unshare") or "", "--pid", "--fork", "--kill-child"]
        may = (
            unshare[0]
            and not subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
        )
        started = start([*(unshare if may else []), *(APART | WITHIN)[command]])
        started.wait_for(busy)
        pid = started.process.pid
        first = min(children_of(pid)) if may else pid
        number = signal.Signals[name]
        status = Path(f"/proc/{first}/status").read_text()
        (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
        assert int(caught, 16) >> (number - 1) & 1
        os.kill(first, number)
        assert started.process.wait(30) == 128 + number
        assert f"stopped by {name}" in started.text


def test_pip(start: Start, tmp_path: Path) -> None:
    """The pip of a pull ends with the pull, even if that is killed."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        "import signal, sys\n"
        "print('pip', *sys.argv[1:], file=open('arguments', 'w'), flush=True)\n"
        "signal.pause()\n"
    )
    code = (
        "import os; os.environ['PYTHONPATH'] = ':'.join([os.getcwd(), os.environ.get('PYTHONPATH', '')])\n"
        "from matryo.store.pull import pip; pip.resolve('tiny-weights==1.0')"
    )
    started = start([sys.executable, "-c", code])
    wait_until((tmp_path / "arguments").exists, 60)
    (child,) = children_of(started.process.pid)
    started.process.kill()
    started.process.wait()
    started.wait_gone({child})
    assert (tmp_path / "arguments").read_text().endswith(" tiny-weights==1.0\n")


class TestServing:
    """Only SIGTERM and SIGINT end a server."""

    @pytest.fixture(params=["1", "2"])
    def server(
        self, request: pytest.FixtureRequest, start: Start, tmp_path: Path, model: TinyModel
    ) -> Started:
        """A server that is ready, of one process and of two."""
        build_tiny(tmp_path, model)
        started = start([*APART["serve"], "--processes", request.param])
        started.wait_for("ready: ")
        return started

    def test_other_signals(self, server: Started) -> None:
        """SIGHUP is for reloading, and logged; SIGUSR1 and SIGUSR2 are ignored."""
        url = server.text.partition("ready: tiny (fp32) on ")[2].split()[0]
        for _ in range(2):
            for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
                os.killpg(server.process.pid, signal.Signals[name])
            answer = httpx2.post(f"{url}/v1/embeddings", json={"input": "a"})
            assert answer.status_code == 200
        server.wait_for("SIGHUP: nothing to reload")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.text
        assert "starting another" not in server.text

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
    def test_group(self, server: Started, name: str) -> None:
        """A service manager, `timeout` and a terminal signal every process: one drain, status 0."""
        os.killpg(server.process.pid, signal.Signals[name])
        server.process.send_signal(signal.Signals[name])
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.text
        assert server.text.splitlines()[-1].endswith("stopped")
