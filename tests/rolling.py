"""Replicas behind nginx and HAProxy that stop, die and start anew while callers go on.

    python -m tests.rolling                            # both proxies, 20,000 requests each
    python -m tests.rolling --proxy nginx --requests 2000 --instant

The proxies run with the very files of `deploy/`, of which the addresses alone are replaced.
Callers send at half of what the replicas could answer, and never send again: an answer other than
200, or none, counts as failed. Needs Debian's packages nginx and haproxy. A run ends with status 1
if a request failed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

_DEPLOY = Path(__file__).parent.parent / "deploy"
_N_REPLICAS, _N_CALLERS = 2, 16
_DRAIN_DELAY_S = 3
_PATIENCE_S = 120.0


def main() -> None:
    """Roll replicas behind each proxy, print a table, and fail if a request failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxy", choices=sorted(_PROXIES), help="only this one")
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many each")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--instant", action="store_true", help="an engine that costs nothing")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "matryo", "serve", "--model", arguments.model]
    if arguments.instant:
        command = [sys.executable, "-m", "bench.instant"]
    names: list[str] = [arguments.proxy] if arguments.proxy else sorted(_PROXIES)
    for name in names:
        if not shutil.which(name, path=_SEARCH):
            sys.exit(f"{name} is not installed. Install Debian's package: apt-get install {name}")
    n_failed = sum(_roll(name, command, arguments.requests) for name in names)
    sys.exit(1 if n_failed else 0)


_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin"


# --- the replicas


class _Replica:
    """A server that can be stopped, killed and started anew on the same port."""

    def __init__(self, command: Sequence[str]) -> None:
        self.port = _free_port()
        self._command = [*command, "--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; returns once it is ready."""
        env = os.environ | {
            "MATRYO_LOG_LEVEL": "warning",
            "MATRYO_DRAIN_DELAY_S": str(_DRAIN_DELAY_S),
        }
        process = self._process = subprocess.Popen(self._command, env=env)

        def is_ready() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(self._command)} ended with {process.returncode}")
            return _status(self.port, "/readyz") == http.client.OK

        _wait_until(is_ready, f"port {self.port} is ready")

    def stop(self) -> None:
        """Send SIGTERM; returns once the process has ended, which must be with status 0."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(_PATIENCE_S)
        assert status == 0, f"a stopped replica ended with {status}"

    def kill(self) -> None:
        """Kill the process."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Kill the process, if it runs."""
        if self._process and self._process.poll() is None:
            self.kill()


# --- the proxies


@contextmanager
def _nginx(ports: Sequence[int], folder: Path) -> Generator[int, None, None]:
    text = (_DEPLOY / "nginx/nginx.conf").read_text("utf-8").replace("/tmp/", f"{folder}/")  # noqa: S108
    with _proxy(
        text, ports, folder, ["-p", str(folder), "-g", "daemon off;", "-c"], "nginx"
    ) as port:
        yield port


@contextmanager
def _haproxy(ports: Sequence[int], folder: Path) -> Generator[int, None, None]:
    text = (_DEPLOY / "haproxy/haproxy.cfg").read_text("utf-8")
    with _proxy(text, ports, folder, ["-db", "-f"], "haproxy") as port:
        yield port


_PROXIES = {"nginx": _nginx, "haproxy": _haproxy}


@contextmanager
def _proxy(
    text: str, ports: Sequence[int], folder: Path, flags: Sequence[str], name: str
) -> Generator[int, None, None]:
    """A proxy in front of the replicas; its port."""
    own = _free_port()
    text = re.sub(r"(listen|bind) :?8080", rf"\1 127.0.0.1:{own}", text)
    for number, port in enumerate(ports, 1):
        text = text.replace(f"matryo-{number}:8080", f"127.0.0.1:{port}")
    assert "matryo-1:8080" not in text
    written = folder / "proxy.conf"
    written.write_text(text, encoding="utf-8")
    program = shutil.which(name, path=_SEARCH)
    assert program
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen([program, *flags, str(written)], stdout=log, stderr=log)
    try:
        _wait_until(lambda: _status(own, "/readyz") == http.client.OK, f"{name} is ready")
        yield own
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


