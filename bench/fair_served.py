"""The clients of `bench.fair` before a real server."""

from __future__ import annotations

import asyncio
import http
import json
import multiprocessing
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.fair_load import BULK, POLITE, QUERY, Greed, Load, Seen
from bench.service import Service

KEYS = [f"sk-fair-{n:02}" for n in range(POLITE + 1)]
"""Of the tenants; the last one is the greedy's."""

_WORDS = ("the", "a", "of", "to", "in", "and", "for", "with", "on", "that", "is", "was", "by")
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_HEAD_START_S = 0.2
_NICE = 10  # of the greedy client, which has the cores that the others leave


def served(
    model: str, precision: str, load: Load, rounds: int
) -> Iterator[tuple[Greed, Seen, Seen, float]]:
    """For each kind of greed: what the polite see alone and beside, the greedy's tokens alone."""
    environ = {"MATRYO_API_KEYS": ",".join(KEYS)}
    greeds: tuple[Greed, ...] = ("bulk", "queries")
    with Service("--model", model, "--precision", precision, environ=environ) as service:
        idle = replace(load, rate=0.0)
        measure(service.port, replace(load, seconds=3.0), "bulk")  # a warm-up
        alone, beside = Seen(), {greed: Seen() for greed in greeds}
        most = dict.fromkeys(greeds, 0.0)
        for _ in range(rounds):
            _add(alone, measure(service.port, load, "none"))
            for greed in greeds:
                _add(beside[greed], measure(service.port, load, greed))
                most[greed] += sum(measure(service.port, idle, greed).greedy_tokens.values())
        for greed in greeds:
            yield greed, alone, beside[greed], most[greed]


def _add(total: Seen, seen: Seen) -> None:
    total.queries_s += seen.queries_s
    total.bulk_s += seen.bulk_s
    total.refused += seen.refused
    for name, n_tokens in seen.greedy_tokens.items():
        total.greedy_tokens[name] = total.greedy_tokens.get(name, 0) + n_tokens


def measure(port: int, load: Load, greed: Greed) -> Seen:
    """One measurement: the polite in a process, the greedy in another one."""
    context, seen = multiprocessing.get_context("spawn"), Seen()
    kinds: list[Greed] = ["none"] if greed == "none" else ["none", greed]
    works: list[tuple[Any, Any]] = []
    for kind in kinds:
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(port, load, kind, theirs))
        process.start()
        works.append((process, ours))
    for _, ours in works:
        ours.recv()  # the process has started
    for _, ours in works:
        ours.send(time.time() + _HEAD_START_S)
    for process, ours in works:
        _add(seen, ours.recv())
        process.join()
    return seen


def _run(port: int, load: Load, greed: Greed, pipe: Any) -> None:  # noqa: ANN401
    """The clients of one process: the polite, where there is no greed."""
    if greed != "none":
        os.nice(_NICE)
    pipe.send(None)
    pipe.send(asyncio.run(_Clients(port, load, pipe.recv()).run(greed)))


class _Clients:
    """Clients that share an event loop."""

    def __init__(self, port: int, load: Load, began: float) -> None:
        self._port, self._load = port, load
        self._seen = Seen()
        wait_s = max(0.0, began - time.time())
        self._start = time.perf_counter() + wait_s
        self._end = self._start + load.seconds
        self._begin = self._start + load.seconds / 6

    async def run(self, greed: Greed) -> Seen:
        """Send until the end."""
        await asyncio.sleep(self._start - time.perf_counter())
        if greed == "none":
            works = [self._polite(number) for number in range(POLITE)]
        else:
            count = self._load.connections * (1 if greed == "bulk" else 4)
            works = [self._greedy(greed, random.Random(n)) for n in range(count)]
        await asyncio.gather(*works)
        return self._seen

    async def _polite(self, number: int) -> None:
        if not self._load.rate:
            return
        rng, tasks = random.Random(number), list[asyncio.Task[None]]()
        while time.perf_counter() < self._end:
            await asyncio.sleep(rng.expovariate(self._load.rate / POLITE))
            is_bulk = rng.random() < self._load.bulk_part
            body = _body(rng, self._load.bulk_texts if is_bulk else 1, BULK if is_bulk else QUERY)
            tasks.append(asyncio.create_task(self._send(number, body, is_bulk=is_bulk)))
        await asyncio.gather(*tasks)

    async def _send(self, number: int, body: bytes, *, is_bulk: bool) -> None:
        """One polite request, on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        sent = time.perf_counter()
        writer.write(_request(KEYS[number], body))
        status = (await _answer(reader))[0]
        spent_s = time.perf_counter() - sent
        writer.close()
        if status != http.HTTPStatus.OK:
            self._seen.refused += 1
        elif sent >= self._begin:
            (self._seen.bulk_s if is_bulk else self._seen.queries_s).append(spent_s)

    async def _greedy(self, greed: Greed, rng: random.Random) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        count, lengths = (self._load.greedy_texts, BULK) if greed == "bulk" else (1, QUERY)
        try:
            async with asyncio.timeout(self._end - time.perf_counter()):
                while True:
                    writer.write(_request(KEYS[-1], _body(rng, count, lengths)))
                    status, n_tokens = await _answer(reader)
                    if status != http.HTTPStatus.OK:
                        await asyncio.sleep(1)
                    elif time.perf_counter() >= self._begin:
                        self._seen.greedy_tokens["greedy"] = (
                            self._seen.greedy_tokens.get("greedy", 0) + n_tokens
                        )
        except TimeoutError:
            pass
        finally:
            writer.close()


def _body(rng: random.Random, count: int, lengths: tuple[int, int]) -> bytes:
    """A body of so many texts, each of about so many tokens."""
    texts = [" ".join(rng.choices(_WORDS, k=rng.randint(*lengths))) for _ in range(count)]
    return json.dumps({"input": texts, "encoding_format": "base64", "truncate": True}).encode()


def _request(key: str, body: bytes) -> bytes:
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status of an answer, and the tokens that it counts."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    if found := _LENGTH.search(head):
        body = await reader.readexactly(int(found[1]))
    else:
        body = b"".join(await _chunks(reader))
    if status != http.HTTPStatus.OK:
        return status, 0
    return status, int(body[body.rindex(b"total_tokens") :].split(b":")[1].strip(b"} \n"))


async def _chunks(reader: asyncio.StreamReader) -> Sequence[bytes]:
    """The chunks of a chunked body."""
    chunks: list[bytes] = []
    while n_bytes := int(await reader.readline(), 16):
        chunks.append(await reader.readexactly(n_bytes))
        await reader.readline()
    await reader.readline()
    return chunks
