"""Admission, cancellation and supervision, with faults injected into the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from matryo.core.errors import EngineError, InferenceFailed, NotReady, Overloaded, WaitTooLong
from matryo.core.metrics import Metrics
from matryo.engine import Encoded, TokenIds
from matryo.scheduler import Scheduler, SchedulerConfig
from matryo.scheduler import queue as queue_module
from matryo.scheduler.jobs import Ticket
from matryo.scheduler.supervision import run_forever
from tests.fakes import LIMITS, MINILM, FakeEngine
from tests.unit.scheduler.steps import SPOILS, Stage, TimelessEngine


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def make(
    engine: FakeEngine, clock: Clock | None = None, **changes: float
) -> tuple[Scheduler, Metrics]:
    """A scheduler of one worker, not started; it pauses hardly at all after a fault."""
    config = SchedulerConfig(**{"restart_s": 0.001} | changes)  # pyright: ignore[reportArgumentType]
    metrics = Metrics(CollectorRegistry())
    return Scheduler([engine], config, metrics, clock or Clock()), metrics


@pytest.fixture
async def scheduler(engine: FakeEngine) -> AsyncIterator[Scheduler]:
    """A started scheduler on the fake engine."""
    scheduler, _ = make(engine)
    await scheduler.start()
    engine.batches.clear()
    yield scheduler
    engine.gate.set()
    await scheduler.close()


def texts(*lengths: int) -> list[TokenIds]:
    """Distinct texts of these lengths."""
    return [np.arange(index, index + length) for index, length in enumerate(lengths)]


def explode(_: Sequence[TokenIds]) -> None:
    """Fail every run."""
    raise RuntimeError("boom")


def fail_on(length: int) -> Callable[[Sequence[TokenIds]], None]:
    """What fails every run with a text of this many tokens."""

    def fail(batch: Sequence[TokenIds]) -> None:
        if any(len(ids) == length for ids in batch):
            raise RuntimeError("boom")

    return fail


async def settled(scheduler: Scheduler) -> None:
    """Wait until nothing is admitted any more."""
    async with asyncio.timeout(30):
        while scheduler.n_requests or scheduler.queued_tokens:
            await asyncio.sleep(0.001)


async def until_running(engine: FakeEngine, started: threading.Event) -> None:
    """Wait until a worker is inside the engine."""
    assert await asyncio.to_thread(started.wait, 30)


def hold(engine: FakeEngine) -> threading.Event:
    """Close the gate; the event tells when a run waits before it."""
    engine.gate.clear()
    started = threading.Event()
    wait = engine.gate.wait

    def announce(timeout: float | None = None) -> bool:
        started.set()
        return wait(timeout)

    engine.gate.wait = announce
    return started


class TestResults:
    """What comes back is what was asked, in order."""

    async def test_order_and_values(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        """Rows are in input order, though batches are formed by length."""
        sent = texts(30, 3, 17, 3, 90, 41, 8, 8)
        vectors = await scheduler.run(engine, sent, 16)
        assert vectors.dtype == np.float32
        for ids, vector in zip(sent, vectors, strict=True):
            assert np.array_equal(vector, engine.vector(ids, 16))

    async def test_requests_share_batches(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        """Requests of different sizes run together, each with its own dimensions."""
        started = hold(engine)
        first = asyncio.create_task(scheduler.run(engine, texts(5), 8))
        await until_running(engine, started)
        others = [
            asyncio.create_task(scheduler.run(engine, texts(7), size)) for size in (8, 64, 768)
        ]
        await asyncio.sleep(0)
        engine.gate.set()
        await first
        assert [(await task).shape for task in others] == [(1, 8), (1, 64), (1, 768)]
        assert engine.batches == [[5], [7, 7, 7]]

    async def test_concurrent_requests(self, engine: FakeEngine) -> None:
        """Many requests on several workers: everybody gets their own."""
        scheduler, _ = make(engine, workers=3)
        await scheduler.start()
        rng = np.random.default_rng(0)
        sent = [[rng.integers(0, 99, n) for n in rng.integers(1, 60, 9)] for _ in range(60)]
        answers = await asyncio.gather(*(scheduler.run(engine, each, 8) for each in sent))
        for each, answer in zip(sent, answers, strict=True):
            assert np.array_equal(answer, np.stack([engine.vector(ids, 8) for ids in each]))
        await settled(scheduler)
        await scheduler.close()


class TestAdmission:
    """Whole requests, admitted or refused at once."""

    async def test_full_queue_refuses(self, engine: FakeEngine) -> None:
        """Past the bound a request is refused whole, with numbers and a time to wait."""
        scheduler, metrics = make(engine, queue_tokens=100)
        await scheduler.start()
        started = hold(engine)
        running = asyncio.create_task(scheduler.run(engine, texts(60), 8))
        await until_running(engine, started)
        waiting = asyncio.create_task(scheduler.run(engine, texts(20, 20), 8))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await scheduler.run(engine, texts(1), 8)
        assert (caught.value.used, caught.value.limit) == (100, 100)
        assert 1 <= caught.value.retry_after_s <= 60
        with pytest.raises(Overloaded):
            scheduler.check_room()
        engine.gate.set()
        await asyncio.gather(running, waiting)
        assert len(await scheduler.run(engine, texts(90), 8)) == 1
        count = metrics.registry.get_sample_value
        assert count("matryo_rejections_total", {"reason": "queue_full"}) == 2
        metrics.refresh()
        assert count("matryo_queue_tokens") == 0
        await scheduler.close()

    async def test_one_large_request_is_always_admitted(self, engine: FakeEngine) -> None:
        """An empty queue takes any request, however far over the bound, and splits it inside."""
        scheduler, _ = make(engine, queue_tokens=100)
        await scheduler.start()
        engine.batches.clear()
        vectors = await scheduler.run(engine, texts(*[300] * 40), 8)
        assert len(vectors) == 40
        assert len(engine.batches) > 1
        await scheduler.close()

    async def test_draining_refuses_but_finishes(
        self, scheduler: Scheduler, engine: FakeEngine
    ) -> None:
        """After the signal nothing new is taken, and what was taken is answered."""
        started = hold(engine)
        running = asyncio.create_task(scheduler.run(engine, texts(5), 8))
        await until_running(engine, started)
        scheduler.drain(grace_s=30)
        with pytest.raises(NotReady):
            await scheduler.run(engine, texts(5), 8)
        assert scheduler.why_not_ready() == "draining"
        engine.gate.set()
        assert (await running).shape == (1, 8)

    async def test_grace_ends(self, scheduler: Scheduler, engine: FakeEngine) -> None:
        """What does not finish in the grace period is answered, not left hanging."""
        started = hold(engine)
        running = asyncio.create_task(scheduler.run(engine, texts(5), 8))
        await until_running(engine, started)
        scheduler.drain(grace_s=0)
        with pytest.raises(NotReady):
            await running


class TestWait:
    """Requests are admitted by the wait that they must expect, not by their tokens alone."""

    @staticmethod
    def stage(**config: Any) -> Stage:
        """A model that takes a millisecond for each token."""
        engine = TimelessEngine()
        engine.token_s = 0.001
        return Stage([engine], **config)

    def test_bulk_waits_for_everything(self) -> None:
        """A bulk request whose turn comes too late is refused with the wait, the limit, a remedy."""
        with self.stage(max_wait_s=1.0) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            first = stage.task(run(engine, texts(*[100] * 10), 8))
            refused = stage.task(run(engine, texts(*[100] * 12), 8)).exception()
            assert isinstance(refused, WaitTooLong)
            assert refused.message == (
                "The answer to this request is expected in 2.2 s, and the limit is 1 s "
                "(MATRYO_MAX_WAIT_S). Please try again in 1s, or send fewer texts at once."
            )
            assert refused.retry_after_s == 1  # when nothing is ahead, any request is admitted
            assert stage.sample("matryo_rejections_total", reason="wait") == 1
            assert stage.sample("matryo_queue_tokens") == 1000
            stage.finish_all()
            assert first.done()
            assert not stage.task(run(engine, texts(*[100] * 12), 8)).done()

    def test_retry_after_is_the_wait_for_room(self) -> None:
        """A request that comes again after Retry-After finds room."""
        with self.stage(max_wait_s=10.0) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            stage.task(run(engine, texts(*[100] * 100), 8))
            refused = stage.task(run(engine, texts(*[100] * 50), 8)).exception()
            assert isinstance(refused, WaitTooLong)
            assert refused.retry_after_s == 5
            for _ in range(25):  # batches of 200 ms
                stage.loop.now += 0.2
                stage.finish()
            again = stage.task(run(engine, texts(*[100] * 50), 8))
            assert not again.done()

    def test_a_query_waits_for_queries(self) -> None:
        """Bulk is ahead of a query only with the batches that the policy lets go first."""
        with self.stage(max_wait_s=1.0) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            stage.task(run(engine, texts(*[100] * 500), 8))
            assert not stage.task(run(engine, texts(50), 8)).done()
            assert stage.scheduler._queue.admission.expected_s(bulk=False) == pytest.approx(0.5)
            queries = [stage.task(run(engine, texts(50), 8)) for _ in range(20)]
            refused = [task for task in queries if task.done()]
            assert 10 <= len(refused) < 20
            assert all(isinstance(task.exception(), WaitTooLong) for task in refused)

    def test_the_patience_of_a_caller(self) -> None:
        """A caller that announced less than the server's limit is held to what it announced."""
        with self.stage(max_wait_s=60.0) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            stage.task(run(engine, texts(*[100] * 20), 8))
            refused = stage.task(run(engine, texts(50), 8, patience_s=0.4)).exception()
            assert isinstance(refused, WaitTooLong)
            assert (
                "waits at most 0.4 s (x-stainless-read-timeout, or a gRPC deadline)"
                in refused.message
            )
            assert not stage.task(run(engine, texts(50), 8, patience_s=0.6)).done()
            with pytest.raises(WaitTooLong):
                stage.scheduler.check_room(patience_s=0.2)
            with pytest.raises(WaitTooLong):  # bulk has all of the queue before it
                stage.scheduler.check_room("bulk", patience_s=1.0)
            stage.scheduler.check_room(patience_s=1.0)

    def test_a_run_under_way_is_ahead_for_what_is_left_of_it(self) -> None:
        """The expected wait shrinks while a run goes on, and is never less than nothing."""
        with self.stage(max_wait_s=60.0) as stage:
            stage.task(stage.scheduler.run(stage.engines[0], texts(400), 8))
            for passed, left in ((0, 0.4), (0.3, 0.1), (0.3, 0.0)):
                stage.loop.now += passed
                assert stage.scheduler._queue.admission.expected_s(bulk=False) == pytest.approx(
                    left
                )

    def test_workers_share_the_work(self) -> None:
        """Two workers halve the wait of a request of many texts; one text has one worker."""
        with self.stage(max_wait_s=0.75, workers=2) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            stage.task(run(engine, texts(*[100] * 4), 8))
            assert stage.scheduler._queue.admission.expected_s(bulk=False) == pytest.approx(0.2)
            assert not stage.task(run(engine, texts(500, 500), 8)).done()
        with self.stage(max_wait_s=0.75, workers=2) as stage:
            stage.task(stage.scheduler.run(stage.engines[0], texts(*[100] * 4), 8))
            alone = stage.task(stage.scheduler.run(stage.engines[0], texts(600), 8))
            assert isinstance(alone.exception(), WaitTooLong)

    def test_nothing_waits(self) -> None:
        """A request is admitted when nothing else is, however slow the model and short the time."""
        with self.stage(max_wait_s=0.01) as stage:
            answer = stage.complete(
                stage.scheduler.run(stage.engines[0], texts(*[100] * 10), 8, patience_s=0.001)
            )
            assert answer.shape == (10, 8)

    @pytest.mark.parametrize("length", [4, 100])
    def test_a_wrong_estimate_heals(self, length: int) -> None:
        """A machine that stood still in its first runs refuses no more after some good ones."""
        engine = TimelessEngine()
        engine.token_s = 1.0
        with Stage([engine], max_wait_s=0.5) as stage:
            engine.token_s = 0.001
            run = stage.scheduler.run
            n_refused, refused = 0, True
            while refused:
                tasks = [stage.task(run(engine, texts(length), 8)) for _ in range(2)]
                refused = tasks[1].done()
                n_refused += refused
                assert n_refused < 100
                stage.finish_all()
            assert n_refused

    def test_waiting_requests_are_bounded(self) -> None:
        """Past the number of requests one more is refused, however small it is."""
        with self.stage(max_requests=3) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            waiting = [stage.task(run(engine, texts(3), 8)) for _ in range(3)]
            refused = stage.task(run(engine, texts(3), 8)).exception()
            assert isinstance(refused, Overloaded)
            assert "waiting requests: Limit 3, Used 3, Requested 1" in refused.message
            assert stage.sample("matryo_rejections_total", reason="requests") == 1
            waiting[1].cancel()
            stage.loop.settle()
            assert not stage.task(run(engine, texts(3), 8)).done()

    def test_without_bounds(self) -> None:
        """Callers of the same process are never refused, whatever they announce."""
        with self.stage() as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            asked = texts(*[1000] * 600)
            assert not any(stage.task(run(engine, asked, 8, patience_s=1)).done() for _ in range(3))
            assert stage.scheduler.queued_tokens > 1_000_000

    def test_refused_requests_hold_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The matrix of a result is made for admitted requests alone, and its lack is cleaned up."""
        made: list[Ticket] = []

        def allocate(ticket: Ticket) -> None:
            made.append(ticket)
            raise MemoryError

        with self.stage(queue_tokens=100) as stage:
            run, engine = stage.scheduler.run, stage.engines[0]
            stage.task(run(engine, texts(90), 8))
            monkeypatch.setattr(Ticket, "allocate", allocate)
            assert isinstance(stage.task(run(engine, texts(20), 8)).exception(), Overloaded)
            assert not made
            assert isinstance(stage.task(run(engine, texts(5), 8)).exception(), MemoryError)
            assert stage.scheduler.queued_tokens == 90
            assert stage.scheduler.n_requests == 1


class TestNeighbours:
    """A batch that fails is run again in halves: only the text that fails alone has an error."""

    @pytest.mark.parametrize("fault", ["raise", "no memory", *SPOILS])
    def test_one_guilty_text(self, fault: str) -> None:
        """Whatever a run with it does, the others get their vectors bit for bit."""
        engine = TimelessEngine()

        def strike(batch: Sequence[TokenIds]) -> None:
            guilty = any(len(ids) == 13 for ids in batch)
            engine.spoil = SPOILS.get(fault, list) if guilty else list
            if guilty and fault not in SPOILS:
                raise MemoryError if fault == "no memory" else RuntimeError("boom")

        engine.before = strike
        with Stage([engine]) as stage:
            run = stage.scheduler.run
            busy = stage.task(run(engine, texts(9), 8))
            asked = [texts(length, length + 20) for length in range(10, 17)]
            tasks = [stage.task(run(engine, each, 8)) for each in asked]
            n_runs = len(stage.finish_all())
            assert busy.done()
            for each, task in zip(asked, tasks, strict=True):
                if len(each[0]) == 13:
                    assert isinstance(task.exception(), InferenceFailed)
                else:
                    vectors = [engine.vector(ids, 8) for ids in each]
                    assert np.array_equal(task.result(), np.stack(vectors))
            assert n_runs <= 16
            assert stage.scheduler.why_not_ready() is None
            assert stage.sample("matryo_failures_total", model=engine.manifest.id) in (1, 2)
            assert stage.scheduler.queued_tokens == 0

    def test_too_much_at_once(self) -> None:
        """Texts that only fail together all get their vectors."""
        engine = TimelessEngine()

        def strike(batch: Sequence[TokenIds]) -> None:
            if len(batch) > 3:
                raise MemoryError

        engine.before = strike
        with Stage([engine]) as stage:
            task = stage.task(stage.scheduler.run(engine, texts(*range(3, 20)), 8))
            stage.finish_all()
            vectors = [engine.vector(ids, 8) for ids in texts(*range(3, 20))]
            assert np.array_equal(task.result(), np.stack(vectors))

    def test_it_ends(self) -> None:
        """A model that fails every run answers everybody, after two runs for each text at most."""
        engine = TimelessEngine()
        with Stage([engine]) as stage:
            engine.before = explode
            busy = stage.task(stage.scheduler.run(engine, texts(3), 8))
            tasks = [stage.task(stage.scheduler.run(engine, texts(5 + n), 8)) for n in range(8)]
            lengths: list[list[int]] = []
            while not all(task.done() for task in (busy, *tasks)):
                lengths.append(stage.finish())
            assert all(isinstance(task.exception(), InferenceFailed) for task in tasks)
            assert len(lengths) <= 2 * 9

    def test_a_request_that_failed_is_over(self) -> None:
        """Once a text failed alone, the other texts of its request are not run again."""
        engine = TimelessEngine()
        with Stage([engine]) as stage:
            engine.before = fail_on(40)
            task = stage.task(stage.scheduler.run(engine, texts(40, 39, 38, 37), 8))
            stage.finish()
            assert [stage.finish(), stage.finish()] == [[40, 39], [40]]
            assert isinstance(task.exception(), InferenceFailed)
            assert [len(batch) for batch in stage.finish_all()] == [1]  # the probe

    def test_what_the_log_says(self, caplog: pytest.LogCaptureFixture) -> None:
        """A batch that failed names its requests, and a text that failed alone its own."""
        engine = TimelessEngine()
        engine.before = fail_on(6)
        with Stage([engine]) as stage:
            run = stage.scheduler.run
            stage.task(run(engine, texts(3), 8))
            for name, length in (("one", 5), ("two", 6), (None, 7)):
                stage.task(run(engine, texts(length), 8, request_id=name))
            stage.finish_all()
        lines = [vars(record) for record in caplog.records if record.levelname == "ERROR"]
        assert [line["message"] for line in lines] == [
            "a batch failed",
            "a text of the batch failed alone: RuntimeError('boom')",
        ]
        assert sorted(lines[0]["request_ids"]) == ["one", "two"]
        assert lines[1]["request_id"] == "two"
        assert {line["model"] for line in lines} == {engine.manifest.id}


class TestCancellation:
    """Work nobody waits for does not run."""

    async def test_waiting_work_is_dropped(self, engine: FakeEngine) -> None:
        """A cancelled request leaves the queue at once and never reaches the engine."""
        scheduler, metrics = make(engine)
        await scheduler.start()
        engine.batches.clear()
        started = hold(engine)
        running = asyncio.create_task(scheduler.run(engine, texts(5), 8))
        await until_running(engine, started)
        waiting = asyncio.create_task(scheduler.run(engine, texts(40, 41, 42), 8))
        await asyncio.sleep(0)
        assert scheduler.queued_tokens == 5 + 123
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert scheduler.queued_tokens == 5
        engine.gate.set()
        await running
        await settled(scheduler)
        assert engine.batches == [[5]]
        dropped = metrics.registry.get_sample_value
        assert dropped("matryo_cancellations_total", {"model": engine.manifest.id}) == 3
        await scheduler.close()

    async def test_running_work_is_forgotten(
        self, scheduler: Scheduler, engine: FakeEngine
    ) -> None:
        """A request cancelled in the middle of its run disturbs neither worker nor company."""
        started = hold(engine)
        gone = asyncio.create_task(scheduler.run(engine, texts(5), 8))
        await until_running(engine, started)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        stays = asyncio.create_task(scheduler.run(engine, texts(6), 8))
        engine.gate.set()
        assert np.array_equal((await stays)[0], engine.vector(texts(6)[0], 8))
        await settled(scheduler)

    async def test_a_storm_of_cancellations(self, engine: FakeEngine) -> None:
        """Hundreds of requests, half of them cancelled at odd moments: nothing is left over."""
        scheduler, _ = make(engine, workers=2)
        await scheduler.start()
        started = hold(engine)
        rng = np.random.default_rng(0)
        tasks = [
            asyncio.create_task(scheduler.run(engine, [np.arange(n) for n in sizes], 8))
            for sizes in rng.integers(1, 99, (300, 3))
        ]
        await until_running(engine, started)
        in_time = [False] * len(tasks)
        for index in range(0, len(tasks), 2):
            if index == len(tasks) // 2:
                engine.gate.set()  # from here on, a request may be done before its cancellation
            await asyncio.sleep(0)
            in_time[index] = tasks[index].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(in_time[: len(tasks) // 2 : 2])
        assert [isinstance(result, asyncio.CancelledError) for result in results] == in_time
        assert all(
            isinstance(result, np.ndarray)
            for result, cancelled in zip(results, in_time, strict=True)
            if not cancelled
        )
        await settled(scheduler)
        await scheduler.close()


class TestSupervision:
    """A fault fails its own jobs, shows in readiness, and heals."""

    @pytest.mark.parametrize(
        "fault", [RuntimeError("boom"), StopIteration(), SystemExit(3), InferenceFailed("x")]
    )
    async def test_a_failed_run_fails_its_batch(
        self, scheduler: Scheduler, engine: FakeEngine, fault: BaseException
    ) -> None:
        """Whatever a run raises, its callers get an EngineError and the next batch runs."""

        def explode(_: Sequence[TokenIds]) -> None:
            engine.before = lambda _: None
            raise fault

        engine.before = explode
        with pytest.raises(EngineError):
            await scheduler.run(engine, texts(5), 8)
        assert (await scheduler.run(engine, texts(5), 8)).shape == (1, 8)
        assert scheduler.why_not_ready() is None
        await settled(scheduler)

    async def test_a_failed_batch_fails_the_rest_of_its_request(
        self, scheduler: Scheduler, engine: FakeEngine
    ) -> None:
        """A request with a failed text is over: its other texts are not computed."""

        def explode(batch: Sequence[TokenIds]) -> None:
            if len(batch[0]) == 500:
                raise RuntimeError("boom")

        engine.before = explode
        with pytest.raises(InferenceFailed):
            await scheduler.run(engine, texts(500, 5, 6), 8)
        await settled(scheduler)
        assert not [batch for batch in engine.batches if 6 in batch]

    async def test_a_worker_that_dies_of_its_end_ends(self) -> None:
        """A fault in the clean-up of a cancelled worker does not make the worker start anew."""
        deaths = 0

        async def body() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise RuntimeError("in the clean-up")

        def on_death() -> None:
            nonlocal deaths
            deaths += 1

        worker = asyncio.create_task(run_forever(body, on_death=on_death, restart_s=0))
        await asyncio.sleep(0)
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker
        assert deaths == 1

    def test_readiness_follows_the_probes(self) -> None:
        """A model whose run and probe fail is not ready, and is again once a probe ends well."""
        engine = TimelessEngine()
        with Stage([engine], restart_s=0.25) as stage:
            engine.before = explode
            failed = stage.task(stage.scheduler.run(engine, texts(5), 8))
            stage.finish()
            assert isinstance(failed.exception(), InferenceFailed)
            assert stage.scheduler.why_not_ready() is None  # a text may have been at fault
            stage.finish()  # the probe
            assert stage.scheduler.why_not_ready() == f"the last run of {engine.manifest.id} failed"
            engine.before = lambda _: None
            stage.loop.advance(0.25)
            stage.finish()  # the next probe
            assert stage.scheduler.why_not_ready() is None

    def test_a_text_that_fails_costs_no_readiness(self) -> None:
        """The heartbeat looks at once whether the model still runs; the model is ready meanwhile."""
        engine = TimelessEngine()
        engine.before = fail_on(500)
        with Stage([engine]) as stage:
            failed = stage.task(stage.scheduler.run(engine, texts(500), 8))
            stage.finish()
            assert isinstance(failed.exception(), InferenceFailed)
            assert stage.scheduler.why_not_ready() is None
            assert len(stage.finish_all()) == 1
            assert stage.scheduler.why_not_ready() is None
            assert stage.sample("matryo_failures_total", model=engine.manifest.id) == 1

    async def test_readiness_grows_old(self, engine: FakeEngine) -> None:
        """A model that has not run within the interval is not ready."""
        clock = Clock()
        scheduler, _ = make(engine, clock, ready_interval_s=30)
        await scheduler.start()
        clock.now += 29
        assert scheduler.why_not_ready() is None
        clock.now += 2
        assert scheduler.why_not_ready() == f"{engine.manifest.id} last ran 31 s ago"
        await scheduler.close()

    def test_the_heartbeat_keeps_an_idle_service_ready(self) -> None:
        """Without any caller the model runs every third of the interval, and not before."""
        with Stage([TimelessEngine()], ready_interval_s=24, restart_s=0.25) as stage:
            for _ in range(5):
                stage.loop.advance(7.5)
                assert not stage.executor.runs
                stage.loop.advance(0.5)
                assert len(stage.finish_all()) == 1
                assert stage.scheduler.why_not_ready() is None
                stage.loop.advance(0.25)

    def test_the_heartbeat_does_not_hurry_for_a_model_that_fails(self) -> None:
        """A model that fails every run is tried again after each pause, not in a busy loop."""
        engine = TimelessEngine()
        with Stage([engine], restart_s=0.25) as stage:
            engine.before = explode
            failed = stage.task(stage.scheduler.run(engine, texts(5), 8))
            stage.finish()
            with pytest.raises(InferenceFailed):
                failed.result()
            for _ in range(3):
                assert len(stage.finish_all()) == 1  # the probe
                stage.loop.advance(0.125)
                assert not stage.executor.runs
                stage.loop.advance(0.125)

    async def test_a_dead_worker_fails_what_waits_and_lives_again(
        self, scheduler: Scheduler, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bug between dequeue and run leaves no future pending, and the queue goes on."""
        real = queue_module.next_batch

        def buggy(*args: object, **kwargs: object) -> list[object]:
            raise ZeroDivisionError

        monkeypatch.setattr(queue_module, "next_batch", buggy)
        with pytest.raises(InferenceFailed, match="a worker died"):
            await scheduler.run(engine, texts(5, 6, 7), 8)
        assert scheduler.why_not_ready()
        monkeypatch.setattr(queue_module, "next_batch", real)
        async with asyncio.timeout(30):
            while scheduler.why_not_ready():
                await asyncio.sleep(0.01)
        assert (await scheduler.run(engine, texts(5), 8)).shape == (1, 8)
        await settled(scheduler)

    async def test_vectors_that_do_not_fit_are_a_fault(
        self, scheduler: Scheduler, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An engine that returns too few vectors fails the batch; nobody waits for the rest."""
        real = engine.embed

        def short(batch: Sequence[TokenIds], dimensions: Sequence[int], *more: Any) -> object:
            result = real(batch, dimensions, *more)
            result.embeddings.pop()
            return result

        monkeypatch.setattr(engine, "embed", short)
        with pytest.raises(InferenceFailed, match="0 vectors for 1 texts"):
            await scheduler.run(engine, texts(5), 8)

    async def test_a_model_that_cannot_run_stops_the_start(self, engine: FakeEngine) -> None:
        """Start-up runs the model once, and says if it cannot."""

        def explode(_: Sequence[TokenIds]) -> None:
            raise RuntimeError("boom")

        engine.before = explode
        scheduler, _ = make(engine)
        with pytest.raises(InferenceFailed):
            await scheduler.start()
        assert engine.closed

    async def test_close_answers_everybody(self, engine: FakeEngine) -> None:
        """Closing in the middle of work answers running and waiting callers."""
        scheduler, _ = make(engine)
        await scheduler.start()
        started = hold(engine)
        tasks = [asyncio.create_task(scheduler.run(engine, texts(n), 8)) for n in (5, 300)]
        await until_running(engine, started)
        closing = asyncio.create_task(scheduler.close())
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, NotReady) for result in results)
        engine.gate.set()
        await closing
        assert engine.closed


def test_batches_follow_the_measured_rate() -> None:
    """A slow model gets small batches, so that none takes much over its time."""
    engine = TimelessEngine()
    engine.token_s = 1 / 2000
    with Stage([engine], batch_s=0.2) as stage:
        work = stage.task(stage.scheduler.run(engine, texts(*[50] * 30), 8))
        assert {sum(batch) for batch in stage.finish_all()} == {400, 300}
        assert work.result().shape == (30, 8)


async def test_equal_texts_run_once(engine: FakeEngine) -> None:
    """A text that is there three times is computed once, and fills all three rows."""
    scheduler, _ = make(engine)
    await scheduler.start()
    engine.batches.clear()
    one, other = texts(5, 5)
    answer = await scheduler.run(engine, [one, other, one, one.copy()], 8)
    assert sum(map(len, engine.batches)) == 2
    for row, text in zip(answer, [one, other, one, one], strict=True):
        assert np.array_equal(row, engine.vector(text, 8))
    await scheduler.close()


def test_long_texts_take_turns() -> None:
    """One long text at a time, of three workers; short ones run beside it."""
    engine = TimelessEngine()
    length = LIMITS.solo_tokens + 1
    with Stage([engine], workers=3) as stage:
        work = [stage.task(stage.scheduler.run(engine, texts(length + n), 8)) for n in range(3)]
        work += [stage.task(stage.scheduler.run(engine, texts(n), 8)) for n in (10, 11)]
        assert [run.lengths for run in stage.executor.runs] == [[length], [10], [11]]
        assert stage.finish(0) == [length]
        assert [run.lengths for run in stage.executor.runs] == [[10], [11], [length + 1]]
        assert stage.finish_all() == [[10], [11], [length + 1], [length + 2]]
        assert all(task.done() for task in work)


def test_long_bulk_does_not_lead_twice_in_a_row() -> None:
    """Bulk goes first when it had nothing computed for a while: a long run is no such while."""
    engine = TimelessEngine()
    length = LIMITS.solo_tokens + 1
    with Stage([engine], starve_s=1.0) as stage:
        bulk = texts(length, length + 1, length + 2)
        stage.task(stage.scheduler.run(engine, bulk, 8))
        stage.task(stage.scheduler.run(engine, texts(10), 8))
        stage.loop.now += 30  # the long text takes this long
        assert stage.finish() == [length + 2]
        assert [run.lengths for run in stage.executor.runs] == [[10]]


def test_sent_as_bulk() -> None:
    """A request sent as bulk waits for queries that came later, however small it is."""
    engine = TimelessEngine()
    with Stage([engine]) as stage:
        run = stage.scheduler.run
        work = [
            stage.task(run(engine, texts(30), 8)),  # keeps the worker busy
            stage.task(run(engine, texts(60, 61, 62), 8, priority="bulk")),
            stage.task(run(engine, texts(90), 8)),
        ]
        assert [batch[0] for batch in stage.finish_all()] == [30, 90, 62]
        assert all(task.done() for task in work)


async def test_two_models_share_the_workers() -> None:
    """Each request runs on its own model, and no batch mixes them."""
    one, two = FakeEngine(), FakeEngine(MINILM)
    scheduler = Scheduler([one, two], SchedulerConfig(), Metrics(CollectorRegistry()))
    await scheduler.start()
    answers = await asyncio.gather(
        scheduler.run(one, texts(5, 6), 768), scheduler.run(two, texts(5, 6), 384)
    )
    assert [answer.shape for answer in answers] == [(2, 768), (2, 384)]
    assert np.array_equal(answers[1][1], two.vector(texts(5, 6)[1], 384))
    await scheduler.close()


async def test_texts_without_tokens(scheduler: Scheduler, engine: FakeEngine) -> None:
    """Texts without a token are answered, alone and among others, and count as no token."""
    nothing = np.empty(0, np.int64)
    vectors = await scheduler.run(engine, [nothing], 16)
    assert np.array_equal(vectors[0], engine.vector(nothing, 16))
    vectors = await scheduler.run(engine, [nothing, *texts(3, 700), nothing], 16)
    for vector, ids in zip(vectors, [nothing, *texts(3, 700), nothing], strict=True):
        assert np.array_equal(vector, engine.vector(ids, 16))
    assert scheduler.queued_tokens == 0


async def test_a_probe_has_a_token(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose vocabulary lacks every word of the probe's text is probed with a token."""

    def tokenize(texts: Sequence[str]) -> list[Encoded]:
        return [Encoded(np.empty(0, np.int64)) for _ in texts]

    monkeypatch.setattr(engine, "tokenize", tokenize)
    scheduler, _ = make(engine)
    await scheduler.start()
    await scheduler.close()
    assert engine.batches
    assert all(batch == [1] for batch in engine.batches)
