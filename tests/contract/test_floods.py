"""Bodies and answers as large as they may be: what they cost the event loop, and what they keep."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest

from matryo.http import vectors
from matryo.http.openai import routes
from matryo.http.openai.encoding import Encoding
from matryo.http.openai.tally import SMALL_BYTES
from matryo.http.rows import PIECE_NUMBERS
from matryo.service.limits import PIECE_CHARACTERS
from tests.contract.conftest import client_of, entered_application
from tests.fakes import MINILM, FakeEngine

MIB = 1 << 20
MOST_S = 0.25  # of the loop's own work in one turn; what it waits for depends on the machine


def filled(head: bytes, item: bytes, tail: bytes, n_bytes: int = 16 * MIB - 100) -> bytes:
    """A body of so many bytes."""
    return head + item * ((n_bytes - len(head) - len(tail)) // len(item)) + tail


def texts(value: object, **fields: object) -> bytes:
    """A body with this input."""
    return json.dumps({"input": value} | fields).encode()


FLOODS: dict[str, tuple[bytes, int]] = {
    "numbers": (filled(b'{"input": [', b"1.25,", b"1]}"), 400),
    "ids": (filled(b'{"input": [', b"1,", b"1]}"), 400),
    "arrays of one id": (filled(b'{"input": [', b"[1],", b"[1]]}"), 400),
    "nested arrays": (b'{"input": ' + b"[" * (8 * MIB) + b"]" * (7 * MIB) + b"}", 400),
    "a million fields": (
        b'{"input": "a"' + b"".join(b',"k%d":0' % n for n in range(1_000_000)) + b"}",
        400,
    ),
    "fields in a field": (
        b'{"input": "a", "metadata": {"a": 0'
        + b"".join(b',"k%d":0' % n for n in range(1_000_000))
        + b"}}",
        400,
    ),
    "blanks": (filled(b'{"input": "', b" ", b'"}'), 400),
    "an endless word": (filled(b'{"input": "', b"a", b'"}'), 400),
    "escapes": (filled(b'{"input": "', b"\\u0000", b'"}'), 400),
    "blanks around": (filled(b'{"input": "a"', b" ", b"}"), 400),
    "texts": (texts(["a" * 8000] * 2040), 200),
    "texts of blanks": (texts([" " * 2_000_000] * 8, truncate=True), 200),
    "300,000 ids": (texts([[10, 20, 30, 40, 50] * 29] * 2048), 200),
    "300,000 ids, flat": (texts([100_000] * 299_000, truncate=True), 200),
    "300,000 ids, as decimals": (texts([1000.0] * 299_000, truncate=True), 200),
    "300,000 ids outside the vocabulary": (texts([1000] * 299_000 + [100_256]), 400),
    "2048 answers": (texts([f"w{n}" for n in range(2048)]), 200),
    "2048 answers in base64": (
        texts([f"w{n}" for n in range(2048)], encoding_format="base64"),
        200,
    ),
}


@dataclass
class Watch:
    """What orjson and the tokenizer were given, on which thread."""

    loop_thread: int = field(default_factory=threading.get_ident)
    parsed: list[tuple[bool, int]] = field(default_factory=list[tuple[bool, int]])
    tokenised: list[tuple[bool, int, int]] = field(default_factory=list[tuple[bool, int, int]])
    written: list[tuple[bool, int]] = field(default_factory=list[tuple[bool, int]])

    def on_loop(self) -> bool:
        """Whether this is the thread of the event loop."""
        return threading.get_ident() == self.loop_thread


@pytest.fixture
def engine() -> FakeEngine:
    """An engine whose vectors cost nothing."""
    fake = FakeEngine(MINILM)
    row: Any = np.linspace(-1, 1, 384, dtype=np.float32)
    fake.vector = lambda ids, dimensions: row[:dimensions]
    return fake


@pytest.fixture
async def watch(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Everything that orjson and the tokenizer are given."""
    watch = Watch()
    loads: Callable[[Any], Any] = orjson.loads
    dumps: Callable[..., bytes] = orjson.dumps

    def watched_loads(data: Any) -> Any:
        watch.parsed.append((watch.on_loop(), len(data)))
        return loads(data)

    def watched_dumps(value: Any, **options: Any) -> bytes:
        content = dumps(value, **options)
        watch.written.append((watch.on_loop(), len(content)))
        return content

    def watch_texts(strings: Any) -> None:
        watch.tokenised.append((watch.on_loop(), len(strings), sum(map(len, strings))))

    monkeypatch.setattr(orjson, "loads", watched_loads)
    monkeypatch.setattr(orjson, "dumps", watched_dumps)
    engine.on_tokenize = watch_texts
    return watch


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the engine alone."""
    async with client_of(engine) as client:
        yield client


async def longest_turn_s(work: Callable[[], Any]) -> float:
    """The most processor time that the event loop's thread spent between two timers."""
    loop = asyncio.get_running_loop()
    times = [time.thread_time()]
    running = True

    def tick() -> None:
        times.append(time.thread_time())
        if running:
            loop.call_later(0.002, tick)

    tick()
    await work()
    running = False
    times.append(time.thread_time())
    return float(np.diff(times).max())


