"""Keys of a real server that change under load: no request of another key fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from tests.checkpoints import make_model
from tests.conftest import build_tiny
from tests.contract.conftest import wait_until
from tests.contract.test_keys import auth, line

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc"),
]

N_CHANGES = 100
STEADY = ("steady-1", "steady-2", "steady-3")
EMBEDDINGS = "/v1/embeddings"


class Running:
    """A server process, the file of its keys, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path, log: Path) -> None:
        self.process, self.file, self._log = process, file, log

    @property
    def text(self) -> str:
        """The log so far."""
        return self._log.read_text()

    @property
    def url(self) -> str:
        """The root URL, once the server is ready."""
        wait_until(lambda: "ready: tiny" in self.text or self.process.poll() is not None, 120)
        return self.text.partition("ready: tiny (fp32) on ")[2].split()[0]

    def change(self, *names: str, text: str = "") -> None:
        """Rename a file with these keys, and some more text, over the file of keys."""
        other = self.file.with_name("other")
        other.write_text("\n".join([*map(line, names), text]))
        other.replace(self.file)

    def hang_up(self) -> None:
        """Ask the server to reload."""
        self.process.send_signal(signal.SIGHUP)


def status(url: str, name: str) -> int:
    """The status that a key gets, over a connection of its own."""
    return httpx2.get(f"{url}/v1/models", headers=auth(name)).status_code


@pytest.fixture(params=["1", "2"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """A server of a tiny model with a file of keys, of one process and of two."""
    model = make_model(tmp_path, "bert")
    build_tiny(tmp_path, model)
    file, log = tmp_path / "keys.toml", tmp_path / "log"
    file.write_text("\n".join(map(line, STEADY)))
    env = os.environ | {
        "MATRYO_HOME": str(tmp_path / "home"),
        "MATRYO_MODELS": str(model.models),
        "MATRYO_LOG_FORMAT": "text",
        "MATRYO_KEYS_FILE": str(file),
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "matryo", "serve", "--model", model.id, "--port", "0"]
    with ExitStack() as stack:
        stderr = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [*command, "--processes", request.param], env=env, stderr=stderr, start_new_session=True
        )

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

        stack.callback(end)
        yield Running(process, file, log)


def test_changes_under_load(server: Running) -> None:
    """The file changes 100 times, and every request of the keys that stay is answered.

    A key that is gone is refused, and a bad file in between changes nothing.
    """
    url = server.url
    outcomes: Counter[str] = Counter()
    is_over = threading.Event()

    def call(name: str) -> None:
        with httpx2.Client(base_url=url, headers=auth(name), timeout=30) as client:
            while not is_over.is_set():
                try:
                    answer = client.post(EMBEDDINGS, json={"input": ["a b", "c"]})
                    outcomes[f"{name} {answer.status_code}"] += 1
                except httpx2.HTTPError as exc:
                    outcomes[f"{name} {exc!r}"] += 1

    callers = [threading.Thread(target=call, args=(name,)) for name in STEADY]
    for caller in callers:
        caller.start()
    try:
        for n in range(N_CHANGES):
            if n % 10 == 5:
                server.change(text="a = {")
                server.hang_up()
            server.change(*STEADY, f"new-{n}")
            server.hang_up()
            wait_until(lambda n=n: status(url, f"new-{n}") == 200, 30)
        server.change(*STEADY)
        server.hang_up()
        wait_until(lambda: status(url, f"new-{N_CHANGES - 1}") == 401, 30)
    finally:
        is_over.set()
        for caller in callers:
            caller.join(60)
    assert set(outcomes) == {f"{name} 200" for name in STEADY}, outcomes
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.text


def test_every_process_reloads(server: Running) -> None:
    """Without a signal too, every process takes the new keys and refuses the old."""
    url = server.url
    n_processes = 2 if "2 processes" in server.text else 1
    server.change("other")
    wait_until(lambda: server.text.count("keys reloaded") == n_processes, 60)
    assert {status(url, "other") for _ in range(20)} == {200}
    assert {status(url, name) for name in STEADY for _ in range(5)} == {401}
    server.change(text="b = 5")
    wait_until(lambda: server.text.count("not reloaded") == n_processes, 60)
    assert "line 1: key 'b' is no table" in server.text
    assert {status(url, "other") for _ in range(20)} == {200}


def test_limits_hold_for_all_processes(server: Running) -> None:
    """A limit holds for the server, whichever of its processes takes a connection."""
    url = server.url
    limits = ", requests_per_minute = 20"
    server.file.write_text(line("few", limits))
    server.hang_up()
    n_processes = 2 if "2 processes" in server.text else 1
    wait_until(lambda: server.text.count("keys reloaded") == n_processes, 60)
    statuses = Counter(
        httpx2.post(url + EMBEDDINGS, json={"input": "a"}, headers=auth("few")).status_code
        for _ in range(40)
    )
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 20
