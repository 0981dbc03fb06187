"""Take a batch, run it on a thread, give its results to the requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial

import numpy as np

from matryo.core import trace_names as names
from matryo.core.errors import InferenceFailed
from matryo.core.metrics import Metrics
from matryo.core.tracing import NO_BATCH, NO_TRACER, Batch, Tracer
from matryo.engine import BatchResult, Engine, Interrupt, Interrupted
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.health import Health
from matryo.scheduler.jobs import Job
from matryo.scheduler.queue import Queue
from matryo.scheduler.rates import Rates
from matryo.scheduler.runs import Choice

log = logging.getLogger(__name__)

_FLOAT32 = np.dtype(np.float32)


class Workers:
    """What the worker tasks share. All of it belongs to the event loop.

    Threads see only the batch that they run.

    Args:
        queue: of the admitted requests.
        health: learns of every run.
        rates: learn of every run.
        config: of the scheduler.
        metrics: what is counted.
        clock: monotonic seconds.
        executor: the threads.
        tracer: makes the spans of runs.

    Attributes:
        failed: is set when a run failed.
    """

    def __init__(
        self,
        queue: Queue,
        health: Health,
        rates: Rates,
        config: SchedulerConfig,
        metrics: Metrics,
        clock: Callable[[], float],
        executor: Executor,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._queue = queue
        self._health = health
        self._rates = rates
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._executor = executor
        self._tracer = tracer
        self.failed = asyncio.Event()

    async def work(self) -> None:
        """Run batches while there are any, then wait for a request; the body of one worker."""
        queue = self._queue
        while True:
            # All workers wake up for each arrival, and most find that another was first.
            if choice := queue.choose(self._clock()):
                await self._run(choice)
            else:
                queue.arrived.clear()
                await queue.arrived.wait()

    async def _run(self, choice: Choice) -> None:
        now, batch = self._clock(), choice.jobs
        run = self._queue.take(choice, now)
        span = self._span(batch)
        error: BaseException | None = None
        # From here on, whatever raises, the run is given back.
        try:
            error = await self._try(run.engine, batch, choice.interrupt)
            if isinstance(error, Interrupted):
                error = None
                self._queue.put_back(run)
                return
            waits = self._metrics.queue_seconds.labels(run.engine.manifest.id)
            for job in batch:
                if not (job.ticket.is_probe or run.is_background):
                    waits.observe(now - job.ticket.arrived)
            if error:
                self._note(run.engine, batch, error)
                await self._narrow(run.engine, batch, error)
        finally:
            self._queue.give_back(run)
            span.end(error)

    def _span(self, batch: Sequence[Job]) -> Batch:
        """The span of a run that begins now."""
        if not self._tracer.is_on:
            return NO_BATCH
        passages = {job.ticket: job.ticket.passage for job in batch}.values()
        n_tokens = sum(job.n_tokens for job in batch)
        facts = {names.BATCH_TEXTS: len(batch), names.BATCH_TOKENS: n_tokens}
        return self._tracer.batch(batch[0].ticket.engine.manifest.id, passages, facts)

    async def _try(
        self, engine: Engine, batch: Sequence[Job], interrupt: Interrupt | None = None
    ) -> BaseException | None:
        """Run a batch and deliver its vectors; the error, if the run failed or was interrupted."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Future[BatchResult | BaseException]] = loop.create_future()
        # Less than half of what asyncio's `run_in_executor` costs.
        run = self._executor.submit(_embed, engine, batch, interrupt)
        run.add_done_callback(partial(_report, loop, done))
        outcome = (await done).result()
        if isinstance(outcome, BaseException):
            return outcome
        self._deliver(engine, batch, outcome)
        return None

    async def _narrow(self, engine: Engine, batch: Sequence[Job], error: BaseException) -> None:
        """Run the halves of a batch that failed, down to the texts that fail alone.

        Only their requests fail. The worker takes nothing else meanwhile: all halves together cost
        about two runs of the batch for each request that fails.
        """
        if len(batch) == 1:
            self._fail(engine, batch[0], error)
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            jobs = [job for job in half if job.ticket.live]
            if jobs and (again := await self._try(engine, jobs)):
                if len(jobs) == 1:
                    facts = {"model": engine.manifest.id, "request_id": jobs[0].ticket.request_id}
                    log.error("a text of the batch failed alone: %r", again, extra=facts)
                await self._narrow(engine, jobs, again)

    def _note(self, engine: Engine, batch: Sequence[Job], error: BaseException) -> None:
        """Count and log a batch that failed, and have the heartbeat look at the model."""
        model, tickets = engine.manifest.id, dict.fromkeys(job.ticket for job in batch)
        self._health.suspect(engine)
        self.failed.set()
        if not all(ticket.is_probe for ticket in tickets):
            self._metrics.failures.labels(model).inc()
        ids = [ticket.request_id for ticket in tickets if ticket.request_id]
        log.error("a batch failed", exc_info=error, extra={"model": model, "request_ids": ids})

    def _fail(self, engine: Engine, job: Job, error: BaseException) -> None:
        self._health.suspect(engine)
        self.failed.set()
        failed = InferenceFailed(f"the run of this text failed: {error!r}")
        failed.__cause__ = error
        job.ticket.fail(failed)

    def _deliver(self, engine: Engine, batch: Sequence[Job], result: BatchResult) -> None:
        self._health.succeeded(engine)
        n_tokens, longest = sum(job.n_tokens for job in batch), max(job.n_tokens for job in batch)
        spent_s = result.inference_s + result.postprocess_s
        if any(not job.ticket.is_probe for job in batch):
            self._count(engine, batch, result)
            self._rates.of(engine).count(n_tokens, spent_s)
        self._rates.of(engine).observe(longest, n_tokens, spent_s)
        for job, vector in zip(batch, result.embeddings, strict=True):
            job.ticket.deliver(job, vector)

    def _count(self, engine: Engine, batch: Sequence[Job], result: BatchResult) -> None:
        """Count a batch with texts of callers; the text of a probe may be among them."""
        lengths = [job.n_tokens for job in batch if not job.ticket.is_probe]
        n_tokens = sum(lengths)
        metrics, model = self._metrics, engine.manifest.id
        metrics.inference_seconds.labels(model).observe(result.inference_s)
        metrics.postprocess_seconds.labels(model).observe(result.postprocess_s)
        metrics.batch_texts.labels(model).observe(len(lengths))
        metrics.batch_tokens.labels(model).observe(n_tokens)
        # A single text may pass the budget.
        fill = min(1.0, n_tokens / self._rates.budget(engine, max(lengths)))
        metrics.batch_fill_ratio.labels(model).observe(fill)
        if result.n_padding:
            metrics.padding_tokens.labels(model).inc(result.n_padding)


