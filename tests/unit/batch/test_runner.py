"""The runner: one batch at a time, to its end, whatever happens to callers, leases and storage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
import pytest

from matryo.batch.job import JobConfig
from matryo.batch.runner import Runner, RunnerConfig
from matryo.core.errors import (
    Overloaded,
    StorageDamaged,
    StorageFull,
    StorageQuotaReached,
    StorageUnavailable,
)
from matryo.core.metrics import Metrics
from matryo.http.openai.lines import BatchLines
from matryo.service import Service, ServiceConfig
from matryo.service.key_file import Key, NamedKey
from matryo.service.limits import RequestLimits
from tests.fakes import FakeEngine
from tests.unit.batch.memory import DAY_S, NOW, Entry, MemoryStorage

N_TEXTS = 4  # of a window


def input_of(n: int, **body: Any) -> bytes:
    """A file of `n` lines."""
    lines = [
        {
            "custom_id": f"r{index}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"input": f"text {index}"} | body,
        }
        for index in range(n)
    ]
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


class Clock:
    """Seconds since 1970 that a test sets."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        """The time."""
        return self.now


class Desk:
    """A service, and runners on one storage."""

    def __init__(self, service: Service, storage: MemoryStorage, metrics: Metrics) -> None:
        self.service, self.storage, self.metrics = service, storage, metrics
        self.clock = Clock()
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> tuple[Runner, asyncio.Task[None]]:
        """Start a runner."""
        config = RunnerConfig(
            JobConfig(lease_s=0.04, look_s=0.01, now=self.clock),
            idle_s=0.01,
            care_s=0.01,
            pause_s=0.001,
        )
        door = BatchLines(self.service, 1 << 20, "warn")
        storage = cast("Any", self.storage)
        runner = Runner(storage, door, self.service, self.metrics, config)
        task = asyncio.create_task(runner.run())
        self.tasks.append(task)
        return runner, task

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait for a state; the error of a runner that ended early is raised."""
        while not wanted():
            for task in self.tasks:
                if task.done() and not task.cancelled():
                    task.result()
            await asyncio.sleep(0.001)

    async def ended(self, index: int = 0) -> Entry:
        """The batch at an index, once it has ended."""
        entry = self.storage.entries[index]
        await self.until(
            lambda: entry.batch.status in ("completed", "failed", "cancelled", "expired")
        )
        return entry


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of few texts."""
    monkeypatch.setattr("matryo.batch.windows.MAX_INPUTS", N_TEXTS)


@asynccontextmanager
async def desk(
    engine: FakeEngine, metrics: Metrics, *contents: bytes, **options: Any
) -> AsyncGenerator[Desk, None]:
    """A desk whose runners stop at the end."""
    config = ServiceConfig(limits=RequestLimits(2048, 300_000))
    service = Service([engine], config, metrics)
    async with service:
        found = Desk(service, MemoryStorage(*contents, **options), metrics)
        try:
            yield found
        finally:
            engine.before = lambda _: None
            engine.gate.set()
            for task in found.tasks:
                task.cancel()
            await asyncio.gather(*found.tasks, return_exceptions=True)


def ids(content: bytes) -> list[str]:
    """The custom_ids of result lines."""
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def key(name: str, **limits: Any) -> NamedKey:
    """A key with limits."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    found = Key.model_validate({"sha256": digest} | limits)
    return NamedKey(name=name, key=found, where="")


def value(metric: Any) -> float:
    """What a metric counts."""
    return metric._value.get()


async def test_a_batch_completes(engine: FakeEngine, metrics: Metrics) -> None:
    """Every line has one result in OpenAI's shape; counts, tokens and metrics say so."""
    async with desk(engine, metrics, input_of(10)) as one:
        one.start()
        entry = await one.ended()
        batch = entry.batch
        assert (batch.status, batch.model) == ("completed", engine.manifest.id)
        assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (10, 10, 0)
        results = [json.loads(line) for line in entry.output.splitlines()]
        assert [result["custom_id"] for result in results] == [f"r{n}" for n in range(10)]
        assert len({result["id"] for result in results}) == 10
        first = results[0]
        assert set(first) == {"id", "custom_id", "response", "error"}
        assert first["id"].startswith("batch_req_")
        assert first["error"] is None
        assert first["response"]["status_code"] == 200
        assert first["response"]["request_id"].startswith("req_")
        n_tokens = sum(result["response"]["body"]["usage"]["total_tokens"] for result in results)
        assert batch.n_tokens == n_tokens
        assert value(metrics.batch_line_tokens) == n_tokens
        assert value(metrics.batch_lines.labels("completed")) == 10
        await one.until(lambda: value(metrics.batch_jobs.labels("completed")) == 1)
        assert value(metrics.batch_oldest_seconds) == 60
        assert value(metrics.batch_next_expiry) == NOW + DAY_S
        assert value(metrics.batch_stored_bytes) == 1234


