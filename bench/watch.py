"""Watches a server from a process of its own: memory, `/livez`, and a client with short queries."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Watched:
    """What a watcher has seen.

    Attributes:
        peak_mb: largest resident memory of the server's process, in MB.
        livez_s: latency of each `/livez`; a failed one counts with the time until it failed.
        query_s: latency of each query that was answered with 200.
        failures: number of probes and queries that failed, by what happened.
    """

    peak_mb: float = 0.0
    livez_s: list[float] = field(default_factory=list[float])
    query_s: list[float] = field(default_factory=list[float])
    failures: dict[str, int] = field(default_factory=dict[str, int])


def quantile_ms(latencies_s: Sequence[float], share: float) -> float:
    """The latency that `share` (0 to 1) of the requests do not exceed, in ms; 0 without any."""
    ordered = sorted(latencies_s)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watcher:
    """A context manager that watches while it is open; `seen` holds the result afterwards.

    Args:
        pid: of the server.
        port: of the server.
        query: body of the client's request.
    """

    def __init__(self, pid: int, port: int, query: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop: Any = context.Event()
        self._ours, theirs = context.Pipe()
        args = (pid, port, query, self._stop, theirs)
        self._process = context.Process(target=_watch, args=args)
        self.seen = Watched()

    def __enter__(self) -> Self:
        self._process.start()
        self._ours.recv()  # it watches
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self.seen = self._ours.recv()
        self._process.join()


def _watch(pid: int, port: int, query: bytes, stop: Any, pipe: Any) -> None:  # noqa: ANN401
    seen = Watched()

    def sample() -> None:
        while not stop.wait(0.02):
            seen.peak_mb = max(seen.peak_mb, rss_mb(pid))

    def probe() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        while not stop.wait(0.05):
            _ask(connection, "/livez", None, seen.livez_s, seen.failures)
            connection.close()  # a probe has a connection of its own

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        while not stop.wait(0.1):
            _ask(connection, "/v1/embeddings", query, seen.query_s, seen.failures)

    threads = [threading.Thread(target=target) for target in (sample, probe, work)]
    for thread in threads:
        thread.start()
    pipe.send(None)
    for thread in threads:
        thread.join()
    pipe.send(seen)


def _ask(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes | None,
    latencies_s: list[float],
    failures: dict[str, int],
) -> None:
    """Send one request; add its latency, or the failure. A probe that fails has a latency too."""
    started, failure = time.perf_counter(), ""
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.client.OK:
            failure = f"{path} {answer.status}"
    except (OSError, http.client.HTTPException) as exc:
        connection.close()
        failure = f"{path} {type(exc).__name__}"
    if failure:
        failures[failure] = failures.get(failure, 0) + 1
    if not failure or body is None:
        latencies_s.append(time.perf_counter() - started)
