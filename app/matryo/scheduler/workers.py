"""Take a batch, run it on a thread, give its results to the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from matryo.core.errors import InferenceFailed
from matryo.core.metrics import Metrics
from matryo.engine import BatchResult, Engine
from matryo.scheduler.admission import Queue
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.health import Health
from matryo.scheduler.jobs import Job
from matryo.scheduler.policy import long_tokens, next_batch
from matryo.scheduler.rates import Rates

log = logging.getLogger(__name__)


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

    Attributes:
        n_long: runs under way of a text over `long_tokens`.
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
    ) -> None:
        self._queue = queue
        self._health = health
        self._rates = rates
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._executor = executor
        self.n_long = 0
        self.failed = asyncio.Event()

    async def work(self) -> None:
        """Run batches while there are any, then wait for a request; the body of one worker."""
        queue = self._queue
        max_long = max(1, self._config.workers // 2)
        while True:
            batch = next_batch(
                queue.live(),
                self._rates.budget,
                self._config,
                now=self._clock(),
                bulk_since=queue.bulk_since,
                long_allowed=self.n_long < max_long,
            )
            if batch:
                await self._run(batch)
            else:
                queue.arrived.clear()
                await queue.arrived.wait()

    async def _run(self, batch: Sequence[Job]) -> None:
        engine = batch[0].ticket.engine
        n_tokens = sum(job.n_tokens for job in batch)
        is_long = batch[0].n_tokens > long_tokens(engine, self._rates.budget)
        now = self._clock()
        self._queue.take(batch, now)
        # From here on, whatever raises, the tokens are given back.
        self.n_long += is_long
        try:
            waits = self._metrics.queue_seconds.labels(engine.manifest.id)
            for job in batch:
                waits.observe(now - job.ticket.arrived)
            loop = asyncio.get_running_loop()
            outcome = await loop.run_in_executor(self._executor, _embed, engine, batch)
        finally:
            self.n_long -= is_long
            self._queue.give_back(n_tokens)
            if is_long:
                self._queue.arrived.set()  # another worker may wait until a long text may run
        if isinstance(outcome, BaseException):
            self._fail(engine, batch, outcome)
        else:
            self._deliver(engine, batch, n_tokens, outcome)

    def _fail(self, engine: Engine, batch: Sequence[Job], error: BaseException) -> None:
        log.error("a batch failed", exc_info=error, extra={"model": engine.manifest.id})
        self._metrics.failures.labels(engine.manifest.id).inc()
        self._health.failed(engine)
        self.failed.set()
        for ticket in dict.fromkeys(job.ticket for job in batch):
            failed = InferenceFailed(f"the run of this batch failed: {error!r}")
            failed.__cause__ = error
            ticket.fail(failed)

    def _deliver(
        self, engine: Engine, batch: Sequence[Job], n_tokens: int, result: BatchResult
    ) -> None:
        self._health.succeeded(engine)
        spent_s = result.inference_s + result.postprocess_s
        self._rates.of(engine).observe(max(job.n_tokens for job in batch), n_tokens, spent_s)
        metrics, model = self._metrics, engine.manifest.id
        metrics.inference_seconds.labels(model).observe(result.inference_s)
        metrics.postprocess_seconds.labels(model).observe(result.postprocess_s)
        metrics.batch_texts.labels(model).observe(len(batch))
        metrics.batch_tokens.labels(model).observe(n_tokens)
        metrics.padding_tokens.labels(model).inc(result.n_padding)
        for job, vector in zip(batch, result.embeddings, strict=True):
            job.ticket.deliver(job, vector)


def _embed(engine: Engine, batch: Sequence[Job]) -> BatchResult | BaseException:
    """The result of a run, or its error as a value; on a thread.

    Some errors, such as StopIteration, cannot pass through a future: the batch's callers would
    wait for ever.
    """
    try:
        result = engine.embed([job.ids for job in batch], [job.ticket.dimensions for job in batch])
        if len(result.embeddings) != len(batch):
            return InferenceFailed(f"{len(result.embeddings)} vectors for {len(batch)} texts")
    except BaseException as exc:
        return exc
    return result
