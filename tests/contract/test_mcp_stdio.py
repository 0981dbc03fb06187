"""`matryo mcp` over standard input and output, started as clients start it, and its page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from matryo.main import create_mcp_app
from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.contract.conftest import live_server, wait_until
from tests.fakes import FakeEngine

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mcp.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PATH = [str(ROOT / "app"), str(ROOT)]
CALL = {"a": "b", "b": "c"}

# The command with a fake engine. Its runs wait for a text of "slow" until the file `gate` exists.
FAKE = """
import contextlib, os, sys, time
from pathlib import Path
from matryo.commands import mcp
from matryo.core import signals
from matryo.core.environment import load_settings
from tests.fakes import FakeEngine

class Slow(FakeEngine):
    def tokenize(self, texts, *more):
        if any("slow" in text for text in texts):
            Path("slow").touch()
            self.before = wait
        return super().tokenize(texts, *more)

def wait(_):
    print("this line is no message")
    while not Path("gate").exists():
        time.sleep(0.005)

mcp.ready_engines = lambda _: print("nor is this") or (Slow(),)
try:
    with signals.stoppable():
        mcp.run(load_settings(None), over_http=False)
except signals.Stopped as exc:
    sys.exit(exc.status)
with contextlib.suppress(BrokenPipeError):
    os.write(1, b"but this may be read by whoever reads on")
"""
WIRED = [sys.executable, "-c", FAKE]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a command that finds this source."""
    own = {"PYTHONPATH": os.pathsep.join(PATH), "MATRYO_HOME": str(folder / "home")}
    return os.environ | own | more


class Piped:
    """A command whose standard streams are pipes, and lines of JSON-RPC over them."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder = folder
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                WIRED,
                cwd=folder,
                env=environment(folder, **more),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def send(self, method: str, params: dict[str, Any], number: int | None = None) -> None:
        """Send a request, or a notification if it has no number."""
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if number is not None:
            message["id"] = number
        self.stdin.write(json.dumps(message).encode() + b"\n")

    def begin(self) -> None:
        """Shake hands as clients of protocol 2025-06-18 do."""
        info = {"name": "test", "version": "1"}
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
        self.send("initialize", hello, 0)
        assert self.read()["result"]["serverInfo"]["name"] == "matryo"
        self.send("notifications/initialized", {})

    def call(self, number: int, arguments: dict[str, Any]) -> None:
        """Ask for a similarity."""
        self.send("tools/call", {"name": "similarity", "arguments": arguments}, number)

    def read(self) -> dict[str, Any]:
        """The next message."""
        return json.loads(self.stdout.readline())

    @property
    def log(self) -> str:
        """Standard error so far."""
        return (self.folder / "log").read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Piped]]:
    """Starts the command; it is ended after the test."""
    with ExitStack() as stack:

        def begin(**more: str) -> Piped:
            piped = Piped(tmp_path, **more)
            stack.callback(piped.process.wait, 20)
            stack.callback(piped.stdout.close)
            stack.callback(piped.stdin.close)
            stack.callback(piped.process.kill)
            return piped

        yield begin


Start = Callable[..., Piped]


class TestStreams:
    """Standard output has messages alone; the process ends with its client."""

    def test_end_of_input(self, start: Start) -> None:
        """At the end of input the process ends with 0, and standard output is its own again."""
        piped = start()
        piped.begin()
        (piped.folder / "gate").touch()
        piped.call(1, {"a": "slow", "b": "c"})
        answer = piped.read()
        assert answer["id"] == 1
        assert answer["result"]["structuredContent"]["input_type"] == "clustering"
        piped.stdin.close()
        assert piped.process.wait(20) == 0
        assert piped.stdout.read() == b"but this may be read by whoever reads on"
        assert "this line is no message" in piped.log
        assert "nor is this" in piped.log
        assert "Traceback" not in piped.log

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    @pytest.mark.parametrize("busy", [False, True])
    def test_signal(self, start: Start, number: int, busy: bool) -> None:
        """A signal ends the process, with a call under way too, while the client still listens."""
        piped = start()
        piped.begin()
        if busy:
            piped.call(1, {"a": "slow", "b": "c"})
            wait_until((piped.folder / "slow").exists)
        piped.process.send_signal(number)
        # A run cannot be stopped, and the threads that run are waited for.
        (piped.folder / "gate").touch()
        assert piped.process.wait(20) == 128 + number
        for line in piped.stdout.read().splitlines():  # there may be time for an answer
            assert json.loads(line)["error"]["message"] == "Connection closed"
        assert "Traceback" not in piped.log

    def test_signal_while_nobody_reads(self, start: Start) -> None:
        """A client that reads nothing keeps no process alive."""
        piped = start()
        piped.begin()
        for number in range(1, 1000):
            piped.send("tools/list", {}, number)
            if number > 200 and "ready" in piped.log:  # more than a pipe holds
                break
        piped.process.send_signal(signal.SIGTERM)
        assert piped.process.wait(20) == 128 + signal.SIGTERM

    def test_reader_gone(self, start: Start) -> None:
        """A client that closes its end has ended, and so does the process, without a traceback."""
        piped = start()
        piped.begin()
        piped.stdout.close()
        piped.call(1, CALL)
        assert piped.process.wait(20) == 0
        assert "Traceback" not in piped.log

    def test_message_too_large(self, start: Start) -> None:
        """A message over the limit ends the process, and standard error names the limit."""
        piped = start(MATRYO_MAX_BODY_BYTES="65536")
        piped.begin()
        piped.call(1, CALL | {"a": "a" * 60_000})
        assert not piped.read()["result"].get("isError")
        piped.call(2, CALL | {"a": "a" * 70_000})
        assert piped.process.wait(20) == 1
        assert "more than 65536 bytes" in piped.log

    @pytest.mark.parametrize("line", [b"\n", b"{\n", b"[]\n", b"\xff\xfe\n", b"[" * 9999 + b"\n"])
    def test_no_message(self, start: Start, line: bytes) -> None:
        """A line that is no message changes nothing for those after it."""
        piped = start()
        piped.begin()
        piped.stdin.write(line)
        piped.call(1, CALL)
        assert piped.read()["id"] == 1
        piped.stdin.close()
        assert piped.process.wait(20) == 0

    def test_cancelled(self, start: Start) -> None:
        """A call that its client cancels frees the only place of the server."""
        piped = start(MATRYO_MAX_WAITING_REQUESTS="1")
        piped.begin()
        piped.call(1, {"a": "slow", "b": "c"})
        wait_until((piped.folder / "slow").exists)
        piped.call(2, CALL)
        assert "try again" in piped.read()["result"]["content"][0]["text"]
        piped.send("notifications/cancelled", {"requestId": 1})
        wait_until(lambda: "similarity cancelled" in piped.log)
        (piped.folder / "gate").touch()
        piped.call(3, CALL)
        answer = piped.read()
        assert answer["id"] == 3
        assert "structuredContent" in answer["result"]
        piped.stdin.close()
        assert piped.process.wait(20) == 0


@pytest.mark.timeout(200)
async def test_the_command(tmp_path: Path) -> None:
    """`matryo mcp` serves a real model to the SDK's client, keys or not."""
    model = make_model(tmp_path, "bert")
    build_tiny(tmp_path, model)
    env = environment(tmp_path, MATRYO_MODELS=str(model.models), MATRYO_API_KEYS="k")
    arguments = ["-m", "matryo", "mcp", "--model", "tiny"]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=env)
    with (tmp_path / "log").open("w") as log:
        for mode in ("legacy", "auto"):
            async with Client(stdio_client(server, errlog=log), mode=mode) as client:
                result = await client.call_tool("rank", {"query": "a", "texts": ["a", "b"]})
                assert result.structured_content["results"][0]["index"] == 0