async def test_failed_lines(engine: FakeEngine, metrics: Metrics) -> None:
    """A line with a wrong body is in the errors with its status, and the batch completes."""
    content = input_of(3) + input_of(6, dimensions=0).replace(b'"r', b'"bad')
    async with desk(engine, metrics, content) as one:
        one.start()
        entry = await one.ended()
        assert (entry.batch.status, entry.batch.counts.failed) == ("completed", 6)
        assert ids(entry.output) == ["r0", "r1", "r2"]
        error = json.loads(entry.errors.splitlines()[0])
        assert error["response"]["status_code"] == 400
        assert error["response"]["body"]["error"]["param"] == "dimensions"
        assert error["error"] is None


async def test_a_refused_input(engine: FakeEngine, metrics: Metrics) -> None:
    """An input with wrong lines fails the batch before anything is computed."""
    async with desk(engine, metrics, input_of(3) + b"{\n") as one:
        one.start()
        entry = await one.ended()
        assert entry.batch.status == "failed"
        assert [(error.code, error.line) for error in entry.batch.errors] == [
            ("invalid_json_line", 4)
        ]
        assert not entry.output


async def test_an_unknown_model(engine: FakeEngine, metrics: Metrics) -> None:
    """A model that nobody serves fails the batch as a whole."""
    async with desk(engine, metrics, input_of(3, model="gpt-9")) as one:
        one.start()
        entry = await one.ended()
        (error,) = entry.batch.errors
        assert (entry.batch.status, error.code, error.param) == (
            "failed",
            "model_not_found",
            "body.model",
        )


async def test_the_key_must_be_allowed_the_model(engine: FakeEngine, metrics: Metrics) -> None:
    """A key that may not use the model has its batch fail; limits of a minute do not count."""
    contents = (input_of(3), input_of(9))
    async with desk(engine, metrics, *contents, owners=["narrow", "slow"]) as one:
        one.service.keys.replace(
            [
                key("narrow", models=["other"]),
                key("slow", tokens_per_minute=1),
            ]
        )
        one.start()
        assert (await one.ended(0)).batch.errors[0].code == "model_not_found"
        assert (await one.ended(1)).batch.counts.completed == 9
        assert value(metrics.caller_tokens.labels("slow")) == one.storage.entries[1].batch.n_tokens


async def test_cancelling_within_a_window(engine: FakeEngine, metrics: Metrics) -> None:
    """A batch that is cancelled while a window computes ends at once, with its partial results."""
    async with desk(engine, metrics, input_of(40)) as one:
        entry = one.storage.entries[0]
        hold_after(engine, entry)
        runner, _ = one.start()
        await one.until(lambda: not engine.gate.is_set() and engine_waits(one))
        one.storage.cancel()
        runner.nudge()
        await one.ended()
        assert entry.batch.status == "cancelled"
        assert 0 < entry.batch.counts.completed == len(ids(entry.output)) < 40
        assert not entry.errors
        engine.gate.set()


def hold_after(engine: FakeEngine, entry: Entry) -> None:
    """Close the engine's gate once a window is committed."""

    def close(_: object) -> None:
        if entry.progress.n_windows:
            engine.gate.clear()
            engine.gate.wait()

    engine.before = close


def engine_waits(one: Desk) -> bool:
    """Whether a window waits for the engine."""
    return one.service._scheduler.n_requests > 0


async def test_expiry(engine: FakeEngine, metrics: Metrics) -> None:
    """Past its window a batch keeps its results, and every other line has OpenAI's error."""
    async with desk(engine, metrics, input_of(40)) as one:
        entry = one.storage.entries[0]
        hold_after(engine, entry)
        one.start()
        await one.until(lambda: not engine.gate.is_set() and engine_waits(one))
        one.clock.now += DAY_S
        await one.ended()
        counts = entry.batch.counts
        assert entry.batch.status == "expired"
        assert 0 < counts.completed < 40
        assert counts.completed + counts.failed == 40
        assert sorted(ids(entry.output) + ids(entry.errors)) == sorted(f"r{n}" for n in range(40))
        error = json.loads(entry.errors.splitlines()[0])
        assert error["response"] is None
        assert error["error"]["code"] == "batch_expired"


async def test_a_batch_that_expired_before_its_turn(engine: FakeEngine, metrics: Metrics) -> None:
    """A batch whose window is over before it was looked at has no results."""
    async with desk(engine, metrics, input_of(5)) as one:
        one.clock.now += 2 * DAY_S
        one.start()
        entry = await one.ended()
        assert (entry.batch.status, entry.output, entry.errors) == ("expired", b"", b"")


