"""What callers who mean harm, or mean none, can do to a server, and to its other callers.

    .venv/bin/python -m bench.abuse --model all-minilm-l6-v2 --seconds 20 --output out/abuse.md

Each scenario meets a new `matryo serve` on the loopback interface, which may open 1,024 files at
first. A process of its own watches the server: it samples its memory, asks `/livez` twenty times a
second, and sends short queries as a normal client does, first alone and then beside the scenario.
Each shape of a body runs alone and eight at a time. The last scenario is a SIGTERM under load.

`--only` runs the scenarios whose names begin with a text. `--settle` is the time after which memory
is measured again. The table goes to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import resource
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from bench.service import Service
from bench.shapes import SHAPES
from bench.watch import Watched, Watcher, quantile_ms, rss_mb
from matryo.assembly.models import make_ready
from matryo.core.environment import load_settings

QUERY = json.dumps({"input": "who wrote the first compiler?"}).encode()
WORK = json.dumps({"input": ["the sky is blue and the grass is green " * 8] * 8}).encode()
MANY = json.dumps({"input": ["t"] * 2048}).encode()
_PIECE = 1 << 16
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_STREAM_BYTES = 45_000_000
_ANSWER_S = 120.0
_WATCH_S = 1.0  # what a short scenario did to others may show after its end
_FILES = 1024  # the soft limit of most systems


@dataclass(slots=True)
class Seen:
    """What the callers of a scenario got.

    Attributes:
        statuses: number of answers with each status, and of connections that ended otherwise.
        raw: number of answers that are not those of an API, by what is wrong with them.
        note: a fact of the scenario's own.
    """

    statuses: Counter[str] = field(default_factory=Counter[str])
    raw: Counter[str] = field(default_factory=Counter[str])
    note: str = ""


Scenario = Callable[[int, float, Seen], Coroutine[Any, Any, None]]
"""Acts on the server at a port for about some seconds, and counts what comes back."""


# --- one connection


def request(
    body: bytes, *, path: str = "/v1/embeddings", method: str = "POST", length: int | None = None
) -> bytes:
    """The bytes of a request; `length` is another Content-Length than that of the body."""
    count = len(body) if length is None else length
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {count}\r\n\r\n"
    )
    return head.encode() + body


@contextlib.asynccontextmanager
async def connected(
    port: int, receive_bytes: int | None = None
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the server; at the end it is closed at once.

    Args:
        port: of the server.
        receive_bytes: size of the socket's buffer of received bytes; None for the system's.
    """
    plain = socket.socket()
    plain.setblocking(False)  # noqa: FBT003 - the name of the method says it
    if receive_bytes:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def send(writer: asyncio.StreamWriter, content: bytes) -> None:
    """Send bytes, as fast as the server reads them."""
    view = memoryview(content)
    for start in range(0, len(view), _PIECE):
        writer.write(view[start : start + _PIECE])
        await writer.drain()


