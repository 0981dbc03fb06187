"""A client that loads a server: threads with one connection each, in a process of their own.

Requests are made of bytes prepared beforehand and answers are not parsed, so that the client
takes as little as it can of the cores that it shares with the server.
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
    """One connection that sends its requests over and over.

    Attributes:
        name: of the kind of client; results are put together by it.
        bodies: JSON bodies, sent in turn.
        tokens: of each body, for the rate.
        pause_s: between an answer and the next request.
    """

    name: str
    bodies: tuple[bytes, ...]
    tokens: tuple[int, ...]
    pause_s: float = 0.0


@dataclass(slots=True)
class Result:
    """What one kind of client saw, the warm-up left out.

    Attributes:
        latencies_s: of each request that was answered with 200.
        statuses: count of each status.
        tokens: of what was answered.
        seconds: that were measured.
    """

    latencies_s: list[float] = field(default_factory=list[float])
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    tokens: float = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Rate of what was answered."""
        return self.tokens / self.seconds

    @property
    def requests_per_s(self) -> float:
        """Requests that were answered with 200, a second."""
        return len(self.latencies_s) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Latency that this share of the requests stays under."""
        if len(self.latencies_s) < 2:
            return 1000 * sum(self.latencies_s)
        cuts = statistics.quantiles(self.latencies_s, n=1000, method="inclusive")
        return 1000 * cuts[min(998, max(0, round(share * 1000) - 1))]


def body(texts: str | Sequence[str], **fields: Any) -> bytes:
    """A request's JSON."""
    return json.dumps({"input": texts, **fields}).encode()


def load(
    port: int,
    clients: Sequence[Client],
    *,
    seconds: float,
    warm_up_s: float = 1.0,
    path: str = "/v1/embeddings",
) -> dict[str, Result]:
    """Run clients side by side against 127.0.0.1, and collect what they saw.

    Args:
        port: of the server.
        clients: at least one.
        seconds: that are measured.
        warm_up_s: before that, not measured.
        path: to post to.
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
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    results = {client.name: Result(seconds=seconds) for client in clients}
    lock = threading.Lock()

    def work(client: Client) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        headers = {"Content-Type": "application/json"}
        place = 0
        while True:
            started = time.perf_counter()
            if started >= end:
                break
            turn = place % len(client.bodies)
            connection.request("POST", path, client.bodies[turn], headers)
            answer = connection.getresponse()
            answer.read()
            now = time.perf_counter()
            place += 1
            # A request that spans an edge of the measured time counts for its part within.
            within = max(0.0, min(now, end) - max(started, begin)) / (now - started)
            with lock:
                result = results[client.name]
                if within:
                    seen = result.statuses.get(answer.status, 0)
                    result.statuses[answer.status] = seen + 1
                if answer.status == http.client.OK:
                    result.tokens += client.tokens[turn] * within
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