async def test_a_lost_lease(
    engine: FakeEngine, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """A runner whose lease is lost commits nothing more; whoever claims the batch completes it."""
    async with desk(engine, metrics, input_of(40)) as one:
        entry = one.storage.entries[0]
        hold_after(engine, entry)
        one.start()
        await one.until(lambda: not engine.gate.is_set() and engine_waits(one))
        one.storage.lose()
        await one.until(lambda: "has taken over" in caplog.text)
        engine.before = lambda _: None
        engine.gate.set()
        await one.ended()
        assert entry.batch.counts.completed == 40
        assert sorted(ids(entry.output)) == sorted(f"r{n}" for n in range(40))


@pytest.mark.parametrize("error", [StorageUnavailable, StorageFull])
async def test_a_storage_that_fails_for_a_while(
    engine: FakeEngine,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
    error: type[StorageUnavailable | StorageFull],
) -> None:
    """Calls that fail are made again, the log has one line, and every line has one result."""
    rng = random.Random(1)
    async with desk(engine, metrics, input_of(60)) as one:
        n_faults = 0
        is_away = False

        def fail(name: str) -> None:
            nonlocal n_faults
            if is_away or (name in ("read", "commit", "renew", "begin") and rng.random() < 0.3):
                n_faults += 1
                raise error

        one.storage.before = fail
        one.start()
        entry = await one.ended()
        assert n_faults > 5
        assert sorted(ids(entry.output)) == sorted(f"r{n}" for n in range(60))
        caplog.clear()
        is_away, one.storage.before = True, fail
        n_before = n_faults
        await one.until(lambda: n_faults > n_before + 10)
        assert caplog.text.count("does not take a call") <= 1


async def test_an_owner_without_room(engine: FakeEngine, metrics: Metrics) -> None:
    """A batch whose results have no room rests, and the next batch goes on."""
    async with desk(engine, metrics, input_of(10), input_of(9)) as one:

        def fail(name: str) -> None:
            if name == "commit" and not one.storage.entries[0].delays:
                raise StorageQuotaReached(
                    what="bytes of files", key="", limit=1, used=1, requested=1
                )

        one.storage.before = fail
        one.start()
        await one.ended(1)
        assert one.storage.entries[0].delays == [60.0]
        assert one.storage.entries[0].batch.status == "in_progress"


async def test_an_input_that_cannot_be_read(engine: FakeEngine, metrics: Metrics) -> None:
    """An input that the store has lost fails its batch."""
    async with desk(engine, metrics, input_of(10)) as one:

        def fail(name: str) -> None:
            if name == "read":
                raise StorageDamaged("no such object")

        one.storage.before = fail
        one.start()
        entry = await one.ended()
        assert [error.code for error in entry.batch.errors] == ["input_file_unreadable"]


async def test_faults_of_the_work(
    engine: FakeEngine, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the work on a batch is logged, the batch rests, and the runner goes on."""
    async with desk(engine, metrics, input_of(10), input_of(5)) as one:

        def fail(name: str) -> None:
            if name == "commit" and not one.storage.entries[0].delays:
                raise ZeroDivisionError

        one.storage.before = fail
        one.start()
        await one.ended(1)
        assert "ZeroDivisionError" in caplog.text
        assert one.storage.entries[0].delays == [60.0]


async def test_draining(engine: FakeEngine, metrics: Metrics) -> None:
    """A runner that drains commits what is under way, and leaves the rest to the next one."""
    async with desk(engine, metrics, input_of(400)) as one:
        runner, task = one.start()
        entry = one.storage.entries[0]
        await one.until(lambda: entry.progress.n_windows > 0)
        await runner.drain(60)
        await task
        assert entry.batch.status == "in_progress"
        assert not entry.is_held
        assert entry.delays == [0.0]
        n_done = entry.batch.counts.completed
        assert 0 < n_done < 400
        entry.delays.clear()
        one.start()
        await one.ended()
        assert ids(entry.output) == [f"r{n}" for n in range(400)]


async def test_draining_while_the_storage_is_away(engine: FakeEngine, metrics: Metrics) -> None:
    """A runner that cannot reach its storage ends all the same."""
    async with desk(engine, metrics, input_of(40)) as one:
        entry = one.storage.entries[0]

        def fail(_: str) -> None:
            if entry.progress.n_windows:
                raise StorageUnavailable

        one.storage.before = fail
        runner, task = one.start()
        await one.until(lambda: entry.progress.n_windows > 0)
        await runner.drain(60)
        await task


async def test_a_grace_that_ends(engine: FakeEngine, metrics: Metrics) -> None:
    """A window that does not end within the grace is left; cancelling the runner frees the batch."""
    async with desk(engine, metrics, input_of(40)) as one:
        entry = one.storage.entries[0]
        hold_after(engine, entry)
        runner, task = one.start()
        await one.until(lambda: not engine.gate.is_set() and engine_waits(one))
        await runner.drain(0.0)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not entry.is_held
        engine.gate.set()


class Countdown:
    """Is over at the nth call of the storage."""

    def __init__(self, n_calls: int) -> None:
        self.over = asyncio.Event()
        self._left, self._loop = n_calls, asyncio.get_running_loop()

    def __call__(self, _: str) -> None:
        """Count a call, on its thread."""
        self._left -= 1
        if self._left == 0:
            self._loop.call_soon_threadsafe(self.over.set)


@pytest.mark.parametrize("seed", range(8))
async def test_kills(engine: FakeEngine, metrics: Metrics, seed: int) -> None:
    """Whenever a runner dies, the next ones lose no line and repeat none, in the same bytes."""
    rng = random.Random(seed)
    content = input_of(50) + input_of(7, dimensions=0).replace(b'"r', b'"bad') + b"\n \n"
    async with desk(engine, metrics, content, content) as one:
        one.start()
        await one.ended(0)
        whole = one.storage.entries[0]
        entry = one.storage.entries[1]
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
        one.tasks.clear()
        if entry.batch.status != "completed":
            for _ in range(12):
                left = Countdown(rng.randint(1, 12))
                one.storage.before = left
                _, task = one.start()
                await left.over.wait()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                one.tasks.clear()
                entry.delays.clear()
                one.storage.lose(1)
            one.start()
            await one.ended(1)
        assert sorted(ids(entry.output)) == sorted(ids(whole.output))
        assert ids(entry.output) == [f"r{n}" for n in range(50)]
        assert ids(entry.errors) == [f"bad{n}" for n in range(7)]
        bodies = [json.loads(line)["response"]["body"] for line in entry.output.splitlines()]
        assert bodies == [
            json.loads(line)["response"]["body"] for line in whole.output.splitlines()
        ]


async def test_two_runners(engine: FakeEngine, metrics: Metrics) -> None:
    """Two runners on one storage share the batches, and every line has one result."""
    contents = [input_of(30) for _ in range(4)]
    async with desk(engine, metrics, *contents) as one:
        one.start()
        one.start()
        for index in range(4):
            entry = await one.ended(index)
            assert ids(entry.output) == [f"r{n}" for n in range(30)]


async def test_others_are_ended_beside_the_work(engine: FakeEngine, metrics: Metrics) -> None:
    """A batch that is cancelled while another one is worked on ends without waiting for its turn."""
    async with desk(engine, metrics, input_of(40), input_of(5)) as one:
        hold_after(engine, one.storage.entries[0])
        one.start()
        await one.until(lambda: not engine.gate.is_set() and engine_waits(one))
        one.storage.cancel(1)
        assert (await one.ended(1)).batch.status == "cancelled"
        assert one.storage.entries[0].batch.status == "in_progress"
        engine.gate.set()


async def test_memory_is_bounded(engine: FakeEngine, metrics: Metrics) -> None:
    """No more than three windows are read before the first is committed."""
    async with desk(engine, metrics, input_of(200)) as one:
        may_commit = threading.Event()

        def wait(name: str) -> None:
            if name == "commit":
                may_commit.wait()

        one.storage.before = wait
        one.start()
        await one.until(lambda: "commit" in one.storage.calls)
        seen = len(engine.seen)
        await one.until(lambda: one.storage.calls.count("claim_ending") > 3)
        assert len(engine.seen) <= seen + 3 * N_TEXTS
        assert len({text for text in engine.seen if "text" in text}) <= 4 * N_TEXTS
        may_commit.set()
        await one.ended()


async def test_a_full_queue_is_no_error(engine: FakeEngine, metrics: Metrics) -> None:
    """Lines that the service has no room for wait, and complete."""
    async with desk(engine, metrics, input_of(8)) as one:
        embed, n_refused = one.service.embed, 0

        async def refuse(*args: Any, **options: Any) -> Any:
            nonlocal n_refused
            if n_refused < 1:
                n_refused += 1
                raise Overloaded(resource="x", requested=1, used=1, limit=1, retry_after_s=0)
            return await embed(*args, **options)

        one.service.embed = refuse  # type: ignore[method-assign]
        one.start()
        assert (await one.ended()).batch.counts.completed == 8
        assert n_refused == 1
