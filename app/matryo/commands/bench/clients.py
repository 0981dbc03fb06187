"""Clients that put load on a server: a thread and a connection each, in a process of their own.

The clients share the cores with the server. To use little of them, they send bytes that were
prepared before, and do not parse the answers.

A client with a rate sends at random times that no answer delays, and its latencies begin at these
times. A client that waits for each answer before it sends again would hide how long the others of
its kind had to wait (Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from matryo.core.errors import SettingsInvalid

_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Client:
    """A connection that sends its requests again and again.

    Attributes:
        name: name of a group of clients, which have one result together.
        bodies: JSON bodies, sent in turn.
        tokens: number of tokens of each body.
        pause_s: seconds between an answer and the next request.
        rate: requests a second, at random times; None to send when the answer before is there.
    """

    name: str
    bodies: tuple[bytes, ...]
    tokens: tuple[int, ...]
    pause_s: float = 0.0
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where clients send their requests.

    Attributes:
        port: of the server.
        host: of the server.
        path: URL path of the requests.
        is_tls: whether the server speaks HTTPS.
        headers: of every request, beside Content-Type.
    """

    port: int
    host: str = "127.0.0.1"
    path: str = "/v1/embeddings"
    is_tls: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the server; opened by its first request."""
        kind = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=_TIMEOUT_S)


@dataclass(slots=True)
class Result:
    """The measurements of all clients with one name, without the warm-up.

    Attributes:
        latencies_s: latency of each request that was answered with 200.
        statuses: number of answers with each status.
        tokens: tokens of the requests that were answered with 200.
        seconds: length of the measurement.
    """

    latencies_s: list[float] = field(default_factory=list[float])
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    tokens: float = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of the requests that were answered with 200."""
        return self.tokens / self.seconds

    @property
    def requests_per_s(self) -> float:
        """Requests a second that were answered with 200."""
        return len(self.latencies_s) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """The latency that `share` (0 to 1) of the requests do not exceed, in ms."""
        if len(self.latencies_s) <= 1:  # of which there are no quantiles
            return 1000 * sum(self.latencies_s)
        cuts = statistics.quantiles(self.latencies_s, n=1000, method="inclusive")
        return 1000 * cuts[min(998, max(0, round(share * 1000) - 1))]


def body(texts: str | Sequence[str], **fields: Any) -> bytes:
    """The JSON body of a request."""
    return json.dumps({"input": texts, **fields}).encode()


def time_of(target: Target, content: bytes) -> float:
    """Seconds of one request, after one that is not counted.

    Args:
        target: where the request goes.
        content: its body.

    Raises:
        SettingsInvalid: the server cannot be reached, or does not answer with 200.
    """
    connection = target.connect()
    headers = {"Content-Type": "application/json", **dict(target.headers)}
    started = 0.0
    try:
        for _ in range(2):
            started = time.perf_counter()
            connection.request("POST", target.path, content, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.HTTPStatus.OK:
                raise SettingsInvalid(
                    f"{target.host}:{target.port}{target.path} answered {response.status}: "
                    f"{answer[:300].decode('utf-8', 'replace')}"
                )
        return time.perf_counter() - started
    except (OSError, http.client.HTTPException) as exc:
        raise SettingsInvalid(f"http://{target.host}:{target.port}: {exc}") from exc
    finally:
        connection.close()


def load(
    target: Target,
    clients: Sequence[Client],
    *,
    seconds: float,
    warm_up_s: float = 1.0,
) -> dict[str, Result]:
    """Run clients at the same time; returns the result of each client name.

    Args:
        target: where the clients send.
        clients: at least one client.
        seconds: length of the measurement.
        warm_up_s: seconds before the measurement, in which the clients already send.

    Raises:
        SettingsInvalid: a client could not reach the server.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    args = (target, list(clients), seconds, warm_up_s, theirs)
    process = context.Process(target=_run, args=args)
    process.start()
    theirs.close()
    try:
        found: dict[str, Result] | str = ours.recv()
    except EOFError:
        found = f"the clients ended with status {process.exitcode}"
    process.join()
    if isinstance(found, str):
        raise SettingsInvalid(f"http://{target.host}:{target.port}: {found}")
    return found


def _run(
    target: Target,
    clients: Sequence[Client],
    seconds: float,
    warm_up_s: float,
    pipe: Any,  # noqa: ANN401
) -> None:
    """Run the clients in this process, and send the results through `pipe`."""
    begin = time.perf_counter() + warm_up_s
    measurement = _Measurement(clients, begin, begin + seconds)

    def work(number: int, client: Client) -> None:
        connection = target.connect()
        headers = {"Content-Type": "application/json", **dict(target.headers)}
        due = _due(client, number)
        n_sent = 0
        try:
            while (started := next(due)) < measurement.end:
                index = n_sent % len(client.bodies)
                connection.request("POST", target.path, client.bodies[index], headers)
                answer = connection.getresponse()
                answer.read()
                measurement.add(client, index, answer.status, started)
                n_sent += 1
                if client.pause_s:
                    time.sleep(client.pause_s)
        except (OSError, http.client.HTTPException) as exc:
            measurement.faults.append(f"{type(exc).__name__}: {exc}")
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(measurement.faults[0] if measurement.faults else measurement.results)


def _due(client: Client, number: int) -> Iterator[float]:
    """The times at which a client's requests begin; each comes when that time has come."""
    chance = random.Random(number)
    due = time.perf_counter()
    while True:
        if not client.rate:
            yield time.perf_counter()
            continue
        due += chance.expovariate(client.rate)
        time.sleep(max(0.0, due - time.perf_counter()))
        yield due


class _Measurement:
    """What the threads of one process find.

    Args:
        clients: whose names have a result each.
        begin: when what happens begins to count, on the performance counter.
        end: of the measurement.
    """

    def __init__(self, clients: Sequence[Client], begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.results = {client.name: Result(seconds=end - begin) for client in clients}
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def add(self, client: Client, index: int, status: int, started: float) -> None:
        """Count an answer that is there now."""
        now = time.perf_counter()
        # The part of the request's time that lies within the measurement counts.
        within = max(0.0, min(now, self.end) - max(started, self.begin)) / (now - started)
        with self._lock:
            result = self.results[client.name]
            if within:
                result.statuses[status] = result.statuses.get(status, 0) + 1
            if status == http.client.OK:
                result.tokens += client.tokens[index] * within
                if started >= self.begin:
                    result.latencies_s.append(now - started)