def _report(
    loop: asyncio.AbstractEventLoop,
    done: asyncio.Future[Future[BatchResult | BaseException]],
    run: Future[BatchResult | BaseException],
) -> None:
    """Complete `done` with a run that ended; on the run's thread."""
    with contextlib.suppress(RuntimeError):  # the loop was closed
        loop.call_soon_threadsafe(_complete, done, run)


def _complete(
    done: asyncio.Future[Future[BatchResult | BaseException]],
    run: Future[BatchResult | BaseException],
) -> None:
    if not done.done():  # else nobody waits any more: the worker was cancelled
        done.set_result(run)


def _embed(
    engine: Engine, batch: Sequence[Job], interrupt: Interrupt | None
) -> BatchResult | BaseException:
    """The result of a run, or its error as a value; on a thread.

    Some errors, such as StopIteration, cannot pass through a future: the batch's callers would
    wait for ever.
    """
    try:
        sizes = [job.ticket.dimensions for job in batch]
        normalize = [job.ticket.normalize for job in batch]
        result = engine.embed([job.ids for job in batch], sizes, normalize, interrupt)
        _check(result, sizes)
    except BaseException as exc:
        return exc
    return result


def _check(result: BatchResult, sizes: Sequence[int]) -> None:
    """Refuse vectors that cannot be delivered; nothing of the scheduler meets them.

    Raises:
        InferenceFailed: the wrong count, shape or type of vectors, or a number that is not finite.
    """
    if len(result.embeddings) != len(sizes):
        raise InferenceFailed(f"{len(result.embeddings)} vectors for {len(sizes)} texts")
    for vector, size in zip(result.embeddings, sizes, strict=True):
        if vector.shape != (size,) or vector.dtype != _FLOAT32:
            raise InferenceFailed(
                f"a vector of {vector.dtype} {vector.shape}, where float32 ({size},) was asked for"
            )
        # The sum is faster, but squares of a vector that is no unit vector may overflow.
        if not (math.isfinite(vector.dot(vector)) or np.isfinite(vector).all()):
            raise InferenceFailed("a vector has NaN or infinity")
