"""Who is admitted, what runs next, and when a request leaves.

The invariant: a job that was admitted is pending (`Queue.waiting`, or `Queue.background`), or in a
run that has taken it and not given it back, or gone. Tokens and seconds are sums over these, never
counted beside them.

Batch requests, for which nobody waits at a connection, are the background. Runs of the background
begin where nothing else runs, and are interrupted when an online request comes. Batch requests are
bounded by whoever sends them: they count toward no bound, and no other request waits for them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from matryo.core.errors import CapacityError, MatryoError, Overloaded, Stopping, WaitTooLong
from matryo.core.metrics import Metrics
from matryo.engine import Interrupt
from matryo.scheduler.accounts import Account
from matryo.scheduler.arrivals import Arrivals
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.groups import Load
from matryo.scheduler.jobs import ANYONE, Job, Priority, Tenant, Ticket, work_of
from matryo.scheduler.policy import classify, is_bulk, next_batch
from matryo.scheduler.rates import Rates
from matryo.scheduler.runs import Choice, Run, Runs
from matryo.scheduler.waiting import Waiting
from matryo.scheduler.waits import Waits


class Queue:
    """The admitted requests. All of it belongs to the event loop.

    Args:
        rates: of the models.
        config: of the scheduler.
        metrics: what is counted.
        clock: monotonic seconds.

    Attributes:
        waiting: the online and bulk requests with pending jobs.
        background: the batch requests with pending jobs.
        runs: under way.
        bulk_since: the clock when a run last had bulk, or when bulk began to wait.
        background_since: the same of batch requests, of which a run that ended counts.
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
        # Admitted and no batch requests, by the name of the tenant.
        self._n_requests: dict[str | None, int] = {}
        self._n_online = 0
        self.runs = Runs()
        self.waiting = Waiting(config.workers, config.recent_s)
        self.background = Waiting(config.workers, config.recent_s)
        self._waits = Waits(self.waiting, rates, config)
        # Requests that interrupt batch requests, and those of them that interrupt guests.
        self._online, self._before_guests = Arrivals(config.recent_s), Arrivals(config.recent_s)
        self.bulk_since = self.background_since = 0.0
        self.draining = False
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        """Number of admitted requests."""
        return len(self._tickets)

    @property
    def n_tokens(self) -> int:
        """Tokens that are admitted and not computed, apart from those of batch requests."""
        return self.waiting.n_tokens + self.runs.n_tokens

    # --- admission

    def check_room(
        self,
        tenant: Tenant = ANYONE,
        *,
        priority: Priority = "online",
        patience_s: float | None = None,
    ) -> None:
        """Refuse a request whose texts are not known yet, if there is no room for the smallest.

        Raises:
            Stopping: draining.
            Overloaded: the queue is full, or the wait too long.
        """
        if not self._is_idle() and priority != "batch":
            self._check_bounds(tenant, 1)
            self._check_wait(tenant, 0.0, 1, bulk=priority == "bulk", patience_s=patience_s)

    def check(self, ticket: Ticket, patience_s: float | None = None) -> None:
        """Refuse a request, if there is no room for all of it.

        Args:
            ticket: the request, not admitted yet.
            patience_s: seconds that its caller still waits; None if the caller did not say.

        Raises:
            Stopping: draining.
            Overloaded: the queue is full, or the wait too long.
        """
        if self._is_idle() or ticket.is_background:
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
        n_mine, n_all = self._n_requests.get(tenant.name, 0), self._n_online
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
        return n_tokens + sum(
            run.by_tenant.get(tenant.name, 0) for run in self.runs if not run.is_background
        )

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
        return sum((self.left_s(run) for run in self.runs if not run.is_background), 0.0)

    def left_s(self, run: Run) -> float:
        """Seconds that a run still takes, by the measured rates."""
        left_s = self._rates.of(run.engine).seconds(run.work) - (self._clock() - run.started)
        return max(0.0, left_s)

    def load_s(self, load: Load) -> float:
        """Seconds of one worker for all that is pending of a load."""
        return self._rates.of(load.engine).seconds(load.work) if load.n_requests else 0.0

    def add(self, ticket: Ticket) -> None:
        """Admit a request, whatever the bounds."""
        now = self._clock()
        classify(ticket, self._rates.budget)
        self._tickets[ticket] = None
        if ticket.is_background:
            if not len(self.background):
                self.background_since = now
            self.background.add(ticket)
        else:
            if not any(load.n_requests for load in self.waiting.bulk):
                self.bulk_since = now
            name = ticket.tenant.name
            self._n_requests[name] = self._n_requests.get(name, 0) + 1
            self._n_online += 1
            self.waiting.add(ticket)
            self._make_way(ticket, now)
        self.arrived.set()

    def _make_way(self, ticket: Ticket, now: float) -> None:
        """Interrupt the runs that a request which has come goes before."""
        account = self.waiting.accounts.find(ticket.tenant)
        if ticket.is_probe or account is None:
            return
        self._online.count(now)
        if not account.is_guest:
            self._before_guests.count(now)
        for run in self.runs:
            if run.interrupt and (run.is_background or self._passes(account, run)):
                run.interrupt.set()

    def _passes(self, account: Account, run: Run) -> bool:
        """Whether a tenant that has sent a request goes before a guest that leads a run."""
        ahead_s = (account.served - run.leader_served) * account.tenant.weight
        return not account.is_guest and ahead_s <= self._config.starve_s

    # --- runs

    def choose(self, now: float) -> Choice | None:
        """What a worker that has nothing to do shall run; None for nothing."""
        if self.runs.is_clearing:
            return None
        online = self._choose_online(now)
        if not len(self.background):
            return online
        batch = self._next_batch(self.background, now, self._online, yields=True)
        if not batch:
            return online
        if not online and not self.runs.is_online:
            return Choice(batch, Interrupt())
        # Beside endless online work the background has its part, which nobody interrupts.
        run_s = self._rates.of(batch[0].ticket.engine).seconds(work_of(batch))
        pause_s = run_s / (self._config.background_share * self._config.workers)
        return Choice(batch) if now - self.background_since >= pause_s else online

    def _choose_online(self, now: float) -> Choice | None:
        if not len(self.waiting):
            return None
        batch = self._next_batch(self.waiting, now, self._before_guests)
        if not batch:
            return None
        first = batch[0]
        leader = self.waiting.accounts.find(first.ticket.tenant)
        yields = leader and leader.is_guest and first.n_tokens <= first.ticket.long_tokens
        return Choice(batch, Interrupt() if yields else None)

    def _next_batch(
        self, waiting: Waiting, now: float, arrivals: Arrivals, *, yields: bool = False
    ) -> list[Job]:
        """The batch that the policy chooses.

        Args:
            waiting: the requests to choose from.
            now: the clock.
            arrivals: of requests that interrupt runs of guests.
            yields: whether they interrupt every run.
        """
        return next_batch(
            waiting,
            self._rates.budget,
            self._config,
            now=now,
            bulk_since=self.bulk_since,
            long_allowed=self.runs.n_long < max(1, self._config.workers // 2),
            # The clocks of the background's tenants are their own.
            before=() if waiting is self.background else self.runs.leaders(),
            gap_s=arrivals.gap_s(now),
            yields=yields,
            is_idle=len(self.runs) + 1 < self._config.workers,
        )

    def take(self, choice: Choice, now: float) -> Run:
        """Move the jobs of a choice from their requests to a run, which must be given back."""
        first, work = choice.jobs[0], work_of(choice.jobs)
        by_ticket, by_tenant = _by_ticket(choice.jobs), dict[str | None, int]()
        waiting = self._place(first.ticket)
        accounts = waiting.accounts
        leader = accounts.open(first.ticket.tenant, now)
        run = Run(
            engine=first.ticket.engine,
            jobs=choice.jobs,
            work=work,
            n_tokens=sum(work.values()),
            started=now,
            has_bulk=any(ticket.bulk for ticket in by_ticket),
            is_long=first.n_tokens > first.ticket.long_tokens,
            is_probe=all(ticket.is_probe for ticket in by_ticket),
            counted=now,
            is_background=first.ticket.is_background,
            by_tenant=by_tenant,
            leader=leader,
            leader_served=leader.served,
            interrupt=choice.interrupt,
        )
        accounts.lead(leader)
        rate, starve_s = self._rates.of(run.engine), self._config.starve_s
        for ticket, jobs in by_ticket.items():
            tenant, taken = ticket.tenant, work_of(jobs)
            by_tenant[tenant.name] = by_tenant.get(tenant.name, 0) + sum(taken.values())
            waiting.remove(ticket)
            ticket.take(jobs, now)
            accounts.charge(accounts.open(tenant, now), rate.seconds(taken), now, starve_s)
            if ticket.pending:
                waiting.add(ticket)
        if run.has_bulk and not run.is_background:
            self.bulk_since = now
        self.runs.begin(run)
        return run

    def put_back(self, run: Run) -> None:
        """Let the jobs of a run wait again, which was interrupted and is not given back yet.

        Nobody is charged. A guest whose runs are all interrupted is soon no guest any more, so that
        none is.
        """
        now, rate = self._clock(), self._rates.of(run.engine)
        for ticket, jobs in _by_ticket(run.jobs).items():
            waiting = self._place(ticket)
            account = waiting.accounts.open(ticket.tenant, now)
            seconds = rate.seconds(work_of(jobs))
            waiting.accounts.charge(account, -seconds, now, self._config.starve_s)
            if ticket in self._tickets:
                waiting.remove(ticket)
                ticket.put_back(jobs)
                waiting.add(ticket)

    def give_back(self, run: Run) -> None:
        """Count the tokens of a run as done, however the run ended."""
        self.runs.end(run)
        if run.is_background:
            if not run.is_interrupted:
                self.background_since = self._clock()
        elif run.has_bulk:
            self.bulk_since = self._clock()  # a long text must not lead again as soon as it is done
        if len(self.waiting) or len(self.background):
            # Another worker may wait for the end of this run: until a long text may run, or a
            # guest, or a batch request.
            self.arrived.set()
        self.count_busy(run)

    def _place(self, ticket: Ticket) -> Waiting:
        """Where a request waits."""
        return self.background if ticket.is_background else self.waiting

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
        if not ticket.is_background:
            self._n_online -= 1
            name = ticket.tenant.name
            self._n_requests[name] -= 1
            if not self._n_requests[name]:
                del self._n_requests[name]
        self._place(ticket).remove(ticket)
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
        self._n_online = 0
        self.waiting.clear()
        self.background.clear()
        for ticket in tickets:
            ticket.fail(error())  # one each, because a raised error collects tracebacks


def _by_ticket(jobs: Sequence[Job]) -> dict[Ticket, list[Job]]:
    """The jobs of each request."""
    by_ticket: dict[Ticket, list[Job]] = {}
    for job in jobs:
        by_ticket.setdefault(job.ticket, []).append(job)
    return by_ticket
