"""The one way from tokens to vectors: admit a request whole, run its texts in shared batches.

All state belongs to the event loop; threads see only the batch that they run. A job that left
`pending` is delivered, or its request failed, or its caller is gone. Which modules answer which
question: `admission` who is admitted, `queue` and `policy` what runs next, `workers` how it runs,
`health` and `supervision` what happens when a run fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from matryo.core.errors import Abandoned, InferenceFailed
from matryo.core.metrics import Metrics
from matryo.core.tracing import NO_SPAN, NO_TRACER, Span, Tracer
from matryo.engine import Engine, TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.gauges import Gauges
from matryo.scheduler.health import Health
from matryo.scheduler.jobs import ANYONE, Priority, Tenant, Ticket
from matryo.scheduler.queue import Queue
from matryo.scheduler.rates import Rates
from matryo.scheduler.supervision import Heartbeat, run_forever
from matryo.scheduler.workers import Workers

_PROBE_TEXT = "ready?"
_WARM_UP_TEXT = "How fast does this machine run the model? " * 12


class Scheduler:
    """Runs texts on engines, several requests sharing a batch.

    Args:
        engines: every model that may be asked for. `close` closes them.
        config: bounds and times.
        metrics: what is counted.
        clock: monotonic seconds.
        executor: threads for at least `config.workers` runs at a time, which `close` shuts down;
            None for a pool of its own.
        tracer: makes the spans of runs.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        config: SchedulerConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._engines = engines
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(
            config.workers, thread_name_prefix="matryo-run"
        )
        rates = Rates(engines, config.batch_s)
        self._health = Health(engines, config.ready_interval_s, clock)
        self._queue = Queue(rates, config, metrics, clock)
        self._workers = Workers(
            self._queue, self._health, rates, config, metrics, clock, self._executor, tracer
        )
        self._heartbeat = Heartbeat(
            self._health,
            self._probe,
            self._workers.failed,
            pause_s=config.restart_s,
            is_idle=lambda: not len(self._queue),
            is_draining=lambda: self._queue.admission.draining,
            count=self._count_heartbeat,
        )
        metrics.on_refresh(Gauges(engines, self._queue, rates, config, metrics, clock).show)
        self._tasks: list[asyncio.Task[None]] = []
        self._grace: asyncio.TimerHandle | None = None

    # --- life

    async def start(self) -> None:
        """Start the workers and run every model once.

        Raises:
            EngineError: a model cannot run.
        """
        for number in range(self._config.workers):
            self._supervise(self._workers.work, f"matryo-worker-{number}")
        try:
            for engine in self._engines:
                await self._probe(engine)
                await self._probe(engine, _WARM_UP_TEXT)  # the first estimate of its rate
        except BaseException:
            await self.close()
            raise
        self._supervise(self._heartbeat.beat, "matryo-heartbeat")

    def drain(self, grace_s: float) -> None:
        """Admit nothing more; admitted requests may still run for this many seconds."""
        self._queue.admission.draining = True
        if self._grace:
            self._grace.cancel()
        self._grace = asyncio.get_running_loop().call_later(grace_s, self._abandon)

    async def close(self) -> None:
        """Stop the workers and close the engines; requests still admitted fail with `NotReady`."""
        self._queue.admission.draining = True
        if self._grace:
            self._grace.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._abandon()
        for engine in self._engines:
            engine.close()
        # A run under way ends soon after close(); waiting for it must not block the loop.
        await asyncio.to_thread(self._executor.shutdown)

    def _supervise(self, body: Callable[[], Coroutine[None, None, None]], name: str) -> None:
        forever = run_forever(body, on_death=self._on_death, restart_s=self._config.restart_s)
        self._tasks.append(asyncio.create_task(forever, name=name))

    def _on_death(self) -> None:
        self._health.failed()
        self._workers.failed.set()
        self._queue.fail_all(lambda: InferenceFailed("a worker died"))

    def _abandon(self) -> None:
        """Answer every request that is still admitted, so that no caller waits in vain."""
        self._queue.fail_all(Abandoned)

    # --- what others see

    @property
    def queued_tokens(self) -> int:
        """Tokens that are admitted and not computed."""
        return self._queue.admission.n_tokens

    @property
    def n_requests(self) -> int:
        """Requests that are admitted and not done."""
        return len(self._queue)

    def why_not_ready(self, *engines: Engine) -> str | None:
        """None if these models ran well within the interval; else a sentence for the operator.

        Every model is meant, if none is given.
        """
        return (
            "draining" if self._queue.admission.draining else self._health.why_not_ready(*engines)
        )

    def check_room(
        self,
        priority: Priority = "online",
        patience_s: float | None = None,
        tenant: Tenant = ANYONE,
    ) -> None:
        """Refuse a request before it costs anything, if even the smallest has no room.

        Args:
            priority: as for `run`.
            patience_s: as for `run`.
            tenant: as for `run`.

        Raises:
            NotReady: draining.
            Overloaded: the queue is full, or the wait too long.
        """
        self._queue.admission.check_room(tenant, priority=priority, patience_s=patience_s)

    async def run(
        self,
        engine: Engine,
        texts: Sequence[TokenIds],
        dimensions: int,
        *,
        normalize: bool = True,
        priority: Priority = "online",
        patience_s: float | None = None,
        request_id: str | None = None,
        span: Span = NO_SPAN,
        tenant: Tenant = ANYONE,
    ) -> FloatArray:
        """Vectors of one request, which is admitted whole or refused at once.

        Cancelling the call drops what has not run.

        Args:
            engine: one of the scheduler's.
            texts: ids of each text, at least one text, each within the model's limit.
            dimensions: output size, 1 to native.
            normalize: whether the vectors have unit length; see `Engine.embed`.
            priority: `bulk` lets every online query go first, however small this request is.
            patience_s: seconds that the caller still waits; None if the caller did not say. The
                request is refused if its answer is expected later.
            request_id: names the request in the log.
            span: of the request.
            tenant: for whom the request is.

        Returns:
            `(len(texts), dimensions)` float32 vectors, in input order.

        Raises:
            NotReady: draining, or closed meanwhile.
            Overloaded: no room for the whole request, or the wait is too long.
            InferenceFailed: the run of one of its texts failed, alone too.
        """
        ticket = Ticket(
            engine,
            texts,
            dimensions,
            self._clock(),
            priority,
            request_id,
            normalize=normalize,
            tenant=tenant,
        )
        self._queue.admission.check(ticket, patience_s)
        ticket.passage = span.passage()
        return await self._wait(ticket)

    # --- requests

    async def _wait(self, ticket: Ticket) -> FloatArray:
        try:
            self._queue.add(ticket)
            ticket.allocate()
            return await ticket.future
        finally:
            self._queue.remove(ticket)
            ticket.passage.end()

    async def _probe(self, engine: Engine, text: str = _PROBE_TEXT) -> None:
        """Run a model once, past the bounds of admission."""
        ids = engine.cut(engine.tokenize([text])[0].ids)
        if not len(ids):  # the vocabulary lacks every word of the text; a run needs a token
            ids = np.zeros(1, np.int64)
        size = engine.manifest.output.dimensions.native
        await self._wait(Ticket(engine, [ids], size, self._clock(), is_probe=True))

    def _count_heartbeat(self, engine: Engine, outcome: str) -> None:
        self._metrics.heartbeats.labels(engine.manifest.id, outcome).inc()
