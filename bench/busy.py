"""One thread that keeps many connections busy, at little cost of its own.

Requests are bytes that were prepared before. An answer is read no further than its length, so that
the client takes a small part of what the server takes for a request.
"""

from __future__ import annotations

import select
import socket
import time

_READ_BYTES = 256 * 1024
_LENGTH = b"content-length: "


def request_bytes(path: str, body: bytes) -> bytes:
    """A POST of JSON on a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def keep_busy(
    port: int, request: bytes, *, connections: int, begin: float, end: float
) -> list[float]:
    """Send a request on each connection again as soon as its answer is there.

    Args:
        port: of a server on 127.0.0.1.
        request: the bytes that every connection sends.
        connections: number of connections.
        begin: of the measurement, by `time.perf_counter`; requests before it are a warm-up.
        end: of the measurement.

    Returns:
        The latency in seconds of each request that was answered in the measurement.

    Raises:
        RuntimeError: an answer is not 200, or a connection ended.
    """
    opened = {
        one.fileno(): one
        for one in (socket.create_connection(("127.0.0.1", port)) for _ in range(connections))
    }
    poll = select.epoll()
    for number, one in opened.items():
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(number, select.EPOLLIN)
    read = dict.fromkeys(opened, b"")
    sent = dict.fromkeys(opened, time.perf_counter())
    latencies: list[float] = []
    now = time.perf_counter()
    for one in opened.values():
        one.send(request)
    while now < end:
        for number, _ in poll.poll(1.0):
            one = opened[number]
            data = read[number] + one.recv(_READ_BYTES)
            if not _is_whole(data):
                read[number] = data
                continue
            now = time.perf_counter()
            if begin <= now < end:
                latencies.append(now - sent[number])
            read[number], sent[number] = b"", now
            one.send(request)
        now = time.perf_counter()
    poll.close()
    for one in opened.values():
        one.close()
    return latencies


def _is_whole(data: bytes) -> bool:
    """Whether all of an answer is there."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        if not data:
            raise RuntimeError("the server ended a connection")
        return False
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server answered {data[:400]!r}")
    start = data.find(_LENGTH, 0, head) + len(_LENGTH)
    return len(data) >= head + 4 + int(data[start : data.find(b"\r", start)])
