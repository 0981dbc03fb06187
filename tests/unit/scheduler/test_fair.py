"""Tenants share the workers by weight: nobody starves, nobody saves, nobody fills the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from matryo.core.errors import Overloaded
from matryo.core.metrics import Metrics
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Priority, Tenant, Ticket
from matryo.scheduler.queue import Queue
from matryo.scheduler.rates import Rates
from matryo.scheduler.runs import Run
from tests.fakes import FakeEngine
from tests.unit.scheduler.steps import Stage, TimelessEngine

ENGINE = FakeEngine()
METRICS = Metrics(CollectorRegistry())
TOKEN_S = 0.001  # what `Rate` takes for true before the first run
GREEDY, POLITE = Tenant("greedy"), Tenant("polite")


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """Tickets make a future, which wants a loop at hand."""
    with asyncio.Runner() as runner:
        asyncio._set_running_loop(runner.get_loop())
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class Desk:
    """A queue whose runs and time are the test's.

    Args:
        config: changes of the scheduler's configuration.

    Attributes:
        now: the clock.
        had_s: seconds of work that runs took, by the name of the tenant.
    """

    def __init__(self, **config: object) -> None:
        self.now = 100.0
        self.config = SchedulerConfig(**config)  # pyright: ignore[reportArgumentType] - a test's
        self.rates = Rates([ENGINE], self.config.batch_s)
        self.queue = Queue(self.rates, self.config, METRICS, lambda: self.now)
        self.had_s: dict[str | None, float] = {}

    def ticket(
        self, tenant: Tenant, lengths: Sequence[int], priority: Priority = "online"
    ) -> Ticket:
        """A request of distinct texts of these lengths, not admitted."""
        texts = [np.full(length, index, np.int64) for index, length in enumerate(lengths)]
        return Ticket(ENGINE, texts, 8, self.now, priority, tenant=tenant)

    def send(self, tenant: Tenant, lengths: Sequence[int], priority: Priority = "online") -> Ticket:
        """A request that is admitted, if there is room.

        Raises:
            Overloaded: there is none.
        """
        ticket = self.ticket(tenant, lengths, priority)
        self.queue.admission.check(ticket)
        self.queue.add(ticket)
        return ticket

    def choose(self) -> list[Job]:
        """The next batch, which stays where it is."""
        choice = self.queue.choose(self.now)
        return choice.jobs if choice else []

    def begin(self) -> Run | None:
        """Begin the next run, if there is one."""
        choice = self.queue.choose(self.now)
        return self.queue.take(choice, self.now) if choice else None

    def end(self, run: Run, seconds: float | None = None) -> None:
        """End a run after so many seconds, or when it is done."""
        self.now += TOKEN_S * run.n_tokens if seconds is None else seconds
        if run.is_interrupted:
            self.queue.put_back(run)
        else:
            for job in run.jobs:
                name = job.ticket.tenant.name
                self.had_s[name] = self.had_s.get(name, 0.0) + TOKEN_S * job.n_tokens
        self.queue.give_back(run)
        for ticket in {job.ticket for job in run.jobs}:
            if not ticket.pending:
                self.queue.remove(ticket)

    def run(self) -> str | None:
        """Do the next run from its begin to its end; the name of the tenant that led it."""
        run = self.begin()
        if run is None:
            return None
        self.end(run)
        return run.leader.tenant.name


weights = st.sampled_from([0.25, 1.0, 1.0, 2.0, 5.0])
larger = st.lists(st.integers(20, 150), min_size=1, max_size=8)
kinds = st.lists(st.integers(1, 150), min_size=1, max_size=8)


class TestShares:
    """Who leads, and how much each one gets."""

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(weights, larger, st.booleans()), min_size=2, max_size=4))
    def test_backlogged_tenants_have_their_weights(
        self, tenants: list[tuple[float, list[int], bool]]
    ) -> None:
        """Whatever tenants send, their work differs from their weights by a bounded time.

        The bound is twice `starve_s` and two batches, divided by the smallest weight.
        """
        desk = Desk()
        named = [Tenant(str(n), weight) for n, (weight, _, _) in enumerate(tenants)]
        largest_s = max(desk.config.batch_s, 0.15)
        waiting: dict[Tenant, list[Ticket]] = {tenant: [] for tenant in named}
        for _ in range(80):
            for tenant, (_, lengths, bulk) in zip(named, tenants, strict=True):
                waiting[tenant] = [ticket for ticket in waiting[tenant] if ticket.pending]
                while sum(ticket.pending_tokens for ticket in waiting[tenant]) < 600:
                    priority: Priority = "bulk" if bulk else "online"
                    waiting[tenant].append(desk.send(tenant, lengths, priority))
            assert desk.run()
            for one in named:
                for other in named:
                    gap_s = desk.had_s.get(one.name, 0.0) / one.weight
                    gap_s -= desk.had_s.get(other.name, 0.0) / other.weight
                    most_s = 2 * (desk.config.starve_s + 2 * largest_s)
                    assert gap_s <= most_s / min(tenant.weight for tenant in named)

    def test_twice_the_weight_is_twice_the_work(self) -> None:
        """Two tenants with endless bulk get two parts and one part of the workers."""
        desk = Desk()
        for tenant in (Tenant("two", 2.0), Tenant("one", 1.0)):
            for _ in range(40):
                desk.send(tenant, [50] * 40)
        for _ in range(150):
            desk.run()
        assert desk.had_s["two"] / desk.had_s["one"] == pytest.approx(2.0, rel=0.05)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 4), kinds), min_size=1, max_size=40))
    def test_nothing_waits_while_a_worker_is_free(
        self, requests: list[tuple[int, list[int]]]
    ) -> None:
        """Whoever sends what, a worker beside which nothing runs finds work, until all is done."""
        desk = Desk(workers=3)
        for number, lengths in requests:
            desk.send(Tenant(str(number), 0.01 if number else 100.0), lengths)
        n_runs = 0
        while desk.queue.waiting.n_tokens:
            assert desk.run() is not None
            n_runs += 1
        assert n_runs <= sum(len(lengths) for _, lengths in requests)
        assert len(desk.queue) == 0

    def test_a_newcomer_goes_first(self) -> None:
        """A tenant with nothing behind it passes the thousand requests of another."""
        desk = Desk()
        for _ in range(1000):
            desk.send(GREEDY, [10])
        desk.run()
        desk.send(POLITE, [90])
        assert desk.run() == "polite"

    def test_idleness_saves_nothing(self) -> None:
        """A tenant that comes back after a while gets its share from now on, and no more."""
        desk = Desk()
        desk.send(POLITE, [10])
        desk.run()
        for _ in range(100):
            desk.send(GREEDY, [100] * 40)
        for _ in range(30):  # six seconds, in which the other one asks for nothing
            desk.run()
        for _ in range(100):
            desk.send(POLITE, [100] * 40)
        desk.had_s.clear()
        for _ in range(40):
            desk.run()
        gap_s = desk.had_s["polite"] - desk.had_s["greedy"]
        assert abs(gap_s) <= desk.config.starve_s + 2 * desk.config.batch_s

    def test_queries_of_one_do_not_starve_the_bulk_of_another(self) -> None:
        """A flood of queries leaves bulk of another tenant its half, and not a batch a second."""
        desk = Desk()
        for _ in range(20):
            desk.send(POLITE, [100] * 40)
        for _ in range(200):
            while desk.queue.waiting.accounts.open(GREEDY, desk.now).n_waiting < 20:
                desk.send(GREEDY, [20])
            desk.run()
        assert desk.had_s["polite"] >= 0.8 * desk.had_s["greedy"]

    def test_a_query_within_its_share_passes_bulk(self) -> None:
        """Queries go before bulk of another tenant that had less, up to `starve_s` of work."""
        desk = Desk()
        desk.send(GREEDY, [100] * 40)
        for _ in range(5):
            desk.send(POLITE, [90])
        assert [desk.run() for _ in range(2)] == ["polite", "polite"]

    def test_company_has_its_turn_too(self) -> None:
        """A batch takes texts of another tenant along, unless that one had `starve_s` beyond."""
        desk = Desk()
        desk.send(POLITE, [50])
        desk.send(GREEDY, [40], "bulk")
        assert [job.n_tokens for job in desk.choose()] == [50, 40]
        greedy = desk.queue.waiting.accounts.open(GREEDY, desk.now)
        greedy.served += desk.config.starve_s + 0.1
        assert [job.n_tokens for job in desk.choose()] == [50]

    def test_a_new_weight_counts_from_the_next_request(self) -> None:
        """A weight that the operator changes takes effect, and older requests do not undo that."""
        desk = Desk()
        desk.send(Tenant("a", 1.0), [50] * 40)
        desk.send(Tenant("a", 3.0), [50] * 40)
        desk.send(Tenant("b", 1.0), [50] * 40)
        for _ in range(3):
            desk.run()
        accounts = desk.queue.waiting.accounts
        assert {one.tenant for one in accounts.waiting()} == {Tenant("a", 3.0), Tenant("b", 1.0)}
        assert accounts.part(Tenant("b", 1.0)) == pytest.approx(0.25)


class TestGuests:
    """A tenant that had its share makes way for the others."""

    @staticmethod
    def busy(workers: int = 2) -> Desk:
        """A greedy tenant that had all for a while, and a polite one that was there just now."""
        desk = Desk(workers=workers, batch_s=0.4)
        desk.send(POLITE, [10])
        desk.run()
        for _ in range(300):
            desk.send(GREEDY, [50] * 40)
        for _ in range(60):
            desk.send(POLITE, [10])
            desk.run()
            desk.run()
        return desk

    def test_short_batches(self) -> None:
        """Its batches are short as long as the other one sends requests."""
        desk = self.busy()
        assert sum(job.n_tokens for job in desk.choose()) == 50
        desk.now += desk.config.recent_s + 1
        assert sum(job.n_tokens for job in desk.choose()) == 400

    @pytest.mark.parametrize("lengths", [[10], [50] * 40], ids=["query", "bulk"])
    def test_makes_way(self, lengths: list[int]) -> None:
        """A request of the other tenant interrupts every run, and begins when all have ended."""
        desk = self.busy()
        runs = [desk.begin() for _ in range(2)]
        greedy = [run for run in runs if run and run.leader.tenant == GREEDY]
        assert len(greedy) == 2
        pending = desk.queue.admission.n_tokens
        desk.send(POLITE, lengths)
        assert all(run.is_interrupted for run in greedy)
        desk.end(greedy[0], 0.001)
        assert desk.begin() is None
        desk.end(greedy[1], 0.001)
        assert desk.queue.admission.n_tokens == pending + sum(lengths)
        run = desk.begin()
        assert run
        assert run.leader.tenant == POLITE
        assert run.interrupt is None

    def test_waits_for_the_others(self) -> None:
        """No run of a guest begins while a run of another tenant is under way."""
        desk = self.busy()
        desk.send(POLITE, [10])
        run = desk.begin()
        assert run
        assert run.by_tenant == {"polite": 10}
        assert desk.begin() is None
        desk.queue.arrived.clear()
        desk.end(run)
        assert desk.queue.arrived.is_set()
        assert desk.begin()

    def test_is_not_charged_for_what_is_lost(self) -> None:
        """An interrupted run changes nobody's clock."""
        desk = self.busy()
        account = desk.queue.waiting.accounts.open(GREEDY, desk.now)
        served, used_s = account.served, account.used_s
        run = desk.begin()
        assert run
        assert account.served > served
        desk.send(POLITE, [10])
        desk.end(run, 0.0)
        assert account.served == pytest.approx(served)
        assert account.used_s == pytest.approx(used_s, rel=0.02)  # some of that faded

    def test_comes_to_its_share_at_last(self) -> None:
        """Whoever interrupts a guest all the time makes it a guest no more."""
        desk = self.busy()
        desk.had_s.clear()
        for _ in range(3000):
            run = desk.begin()
            assert run
            if run.interrupt:
                desk.send(POLITE, [50])
                desk.end(run, 0.001)
            else:
                desk.end(run)
            if desk.had_s.get("greedy", 0.0) > 1.0:
                return
        pytest.fail("the guest had nothing computed")

    def test_one_that_is_owed_does_not_wait(self) -> None:
        """A guest that another tenant is ahead of by `starve_s` runs beside that tenant."""
        desk = self.busy()
        polite = desk.queue.waiting.accounts.open(POLITE, desk.now)
        desk.send(POLITE, [50] * 40)
        polite.served += desk.config.starve_s + 1
        run = desk.begin()
        assert run
        assert run.leader.tenant == GREEDY
        desk.send(POLITE, [10])
        assert not run.is_interrupted

    def test_a_single_worker_is_shared(self) -> None:
        """One worker is not left idle for a tenant that may never come."""
        assert self.busy(workers=1).begin()

    def test_its_texts_do_not_ride_with_others(self) -> None:
        """A batch of the other tenant has that tenant's texts alone."""
        desk = self.busy()
        desk.send(GREEDY, [5, 5])
        desk.send(POLITE, [20])
        assert {job.ticket.tenant for job in desk.choose()} == {POLITE}

    def test_long_texts_are_not_interrupted(self) -> None:
        """A long text would never be done, and no other tenant's request waits for it."""
        desk = Desk(workers=2, batch_s=0.4)
        desk.send(POLITE, [10])
        desk.run()
        for _ in range(100):
            desk.send(GREEDY, [600] * 4)
        for _ in range(20):
            desk.send(POLITE, [10])
            desk.run()
            desk.run()
        desk.run()
        run = desk.begin()
        assert run
        assert run.is_long
        assert run.leader.is_guest
        desk.send(POLITE, [10])
        assert not run.is_interrupted
        other = desk.begin()
        assert other
        assert other.leader.tenant == POLITE

    def test_interrupted_texts_are_computed(self) -> None:
        """A caller of a guest gets the vectors of texts whose run was interrupted, each once."""
        asyncio._set_running_loop(None)  # the stage has a loop of its own
        engine = TimelessEngine()
        engine.token_s = TOKEN_S
        with Stage([engine], workers=2, ready_interval_s=1e6) as stage:
            texts = [np.full(50, index, np.int64) for index in range(800)]
            run = stage.scheduler.run
            n_interrupted = 0
            greedy = stage.task(run(engine, texts, 4, tenant=GREEDY))
            while not greedy.done():
                if stage.executor.runs and stage.loop.now % 0.5 < 0.1:
                    polite = stage.task(run(engine, [texts[0][:10]], 4, tenant=POLITE))
                    n_interrupted += sum(one.is_interrupted for one in stage.executor.runs)
                    while not polite.done():
                        stage.finish()
                else:
                    stage.finish()
                stage.loop.advance(0.05)
            assert n_interrupted > 2
            vectors = greedy.result()
            for ids, vector in zip(texts, vectors, strict=True):
                assert np.array_equal(vector, engine.vector(ids, 4))

    def test_nobody_is_a_guest_alone(self) -> None:
        """Without another tenant, batches are full and every worker works."""
        desk = Desk(workers=2)
        for _ in range(100):
            desk.send(GREEDY, [50] * 40)
        for _ in range(40):
            desk.run()
        assert sum(job.n_tokens for job in desk.choose()) == 200
        assert desk.begin()
        assert desk.begin()

    def test_all_greedy_lose_nothing(self) -> None:
        """Where every tenant has work waiting, every worker works and batches are full."""
        desk = Desk(workers=2)
        for name in "abc":
            for _ in range(100):
                desk.send(Tenant(name), [50] * 40)
        for _ in range(100):
            desk.run()
        assert sum(job.n_tokens for job in desk.choose()) == 200
        assert desk.begin()
        assert desk.begin()

    def test_less_than_half_of_the_most_is_no_guest(self) -> None:
        """Of two tenants over their share, the one that had much less does not make way."""
        desk = Desk(workers=1)
        others = [Tenant(f"other-{number}") for number in range(18)]
        for tenant in others:
            desk.send(tenant, [10])
        for _ in range(200):
            desk.send(GREEDY, [50] * 40)
        for number in range(60):
            if number % 8 == 0:
                desk.send(POLITE, [100])
            desk.run()
        accounts = desk.queue.waiting.accounts
        greedy, polite = accounts.find(GREEDY), accounts.find(POLITE)
        assert greedy
        assert polite
        assert greedy.is_guest
        assert not polite.is_guest