def test_without_the_extra(tmp_path: Path) -> None:
    """Without the SDK, one sentence says what to install; nothing else needs the SDK."""
    program = (
        "import sys; sys.modules['mcp'] = None; sys.argv[1:] = {}; "
        "from matryo.cli import main; main()"
    )
    env = environment(tmp_path)
    for arguments, status in ((["mcp"], 1), (["mcp", "--help"], 0), (["models"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", program.format(arguments)],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert ("pip install 'matryo[mcp]'" in done.stderr) is (status == 1)
        assert "Traceback" not in done.stderr


def test_others_do_not_import_the_sdk() -> None:
    """The command line and the server start without the SDK."""
    program = (
        "import sys, matryo.cli, matryo.main, matryo.commands.serve; print('mcp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(Path()),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\n"


class TestPage:
    """The programs and the configuration of docs/mcp.md run as they are written."""

    def test_stdio_program(self, tmp_path: Path) -> None:
        """The client starts the command of the page, and gets a ranking."""
        command = tmp_path / "matryo"
        command.write_text(f"#!{sys.executable}\nimport sys\nsys.path[:0] = {PATH}\n{FAKE}")
        command.chmod(0o755)
        done = self._run(tmp_path, PROGRAMS[0])
        assert re.fullmatch(r"(\d .* -?\d\.\d+\n){2}", done.stdout), done.stderr

    def test_http_program(self, tmp_path: Path, engine: FakeEngine) -> None:
        """The client shows its key, and gets a number."""
        with live_server(engine, create=create_mcp_app, api_keys=("secret",)) as live:
            done = self._run(tmp_path, PROGRAMS[1].replace(":8080", f":{live.port}"))
        assert re.fullmatch(r"-?\d\.\d+\n", done.stdout), done.stderr

    def test_configuration(self) -> None:
        """The client's configuration is JSON with a command of ours."""
        (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
        server = json.loads(block)["mcpServers"]["matryo"]
        assert (server["command"], server["args"][0]) == ("matryo", "mcp")

    def _run(self, folder: Path, program: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env=environment(folder, PATH=f"{folder}:{os.environ['PATH']}"),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done
