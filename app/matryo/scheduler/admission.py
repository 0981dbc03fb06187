"""Who is admitted, and when a request leaves.

The invariant: `n_tokens` counts the tokens of the pending jobs of every admitted request, and of
the jobs that runs have taken and not given back. A token enters once, in `add`, and leaves once,
in `remove` or in `give_back`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from matryo.core.errors import MatryoError, NotReady, Overloaded
from matryo.core.metrics import Metrics
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Ticket
from matryo.scheduler.policy import is_bulk
from matryo.scheduler.rates import Rates


class Queue:
    """The admitted requests. All of it belongs to the event loop.

    Args:
        rates: of the models.
        config: of the scheduler.
        metrics: what is counted.
        clock: monotonic seconds.

    Attributes:
        n_tokens: tokens that are admitted and not computed.
        bulk_since: the clock when a run last took bulk, or when bulk began to wait.
        draining: nothing more is admitted.
        arrived: is set when there may be something new to run.
    """

    def __init__(
        self,
        rates: Rates,
        config: SchedulerConfig,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._rates = rates
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._tickets: dict[Ticket, None] = {}
        self._result_bytes = 0
        self.n_tokens = 0
        self.bulk_since = 0.0
        self.draining = False
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        """Number of admitted requests."""
        return len(self._tickets)

    def live(self) -> list[Ticket]:
        """The admitted requests that somebody waits for, in order of arrival."""
        return [ticket for ticket in self._tickets if ticket.live]

    # --- admission

    def check(self, n_tokens: int, n_bytes: int) -> None:
        """Refuse a request of so many tokens and so many bytes of results, if there is no room.

        Raises:
            NotReady: draining.
            Overloaded: the queue is full.
        """
        if self.draining:
            self._metrics.rejections.labels("draining").inc()
            raise NotReady("The server is shutting down. Please try again on another one.")
        if not self.n_tokens:
            return
        for resource, requested, used, limit in (
            ("queued tokens", n_tokens, self.n_tokens, self._config.queue_tokens),
            ("bytes of results", n_bytes, self._result_bytes, self._config.result_bytes),
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
        """Seconds until this share of what waits is computed, by the measured rates."""
        seconds = sum(
            self._rates.of(ticket.engine).token_s(ticket.pending[-1].n_tokens)
            * ticket.pending_tokens
            for ticket in self._tickets
            if ticket.pending
        )
        return seconds / self._config.workers * share

    def add(self, ticket: Ticket) -> None:
        """Admit a request, whatever the bounds."""
        if not any(self._waits_as_bulk(other) for other in self._tickets):
            self.bulk_since = self._clock()
        self._tickets[ticket] = None
        self._result_bytes += ticket.n_bytes
        self._count(ticket.pending_tokens)
        self.arrived.set()

    # --- runs

    def take(self, batch: Sequence[Job], now: float) -> None:
        """Move the jobs of a batch from their requests to a run, which must give them back."""
        by_ticket: dict[Ticket, list[Job]] = {}
        for job in batch:
            by_ticket.setdefault(job.ticket, []).append(job)
        # Everything that may raise is above the first change.
        has_bulk = any(self._waits_as_bulk(ticket) for ticket in by_ticket)
        if has_bulk:
            self.bulk_since = now
        for ticket, jobs in by_ticket.items():
            ticket.take(jobs, now)

    def give_back(self, n_tokens: int) -> None:
        """Count tokens that a run had taken as done, however the run ended."""
        self._count(-n_tokens)

    # --- release

    def remove(self, ticket: Ticket) -> None:
        """Forget a request, if it is admitted, and drop its jobs that no run has taken."""
        if ticket not in self._tickets:
            return
        del self._tickets[ticket]
        self._result_bytes -= ticket.n_bytes
        if n_tokens := ticket.pending_tokens:
            n_dropped = ticket.drop()
            self._count(-n_tokens)
            self._metrics.cancellations.labels(ticket.engine.manifest.id).inc(n_dropped)
        ticket.future.cancel()

    def fail_all(self, error: Callable[[], MatryoError]) -> None:
        """End every admitted request with an error of its own."""
        for ticket in list(self._tickets):
            ticket.fail(error())  # one each, because a raised error collects tracebacks
            self.remove(ticket)

    def _waits_as_bulk(self, ticket: Ticket) -> bool:
        return bool(ticket.pending) and is_bulk(ticket, self._rates.budget)

    def _count(self, n_tokens: int) -> None:
        self.n_tokens += n_tokens
        self._metrics.queue_tokens.set(self.n_tokens)