class TestBackground:
    """Batch requests run where nothing else would, and a little beside endless work."""

    def test_waits_for_online_work(self) -> None:
        """A batch request begins where nothing else waits or runs."""
        desk = Desk(workers=2)
        desk.send(POLITE, [50] * 40, "batch")
        desk.send(POLITE, [10])
        run = desk.begin()
        assert run
        assert not run.is_background
        assert desk.begin() is None
        desk.end(run)
        run = desk.begin()
        assert run
        assert run.is_background

    @pytest.mark.parametrize("priority", ["online", "bulk"])
    def test_is_interrupted(self, priority: Priority) -> None:
        """Any other request interrupts every run of a batch, of the same tenant or of another."""
        for tenant in (POLITE, GREEDY):
            desk = Desk(workers=2)
            desk.send(POLITE, [50] * 40, "batch")
            runs = [desk.begin(), desk.begin()]
            desk.send(tenant, [10], priority)
            assert all(run and run.is_interrupted for run in runs)
            assert desk.begin() is None

    def test_full_batches_where_nobody_comes(self) -> None:
        """Without online requests, batches are full and sorted by length."""
        desk = Desk(workers=2)
        desk.send(POLITE, [50, 10] * 20, "batch")
        assert [job.n_tokens for job in desk.choose()] == [50] * 4

    def test_has_its_part_beside_endless_work(self) -> None:
        """Beside online work without end, the background gets about its part and no less."""
        desk = Desk(workers=1)
        desk.send(GREEDY, [50] * 4000, "batch")
        for _ in range(2000):
            while desk.queue.waiting.n_tokens < 1000:
                desk.send(POLITE, [20] * 10)
            desk.run()
        part = desk.had_s["greedy"] / sum(desk.had_s.values())
        assert part == pytest.approx(desk.config.background_share, rel=0.3)

    def test_an_owner_does_not_wait_for_online_runs_of_others(self) -> None:
        """Beside a run of an online tenant, a batch request that is due begins, whoever owns it."""
        desk = Desk(workers=2)
        owners = [Tenant("a"), Tenant("b")]
        for owner in owners:
            desk.send(owner, [50] * 4000, "batch")
        for _ in range(200):  # two runs at a time
            runs = desk.begin(), desk.begin()
            for seconds, run in zip((None, 0.0), runs, strict=True):
                assert run
                desk.end(run, seconds)
        assert all(account.is_guest for account in desk.queue.background.accounts.waiting())
        desk.send(POLITE, [20] * 10)
        online = desk.begin()
        assert online
        assert not online.is_background
        assert desk.begin() is None
        desk.now += 60.0
        due = desk.begin()
        assert due
        assert due.is_background
        assert due.interrupt is None

    def test_small_requests_are_no_queries(self) -> None:
        """A batch request is bulk, however small: its batches are full."""
        desk = Desk()
        for _ in range(10):
            desk.send(POLITE, [20], "batch")
        assert sum(job.n_tokens for job in desk.choose()) == 200

    def test_counts_toward_no_bound(self) -> None:
        """Batch requests do not fill the queue, and are not refused when the queue is full."""
        desk = Desk(queue_tokens=1000, max_requests=2, max_wait_s=1.0)
        for _ in range(5):
            desk.send(GREEDY, [100] * 20, "batch")
        assert desk.queue.admission.n_tokens == 0
        assert desk.queue.admission.expected_s(bulk=True) == 0
        desk.send(POLITE, [100] * 5)
        desk.send(POLITE, [100] * 4)
        with pytest.raises(Overloaded):
            desk.send(POLITE, [100])
        with pytest.raises(Overloaded):
            desk.queue.admission.check_room(POLITE)
        desk.queue.admission.check_room(POLITE, priority="batch")
        desk.send(GREEDY, [100] * 20, "batch")

    def test_tenants_share_the_background(self) -> None:
        """Batches of two tenants get their weights of what is left."""
        desk = Desk()
        for tenant in (Tenant("two", 2.0), Tenant("one", 1.0)):
            for _ in range(40):
                desk.send(tenant, [50] * 40, "batch")
        for _ in range(150):
            desk.run()
        assert desk.had_s["two"] / desk.had_s["one"] == pytest.approx(2.0, rel=0.1)


