"""The scheduler in virtual time: its own code, on a model of a machine that takes no time to run.

Every run takes the cores that the engines would give it, a run that is alone all of them. Runs that
have more threads than there are cores slow each other down. What a machine really does beside
this, such as parsing and tokenising, is left out: the figures show what the order of work alone
does.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry

from matryo.core.metrics import Metrics
from matryo.engine import BatchResult, EngineLimits, Interrupt, Interrupted, TokenIds
from matryo.scheduler import Scheduler, SchedulerConfig
from matryo.scheduler.jobs import Job
from tests.fakes import FakeEngine

T = TypeVar("T")

_PARALLEL = 0.9
"""Speed-up of a run by each thread more."""
_NODE_S = 0.002
"""The longest that a run goes on after it was interrupted."""
_SCORE_TOKENS, _RUN_TOKENS = 1 / 4096, 16
_DIMENSIONS = 4


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing is ready.

    Attributes:
        now: its time, in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        """The virtual time."""
        return self.now


class _Skipping(selectors.SelectSelector):
    """Waits for nothing, and moves the time of a loop instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self._loop.now += timeout
        return []


class VirtualEngine(FakeEngine):
    """An engine with the limits of a CPU, which reports the virtual time of its runs.

    Attributes:
        spent_s: of the run that ends.
        computed: tokens of runs that ended, by the name of the tenant.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.spent_s = 0.0
        self.computed = Counter[str | None]()
        self.limits = EngineLimits(
            solo_tokens=512,
            min_batch_tokens=64,
            max_batch_tokens=1024,
            max_scores=1 << 21,
            score_tokens=_SCORE_TOKENS,
            run_tokens=_RUN_TOKENS,
            workers=workers,
            threads=1,
        )

    def embed(
        self,
        texts: Sequence[TokenIds],  # noqa: ARG002 - as its class
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,  # noqa: ARG002 - as its class
        interrupt: Interrupt | None = None,  # noqa: ARG002 - the cores interrupt
    ) -> BatchResult:
        """Vectors of zeros."""
        vectors = [np.zeros(size, np.float32) for size in dimensions]
        return BatchResult(vectors, 0, self.spent_s, 0.0)


@dataclass(eq=False)
class _Run:
    """A run under way: what is left of it in seconds of one core, and its threads."""

    work: Callable[[], Any]
    engine: VirtualEngine
    batch: Sequence[Job]
    left_s: float
    threads: int
    started: float
    future: Future[Any]
    interrupt: Interrupt | None


class Cores(Executor):
    """Runs that share cores.

    Args:
        loop: tells the time.
        cores: of the machine.
        token_s: seconds of one core for a token.
    """

    def __init__(self, loop: VirtualLoop, cores: int, token_s: float) -> None:
        self._loop, self._cores, self._token_s = loop, cores, token_s
        self._runs: list[_Run] = []
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.busy_s = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a run of an engine and a batch."""
        engine, batch, interrupt = args
        lengths = [job.n_tokens for job in batch]
        n_tokens = len(lengths) * max(lengths)  # padded
        cost = _RUN_TOKENS + n_tokens * (1 + max(lengths) * _SCORE_TOKENS)
        self._pass_time()
        threads = 1 if self._runs else self._cores
        left_s = cost * self._token_s
        work = partial(fn, *args, **kwargs)
        run = _Run(work, engine, batch, left_s, threads, self._loop.now, Future(), interrupt)
        if interrupt:
            interrupt.watch(partial(self._interrupt, run))
        self._runs.append(run)
        self._plan()
        return run.future

    def _interrupt(self, run: _Run) -> None:
        """End a run at the end of the node that it computes."""
        self._pass_time()
        run.left_s = min(run.left_s, _NODE_S * self._speed(run))
        self._plan()

    def _speed(self, run: _Run) -> float:
        alone = 1 + _PARALLEL * (run.threads - 1)
        return alone * min(1.0, self._cores / sum(other.threads for other in self._runs))

    def _pass_time(self) -> None:
        """Do what the runs did since the last call."""
        passed = self._loop.now - self._since
        speeds = [self._speed(run) for run in self._runs]
        for run, speed in zip(self._runs, speeds, strict=True):
            run.left_s -= passed * speed
        self._since = self._loop.now
        self.busy_s += passed * sum(speeds)

    def _plan(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._runs:
            next_s = min(max(0.0, run.left_s) / self._speed(run) for run in self._runs)
            self._timer = self._loop.call_later(next_s, self._end)

    def _end(self) -> None:
        self._pass_time()
        for run in [run for run in self._runs if run.left_s <= 1e-9]:
            self._runs.remove(run)
            if run.interrupt and run.interrupt.is_set:
                run.future.set_result(Interrupted())
                continue
            for job in run.batch:
                run.engine.computed[job.ticket.tenant.name] += job.n_tokens
            run.engine.spent_s = self._loop.now - run.started
            run.future.set_result(run.work())
        self._plan()


def in_virtual_time(
    work: Callable[[Scheduler, VirtualEngine, VirtualLoop], Coroutine[Any, Any, T]],
    *,
    cores: int = 2,
    token_s: float = 0.0002,
    **config: Any,
) -> T:
    """The result of `work`, which gets a started scheduler.

    Args:
        work: may wait for times of the loop.
        cores: of the machine, each with a worker.
        token_s: seconds of one core for a token.
        config: of the scheduler.
    """
    loop = VirtualLoop()
    engine = VirtualEngine(cores)
    scheduler = Scheduler(
        [engine],
        SchedulerConfig(workers=cores, **config),
        Metrics(CollectorRegistry()),
        loop.time,
        Cores(loop, cores, token_s),
    )

    async def main() -> T:
        await scheduler.start()
        try:
            return await work(scheduler, engine, loop)
        finally:
            scheduler.drain(0.0)
            await asyncio.sleep(1.0)  # the grace ends, and runs under way
            await scheduler.close()

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()
