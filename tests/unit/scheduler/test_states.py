"""The scheduler as a state machine: whatever happens in whatever order, nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from matryo.core.errors import EngineError, NotReady, Overloaded
from matryo.core.metrics import Metrics
from matryo.engine import TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import Priority, admission, supervision, workers
from matryo.scheduler.policy import long_tokens
from tests.fakes import MINILM
from tests.unit.scheduler.steps import Run, Stage, TimelessEngine

WORKERS, DIMENSIONS, RESTART_S = 3, 4, 0.2
FAULTS = ("picking", "taking", "running", "delivering")

models = st.integers(0, 1)
priorities = st.sampled_from(get_args(Priority))
indexes = st.integers(0, 99)
lengths = st.lists(st.integers(1, 700), min_size=1, max_size=4)


class BrokenError(Exception):
    """A bug of the scheduler's own."""


@dataclass
class Caller:
    """Who waits for a request.

    Attributes:
        texts: what was asked.
        task: the caller.
        cancelled: the caller hung up before it had an outcome.
        outcomes: what came of it: vectors or an exception.
    """

    engine: TimelessEngine
    texts: list[TokenIds]
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
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

    @contextmanager
    def installed(self, metrics: Metrics) -> Generator[None]:
        """Put the points into the scheduler's way."""

        def before(point: str, real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.strike(point)
                return real(*args, **kwargs)

            return call

        def taking(queue: admission.Queue, *args: Any) -> None:
            real = admission.is_bulk
            with patch.object(admission, "is_bulk", before("taking", real)):
                take(queue, *args)

        take = admission.Queue.take
        waits, texts = metrics.queue_seconds, metrics.batch_texts
        with (
            patch.object(workers, "next_batch", before("picking", workers.next_batch)),
            patch.object(admission.Queue, "take", taking),
            patch.object(waits, "labels", before("running", waits.labels)),
            patch.object(texts, "labels", before("delivering", texts.labels)),
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
        self.stage = Stage(self.engines, workers=WORKERS, queue_tokens=3000, restart_s=RESTART_S)
        self.patches = ExitStack()
        self.deaths = Deaths()
        supervision.log.addHandler(self.deaths)
        self.patches.callback(supervision.log.removeHandler, self.deaths)
        self.patches.enter_context(self.faults.installed(self.stage.metrics))

    # --- what happens

    @rule(requests=st.lists(st.tuples(lengths, models, priorities), min_size=1, max_size=4))
    def admit(self, requests: list[tuple[list[int], int, Priority]]) -> None:
        """Requests come; they may be refused."""
        for sizes, model, priority in requests:
            self.call(sizes, self.engines[model], priority)
        self.settle()

    def call(self, sizes: list[int], engine: TimelessEngine, priority: Priority) -> None:
        """One caller."""
        texts = [np.arange(index, index + length) for index, length in enumerate(sizes)]
        caller = Caller(engine, texts)

        async def call() -> None:
            try:
                run = self.stage.scheduler.run(caller.engine, texts, DIMENSIONS, priority=priority)
                caller.outcomes.append(await run)
            except BaseException as exc:
                caller.outcomes.append(exc)

        caller.task = self.stage.loop.create_task(call())
        self.callers.append(caller)
        self.n_called += 1

    @precondition(lambda self: self.stage.executor.runs)
    @rule(index=indexes, well=st.booleans())
    def end_run(self, index: int, well: bool) -> None:
        """A run gives vectors, or raises."""
        self.finish(index, well=well)
        self.settle()

    @precondition(lambda self: self.waiting())
    @rule(index=indexes)
    def hang_up(self, index: int) -> None:
        """A caller goes."""
        waiting = self.waiting()
        self.cancel(waiting[index % len(waiting)])
        self.settle()

    @precondition(lambda self: self.stage.executor.runs)
    @rule(index=indexes, well=st.booleans(), turns=st.integers(0, 4))
    def hang_up_as_the_result_arrives(self, index: int, well: bool, turns: int) -> None:
        """Every caller of a batch goes, some turns of the loop after its run has ended."""
        ran = {id(job.ids) for job in self.finish(index, well=well).batch}
        for _ in range(turns):
            self.stage.loop.turn()
        for caller in self.waiting():
            if any(id(ids) in ran for ids in caller.texts):
                self.cancel(caller)
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
    def tokens_are_counted_once(self) -> None:
        """Queued tokens are those that wait and those in runs, and so says the gauge."""
        stage = self.stage
        waiting = sum(ticket.pending_tokens for ticket in stage.scheduler._queue._tickets)
        running = sum(sum(run.lengths) for run in stage.executor.runs)
        assert stage.scheduler.queued_tokens == waiting + running
        assert stage.sample("matryo_queue_tokens") == waiting + running

    @invariant()
    def long_runs_are_counted(self) -> None:
        """`n_long` is the runs of long texts under way, and at most half of the workers."""
        stage = self.stage
        limits = {id(engine): long_tokens(engine, lambda *_: 200) for engine in self.engines}
        long = sum(run.lengths[0] > limits[id(run.engine)] for run in stage.executor.runs)
        assert stage.scheduler._workers.n_long == long <= max(1, WORKERS // 2)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Somebody waits only if a run is under way, and nothing is admitted for nobody."""
        stage = self.stage
        if not stage.executor.runs:
            assert not self.waiting()
            assert not stage.scheduler.n_requests
            assert not stage.scheduler.queued_tokens
            assert not stage.scheduler._queue._result_bytes

    @invariant()
    def every_caller_has_one_outcome(self) -> None:
        """A caller that is done has its vectors or one error; only who hung up is cancelled."""
        for caller in self.callers:
            assert caller.task
            assert len(caller.outcomes) == caller.task.done()
            for outcome in caller.outcomes:
                if caller.cancelled:
                    assert isinstance(outcome, asyncio.CancelledError)
                elif isinstance(outcome, BaseException):
                    assert isinstance(outcome, EngineError | NotReady | Overloaded), repr(outcome)
                else:
                    expected = [caller.engine.vector(ids, DIMENSIONS) for ids in caller.texts]
                    assert np.array_equal(outcome, np.stack(expected))
        self.callers = [caller for caller in self.callers if not caller.outcomes]

    @invariant()
    def only_faults_kill_workers(self) -> None:
        """Nothing that callers or engines do ends a worker."""
        assert self.deaths.n_died == self.faults.n_struck

    def teardown(self) -> None:
        """In the end every run ends, and everybody has an answer."""
        if not hasattr(self, "stage"):
            return
        while self.stage.executor.runs and not self.abrupt:
            self.finish(0, well=True)
            self.settle()
        self.nothing_is_forgotten()
        stage = self.stage
        stage.loop.run_until_complete(stage.scheduler.close())
        stage.finish_all()
        self.every_caller_has_one_outcome()
        assert not self.callers
        self.tokens_are_counted_once()
        self.nothing_is_forgotten()
        assert not stage.scheduler._workers.n_long
        self.patches.close()
        stage.loop.close()
        gc.collect()  # asyncio reports exceptions that nobody retrieved when they are collected
        gc.unfreeze()
        assert not stage.loop.errors

    # --- helpers

    def waiting(self) -> list[Caller]:
        """Callers without an outcome."""
        return [caller for caller in self.callers if caller.task and not caller.task.done()]

    def finish(self, index: int, *, well: bool) -> Run:
        """End a run; the loop has yet to take notice."""
        executor = self.stage.executor
        index %= len(executor.runs)
        engine = executor.runs[index].engine

        def explode(_: object) -> None:
            raise RuntimeError("boom")

        engine.before = (lambda _: None) if well else explode
        try:
            return executor.finish(index)
        finally:
            engine.before = lambda _: None

    def cancel(self, caller: Caller) -> None:
        """A caller hangs up."""
        assert caller.task
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