class TestAdmission:
    """A full queue is full for those who filled it."""

    def test_the_greedy_is_refused_and_the_others_are_not(self) -> None:
        """By tokens: whoever holds more than its share waits, the others have their share."""
        desk = Desk(queue_tokens=4000)
        for _ in range(4):
            desk.send(GREEDY, [100] * 10)
        with pytest.raises(Overloaded, match="queued tokens"):
            desk.send(GREEDY, [100])
        for _ in range(20):
            desk.send(POLITE, [100])  # half of the queue is its share
        with pytest.raises(Overloaded, match="queued tokens"):
            desk.send(POLITE, [100])

    def test_by_number(self) -> None:
        """The same holds for the number of requests."""
        desk = Desk(max_requests=8)
        for _ in range(8):
            desk.send(GREEDY, [1])
        with pytest.raises(Overloaded, match="waiting requests"):
            desk.send(GREEDY, [1])
        for _ in range(4):
            desk.send(POLITE, [1])
        with pytest.raises(Overloaded, match="waiting requests"):
            desk.send(POLITE, [1])

    def test_one_request_beyond_the_share(self) -> None:
        """A tenant that holds nothing gets one request in, though it is larger than its share."""
        desk = Desk(queue_tokens=4000)
        for _ in range(4):
            desk.send(GREEDY, [100] * 10)
        desk.send(POLITE, [100] * 30)

    def test_the_sum_is_bounded(self) -> None:
        """However many tenants come, all together hold at most twice the limit."""
        desk = Desk(queue_tokens=4000, max_requests=500)
        admitted = 0
        for number in range(100):
            try:
                desk.send(Tenant(f"key-{number}"), [100] * 10)
                admitted += 1
            except Overloaded:
                pass
        assert admitted == 8
        assert desk.queue.admission.n_tokens == 8000

    def test_the_wait_is_that_of_the_tenant(self) -> None:
        """Only what the fair order puts first counts for the expected wait."""
        desk = Desk(max_wait_s=10.0)
        for _ in range(9):
            desk.send(GREEDY, [100] * 10)
        with pytest.raises(Overloaded, match=r"expected in 11"):
            desk.send(GREEDY, [100] * 20)
        ahead_s = desk.queue.admission.expected_s(bulk=True)
        assert ahead_s > 8
        desk.send(POLITE, [100] * 40)  # 4 s of its own, and as much of the other's
        with pytest.raises(Overloaded, match=r"expected in 1[0-9]"):
            desk.send(POLITE, [100] * 20)

    def test_what_another_is_owed_goes_first(self) -> None:
        """The wait counts as much of another tenant as of one's own, and what that one is owed."""
        desk = Desk()
        desk.send(GREEDY, [100] * 40, "bulk")
        desk.send(POLITE, [100] * 5, "bulk")
        waits, accounts = desk.queue.admission._waits, desk.queue.waiting.accounts
        wait_s = waits.of_tenant(POLITE, 1.0, 0.0, bulk=True)
        assert wait_s == pytest.approx(0.5 + (0.5 + 1.0))
        accounts.open(POLITE, desk.now).served += 0.25
        wait_s = waits.of_tenant(POLITE, 1.0, 0.0, bulk=True)
        assert wait_s == pytest.approx(0.5 + (0.5 + 1.0) + 0.25)

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 3), kinds), min_size=1, max_size=30),
        st.integers(0, 6),
        kinds,
    )
    def test_the_wait_is_never_more_than_behind_all(
        self, requests: list[tuple[int, list[int]]], n_runs: int, asked: list[int]
    ) -> None:
        """The wait in the fair order is at most that behind everything, and one tenant's is that."""
        desk = Desk()
        for number, lengths in requests:
            desk.send(Tenant(str(number), 1.0 + number), lengths)
        for _ in range(n_runs):
            desk.run()
        for bulk in (False, True):
            waits, work_s = desk.queue.admission._waits, TOKEN_S * sum(asked)
            fair_s = waits.of_tenant(Tenant("new"), work_s, 0.0, bulk=bulk)
            assert 0 <= fair_s <= desk.queue.admission.expected_s(bulk=bulk)
        if len({number for number, _ in requests}) == 1:
            only = Tenant(str(requests[0][0]), 1.0 + requests[0][0])
            wait_s = desk.queue.admission._waits.of_tenant(only, 1.0, 0.0, bulk=True)
            assert wait_s == pytest.approx(desk.queue.admission.expected_s(bulk=True))

    def test_the_fair_wait_comes_true(self) -> None:
        """A request is computed about when its tenant was promised, beside a flood of another."""
        desk = Desk()
        for _ in range(50):
            desk.send(GREEDY, [100] * 20)
        desk.run()
        work_s = TOKEN_S * 3000
        promised_s = desk.queue.admission._waits.of_tenant(POLITE, work_s, 0.0, bulk=True) + work_s
        ticket, began = desk.send(POLITE, [100] * 30), desk.now
        while ticket.pending:
            desk.run()
        assert desk.now - began == pytest.approx(promised_s, rel=0.2)
