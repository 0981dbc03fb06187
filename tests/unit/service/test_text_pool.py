"""The order in which threads take pieces of work, and what becomes of pieces that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

import pytest
from prometheus_client import CollectorRegistry

from matryo.core.errors import NotReady, Overloaded
from matryo.core.metrics import Metrics
from matryo.scheduler import ANYONE, Tenant
from matryo.service.text_pool import Job, TextPool


class Bench:
    """A pool of two threads, both of which a test may hold."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.metrics = Metrics(CollectorRegistry())
        self.pool = TextPool(2, self.metrics, 10.0, lambda: self.now_s)
        self.gate = threading.Event()
        self.log: list[str] = []

    def hold(self) -> None:
        """Work that lasts until the gate opens."""
        assert self.gate.wait(20)

    def run(
        self, job: Job, work: Callable[[], object], *, is_long: bool = False
    ) -> asyncio.Task[object]:
        """Work of a job, in a task."""
        return asyncio.create_task(job.run(work, is_long=is_long))

    def note(
        self, name: str, n_chars: int, *, is_long: bool = False, tenant: Tenant = ANYONE
    ) -> asyncio.Task[object]:
        """Work that writes a name into the log."""
        job = self.pool.job(n_chars, tenant)
        return self.run(job, lambda: self.log.append(name), is_long=is_long)

    async def held(self) -> list[asyncio.Task[object]]:
        """Both threads, held by work that is not long."""
        tasks = [self.run(self.pool.job(1), self.hold) for _ in range(2)]
        await until(lambda: self.pool._n_running == 2)
        return tasks


def lane(pool: TextPool, *, is_long: bool = False) -> list[int]:
    """Numbers of the pieces of one kind that wait."""
    return [number for lanes in pool._turns._lanes.values() for number in lanes[is_long]._waiting]


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A pool whose threads end, whatever the test did."""
    bench = Bench()
    yield bench
    bench.gate.set()
    await bench.pool.close()


async def test_less_left_goes_first(bench: Bench) -> None:
    """Of the pieces that wait, those of requests with less text left run first."""
    holding = await bench.held()
    tasks = [bench.note(str(n), n) for n in (300, 5, 70)]
    await until(lambda: len(lane(bench.pool)) == 3)
    bench.gate.set()
    await asyncio.gather(*holding, *tasks)
    assert bench.log[0] == "5"
    assert sorted(bench.log) == ["300", "5", "70"]


async def test_no_piece_starves(bench: Bench) -> None:
    """A piece that has waited for long goes before pieces of any size."""
    holding = await bench.held()
    old = bench.note("old", 10_000, is_long=True)
    await until(lambda: lane(bench.pool, is_long=True))
    bench.now_s = 1.0
    new = [bench.note("new", 1) for _ in range(3)]
    await until(lambda: len(lane(bench.pool)) == 3)
    bench.gate.set()
    await asyncio.gather(*holding, old, *new)
    assert "old" in bench.log[:2]  # two threads log at the same time


async def test_long_pieces_leave_a_thread(bench: Bench) -> None:
    """However many long pieces there are, other pieces run at once."""
    long = [bench.run(bench.pool.job(10_000), bench.hold, is_long=True) for _ in range(5)]
    bench.now_s = 1.0
    await bench.note("short", 100_000)
    assert bench.log == ["short"]
    assert not any(task.done() for task in long)
    bench.gate.set()
    await asyncio.gather(*long)


async def test_a_cancelled_piece_never_runs(bench: Bench) -> None:
    """A caller that leaves takes its piece along; the others run."""
    holding = await bench.held()
    tasks = [bench.note(str(n), n) for n in range(200)]
    await until(lambda: len(lane(bench.pool)) == 200)
    for task in tasks[:-1]:
        task.cancel()
    await asyncio.gather(*tasks[:-1], return_exceptions=True)
    assert len(bench.pool._turns._lanes[ANYONE][False]._by_left) < 100  # what left is forgotten
    bench.gate.set()
    await asyncio.gather(*holding, tasks[-1])
    assert bench.log == ["199"]


async def test_a_caller_that_leaves_during_its_piece(bench: Bench) -> None:
    """A thread counts as busy until its piece ends, whether anybody waits for it or not."""
    tasks = await bench.held()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.pool._n_running == 2
    waiting = bench.note("next", 1)
    bench.gate.set()
    await waiting
    await until(lambda: bench.pool._n_running == 0)


async def test_closing(bench: Bench) -> None:
    """Pieces that wait, and pieces that come later, fail; pieces that run end first."""
    holding = await bench.held()
    waiting = [bench.note("never", 1), bench.note("never", 1, is_long=True)]
    await until(lambda: lane(bench.pool) and lane(bench.pool, is_long=True))
    closing = asyncio.create_task(bench.pool.close())
    for task in waiting:
        with pytest.raises(NotReady):
            await task
    with pytest.raises(NotReady):
        await bench.note("never", 1)
    assert not closing.done()
    bench.gate.set()
    await asyncio.gather(closing, *holding)
    assert bench.log == []


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration("no")])
async def test_errors_arrive(bench: Bench, error: Exception) -> None:
    """An error of the work is the caller's, even one that no future can hold."""

    def fail() -> NoReturn:
        raise error

    with pytest.raises((ValueError, RuntimeError)) as caught:
        await bench.run(bench.pool.job(1), fail)
    assert error in (caught.value, caught.value.__cause__)
    assert await bench.run(bench.pool.job(1), lambda: 7) == 7


