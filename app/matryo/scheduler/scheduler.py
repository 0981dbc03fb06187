"""Admit, run, cancel, supervise: the one way from tokens to vectors.

All state belongs to the event loop; worker threads see only the batch in their hands. The
invariant kept everywhere: a job that left `pending` is delivered, failed, or its caller
is gone, and its tokens leave `queued_tokens` exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from matryo.core.errors import (
    EngineError,
    InferenceFailed,
    MatryoError,
    NotReady,
    Overloaded,
)
from matryo.core.memory import release_free_memory
from matryo.core.metrics import Metrics
from matryo.engine import BatchResult, Engine, TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler.jobs import Job, Ticket
from matryo.scheduler.policy import BatchLimits, is_bulk, next_batch
from matryo.scheduler.rates import Rate

log = logging.getLogger(__name__)

_PROBE_TEXT = "ready?"
_WARM_UP_TEXT = "How fast does this machine run the model? " * 12
_RESTART_S = 0.2
_MIN_BATCH_TOKENS = 64
# Rates are flat from a few hundred tokens on; memory is not.
_MAX_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds and times of a scheduler.

    Attributes:
        workers: concurrent runs.
        queue_tokens: tokens admitted and not done; a request that would exceed it is refused
            unless nothing else is there.
        result_bytes: likewise for the results of what is admitted.
        batch_s: seconds one batch should take.
        ready_interval_s: the service is ready if every model ran within so many seconds.
        max_wait_s: after so many seconds without progress bulk goes before queries, and a
            request before others of its kind.
    """

    workers: int = 1
    queue_tokens: int = 1_000_000
    result_bytes: int = 1 << 28
    batch_s: float = 0.2
    ready_interval_s: float = 30.0
    max_wait_s: float = 1.0


@dataclass(slots=True)
class _Health:
    """What is known of one model.

    Attributes:
        last_success: the clock at the end of the last good run; None before the first.
        failed: the last run failed.
        rate: how fast it runs.
    """

    last_success: float | None = None
    failed: bool = False
    rate: Rate = field(default_factory=Rate)


