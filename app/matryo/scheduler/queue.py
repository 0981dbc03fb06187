"""The admitted requests: what of them waits and runs, what runs next, and when a request leaves.

The invariant: a job that was admitted is pending (`Queue.waiting`, or `Queue.background`), or in a
run that has taken it and not given it back, or gone. Tokens and seconds are sums over these, never
counted beside them.

Batch requests, for which nobody waits at a connection, are the background. Runs of the background
begin where nothing else runs, and are interrupted when an online request comes. Batch requests are
bounded by whoever sends them; see `admission`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from matryo.core.errors import MatryoError
from matryo.core.metrics import Metrics
from matryo.engine import Interrupt
from matryo.scheduler.accounts import Account
from matryo.scheduler.admission import Admission
from matryo.scheduler.arrivals import Arrivals
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.jobs import Job, Ticket, work_of
from matryo.scheduler.policy import classify, next_batch
from matryo.scheduler.rates import Rates
from matryo.scheduler.runs import Choice, Run, Runs
from matryo.scheduler.waiting import Waiting


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
        admission: says who is admitted.
        bulk_since: the clock when a run last had bulk, or when bulk began to wait.
        background_since: the same of batch requests, of which a run that ended counts.
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
        self.runs = Runs()
        self.waiting = Waiting(config.workers, config.recent_s)
        self.background = Waiting(config.workers, config.recent_s)
        self.admission = Admission(self.waiting, self.runs, rates, config, metrics, clock)
        # Requests that interrupt batch requests, and those of them that interrupt guests.
        self._online, self._before_guests = Arrivals(config.recent_s), Arrivals(config.recent_s)
        self.bulk_since = self.background_since = 0.0
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        """Number of admitted requests."""
        return len(self._tickets)

    # --- arrival

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
            self.admission.count(ticket.tenant, 1)
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
            self.admission.count(ticket.tenant, -1)
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
        self.admission.clear()
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