async def test_admission(bench: Bench) -> None:
    """A job is refused if the text that goes before it takes too long at the measured speed."""
    pool = bench.pool
    speed = pool._chars_per_s * 2
    with pool.admit(int(11 * speed)) as first:  # alone, any size is admitted
        with pool.admit(1):  # little text goes first
            pass
        with pytest.raises(Overloaded, match="characters to tokenise") as caught:
            pool.admit(int(12 * speed))
        assert caught.value.retry_after_s == 1
        assert caught.value.limit == int(10 * speed)
        first.advance(int(2 * speed))
        with pool.admit(int(12 * speed)):
            pass
        with pytest.raises(Overloaded):
            pool.admit(int(12 * speed), patience_s=5)
    with pool.admit(int(12 * speed), patience_s=5):
        pass
    refused = bench.metrics.registry.get_sample_value("matryo_rejections_total", {"reason": "wait"})
    assert refused == 2


async def test_no_bound_on_waiting() -> None:
    """Callers of the same process wait as long as they like."""
    pool = TextPool(1, Metrics(CollectorRegistry()))
    for _ in range(3):
        pool.admit(10**15)
    await pool.close()


async def test_the_speed_is_measured(bench: Bench) -> None:
    """Long enough pieces tell how many characters a thread tokenises in a second."""
    before = bench.pool._chars_per_s
    with bench.pool.admit(1 << 20) as job:
        await job.run(lambda: None)
        job.advance(1 << 19)
    assert bench.pool._chars_per_s > before
    after = bench.pool._chars_per_s
    with bench.pool.admit(100) as job:
        await job.run(lambda: None)
        job.advance(100)
    assert bench.pool._chars_per_s == after


async def test_work_that_fails_costs_its_tenant_as_well(bench: Bench) -> None:
    """A tenant whose bodies cannot be parsed has no threads for nothing."""
    tenant = Tenant("broken")

    def fail() -> None:
        bench.hold()
        raise ZeroDivisionError

    failing = bench.run(bench.pool.job(1, tenant), fail)
    await until(lambda: bench.pool._n_running)
    bench.gate.set()
    with pytest.raises(ZeroDivisionError):
        await failing
    assert bench.pool._turns._had["broken"] > 0


async def test_tenants_take_turns(bench: Bench) -> None:
    """A tenant with one large piece does not wait for the hundred small and old ones of another."""
    holding = await bench.held()
    greedy = [bench.note("greedy", 1, tenant=Tenant("greedy")) for _ in range(100)]
    await until(lambda: len(lane(bench.pool)) == 100)
    bench.now_s = 1.0
    bench.pool._turns.charge(Tenant("greedy"), 0.1)
    polite = bench.note("polite", 100_000, tenant=Tenant("polite"))
    await until(lambda: len(lane(bench.pool)) == 101)
    bench.gate.set()
    await asyncio.gather(*holding, polite, *greedy)
    assert "polite" in bench.log[:2]  # two threads log at the same time


async def test_text_of_others_counts_up_to_a_turn(bench: Bench) -> None:
    """A tenant is refused for its own text; of another one's, only as much goes first."""
    pool, speed = bench.pool, int(bench.pool._chars_per_s) * 2
    greedy, polite = Tenant("greedy"), Tenant("polite")
    with pool.admit(11 * speed, tenant=greedy):
        with pytest.raises(Overloaded):
            pool.admit(11 * speed, tenant=greedy)
        with pool.admit(9 * speed, tenant=polite), pytest.raises(Overloaded):
            pool.admit(9 * speed, tenant=polite)