async def receive(reader: asyncio.StreamReader, seen: Seen) -> None:
    """Read one answer, and count it."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"\r\ncontent-length: (\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            while "\r\ntransfer-encoding: chunked" in head and not body.endswith(_LAST_CHUNK):
                body = body[-len(_LAST_CHUNK) :] + await _some(reader)
    except TimeoutError:
        seen.statuses["no answer"] += 1
        return
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        seen.statuses["closed"] += 1
        return
    seen.statuses[head.split(" ", 2)[1]] += 1
    if "\r\nx-request-id:" not in head:
        seen.raw["without x-request-id"] += 1
    if body and "application/json" not in head:
        seen.raw["not JSON"] += 1


async def _some(reader: asyncio.StreamReader) -> bytes:
    """Some bytes, at least one.

    Raises:
        IncompleteReadError: the stream has ended.
    """
    return await reader.readexactly(1) + await reader.read(_PIECE)


async def ask(port: int, content: bytes, seen: Seen) -> None:
    """Send one request on a connection of its own, and count the answer."""
    try:
        async with connected(port) as (reader, writer):
            with contextlib.suppress(OSError):  # an answer may have come before the end
                await send(writer, content)
            await receive(reader, seen)
    except OSError:
        seen.statuses["not connected"] += 1


# --- scenarios


async def crowd(port: int, seconds: float, seen: Seen) -> None:
    """500 clients with eight texts each, again and again; a third hangs up before the answer."""
    end = time.monotonic() + seconds

    async def client(index: int) -> None:
        while time.monotonic() < end:
            if index % 3:
                await ask(port, request(WORK), seen)
                continue
            with contextlib.suppress(OSError):
                async with connected(port) as (_, writer):
                    await send(writer, request(WORK))
                    await asyncio.sleep(0.1 + index % 10 / 10)
                    seen.statuses["hung up"] += 1

    await asyncio.gather(*(client(index) for index in range(500)))


async def slow_writers(port: int, seconds: float, seen: Seen) -> None:
    """60 callers who send a byte of the body each second."""

    async def writer_of_bytes() -> None:
        async with connected(port) as (reader, writer):
            answer = asyncio.create_task(receive(reader, seen))
            writer.write(request(b"{", length=1000))
            end = time.monotonic() + seconds
            with contextlib.suppress(OSError):
                while time.monotonic() < end and not answer.done():
                    await asyncio.sleep(1)
                    writer.write(b" ")
                    await writer.drain()
            if not answer.done():
                answer.cancel()
                seen.statuses["still open"] += 1

    await asyncio.gather(*(writer_of_bytes() for _ in range(60)))


async def never_read(port: int, seconds: float, seen: Seen, *, count: int = 60) -> None:
    """Callers with 2,048 short texts each, who never read the answer."""

    async def caller() -> None:
        async with connected(port, receive_bytes=4096) as (_, writer):
            writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
            await send(writer, request(MANY))
            await asyncio.sleep(seconds)
            seen.statuses["unread"] += 1

    await asyncio.gather(*(caller() for _ in range(count)))


async def idle(count: int, port: int, seconds: float, seen: Seen) -> None:
    """Connections on which nothing is sent."""

    async def caller() -> None:
        try:
            async with connected(port) as (reader, _):
                try:
                    async with asyncio.timeout(seconds):
                        closed = not await reader.read(1)
                    seen.statuses["closed" if closed else "answered"] += 1
                except TimeoutError:
                    seen.statuses["still open"] += 1
        except OSError:
            seen.statuses["reset"] += 1

    await asyncio.gather(*(caller() for _ in range(count)))


async def reset(port: int, _seconds: float, seen: Seen) -> None:
    """4,000 GETs, each on a connection that is closed by RST once the answer is there."""
    content = request(b"", path="/livez", method="GET")

    async def caller(count: int) -> None:
        for _ in range(count):
            try:
                async with connected(port) as (reader, writer):
                    plain: Any = writer.get_extra_info("socket")
                    linger = struct.pack("ii", 1, 0)
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.write(content)
                    await receive(reader, seen)
            except OSError:
                seen.statuses["not connected"] += 1

    await asyncio.gather(*(caller(100) for _ in range(40)))


CHUNKED = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


async def endless(before: bytes, piece: bytes, port: int, _seconds: float, seen: Seen) -> None:
    """45 MB of a part of a request that never ends."""
    try:
        async with connected(port) as (reader, writer):
            answer = asyncio.create_task(receive(reader, seen))
            with contextlib.suppress(OSError):
                writer.write(before)
                pieces = piece * (_PIECE // len(piece))
                for _ in range(_STREAM_BYTES // len(pieces)):
                    writer.write(pieces)
                    await writer.drain()
                seen.note = "all was read"
            # A server that waits for more will not answer.
            await asyncio.wait([answer], timeout=5)
            if not answer.done():
                seen.statuses["still open"] += 1
                answer.cancel()
    except OSError:
        seen.statuses["reset"] += 1


async def bodies(name: str, count: int, port: int, _seconds: float, seen: Seen) -> None:
    """`count` bodies of one shape at once, each of nearly 16 MB."""
    content = request(SHAPES[name](15_900_000))
    await asyncio.gather(*(ask(port, content, seen) for _ in range(count)))


SCENARIOS: dict[str, Scenario] = {
    "500 clients, a third hangs up": crowd,
    "60 slow writers": slow_writers,
    "60 that never read": never_read,
    "1,000 idle connections": partial(idle, 1000),
    "1,100 idle connections": partial(idle, 1100),  # more than a process may open at first
    "4,000 GETs closed by RST": reset,
    "45 MB of trailers": partial(endless, CHUNKED + b"2\r\n{}\r\n0\r\n", b"x-trailer: value\r\n"),
    "45 MB of a chunk's extension": partial(endless, CHUNKED + b"2;", b"extension=value;"),
    "45 MB of headers": partial(endless, b"GET /livez HTTP/1.1\r\n", b"x-header: value\r\n"),
    **{
        f"{name}, {count} at once" if count > 1 else f"{name}, 16 MB": partial(bodies, name, count)
        for name in SHAPES
        for count in (1, 8)
    },
}
STOP = "SIGTERM under load"


# --- one row


@dataclass(frozen=True, slots=True)
class Row:
    """The measurements of one scenario; memory in MB, latencies in ms."""

    name: str
    idle_mb: float
    alone: Watched
    beside: Watched
    settled_mb: float
    seen: Seen

    def cells(self) -> list[str]:
        """The cells of the table's row."""
        alone, beside = self.alone, self.beside
        return [
            self.name,
            f"{beside.peak_mb - self.idle_mb:+.0f}",
            f"{self.settled_mb - self.idle_mb:+.0f}" if self.settled_mb else "ended",
            f"{quantile_ms(beside.livez_s, 1):.0f}",
            f"{quantile_ms(beside.livez_s, 0.99):.0f}",
            f"{quantile_ms(beside.query_s, 0.99):.0f} / {quantile_ms(alone.query_s, 0.99):.0f}",
            _counts(self.seen.statuses) + (f"; {self.seen.note}" if self.seen.note else ""),
            _counts(beside.failures) or "none",
            _counts(self.seen.raw) or "none",
        ]


