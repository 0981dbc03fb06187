"""The scheduler as a state machine: whatever happens in whatever order, nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from matryo.core.errors import CallerGone, EngineError, NotReady, Overloaded
from matryo.engine import TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import ANYONE, Priority, Tenant, supervision
from matryo.scheduler import queue as queue_module
from matryo.scheduler.accounts import Accounts
from matryo.scheduler.groups import Load
from matryo.scheduler.jobs import Ticket, work_of
from matryo.scheduler.queue import Queue
from matryo.scheduler.rates import Work
from matryo.scheduler.waiting import Waiting
from matryo.service.patience import while_wanted
from tests.fakes import MINILM
from tests.unit.scheduler.steps import SPOILS, Run, Stage, TimelessEngine

WORKERS, DIMENSIONS, RESTART_S = 3, 4, 0.2
POISON = 1 << 40
"""A token id that makes every run with it raise."""
FAULTS = (
    "picking",
    "leaving",
    "taking",
    "coming",
    "observing",
    "submitting",
    "counting",
    "delivering",
    "putting back",
    "giving back",
)
Leaving = Literal["cancel", "gone"]

models = st.integers(0, 1)
priorities = st.sampled_from(get_args(Priority))
tenants = st.sampled_from([ANYONE, Tenant("a"), Tenant("b"), Tenant("c", 0.25), Tenant("c", 3.0)])
patiences = st.sampled_from([None, 0.05, 0.5])
indexes = st.integers(0, 99)
lengths = st.lists(st.integers(1, 700), min_size=1, max_size=4)
ends = st.sampled_from(["well", "well", "raise", *SPOILS])
leavings = st.sampled_from(get_args(Leaving))


def counted(load: Load) -> Work:
    """The work that a load counts."""
    return {kind: n_tokens for kind, n_tokens in load.work.items() if n_tokens}


def work_of_all(tickets: Sequence[Ticket]) -> Work:
    """The pending work of some tickets."""
    return work_of(job for ticket in tickets for job in ticket.pending)


class BrokenError(Exception):
    """A bug of the scheduler's own."""