# --- the callers


class _Callers:
    """Threads that send at random times, all together at one rate, and never send again.

    Args:
        port: of the proxy.
        rate: requests a second of all of them; None to send when the answer before is there.
    """

    def __init__(self, port: int, rate: float | None) -> None:
        self._port, self._rate = port, rate
        self._end = threading.Event()
        self._lock = threading.Lock()
        self.phase = ""
        self.seen: dict[str, Counter[str]] = {}
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(_N_CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    @property
    def n_sent(self) -> int:
        """Requests with an outcome."""
        with self._lock:
            return sum(count.total() for count in self.seen.values())

    def _call(self, number: int) -> None:
        chance = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        due = time.monotonic()
        while not self._end.is_set():
            if self._rate:
                due += chance.expovariate(self._rate / _N_CALLERS)
                if self._end.wait(max(0.0, due - time.monotonic())):
                    break
            outcome = ""
            try:
                connection.request("POST", "/v1/embeddings", _body(chance), _HEADERS)
                answer = connection.getresponse()
                answer.read()
                outcome = str(answer.status)
            except (OSError, http.client.HTTPException) as exc:
                outcome = type(exc).__name__
                connection.close()  # the next request opens another
            with self._lock:
                self.seen.setdefault(self.phase, Counter())[outcome] += 1
        connection.close()


_HEADERS = {"Content-Type": "application/json"}
_WORDS = [
    "the",
    "sky",
    "is",
    "blue",
    "and",
    "a",
    "river",
    "flows",
    "to",
    "the",
    "sea",
    "where",
    "ships",
    "wait",
    "for",
    "wind",
]


def _body(chance: random.Random) -> bytes:
    """A query, or in one of twenty a request with 16 paragraphs."""
    texts: str | list[str] = " ".join(chance.choices(_WORDS, k=8))
    if chance.random() < 1 / 20:
        texts = [" ".join(chance.choices(_WORDS, k=40)) for _ in range(16)]
    return json.dumps({"input": texts, "encoding_format": "base64"}).encode()


# --- what happens


def _roll(name: str, command: Sequence[str], n_requests: int) -> int:
    """Roll the replicas behind a proxy; the number of requests that failed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matryo-roll-")))
        folder.chmod(0o755)  # nginx' workers are another user
        replicas = [_Replica(command) for _ in range(_N_REPLICAS)]
        for one in replicas:
            stack.callback(one.end)
            one.start()
        port = stack.enter_context(_PROXIES[name]([one.port for one in replicas], folder))
        with _Callers(port, None) as callers:
            time.sleep(5.0)
        most = callers.n_sent / 5.0
        _print(f"{name}: {most:.0f} requests a second at most, callers send half of that")
        with _Callers(port, most / 2) as callers:
            n_rounds = 0
            while n_rounds < 1 or callers.n_sent < n_requests:
                _round(callers, replicas)
                n_rounds += 1
        n_failed = _table(callers.seen)
        log = (folder / "proxy.log").read_text("utf-8", "replace")
        if n_failed:
            _print(log[-4000:])
    return n_failed


def _round(callers: _Callers, replicas: Sequence[_Replica]) -> None:
    """Stop one after the other, as a rolling restart does, and kill one."""
    for number, one in enumerate(replicas, 1):
        callers.phase = f"drain of replica {number}"
        one.stop()
        callers.phase = f"start of replica {number}"
        one.start()
    callers.phase = "kill -9 of replica 1"
    replicas[0].kill()
    callers.phase = "start after the kill"
    replicas[0].start()


def _table(seen: dict[str, Counter[str]]) -> int:
    n_failed = 0
    for phase, counts in seen.items():
        failed = {outcome: n for outcome, n in counts.items() if outcome != "200"}
        n_failed += sum(failed.values())
        _print(
            f"  {phase:<22} {counts.total():>7,} sent, {sum(failed.values())} failed {failed or ''}"
        )
    total = sum(counts.total() for counts in seen.values())
    _print(f"  {'together':<22} {total:>7,} sent, {n_failed} failed")
    return n_failed


# --- small things


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _status(port: int, path: str) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain until {what}")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