HEADS = (
    *("scenario", "peak RSS, MB", "RSS after, MB", "/livez max, ms", "/livez p99, ms"),
    *("query p99 / alone, ms", "statuses", "failed probes and queries", "raw"),
)


def _counts(counter: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counter.items()))


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [HEADS, ["---"] * len(HEADS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def log_file() -> IO[bytes]:
    """A new file for a server's log, which is removed when it is closed."""
    return cast("IO[bytes]", tempfile.NamedTemporaryFile(suffix=".log"))


@contextlib.contextmanager
def many_files() -> Generator[None, None, None]:
    """Let this process, and not the server, open as many files as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _log_faults(log: Path, seen: Seen) -> None:
    """Count what the server's log has and must not have."""
    text = log.read_text(errors="replace")
    for word in ("Traceback", "panicked", "ERROR:"):
        if found := text.count(word):
            seen.raw[f"{word} in the log"] += found


def measure(
    name: str, scenario: Scenario, flags: Sequence[str], seconds: float, settle_s: float
) -> Row:
    """Run one scenario against a new server."""
    with log_file() as log:
        with Service(*flags, log=log) as service, many_files():
            with Watcher(service.pid, service.port, QUERY) as alone:
                time.sleep(min(3.0, seconds))
            before, seen = service.rss_mb, Seen()
            with Watcher(service.pid, service.port, QUERY) as beside:
                started = time.monotonic()
                asyncio.run(scenario(service.port, seconds, seen))
                time.sleep(max(0.0, started + _WATCH_S - time.monotonic()))
            time.sleep(settle_s)
            after = rss_mb(service.pid)
            if service.ended is not None:
                seen.note = f"the server ended with {service.ended}"
        _log_faults(Path(log.name), seen)
    return Row(name, before, alone.seen, beside.seen, after, seen)


def measure_stop(flags: Sequence[str], seconds: float) -> Row:
    """Stop a server while 128 clients wait for answers, 4 send half a body, and 4 do not read.

    Every client has sent a whole request before the signal. One without an answer counts as closed.
    """
    seen = Seen()

    async def act(service: Service) -> None:
        stopping = asyncio.Event()

        async def client() -> None:
            while not stopping.is_set():
                await ask(service.port, request(WORK), seen)

        clients = [asyncio.create_task(client()) for _ in range(128)]
        half = request(b"{", length=1000)
        others = [asyncio.create_task(ask(service.port, half, seen)) for _ in range(4)]
        deaf = asyncio.create_task(never_read(service.port, 60.0, Seen(), count=4))
        await asyncio.sleep(min(3.0, seconds))
        stopping.set()
        spent_s, status = await asyncio.to_thread(service.stop, 60)
        await asyncio.gather(*clients, *others)
        deaf.cancel()
        seen.note = f"ended with {status} after {spent_s:.1f} s"

    with log_file() as log:
        with Service(*flags, log=log) as service:
            before = service.rss_mb
            with Watcher(service.pid, service.port, QUERY) as alone:
                time.sleep(min(3.0, seconds))
            with Watcher(service.pid, service.port, QUERY) as beside:
                asyncio.run(act(service))
        _log_faults(Path(log.name), seen)
    beside.seen.failures.clear()  # a server that has ended answers no probe
    return Row(STOP, before, alone.seen, beside.seen, 0.0, seen)


def main(flags_given: Sequence[str] | None = None) -> None:
    """Run the scenarios, and print a row for each and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=30, help="length of a scenario")
    parser.add_argument("--settle", type=float, default=120, help="seconds before RSS after")
    parser.add_argument("--only", default="", help="beginning of a scenario's name")
    parser.add_argument("--output", type=Path, help="file of the table")
    arguments = parser.parse_args(flags_given)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
    make_ready(load_settings(None, model=arguments.model, precision=arguments.precision))
    flags = ("--model", arguments.model, "--precision", arguments.precision)
    rows: list[Row] = []
    for name in (*SCENARIOS, STOP):
        if not name.startswith(arguments.only):
            continue
        if name == STOP:
            row = measure_stop(flags, arguments.seconds)
        else:
            row = measure(name, SCENARIOS[name], flags, arguments.seconds, arguments.settle)
        rows.append(row)
        print(" | ".join(row.cells()), flush=True)
    print(f"\n{table(rows)}")
    if arguments.output:
        arguments.output.write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