class Scheduler:
    """Runs texts on engines, several requests sharing a batch.

    Args:
        engines: every model that may be asked for.
        config: bounds and times.
        metrics: what is counted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        config: SchedulerConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = engines
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._tickets: list[Ticket] = []
        self._queued_tokens = 0
        self._long_runs = 0
        self._bulk_since = 0.0
        self._health = {id(engine): _Health() for engine in engines}
        self._limits = {
            id(engine): BatchLimits(functools.partial(self._max_tokens, engine))
            for engine in engines
        }
        self._wake = asyncio.Event()
        self._suspect = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: ThreadPoolExecutor | None = None
        self._draining = False

    # --- life

    async def start(self) -> None:
        """Start the workers and run every model once.

        Raises:
            EngineError: a model cannot run.
        """
        workers = self._config.workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="matryo-run")
        self._tasks = [
            asyncio.create_task(self._forever(self._work), name=f"matryo-worker-{n}")
            for n in range(workers)
        ]
        try:
            for engine in self._engines:
                await self._probe(engine)
                await self._probe(engine, _WARM_UP_TEXT)  # the first estimate of its rate
        except BaseException:
            await self.close()
            raise
        self._metrics.ready.set(1)
        self._tasks.append(
            asyncio.create_task(self._forever(self._heartbeat), name="matryo-heartbeat")
        )

    def drain(self, grace_s: float) -> None:
        """Admit nothing more; what is admitted may still run for so many seconds."""
        self._draining = True
        asyncio.get_running_loop().call_later(grace_s, self._abandon)

    def _abandon(self) -> None:
        """Answer whatever is still admitted, rather than let its callers wait."""
        self._fail_all(lambda: NotReady("The server shut down before this request's turn."))

    async def close(self) -> None:
        """Stop the workers; whatever is still admitted fails with `NotReady`."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._abandon()
        for engine in self._engines:
            engine.close()
        if self._threads:
            # A run under way ends soon after close(); waiting for it must not block the loop.
            await asyncio.to_thread(self._threads.shutdown)

    # --- what others see

    @property
    def queued_tokens(self) -> int:
        """Tokens admitted and not done."""
        return self._queued_tokens

    @property
    def n_requests(self) -> int:
        """Requests admitted and not done."""
        return len(self._tickets)

    def why_not_ready(self) -> str | None:
        """None if every model ran well within the interval; else a sentence for the operator."""
        if self._draining:
            return "draining"
        now = self._clock()
        for engine in self._engines:
            health, name = self._health[id(engine)], engine.manifest.id
            if health.last_success is None:
                return f"{name} has not run yet"
            if health.failed:
                return f"the last run of {name} failed"
            age = now - health.last_success
            if age > self._config.ready_interval_s:
                return f"{name} last ran {age:.0f} s ago"
        return None

    def check_room(self) -> None:
        """Refuse a request before it costs anything, if it could not be admitted anyway.

        Raises:
            NotReady: draining.
            Overloaded: the queue is full.
        """
        self._check_admission(1, 4)

    async def run(self, engine: Engine, texts: Sequence[TokenIds], dimensions: int) -> FloatArray:
        """Vectors of one request, admitted whole or refused at once.

        Cancelling the call drops what has not run.

        Args:
            engine: one of the scheduler's.
            texts: ids of each text, at least one, each within the model's limit.
            dimensions: output size, 1 to native.

        Returns:
            `(len(texts), dimensions)` float32 unit vectors, in input order.

        Raises:
            NotReady: draining, or closed meanwhile.
            Overloaded: no room for the whole request.
            InferenceFailed: a run with one of its texts failed.
        """
        self._check_admission(sum(map(len, texts)), 4 * len(texts) * dimensions)
        return await self._run(Ticket(engine, texts, dimensions, self._clock()))

    # --- admission and release

    def _check_admission(self, n_tokens: int, n_bytes: int) -> None:
        if self._draining:
            self._metrics.rejections.labels("draining").inc()
            raise NotReady("The server is shutting down. Please try again on another one.")
        if not self._queued_tokens:
            return
        held = sum(ticket.n_bytes for ticket in self._tickets)
        for resource, requested, used, limit in (
            ("queued tokens", n_tokens, self._queued_tokens, self._config.queue_tokens),
            ("bytes of results", n_bytes, held, self._config.result_bytes),
        ):
            if (over := used + requested - limit) > 0:
                self._metrics.rejections.labels("queue_full").inc()
                raise Overloaded(
                    resource=resource,
                    requested=requested,
                    used=used,
                    limit=limit,
                    retry_after_s=self._seconds_until(min(1.0, over / used) if used else 0.0),
                )

    def _seconds_until(self, share: float) -> float:
        """When this share of what waits will be done, by the measured rates."""
        seconds = sum(
            self._health[id(ticket.engine)].rate.token_s(ticket.pending[-1].n_tokens)
            * ticket.pending_tokens
            for ticket in self._tickets
            if ticket.pending
        )
        return seconds / self._config.workers * share

    async def _run(self, ticket: Ticket) -> FloatArray:
        if not any(self._is_bulk(other) for other in self._tickets):
            self._bulk_since = self._clock()
        self._tickets.append(ticket)
        self._count(ticket.pending_tokens)
        self._wake.set()
        try:
            return await ticket.future
        finally:
            self._release(ticket)

    def _release(self, ticket: Ticket) -> None:
        """Forget a ticket; jobs of it that still wait are dropped."""
        if ticket.pending:
            self._count(-ticket.pending_tokens)
            dropped = self._metrics.cancellations.labels(ticket.engine.manifest.id)
            dropped.inc(len(ticket.pending))
            ticket.take(ticket.pending, ticket.waiting_since)
        ticket.future.cancel()
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def _count(self, n_tokens: int) -> None:
        self._queued_tokens += n_tokens
        self._metrics.queue_tokens.set(self._queued_tokens)

    def _fail_all(self, error: Callable[[], MatryoError]) -> None:
        for ticket in list(self._tickets):
            ticket.fail(error())  # one each: a raised instance collects tracebacks
            self._release(ticket)

    # --- running

    async def _forever(self, body: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run `body` for good; should it raise, what is admitted fails and it starts anew."""
        while True:
            try:
                await body()
            except Exception:
                log.exception("a worker died; its jobs fail and another takes its place")
                for health in self._health.values():
                    health.failed = True
                self._suspect.set()
                self._fail_all(lambda: InferenceFailed("a worker died"))
                await asyncio.sleep(_RESTART_S)

    async def _work(self) -> None:
        """Take batches while there are any, then sleep until woken."""
        while True:
            tickets = [ticket for ticket in self._tickets if ticket.live]
            batch = next_batch(
                tickets,
                self._limits_of,
                max_wait_s=self._config.max_wait_s,
                now=self._clock(),
                bulk_since=self._bulk_since,
                long_allowed=self._long_runs < max(1, self._config.workers // 2),
            )
            if batch:
                await self._run_batch(batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _is_bulk(self, ticket: Ticket) -> bool:
        return bool(ticket.pending) and is_bulk(ticket, self._limits_of(ticket.engine))

    def _limits_of(self, engine: Engine) -> BatchLimits:
        return self._limits[id(engine)]

    def _max_tokens(self, engine: Engine, longest: int) -> int:
        """Tokens that take a batch's time at the rate measured last."""
        n_tokens = int(self._config.batch_s / self._health[id(engine)].rate.token_s(longest))
        return min(max(n_tokens, _MIN_BATCH_TOKENS), _MAX_BATCH_TOKENS)

    async def _run_batch(self, batch: Sequence[Job]) -> None:
        engine = batch[0].ticket.engine
        n_tokens = sum(job.n_tokens for job in batch)
        now = self._clock()
        tickets = dict.fromkeys(job.ticket for job in batch)
        for ticket in tickets:
            if self._is_bulk(ticket):
                self._bulk_since = now
            ticket.take([job for job in batch if job.ticket is ticket], now)
        waits = self._metrics.queue_seconds.labels(engine.manifest.id)
        for job in batch:
            waits.observe(now - job.ticket.arrived)

        long = batch[0].n_tokens > self._limits_of(engine).long_tokens
        loop = asyncio.get_running_loop()
        self._long_runs += long
        try:
            outcome = await loop.run_in_executor(self._threads, _embed, engine, batch)
        finally:
            self._long_runs -= long
            self._count(-n_tokens)
            if long:
                self._wake.set()  # another worker may have waited for just that
        if isinstance(outcome, BaseException):
            self._failed(engine, outcome)
            for ticket in tickets:
                ticket.fail(_as_engine_error(outcome))
            return
        self._succeeded(engine, batch, n_tokens, outcome)
        for job, vector in zip(batch, outcome.embeddings, strict=True):
            job.ticket.deliver(job, vector)

    def _failed(self, engine: Engine, error: BaseException) -> None:
        log.error("a batch failed", exc_info=error, extra={"model": engine.manifest.id})
        self._metrics.failures.labels(engine.manifest.id).inc()
        self._health[id(engine)].failed = True
        self._suspect.set()

    def _succeeded(
        self, engine: Engine, batch: Sequence[Job], n_tokens: int, result: BatchResult
    ) -> None:
        health, model = self._health[id(engine)], engine.manifest.id
        health.last_success = self._clock()
        health.failed = False
        spent_s = result.inference_s + result.postprocess_s
        health.rate.observe(max(job.n_tokens for job in batch), n_tokens, spent_s)
        metrics = self._metrics
        metrics.inference_seconds.labels(model).observe(result.inference_s)
        metrics.postprocess_seconds.labels(model).observe(result.postprocess_s)
        metrics.batch_texts.labels(model).observe(len(batch))
        metrics.batch_tokens.labels(model).observe(n_tokens)
        metrics.padding_tokens.labels(model).inc(result.n_padding)

    # --- health

    async def _heartbeat(self) -> None:
        """Run every model that has not run lately, and at once one whose last run failed.

        A pause is also the time to give memory back.
        """
        pause_s = self._config.ready_interval_s / 3
        while True:
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._suspect.wait()
            self._suspect.clear()
            if not self._tickets:
                await asyncio.to_thread(release_free_memory)
            for engine in self._engines:
                health = self._health[id(engine)]
                age = self._clock() - (health.last_success or 0.0)
                if not self._draining and (health.failed or age >= pause_s):
                    with contextlib.suppress(EngineError, NotReady):  # logged where it failed
                        await self._probe(engine)
            self._metrics.ready.set(self.why_not_ready() is None)
            # A model that fails every probe must not turn this into a busy loop.
            await asyncio.sleep(_RESTART_S)

    async def _probe(self, engine: Engine, text: str = _PROBE_TEXT) -> None:
        """One real run, past the bounds of admission."""
        ids = engine.cut(engine.tokenize([text])[0].ids)
        size = engine.manifest.output.dimensions.native
        await self._run(Ticket(engine, [ids], size, self._clock()))


def _embed(engine: Engine, batch: Sequence[Job]) -> BatchResult | BaseException:
    """On a worker thread; errors are values here.

    Some, such as StopIteration, cannot pass through a future, and the batch's callers
    would wait for ever.
    """
    try:
        result = engine.embed([job.ids for job in batch], [job.ticket.dimensions for job in batch])
        if len(result.embeddings) != len(batch):
            return InferenceFailed(f"{len(result.embeddings)} vectors for {len(batch)} texts")
    except BaseException as exc:
        return exc
    return result


def _as_engine_error(error: BaseException) -> EngineError:
    """A fresh error for each request of a failed batch."""
    failed = InferenceFailed(f"the run of this batch failed: {error!r}")
    failed.__cause__ = error
    return failed
