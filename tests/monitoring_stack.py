"""A monitored server, Prometheus and Alertmanager as processes, and what their APIs say."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import requests

from tests.queries import PROMETHEUS

PATIENCE_S = 120.0
# Windows of rules in this test: the real ones would take days. Alerts wait one second.
_WINDOWS = {
    "5m": "5s",
    "10m": "5s",
    "15m": "60s",
    "30m": "10s",
    "1h": "12s",
    "6h": "15s",
    "3d": "20s",
}


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once `condition` is true.

    Raises:
        AssertionError: it was false for `PATIENCE_S`.
    """
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.2)


def answers(url: str) -> bool:
    """Whether a GET of `url` gets 200."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


class Monitored:
    """A server of `tests.monitored`, started and stopped at will.

    Args:
        name: ends the fingerprint, and names the log.
        root: folder of the log.
        environ: its settings.
    """

    def __init__(self, name: str, root: Path, environ: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root / f"{name}.log"
        self._command = [sys.executable, "-m", "tests.monitored", name, "--port", str(self.port)]
        self._environ = os.environ | dict(environ)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and wait until the server is ready."""
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environ, stdin=subprocess.PIPE, stderr=log, text=True
            )
        wait_for(lambda: answers(f"{self.url}/readyz"), f"the start of {self.log.stem}")

    def say(self, command: str) -> None:
        """Send a command of `tests.monitored`."""
        assert self._process
        assert self._process.stdin
        print(command, file=self._process.stdin, flush=True)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server with a signal."""
        if self._process:
            self._process.send_signal(number)
            self._process.wait(PATIENCE_S)
            self._process = None


class Stack:
    """Prometheus and Alertmanager with the files of deploy/prometheus, in seconds for minutes.

    Args:
        root: folder of data and logs.

    Attributes:
        url: of Prometheus.
        started: when, in seconds since 1970.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._config = root / "config"
        port, self._alertmanager_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.started = time.time()
        shutil.copytree(PROMETHEUS, self._config)
        self._alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        self._commands = [
            [
                "prometheus",
                f"--config.file={self._config}/prometheus.yml",
                f"--storage.tsdb.path={root}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                f"--web.console.templates={self._config}/consoles",
                f"--web.console.libraries={self._config}/consoles",
                "--rules.alert.resend-delay=1s",
            ]
        ]
        if self._alertmanager:
            self._commands.append(
                [
                    self._alertmanager,
                    f"--config.file={self._config}/alertmanager.yml",
                    f"--storage.path={root}/alertmanager",
                    f"--web.listen-address=127.0.0.1:{self._alertmanager_port}",
                    "--cluster.listen-address=",
                ]
            )

    @contextlib.contextmanager
    def running(self, *servers: Monitored) -> Generator[None, None, None]:
        """Run until the block ends, scraping these servers every second."""
        _scale(self._config)
        self.scrape(*servers)
        there = f"[{{targets: ['127.0.0.1:{self._alertmanager_port}']}}]"
        (self._config / "targets" / "alertmanager.yml").write_text(
            there if self._alertmanager else "[]"
        )
        with contextlib.ExitStack() as stack:
            for command in self._commands:
                log = stack.enter_context((self._root / f"{Path(command[0]).name}.log").open("w"))
                process = subprocess.Popen(command, stdout=log, stderr=log)
                stack.callback(process.wait, PATIENCE_S)
                stack.callback(process.terminate)
            wait_for(lambda: answers(f"{self.url}/-/ready"), "the start of Prometheus")
            yield

    def scrape(self, *servers: Monitored) -> None:
        """Scrape these servers from now on; Prometheus sees that the file changed."""
        listed = ", ".join(f"'127.0.0.1:{server.port}'" for server in servers)
        file = self._config / "targets" / "matryo.yml"
        part = file.with_suffix(".part")
        part.write_text(f"[{{targets: [{listed}]}}]")
        part.replace(file)

    def _get(self, path: str, **parameters: str | float) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        said = answer.json()
        assert said["status"] == "success", f"{parameters}: {said['error']}"
        return said["data"]

    def ever(self, query: str) -> list[Any]:
        """The series that a query had at any time since the start, with values that are numbers."""
        now = time.time()
        step = max(1.0, (now - self.started) / 5000)
        data = self._get("query_range", query=query, start=self.started, end=now, step=step)
        if data["resultType"] != "matrix":
            return []
        return [
            series
            for series in data["result"]
            if any(value != "NaN" for _, value in series["values"])
        ]

    def firing(self, name: str) -> set[str]:
        """Severity and window of the alerts of a name that fire now."""
        return {
            alert["labels"]["severity"] + alert["labels"].get("window", "")
            for alert in self._get("alerts")["alerts"]
            if alert["labels"]["alertname"] == name and alert["state"] == "firing"
        }

    def notified(self, name: str) -> set[str]:
        """The same as Alertmanager has it; what fires, if there is no Alertmanager."""
        if not self._alertmanager:
            return self.firing(name)
        url = f"http://127.0.0.1:{self._alertmanager_port}/api/v2/alerts"
        return {
            alert["labels"]["severity"] + alert["labels"].get("window", "")
            for alert in requests.get(url, timeout=30).json()
            if alert["labels"]["alertname"] == name
        }

    def page(self) -> str:
        """The console as Prometheus renders it."""
        answer = requests.get(f"{self.url}/consoles/matryo.html", timeout=30)
        answer.raise_for_status()
        return answer.text


def _scale(config: Path) -> None:
    """Write seconds for minutes into configuration and rules."""
    for path in config.glob("*.yml"):
        text = re.sub(r"_interval: (15s|5m)", "_interval: 1s", path.read_text("utf-8"))
        path.write_text(text.replace("group_wait: 30s", "group_wait: 1s"), "utf-8")
    for path in (config / "rules").glob("*.yml"):
        text = path.read_text("utf-8")
        text = re.sub(r"\[(\w+)\](?!:)", lambda found: f"[{_WINDOWS[found[1]]}]", text)
        text = re.sub(r"\bfor: \w+", "for: 1s", text)
        path.write_text(re.sub(r"\binterval: \w+", "interval: 1s", text), "utf-8")