@pytest.mark.parametrize("name", FLOODS)
async def test_floods(name: str, client: httpx2.AsyncClient, watch: Watch) -> None:
    """Large bodies are parsed, tokenised and answered in pieces on threads, or refused."""
    body, status = FLOODS[name]
    found: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), SMALL_BYTES):
            yield body[start : start + SMALL_BYTES]
            await asyncio.sleep(0)  # as a socket would give others a turn

    async def post() -> None:
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/embeddings", content=pieces(), headers=headers)
        found.append(answer.status_code)

    turn_s = await longest_turn_s(post)
    assert found == [status]
    for on_loop, n_bytes in watch.parsed:
        assert n_bytes <= (SMALL_BYTES if on_loop else 10 * MIB)
    for on_loop, n_texts, n_chars in watch.tokenised:
        assert n_chars <= (1000 if on_loop else PIECE_CHARACTERS) or (n_texts == 1 and not on_loop)
    for on_loop, n_bytes in watch.written:
        assert n_bytes <= (100_000 if on_loop else 24 * PIECE_NUMBERS)
    assert turn_s < MOST_S


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Garbage that refers to itself stays, until the test is over."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_nothing_keeps_the_vectors(engine: FakeEngine) -> None:
    """The vectors of a large answer are freed with it, and need no collector for that."""
    async with client_of(engine) as client:
        answer = await client.post("/v1/embeddings", content=texts([f"w{n}" for n in range(1000)]))
        assert answer.status_code == 200
        assert len(answer.json()["data"]) == 1000
    assert [one for one in gc.get_objects() if isinstance(one, Encoding)] == []


@pytest.mark.usefixtures("no_collector")
async def test_nothing_keeps_the_body(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a large body are freed before the model runs, and need no collector for that."""
    freed = threading.Event()

    class Body(bytes):
        def __del__(self) -> None:
            freed.set()

    async def read(*_: object) -> bytes:
        return Body(texts(["a" * 3000] * 100))

    monkeypatch.setattr(vectors, "read_body", read)
    seen: list[bool] = []
    async with client_of(engine) as client:
        # The thread that parsed may still be on its way to let go.
        engine.before = lambda _: seen.append(freed.wait(10))
        answer = await client.post("/v1/embeddings", json={})
    assert answer.status_code == 200
    assert seen
    assert all(seen)


@pytest.mark.parametrize("body", [texts("a"), texts(["a" * 3000] * 100), b"{", b"[" * 200_000])
async def test_the_lease_ends_with_the_answer(engine: FakeEngine, body: bytes) -> None:
    """After an answer of any kind, its request holds nothing of the budget."""
    held: list[int] = []
    async with entered_application(engine) as (application, client):
        budget = application.state.context.service.budget
        engine.before = lambda _: held.append(budget.held)
        await client.post("/v1/embeddings", content=body)
        assert budget.held == 0
    assert all(n_bytes > len(body) for n_bytes in held[2:])


async def test_a_body_that_does_not_fit_is_not_parsed(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large body whose values need more than the budget has left gets 429 before it is parsed."""
    parsed: list[object] = []
    monkeypatch.setattr(routes, "parse_request", lambda *given: parsed.append(given))
    async with entered_application(engine) as (application, client):
        application.state.context.service.budget.limit = 1_000_000
        answer = await client.post("/v1/embeddings", content=texts([1] * 100_000))
        assert answer.status_code == 429
        assert "bytes of memory" in answer.json()["error"]["message"]
        assert application.state.context.service.budget.held == 0
    assert parsed == []


async def test_an_answer_that_does_not_fit_is_not_computed(engine: FakeEngine) -> None:
    """A request whose vectors, or the bytes of its answer, do not fit gets 429 before it runs."""
    async with entered_application(engine) as (application, client):
        budget = application.state.context.service.budget
        body = texts([f"w{n}" for n in range(1000)])
        assert (await client.post("/v1/embeddings", content=body)).status_code == 200
        n_batches = len(engine.batches)
        for limit in (1_000_000, 2_000_000):  # of the answer, of the vectors
            budget.limit = limit
            assert (await client.post("/v1/embeddings", content=body)).status_code == 429
            assert budget.held == 0
        assert len(engine.batches) == n_batches
        small = json.loads(body) | {"dimensions": 8}
        assert (await client.post("/v1/embeddings", json=small)).status_code == 200


async def test_ids_of_blanks_are_decoded_as_far_as_they_are_read(
    engine: FakeEngine, watch: Watch
) -> None:
    """Ids that stand for 81 blanks each fill neither the memory nor the time of a thread."""
    async with entered_application(engine) as (application, client):
        decoder = application.state.context.service.decoder
        decoder._load()
        blanks = next(n for n, piece in enumerate(decoder._table) if piece == b" " * 81)
        body = texts([[blanks] * 20_000] * 10, truncate=True)
        answer = await client.post("/v1/embeddings", content=body)
        assert answer.status_code == 200
        assert answer.headers["x-matryo-truncated"] == "10"
        few = texts([blanks] * 900)  # few items, but too much text for the event loop
        assert (await client.post("/v1/embeddings", content=few)).status_code == 200
    assert max(n_chars for _, _, n_chars in watch.tokenised) < 1_000_000
    assert not any(on_loop for on_loop, _, n_chars in watch.tokenised if n_chars > 1000)
