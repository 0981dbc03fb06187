"""Who is admitted, and how long a request would wait.

A request over a bound is refused whole, before it waits. A tenant beside others is admitted up to
its share where the bound is reached; see docs/fairness.md. Batch requests are never refused for a
bound: they count toward none, and no other request waits for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from matryo.core.errors import CapacityError, Overloaded, Stopping, WaitTooLong
from matryo.core.metrics import Metrics
from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.groups import Load
from matryo.scheduler.jobs import ANYONE, Priority, Tenant, Ticket
from matryo.scheduler.policy import is_bulk
from matryo.scheduler.rates import Rates
from matryo.scheduler.runs import Run, Runs
from matryo.scheduler.waiting import Waiting
from matryo.scheduler.waits import Waits


class Admission:
    """The bounds of a queue, and what its requests hold of them.

    Args:
        waiting: the online and bulk requests with pending jobs.
        runs: under way.
        rates: of the models.
        config: of the scheduler.
        metrics: what is counted.
        clock: monotonic seconds.

    Attributes:
        draining: nothing more is admitted.
    """

    def __init__(
        self,
        waiting: Waiting,
        runs: Runs,
        rates: Rates,
        config: SchedulerConfig,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._waiting = waiting
        self._runs = runs
        self._rates = rates
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._waits = Waits(waiting, rates, config)
        self._by_tenant: dict[str | None, int] = {}  # admitted requests, by the tenant's name
        self._n_requests = 0
        self.draining = False

    @property
    def n_tokens(self) -> int:
        """Tokens that are admitted and not computed, apart from those of batch requests."""
        return self._waiting.n_tokens + self._runs.n_tokens

    def count(self, tenant: Tenant, change: int) -> None:
        """Count a request that was admitted, or one that leaves.

        Args:
            tenant: whose request it is.
            change: 1 or -1.
        """
        self._n_requests += change
        left = self._by_tenant.get(tenant.name, 0) + change
        if left:
            self._by_tenant[tenant.name] = left
        else:
            del self._by_tenant[tenant.name]

    def clear(self) -> None:
        """Forget every request."""
        self._by_tenant.clear()
        self._n_requests = 0

    # --- bounds

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
        n_mine, n_all = self._by_tenant.get(tenant.name, 0), self._n_requests
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
        part = self._waiting.accounts.part(tenant)
        has_share = part < 1 and (not held or held + requested <= part * limit)
        return not (has_share and total + requested <= 2 * limit)

    def _tokens_of(self, tenant: Tenant) -> int:
        """Tokens of a tenant that are admitted and not computed."""
        account = self._waiting.accounts.find(tenant)
        n_tokens = account.query_tokens + account.bulk_tokens if account else 0
        return n_tokens + sum(
            run.by_tenant.get(tenant.name, 0) for run in self._runs if not run.is_background
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

    # --- waits

    def expected_s(self, *, bulk: bool) -> float:
        """Seconds until a request that comes now has its turn if all tenants go first.

        Args:
            bulk: whether the request is bulk, which goes after everything.
        """
        return self._waits.behind_all(self._running_s(), bulk=bulk)

    def _running_s(self) -> float:
        """Seconds of one worker that the runs under way still take."""
        return sum((self.left_s(run) for run in self._runs if not run.is_background), 0.0)

    def left_s(self, run: Run) -> float:
        """Seconds that a run still takes, by the measured rates."""
        left_s = self._rates.of(run.engine).seconds(run.work) - (self._clock() - run.started)
        return max(0.0, left_s)

    def load_s(self, load: Load) -> float:
        """Seconds of one worker for all that is pending of a load."""
        return self._rates.of(load.engine).seconds(load.work) if load.n_requests else 0.0
