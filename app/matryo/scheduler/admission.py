"""Who is admitted, and when a request leaves.

The invariant: a job that was admitted is pending (`Queue.waiting`), or in a run that has taken it
and not given it back, or gone. Tokens and seconds are sums over these two, never counted beside
them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matryo.core.errors import CapacityError, MatryoError, Overloaded, Stopping, WaitTooLong
from matryo.core.metrics import Metrics
from matryo.engine import Engine
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.groups import Load
from matryo.scheduler.jobs import ANYONE, Job, Tenant, Ticket, work_of
from matryo.scheduler.policy import classify, is_bulk
from matryo.scheduler.rates import Rates, Work
from matryo.scheduler.waiting import Waiting
from matryo.scheduler.waits import Waits


@dataclass(eq=False, slots=True)
class Run:
    """The jobs that one worker has taken.

    Attributes:
        engine: the model.
        work: of the jobs.
        n_tokens: of the jobs.
        started: the clock when the worker took the jobs.
        has_bulk: whether a job is of a bulk request.
        is_long: whether the run is that of one long text.
        is_probe: whether no job is a caller's.
        counted: the clock until which the run's time is counted as busy.
        is_guest: whether a guest led when the worker took the jobs.
        by_tenant: tokens of the jobs of each tenant, by its name.
    """

    engine: Engine
    work: Work
    n_tokens: int
    started: float
    has_bulk: bool
    is_long: bool
    is_probe: bool
    counted: float
    is_guest: bool
    by_tenant: dict[str | None, int]


class Queue:
    """The admitted requests. All of it belongs to the event loop.

    Args:
        rates: of the models.
        config: of the scheduler.
        metrics: what is counted.
        clock: monotonic seconds.

    Attributes:
        waiting: the requests with pending jobs.
        bulk_since: the clock when a run last had bulk, or when bulk began to wait.
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
        self._n_requests: dict[str | None, int] = {}  # admitted, by the name of the tenant
        self._runs: dict[Run, None] = {}
        self.waiting = Waiting(config.workers, config.recent_s)
        self._waits = Waits(self.waiting, rates, config)
        self.bulk_since = 0.0
        self.draining = False
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        """Number of admitted requests."""
        return len(self._tickets)

    @property
    def n_tokens(self) -> int:
        """Tokens that are admitted and not computed."""
        n_tokens = self.waiting.n_tokens
        for run in self._runs:
            n_tokens += run.n_tokens
        return n_tokens

    @property
    def runs(self) -> Iterable[Run]:
        """The runs under way."""
        return self._runs

    @property
    def n_long(self) -> int:
        """Runs of long texts under way."""
        return sum(run.is_long for run in self._runs)

    @property
    def n_guests(self) -> int:
        """Runs under way that a guest leads."""
        return sum(run.is_guest for run in self._runs)

    # --- admission

    def check_room(
        self, tenant: Tenant = ANYONE, *, bulk: bool, patience_s: float | None = None
    ) -> None:
        """Refuse a request whose texts are not known yet, if there is no room for the smallest.

        Raises:
            Stopping: draining.
            Overloaded: the queue is full, or the wait too long.
        """
        if not self._is_idle():
            self._check_bounds(tenant, 1)
            self._check_wait(tenant, 0.0, 1, bulk=bulk, patience_s=patience_s)

    def check(self, ticket: Ticket, patience_s: float | None = None) -> None:
        """Refuse a request, if there is no room for all of it.

        Args:
            ticket: the request, not admitted yet.
            patience_s: seconds that its caller still waits; None if the caller did not say.

        Raises:
            Stopping: draining.
            Overloaded: the queue is full, or the wait too long.
        """
        if self._is_idle():
            return
        self._check_bounds(ticket.tenant, ticket.n_tokens)
        work_s = self._rates.of(ticket.engine).seconds(ticket.work)
        bulk = is_bulk(ticket, self._rates.budget)
        self._check_wait(
            ticket.tenant, work_s, len(ticket.pending), bulk=bulk, patience_s=patience_s
        )

    def _is_idle(self) -> bool:
        """Whether any request is admitted, because no token waits or runs.

        A wrong estimate of the wait therefore never refuses everybody, and each run corrects it.

        Raises:
            Stopping: draining.
        """
        if self.draining:
            raise self._refused("draining", Stopping())
        return not self.n_tokens

    def _check_bounds(self, tenant: Tenant, n_tokens: int) -> None:
        config = self._config
        n_mine, n_all = self._n_requests.get(tenant.name, 0), len(self._tickets)
        if self._is_over(tenant, 1, n_mine, n_all, config.max_requests):
            raise self._full("requests", "waiting requests", 1, n_all, config.max_requests or 0)
        held = self._tokens_of(tenant)
        if self._is_over(tenant, n_tokens, held, self.n_tokens, config.queue_tokens):
            raise self._full(
                "queue_full", "queued tokens", n_tokens, self.n_tokens, config.queue_tokens or 0
            )

    def _is_over(
        self, tenant: Tenant, requested: int, held: int, total: int, limit: int | None
    ) -> bool:
        """Whether a request asks for more of a resource than its tenant may have.

        A tenant may have what is left. Where nothing is left, a tenant beside others may still have
        its share, or one request, until all tenants together hold twice the limit.

        Args:
            tenant: whose request it is.
            requested: amount that the request needs.
            held: amount that the tenant holds.
            total: amount that all tenants hold.
            limit: amount that there is; None for no limit.
        """
        if limit is None or total + requested <= limit:
            return False
        part = self.waiting.accounts.part(tenant)
        has_share = part < 1 and (not held or held + requested <= part * limit)
        return not (has_share and total + requested <= 2 * limit)

    def _tokens_of(self, tenant: Tenant) -> int:
        """Tokens of a tenant that are admitted and not computed."""
        account = self.waiting.accounts.find(tenant)
        n_tokens = account.query_tokens + account.bulk_tokens if account else 0
        return n_tokens + sum(run.by_tenant.get(tenant.name, 0) for run in self._runs)

    def _check_wait(
        self,
        tenant: Tenant,
        work_s: float,
        n_texts: int,
        *,
        bulk: bool,
        patience_s: float | None,
    ) -> None:
        config = self._config
        if config.max_wait_s is None:
            return
        limit_s = min(config.max_wait_s, math.inf if patience_s is None else patience_s)
        # One text runs on one worker.
        own_s = work_s / min(config.workers, n_texts)
        ahead_s = self.expected_s(bulk=bulk)
        if ahead_s + own_s > limit_s:
            ahead_s = self._waits.of_tenant(tenant, work_s, self._running_s(), bulk=bulk)
        if ahead_s + own_s > limit_s:
            late = WaitTooLong(
                expected_s=ahead_s + own_s,
                limit_s=limit_s,
                by_caller=limit_s < config.max_wait_s,
                # The request is admitted at the latest when nothing is ahead.
                retry_after_s=min(ahead_s, ahead_s + own_s - limit_s),
            )
            raise self._refused("wait", late)

    def _full(
        self, reason: str, resource: str, requested: int, total: int, limit: int
    ) -> CapacityError:
        """The refusal of a request that asks for more than its tenant may have."""
        over = total + requested - limit
        full = Overloaded(
            resource=resource,
            requested=requested,
            used=total,
            limit=limit,
            retry_after_s=self.expected_s(bulk=True) * min(1.0, over / total),
        )
        return self._refused(reason, full)

    def _refused(self, reason: str, error: CapacityError) -> CapacityError:
        self._metrics.rejections.labels(reason).inc()
        error.reason = reason
        return error

    def expected_s(self, *, bulk: bool) -> float:
        """Seconds until a request that comes now has its turn if all tenants go first.

        Args:
            bulk: whether the request is bulk, which goes after everything.
        """
        return self._waits.behind_all(self._running_s(), bulk=bulk)

    def _running_s(self) -> float:
        """Seconds of one worker that the runs under way still take."""
        return sum(map(self.left_s, self._runs), 0.0)

    def left_s(self, run: Run) -> float:
        """Seconds that a run still takes, by the measured rates."""
        left_s = self._rates.of(run.engine).seconds(run.work) - (self._clock() - run.started)
        return max(0.0, left_s)

    def load_s(self, load: Load) -> float:
        """Seconds of one worker for all that is pending of a load."""
        return self._rates.of(load.engine).seconds(load.work) if load.n_requests else 0.0

    def add(self, ticket: Ticket) -> None:
        """Admit a request, whatever the bounds."""
        if not any(load.n_requests for load in self.waiting.bulk):
            self.bulk_since = self._clock()
        classify(ticket, self._rates.budget)
        self._tickets[ticket] = None
        name = ticket.tenant.name
        self._n_requests[name] = self._n_requests.get(name, 0) + 1
        self.waiting.add(ticket)
        self.arrived.set()

    # --- runs

    def take(self, batch: Sequence[Job], now: float) -> Run:
        """Move the jobs of a batch from their requests to a run, which must be given back."""
        by_ticket: dict[Ticket, list[Job]] = {}
        for job in batch:
            by_ticket.setdefault(job.ticket, []).append(job)
        first, work = batch[0], work_of(batch)
        accounts, by_tenant = self.waiting.accounts, dict[str | None, int]()
        leader = accounts.open(first.ticket.tenant, now)
        run = Run(
            engine=first.ticket.engine,
            work=work,
            n_tokens=sum(work.values()),
            started=now,
            has_bulk=any(ticket.bulk for ticket in by_ticket),
            is_long=first.n_tokens > first.ticket.long_tokens,
            is_probe=all(ticket.is_probe for ticket in by_ticket),
            counted=now,
            is_guest=leader.is_guest,
            by_tenant=by_tenant,
        )
        accounts.lead(leader)
        rate, starve_s = self._rates.of(run.engine), self._config.starve_s
        for ticket, jobs in by_ticket.items():
            tenant, taken = ticket.tenant, work_of(jobs)
            by_tenant[tenant.name] = by_tenant.get(tenant.name, 0) + sum(taken.values())
            self.waiting.remove(ticket)
            ticket.take(jobs, now)
            accounts.charge(accounts.open(tenant, now), rate.seconds(taken), now, starve_s)
            if ticket.pending:
                self.waiting.add(ticket)
        if run.has_bulk:
            self.bulk_since = now
        self._runs[run] = None
        return run

    def give_back(self, run: Run) -> None:
        """Count the tokens of a run as done, however the run ended."""
        del self._runs[run]
        if run.has_bulk:
            self.bulk_since = self._clock()  # a long text must not lead again as soon as it is done
        if run.is_long or run.is_guest:
            self.arrived.set()  # another worker may wait until a long text, or a guest, may run
        self.count_busy(run)

    def count_busy(self, run: Run) -> None:
        """Count the time of a run as busy, as far as that was not done before."""
        if not run.is_probe:
            now = self._clock()
            busy = self._metrics.busy_seconds.labels(run.engine.manifest.id)
            busy.inc(max(0.0, now - run.counted))
            run.counted = now

    # --- release

    def remove(self, ticket: Ticket) -> None:
        """Forget a request, if it is admitted, and drop its jobs that no run has taken."""
        if ticket not in self._tickets:
            return
        del self._tickets[ticket]
        name = ticket.tenant.name
        self._n_requests[name] -= 1
        if not self._n_requests[name]:
            del self._n_requests[name]
        self.waiting.remove(ticket)
        ticket.future.cancel()
        if (n_dropped := ticket.drop()) and not ticket.is_probe:
            self._metrics.cancellations.labels(ticket.engine.manifest.id).inc(n_dropped)

    def fail_all(self, error: Callable[[], MatryoError]) -> None:
        """End every admitted request with an error of its own.

        Nothing waits afterwards, whatever state a fault has left behind.
        """
        tickets = list(self._tickets)
        self._tickets.clear()
        self._n_requests.clear()
        self.waiting.clear()
        for ticket in tickets:
            ticket.fail(error())  # one each, because a raised error collects tracebacks
