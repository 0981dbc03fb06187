"""A scheduler that takes one step at a time: its loop's turns, its time and its runs are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar, cast

import numpy as np
from prometheus_client import CollectorRegistry

from matryo.core.metrics import Metrics
from matryo.engine import BatchResult, Interrupt, TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import Scheduler, SchedulerConfig
from matryo.scheduler.jobs import Job
from tests.fakes import FakeEngine

T = TypeVar("T")

_MOST_TURNS = 10_000


class StepLoop(asyncio.SelectorEventLoop):
    """An event loop that moves when the test says so.

    Attributes:
        now: its time, in seconds; a test moves it with `advance`.
        errors: what asyncio would have logged, such as an exception that nobody retrieved.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.errors: list[dict[str, Any]] = []
        super().__init__()
        self.set_exception_handler(lambda _, context: self.errors.append(context))
        self.set_default_executor(_Inline())

    def time(self) -> float:
        """The time that the test set."""
        return self.now

    def turn(self) -> None:
        """Run what is ready now, and timers that are due; nothing that these make ready."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Take turns until nothing is ready."""
        self.turn()
        for _ in range(_MOST_TURNS):
            if not cast("Any", self)._ready:
                return
            self.turn()
        raise AssertionError("the loop never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, then settle."""
        self.now += seconds
        self.settle()


class HandExecutor(Executor):
    """Begins runs and leaves it to the test to end them.

    Attributes:
        runs: those under way, oldest first.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a run."""
        run = Run(fn, *args)
        self.runs.append(run)
        return run.future

    def finish(self, index: int = 0) -> Run:
        """End a run; the loop has yet to take notice."""
        run = self.runs.pop(index)
        run.future.set_result(run.fn(run.engine, run.batch, run.interrupt))
        return run


class Run:
    """A run under way: an engine, the jobs of its batch, and what ends it early."""

    def __init__(
        self,
        fn: Callable[..., Any],
        engine: FakeEngine,
        batch: Sequence[Job],
        interrupt: Interrupt | None,
    ) -> None:
        self.fn = fn
        self.engine = engine
        self.batch = batch
        self.interrupt = interrupt
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each job."""
        return [job.n_tokens for job in self.batch]

    @property
    def is_interrupted(self) -> bool:
        """Whether the scheduler asked the run to end early."""
        return self.interrupt is not None and self.interrupt.is_set


class TimelessEngine(FakeEngine):
    """An engine that reports the time of a run which the test set, and takes none.

    Attributes:
        token_s: reported seconds for each token; 0 teaches the scheduler nothing.
        spoil: changes the vectors of each run.
    """

    token_s = 0.0
    spoil: Callable[[list[FloatArray]], list[FloatArray]] = staticmethod(lambda vectors: vectors)

    def embed(
        self,
        texts: Sequence[TokenIds],
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,
        interrupt: Interrupt | None = None,
    ) -> BatchResult:
        """The fake's vectors, spoilt."""
        result = super().embed(texts, dimensions, normalize, interrupt)
        spent_s = self.token_s * sum(map(len, texts))
        return BatchResult(self.spoil(result.embeddings), 0, spent_s, 0.0)


SPOILS: dict[str, Callable[[list[FloatArray]], list[FloatArray]]] = {
    "too few": lambda vectors: vectors[:-1],
    "too many": lambda vectors: [*vectors, vectors[0]],
    "too wide": lambda vectors: [np.append(vector, np.float32(0)) for vector in vectors],
    "a matrix": lambda vectors: [vector[None] for vector in vectors],
    "float64": lambda vectors: cast("Any", [vector.astype(np.float64) for vector in vectors]),
    "NaN": lambda vectors: [*vectors[:-1], vectors[-1] * np.float32(np.nan)],
    "no arrays": lambda vectors: cast("Any", [vector.tolist() for vector in vectors]),
    "nothing": lambda vectors: cast("Any", None),
}
"""What an engine may give in place of one float32 vector of the right width for each text."""


class Stage:
    """A started scheduler on a loop of its own; leaving the context closes both.

    Args:
        engines: what it runs.
        config: changes of its configuration.
    """

    def __init__(self, engines: Sequence[FakeEngine], **config: Any) -> None:
        self.loop = StepLoop()
        self.executor = HandExecutor()
        self.metrics = Metrics(CollectorRegistry())
        self.config = SchedulerConfig(**config)
        self.engines = engines
        self.scheduler = Scheduler(
            engines, self.config, self.metrics, lambda: self.loop.now, self.executor
        )
        self.complete(self.scheduler.start())

    def __enter__(self) -> Self:
        """The stage itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin `work` and settle."""
        task = self.loop.create_task(work)
        self.loop.settle()
        return task

    def complete(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; every run ends well meanwhile."""
        task = self.task(work)
        for _ in range(_MOST_TURNS):
            if task.done():
                return task.result()
            self.finish()
        raise AssertionError("the work never ends")

    def finish(self, index: int = 0) -> list[int]:
        """End a run and settle; the lengths of its texts."""
        lengths = self.executor.finish(index).lengths
        self.loop.settle()
        return lengths

    def finish_all(self) -> list[list[int]]:
        """End runs until none is left; the lengths of the texts of each."""
        lengths: list[list[int]] = []
        while self.executor.runs:
            lengths.append(self.finish())
        return lengths

    def sample(self, name: str, **labels: str) -> float | None:
        """A metric's value; gauges have what is true now."""
        self.metrics.refresh()
        return self.metrics.registry.get_sample_value(name, labels)

    def close(self) -> None:
        """Close scheduler and loop."""
        self.loop.run_until_complete(self.scheduler.close())
        self.finish_all()
        self.loop.close()


class _Inline(ThreadPoolExecutor):
    """Calls at once, on the caller's thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)
        return future