@dataclass
class Caller:
    """Who waits for a request.

    Attributes:
        texts: what was asked.
        poisoned: whether a text makes every run with it raise.
        task: the caller.
        gone: is set when the caller hangs up.
        cancelled: the caller's task was cancelled before it had an outcome.
        excused: the run of one of its texts alone ended badly.
        outcomes: what came of it: vectors or an exception.
    """

    engine: TimelessEngine
    texts: list[TokenIds]
    poisoned: bool
    task: asyncio.Task[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    excused: bool = False
    outcomes: list[FloatArray | BaseException] = field(default_factory=list[Any])


@dataclass
class Faults:
    """Raises once where it is armed.

    Attributes:
        armed: one of FAULTS, or None.
        n_struck: how often it has raised.
    """

    armed: str | None = None
    n_struck: int = 0

    def strike(self, point: str) -> None:
        """Raise if armed for this point."""
        if self.armed == point:
            self.armed = None
            self.n_struck += 1
            raise BrokenError(point)

    def before(
        self,
        point: str,
        real: Callable[..., Any],
        is_mine: Callable[[Any], bool] = lambda _first: True,
    ) -> Callable[..., Any]:
        """`real`, which raises first where it is armed, and where its first argument is mine.

        A service of another test may still beat on a thread of its own, and must not be struck.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            if is_mine(args[0] if args else None):
                self.strike(point)
            return real(*args, **kwargs)

        return call

    @contextmanager
    def installed(self, stage: Stage) -> Generator[None]:
        """Put the points into the scheduler's way, from the choice of a batch to its end."""
        take, give_back, before = Queue.take, Queue.give_back, self.before
        metrics, executor, queue = stage.metrics, stage.executor, stage.scheduler._queue
        places = (queue.waiting, queue.background)

        def taking(*args: Any) -> Any:
            if args[0] is not queue:
                return take(*args)
            with (
                patch.object(Waiting, "remove", before("leaving", Waiting.remove)),
                patch.object(Ticket, "take", before("taking", Ticket.take)),
                patch.object(Waiting, "add", before("coming", Waiting.add)),
            ):
                return take(*args)

        def giving_back(*args: Any) -> None:
            if args[0] is not queue:
                give_back(*args)
                return
            with patch.object(Queue, "count_busy", before("giving back", Queue.count_busy)):
                give_back(*args)

        waits, texts = metrics.queue_seconds, metrics.batch_texts
        with (
            patch.object(
                queue_module,
                "next_batch",
                before("picking", queue_module.next_batch, lambda waiting: waiting in places),
            ),
            patch.object(Queue, "take", taking),
            patch.object(waits, "labels", before("observing", waits.labels)),
            patch.object(executor, "submit", before("submitting", executor.submit)),
            patch.object(texts, "labels", before("counting", texts.labels)),
            patch.object(
                Ticket,
                "deliver",
                before("delivering", Ticket.deliver, lambda ticket: ticket.engine in stage.engines),
            ),
            patch.object(
                Ticket,
                "put_back",
                before("putting back", Ticket.put_back, lambda one: one.engine in stage.engines),
            ),
            patch.object(Queue, "give_back", giving_back),
        ):
            yield


class Deaths(logging.Handler):
    """Counts the workers that died."""

    def __init__(self) -> None:
        super().__init__()
        self.n_died = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self.n_died += 1


class Machine(RuleBasedStateMachine):
    """Callers come, hang up and are answered; runs end well and badly; workers die."""

    @initialize()
    def begin(self) -> None:
        """A started scheduler of two models."""
        gc.freeze()  # makes the collection in the end quick
        self.abrupt = False
        self.n_called = 0
        self.engines = (TimelessEngine(), TimelessEngine(MINILM))
        self.callers: list[Caller] = []
        self.faults = Faults()
        self.stage = Stage(
            self.engines,
            workers=WORKERS,
            queue_tokens=3000,
            max_requests=12,
            max_wait_s=0.9,
            restart_s=RESTART_S,
        )
        self.probe_failed = False
        self.patches = ExitStack()
        self.deaths = Deaths()
        supervision.log.addHandler(self.deaths)
        self.patches.callback(supervision.log.removeHandler, self.deaths)
        self.patches.enter_context(self.faults.installed(self.stage))
        # It belongs to the process and not to the machine.
        self.patches.enter_context(patch.object(supervision, "release_free_memory"))

    # --- what happens

    @rule(
        requests=st.lists(
            st.tuples(lengths, models, priorities, patiences, st.booleans(), tenants),
            min_size=1,
            max_size=4,
        )
    )
    def admit(
        self, requests: list[tuple[list[int], int, Priority, float | None, bool, Tenant]]
    ) -> None:
        """Requests come; they may be refused, and a text may be one that no run survives."""
        for sizes, model, priority, patience_s, poisoned, tenant in requests:
            texts = [np.arange(index, index + length) for index, length in enumerate(sizes)]
            if poisoned:
                texts[-1][0] = POISON
            caller = Caller(self.engines[model], texts, poisoned)
            self.call(caller, priority, patience_s, tenant)
        self.settle()

    def call(
        self, caller: Caller, priority: Priority, patience_s: float | None, tenant: Tenant
    ) -> None:
        """One caller."""

        async def call() -> None:
            run = self.stage.scheduler.run(
                caller.engine,
                caller.texts,
                DIMENSIONS,
                priority=priority,
                patience_s=patience_s,
                tenant=tenant,
            )
            try:
                answer = await while_wanted(run, gone=caller.gone.wait, deadline_s=None)
                caller.outcomes.append(answer)
            except BaseException as exc:
                caller.outcomes.append(exc)

        caller.task = self.stage.loop.create_task(call())
        self.callers.append(caller)
        self.n_called += 1

    @precondition(lambda self: self.stage.executor.runs)
    @rule(index=indexes, end=ends)
    def end_run(self, index: int, end: str) -> None:
        """A run gives vectors, raises, or gives what no vectors are."""
        self.finish(index, end)
        self.settle()

    @precondition(lambda self: self.waiting())
    @rule(index=indexes, leaving=leavings)
    def hang_up(self, index: int, leaving: Leaving) -> None:
        """A caller goes."""
        waiting = self.waiting()
        caller = waiting[index % len(waiting)]
        self.leave(caller, leaving)
        self.settle()
        if leaving == "gone":
            assert isinstance(caller.outcomes[0], CallerGone)

    @precondition(lambda self: self.stage.executor.runs)
    @rule(index=indexes, end=ends, turns=st.integers(0, 4), leaving=leavings)
    def hang_up_as_the_result_arrives(
        self, index: int, end: str, turns: int, leaving: Leaving
    ) -> None:
        """Every caller of a batch goes, some turns of the loop after its run has ended."""
        ran = {id(job.ids) for job in self.finish(index, end).batch}
        for _ in range(turns):
            self.stage.loop.turn()
        for caller in self.waiting():
            if any(id(ids) in ran for ids in caller.texts):
                self.leave(caller, leaving)
        self.settle()

    @rule(point=st.sampled_from(FAULTS))
    def break_soon(self, point: str) -> None:
        """The next worker that comes to this point dies."""
        self.faults.armed = point

    @rule(seconds=st.sampled_from([0.1, 1.5, 11.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        """The heartbeat may beat, bulk may claim its turn."""
        self.stage.loop.advance(seconds)
        self.settle()

    @precondition(lambda self: self.n_called > 10)
    @rule(grace_s=st.sampled_from([0.0, 5.0]))
    def drain(self, grace_s: float) -> None:
        """Nothing more is admitted."""
        self.stage.loop.call_soon(self.stage.scheduler.drain, grace_s)
        self.settle()

    @precondition(lambda self: self.n_called > 10)
    @rule()
    def close_abruptly(self) -> None:
        """In the end the scheduler is closed in the middle of its runs."""
        self.abrupt = True

    # --- what always holds

    @invariant()
    def counters_are_sums(self) -> None:
        """Each group holds the pending requests of its kind in order; all counts are sums of them."""
        queue = self.stage.scheduler._queue
        pending = [ticket for ticket in queue._tickets if ticket.pending]
        self.waiting_has(queue.waiting, [each for each in pending if not each.is_background])
        self.waiting_has(queue.background, [each for each in pending if each.is_background])

    def waiting_has(self, waiting: Waiting, pending: list[Ticket]) -> None:
        """The requests are sorted and counted, and no other one is."""
        accounts = waiting.accounts
        assert waiting._places.keys() == set(pending)
        for ticket in pending:
            assert ticket.pending_tokens == sum(job.n_tokens for job in ticket.pending)
        n_grouped = 0
        for account in accounts._by_name.values():
            mine = [t for t in pending if t.tenant.name == account.tenant.name]
            assert account.n_waiting == len(mine)
            assert account.bulk_tokens == sum(t.pending_tokens for t in mine if t.bulk)
            assert account.query_tokens == sum(t.pending_tokens for t in mine if not t.bulk)
            for groups, bulk in ((account.queries, False), (account.bulk, True)):
                for group in groups:
                    members = [
                        ticket
                        for ticket in mine
                        if ticket.engine is group.engine
                        and ticket.bulk is bulk
                        and (ticket.pending[0].n_tokens > ticket.long_tokens) is group.all_long
                    ]
                    assert members
                    assert group.by_size == sorted((t.pending_tokens, t.number, t) for t in members)
                    assert group.by_age == sorted((t.waiting_since, t.number, t) for t in members)
                    assert counted(group) == work_of_all(members)
                    n_grouped += len(members)
        assert n_grouped == len(pending)
        for loads, bulk in ((waiting.queries, False), (waiting.bulk, True)):
            for load in loads:
                all_of = [t for t in pending if t.engine is load.engine and t.bulk is bulk]
                assert counted(load) == work_of_all(all_of)
                assert load.n_requests == len(all_of)
        assert waiting.n_tokens == sum(ticket.pending_tokens for ticket in pending)

    @invariant()
    def tenants_are_sorted(self) -> None:
        """Each tenant that waits is in the lanes of what it has, by its clock, and nowhere else."""
        queue = self.stage.scheduler._queue
        for waiting in (queue.waiting, queue.background):
            self.lanes_are_those_of(waiting.accounts)
        online = [ticket for ticket in queue._tickets if not ticket.is_background]
        assert queue.admission._by_tenant == Counter(ticket.tenant.name for ticket in online)
        assert queue.admission._n_requests == len(online)

    def lanes_are_those_of(self, accounts: Accounts) -> None:
        """The lanes have each tenant where it belongs."""
        lanes: dict[tuple[bool, bool, bool], list[Any]] = {}
        for account in accounts._by_name.values():
            rank = account.served, account.number, account
            for groups, bulk in ((account.queries, False), (account.bulk, True)):
                for all_long in {group.all_long for group in groups}:
                    lanes.setdefault((bulk, all_long, account.is_guest), []).append(rank)
            assert (account in accounts._idle) is (not account.n_waiting)
        for lane, ranks in accounts._lanes.items():
            assert ranks == sorted(lanes.pop(lane, []))
        assert not lanes
        weights = sum(account.tenant.weight for account in accounts._by_name.values())
        assert accounts._weight == pytest.approx(weights, abs=1e-9)

    @invariant()
    def tokens_are_counted_once(self) -> None:
        """Queued tokens are those that wait and those in runs; the gauge has those of callers."""
        stage = self.stage
        queue = stage.scheduler._queue
        assert len(queue.runs) == len(stage.executor.runs)
        for run in stage.executor.runs:
            (taken,) = (one for one in queue.runs if set(run.batch) <= set(one.jobs))
            assert taken.n_tokens == sum(taken.work.values()) >= sum(run.lengths)
        online = [ticket for ticket in queue._tickets if not ticket.is_background]
        waiting = sum(ticket.pending_tokens for ticket in online)
        running = sum(run.n_tokens for run in queue.runs if not run.is_background)
        assert stage.scheduler.queued_tokens == waiting + running
        probes = sum(ticket.pending_tokens for ticket in queue._tickets if ticket.is_probe)
        probes += sum(run.n_tokens for run in queue.runs if run.is_probe)
        assert stage.sample("matryo_queue_tokens") == waiting + running - probes

    @invariant()
    def long_runs_are_counted(self) -> None:
        """`n_long` is the runs of long texts under way, and at most half of the workers."""
        stage = self.stage
        long = sum(run.lengths[0] > 200 for run in stage.executor.runs)
        assert stage.scheduler._queue.runs.n_long == long <= max(1, WORKERS // 2)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Somebody waits only if a run is under way, and nothing is admitted for nobody."""
        stage = self.stage
        if not stage.executor.runs:
            assert not self.waiting()
            assert not stage.scheduler.n_requests
            assert not stage.scheduler.queued_tokens
            assert not stage.scheduler._queue.admission.expected_s(bulk=True)

    @invariant()
    def every_caller_has_one_outcome(self) -> None:
        """A caller that is done has its vectors or one error; only who is cancelled is cancelled.

        No caller fails by the fault of another one's text.
        """
        for caller in self.callers:
            assert caller.task
            assert len(caller.outcomes) == caller.task.done()
            for outcome in caller.outcomes:
                if caller.cancelled:
                    assert isinstance(outcome, asyncio.CancelledError)
                elif isinstance(outcome, CallerGone):
                    assert caller.gone.is_set()
                elif isinstance(outcome, EngineError):
                    innocent = not (caller.poisoned or caller.excused)
                    assert not innocent or outcome.message == "a worker died"
                elif isinstance(outcome, BaseException):
                    assert isinstance(outcome, NotReady | Overloaded), repr(outcome)
                else:
                    assert not caller.poisoned
                    expected = [caller.engine.vector(ids, DIMENSIONS) for ids in caller.texts]
                    assert np.array_equal(outcome, np.stack(expected))
        self.callers = [caller for caller in self.callers if not caller.outcomes]

    @invariant()
    def readiness_is_that_of_the_model(self) -> None:
        """A run that fails costs readiness only if a probe failed, or a worker died."""
        reason = self.stage.scheduler.why_not_ready() or ""
        assert self.probe_failed or self.deaths.n_died or "failed" not in reason

    @invariant()
    def only_faults_kill_workers(self) -> None:
        """Nothing that callers or engines do ends a worker."""
        assert self.deaths.n_died == self.faults.n_struck

    def teardown(self) -> None:
        """In the end every run ends, and everybody has an answer."""
        if not hasattr(self, "stage"):
            return
        while self.stage.executor.runs and not self.abrupt:
            self.finish(0, "well")
            self.settle()
        self.nothing_is_forgotten()
        stage = self.stage
        stage.loop.run_until_complete(stage.scheduler.close())
        stage.finish_all()
        self.every_caller_has_one_outcome()
        assert not self.callers
        self.tokens_are_counted_once()
        self.nothing_is_forgotten()
        assert not stage.scheduler._queue.runs.n_long
        self.patches.close()
        stage.loop.close()
        gc.collect()  # asyncio reports exceptions that nobody retrieved when they are collected
        gc.unfreeze()
        assert not stage.loop.errors

    # --- helpers

    def waiting(self) -> list[Caller]:
        """Callers without an outcome."""
        return [caller for caller in self.callers if caller.task and not caller.task.done()]

    def finish(self, index: int, end: str) -> Run:
        """End a run; the loop has yet to take notice."""
        executor = self.stage.executor
        index %= len(executor.runs)
        engine = executor.runs[index].engine
        assert isinstance(engine, TimelessEngine)

        def explode(texts: Sequence[TokenIds]) -> None:
            if end == "raise" or any(ids[0] == POISON for ids in texts):
                raise MemoryError("boom")

        engine.before = explode
        engine.spoil = SPOILS.get(end, lambda vectors: vectors)
        run = executor.finish(index)
        if end != "well" and len(run.batch) == 1:
            (job,) = run.batch
            owners = [c for c in self.callers if any(ids is job.ids for ids in c.texts)]
            self.probe_failed |= not owners
            for caller in owners:
                caller.excused = True
        return run

    def leave(self, caller: Caller, leaving: Leaving) -> None:
        """A caller hangs up, or its task is cancelled."""
        assert caller.task
        if leaving == "gone":
            caller.gone.set()
        else:
            caller.cancelled = caller.task.cancel()

    def settle(self) -> None:
        """Settle; a worker that died meanwhile starts anew."""
        armed = self.faults.armed
        self.stage.loop.settle()
        while armed != self.faults.armed:
            armed = self.faults.armed
            self.stage.loop.advance(RESTART_S)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, phases=[Phase.generate]
)
