"""The door of batch lines: every answer is that of `POST /v1/embeddings`, byte for byte."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import orjson
import pytest
from prometheus_client import CollectorRegistry

from matryo.batch.windows import LineAnswer
from matryo.core.errors import NotReady
from matryo.core.metrics import Metrics
from matryo.http.openai.lines import BatchLines
from matryo.service import OPEN, Service, ServiceConfig
from matryo.service.limits import RequestLimits
from tests.contract.conftest import entered_application
from tests.fakes import MINILM, NOMIC, FakeEngine

BODIES: list[Any] = [
    {"input": "a plain text"},
    {"input": "a plain text", "model": NOMIC.id},
    {"input": ["two", "texts"], "encoding_format": "float"},
    {"input": ["two", "texts"], "encoding_format": "base64"},
    {"input": "short vectors", "dimensions": 64},
    {"input": ["short", "vectors"], "dimensions": 64, "encoding_format": "base64"},
    {"input": "what is it", "input_type": "query"},
    {"input": "what is it", "model": f"{NOMIC.id}-query"},
    {"input": "small numbers", "embedding_type": "int8"},
    {"input": "bits", "embedding_type": "ubinary", "encoding_format": "base64"},
    {"input": [5, 6, 7]},
    {"input": [[5, 6], [7]], "encoding_format": "base64"},
    {"input": "word " * 9000, "truncate": True},
    {"input": "other model", "model": MINILM.id},
    {"input": "é😀\u0000 ok", "user": "u-1"},
    # what is refused
    {},
    {"input": None},
    {"input": ""},
    {"input": []},
    {"input": ["a", ""]},
    {"input": ["a", 1]},
    {"input": [[]]},
    {"input": [1 << 40]},
    {"input": {"a": 1}},
    {"input": "word " * 9000},
    {"input": ["fine", "word " * 9000]},
    {"input": ["x"] * 2049},
    {"input": "a", "dimensions": 0},
    {"input": "a", "dimensions": 99_999},
    {"input": "a", "dimensions": "64"},
    {"input": "a", "model": "no-such-model"},
    {"input": "a", "model": ""},
    {"input": "a", "input_type": "no-such-type"},
    {"input": "a", "encoding_format": "hex"},
    {"input": "a", "embedding_type": "binary", "dimensions": 65},
    {"input": "a", "input_typ": "query"},
    {"input": "a", "unknown": {"x": 1}},
    {"input": "x" * (3 << 20)},
]


async def answers(door: BatchLines, bodies: Sequence[bytes]) -> Sequence[LineAnswer]:
    """The door's answers."""
    return await door(bodies, OPEN, [f"req_{n}" for n in range(len(bodies))])


@pytest.fixture
async def pair() -> AsyncIterator[tuple[httpx2.AsyncClient, BatchLines]]:
    """A client of the route, and the door on the same service."""
    engines: list[Any] = [FakeEngine(), FakeEngine(MINILM)]
    async with entered_application(engines, token_input="model") as (application, client):
        context = application.state.context
        door = BatchLines(context.service, context.body.max_bytes, context.unknown_fields)
        yield client, door


async def test_every_answer_is_that_of_the_route(
    pair: tuple[httpx2.AsyncClient, BatchLines],
) -> None:
    """In one window with all others, each body has the status and the bytes of its own request."""
    client, door = pair
    bodies = [orjson.dumps(one) for one in BODIES]
    found = await answers(door, bodies)
    for body, answer in zip(bodies, found, strict=True):
        response = await client.post(
            "/v1/embeddings", content=body, headers={"content-type": "application/json"}
        )
        assert (answer.status, answer.body) == (response.status_code, response.content), body[:80]
        usage = response.json().get("usage")
        assert answer.n_tokens == (usage["total_tokens"] if usage else 0)


async def test_the_order_does_not_matter(pair: tuple[httpx2.AsyncClient, BatchLines]) -> None:
    """A body has the same answer in any window, alone and with good and bad ones around it."""
    _, door = pair
    bodies = [orjson.dumps(one) for one in BODIES]
    whole = await answers(door, bodies)
    again = await answers(door, bodies[::-1])
    assert [one.body for one in again[::-1]] == [one.body for one in whole]
    for index in (0, 3, 11, 24, 30):
        assert (await answers(door, [bodies[index]]))[0].body == whole[index].body


