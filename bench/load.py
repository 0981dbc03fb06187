"""Clients that put load on a server: a thread and a connection each, in a process of their own.

The clients share the cores with the server. To use little of them, they send bytes that were
prepared before, and do not parse the answers.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Client:
    """A connection that sends its requests again and again.

    Attributes:
        name: name of a group of clients, which have one result together.
        bodies: JSON bodies, sent in turn.
        tokens: number of tokens of each body.
        pause_s: seconds between an answer and the next request.
    """

    name: str
    bodies: tuple[bytes, ...]
    tokens: tuple[int, ...]
    pause_s: float = 0.0


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
        if len(self.latencies_s) < 2:
            return 1000 * sum(self.latencies_s)
        cuts = statistics.quantiles(self.latencies_s, n=1000, method="inclusive")
        return 1000 * cuts[min(998, max(0, round(share * 1000) - 1))]


def body(texts: str | Sequence[str], **fields: Any) -> bytes:
    """The JSON body of a request."""
    return json.dumps({"input": texts, **fields}).encode()


def load(
    port: int,
    clients: Sequence[Client],
    *,
    seconds: float,
    warm_up_s: float = 1.0,
    path: str = "/v1/embeddings",
) -> dict[str, Result]:
    """Run clients at the same time against 127.0.0.1; returns the result of each client name.

    Args:
        port: port of the server.
        clients: at least one client.
        seconds: length of the measurement.
        warm_up_s: seconds before the measurement, in which the clients already send.
        path: URL path of the requests.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    args = (port, list(clients), seconds, warm_up_s, path, theirs)
    process = context.Process(target=_run, args=args)
    process.start()
    results: dict[str, Result] = ours.recv()
    process.join()
    return results


def _run(
    port: int,
    clients: Sequence[Client],
    seconds: float,
    warm_up_s: float,
    path: str,
    pipe: Any,  # noqa: ANN401
) -> None:
    """Run the clients in this process, and send the results through `pipe`."""
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    results = {client.name: Result(seconds=seconds) for client in clients}
    lock = threading.Lock()

    def work(client: Client) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        headers = {"Content-Type": "application/json"}
        n_sent = 0
        while True:
            started = time.perf_counter()
            if started >= end:
                break
            index = n_sent % len(client.bodies)
            connection.request("POST", path, client.bodies[index], headers)
            answer = connection.getresponse()
            answer.read()
            now = time.perf_counter()
            n_sent += 1
            # The part of the request's time that lies within the measurement counts.
            within = max(0.0, min(now, end) - max(started, begin)) / (now - started)
            with lock:
                result = results[client.name]
                if within:
                    seen = result.statuses.get(answer.status, 0)
                    result.statuses[answer.status] = seen + 1
                if answer.status == http.client.OK:
                    result.tokens += client.tokens[index] * within
                    if started >= begin:
                        result.latencies_s.append(now - started)
            if client.pause_s:
                time.sleep(client.pause_s)
        connection.close()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(results)