async def test_a_body_over_the_limit() -> None:
    """A body over the limit of a request has the route's 413."""
    async with entered_application(FakeEngine(), max_body_bytes=2000) as (application, client):
        context = application.state.context
        door = BatchLines(context.service, context.body.max_bytes, context.unknown_fields)
        body = orjson.dumps({"input": "x" * 3000})
        (answer,) = await answers(door, [body])
        response = await client.post(
            "/v1/embeddings", content=body, headers={"content-type": "application/json"}
        )
        assert (answer.status, answer.body) == (413, response.content)


def service_of(engine: FakeEngine, memory_bytes: int | None = None) -> Service:
    """A service of one engine."""
    config = ServiceConfig(limits=RequestLimits(2048, 300_000), memory_bytes=memory_bytes)
    return Service([engine], config, Metrics(CollectorRegistry()))


def texts(n: int) -> list[bytes]:
    """Bodies of different texts."""
    return [orjson.dumps({"input": f"text {index} of some words"}) for index in range(n)]


async def test_lines_share_batches(engine: FakeEngine) -> None:
    """Lines of equal options are one request: few calls of the tokenizer, and full batches."""
    calls: list[int] = []
    engine.on_tokenize = lambda some: calls.append(len(some))
    async with service_of(engine) as service:
        calls.clear()
        n_before = len(engine.batches)
        found = await answers(BatchLines(service, 1 << 20, "warn"), texts(1000))
        assert {one.status for one in found} == {200}
        assert max(calls) == 128
        assert len(engine.batches) - n_before < 60


async def test_only_the_guilty_lines_fail(engine: FakeEngine) -> None:
    """An engine that fails on some texts fails their lines alone, with the route's 500."""
    bad = engine.tokenize(["text 17 of some words", "text 80 of some words"])
    wanted = {tuple(one.ids.tolist()) for one in bad}

    def fail(batch: Sequence[Any]) -> None:
        if any(tuple(ids[-len(next(iter(wanted))) + 1 :].tolist()) in ends for ids in batch):
            raise RuntimeError("no such text")

    ends = {one[1:] for one in wanted}
    engine.before = fail
    async with service_of(engine) as service:
        found = await answers(BatchLines(service, 1 << 20, "warn"), texts(100))
    failed = [index for index, one in enumerate(found) if one.status != 200]
    assert failed == [17, 80]
    error = json.loads(found[17].body)["error"]
    assert (found[17].status, error["type"]) == (500, "server_error")
    assert "req_17" in error["message"]
    assert "no such text" not in error["message"]


async def test_no_room_is_waited_for(engine: FakeEngine) -> None:
    """While others' requests hold the memory, the lines wait and get no error."""
    n_bytes = 1 << 20
    async with service_of(engine, memory_bytes=n_bytes) as service:
        held = service.budget.lease()
        held.grow(n_bytes, "body")
        ours = asyncio.create_task(answers(BatchLines(service, 1 << 20, "warn"), texts(3)))
        refusals = service._metrics.rejections.labels("memory")
        while not refusals._value.get():
            await asyncio.sleep(0)
        held.end()
        assert [one.status for one in await ours] == [200] * 3


async def test_a_service_that_stops(engine: FakeEngine) -> None:
    """A service that stops gives no answers: no line is told of it."""
    async with service_of(engine) as service:
        service.drain(0.0)
        with pytest.raises(NotReady):
            await answers(BatchLines(service, 1 << 20, "warn"), texts(20))


async def test_cancelling_drops_the_work(engine: FakeEngine) -> None:
    """A window that is cancelled leaves nothing in the queue."""
    async with service_of(engine) as service:
        engine.gate.clear()
        door = BatchLines(service, 1 << 20, "warn")
        bodies = [orjson.dumps({"input": f"text {n}", "dimensions": n + 8}) for n in range(50)]
        work = asyncio.create_task(answers(door, bodies))
        while not service._scheduler.n_requests:
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert work.cancelled()
        assert service._scheduler.n_requests == 0
        engine.gate.set()


async def test_base64_is_the_vector(engine: FakeEngine) -> None:
    """The base64 of a line is the little-endian float32 of the line's own row."""
    async with service_of(engine) as service:
        bodies = [orjson.dumps({"input": f"t {n}", "encoding_format": "base64"}) for n in range(9)]
        plain = [orjson.dumps({"input": f"t {n}"}) for n in range(9)]
        found = await answers(BatchLines(service, 1 << 20, "warn"), [*bodies, *plain])
        for one, other in zip(found[:9], found[9:], strict=True):
            raw = base64.b64decode(json.loads(one.body)["data"][0]["embedding"])
            row = json.loads(other.body)["data"][0]["embedding"]
            assert struct.unpack(f"<{len(row)}f", raw) == pytest.approx(row)
