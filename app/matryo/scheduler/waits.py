"""How long a request would wait for its turn, by the measured rates."""

from __future__ import annotations

from collections.abc import Sequence

from matryo.scheduler.config import SchedulerConfig
from matryo.scheduler.groups import Group, Load
from matryo.scheduler.jobs import Tenant
from matryo.scheduler.rates import Rates
from matryo.scheduler.waiting import Waiting


class Waits:
    """Expected waits.

    Queries go before bulk, and bulk goes first with one batch after every `starve_s`.

    Args:
        waiting: the requests with pending jobs.
        rates: of the models.
        config: of the scheduler.
    """

    def __init__(self, waiting: Waiting, rates: Rates, config: SchedulerConfig) -> None:
        self._waiting = waiting
        self._rates = rates
        self._config = config

    def behind_all(self, running_s: float, *, bulk: bool) -> float:
        """Seconds until a new request has its turn if everybody else goes first.

        Args:
            running_s: seconds of one worker that the runs under way still take.
            bulk: whether the request is bulk, which goes after everything.
        """
        return self._behind(running_s + self._seconds(self._waiting.queries), bulk=bulk)

    def of_tenant(self, tenant: Tenant, work_s: float, running_s: float, *, bulk: bool) -> float:
        """Seconds until a new request of a tenant has its turn; at most those of `behind_all`.

        Of each other tenant, only so much goes first as the weights give that tenant meanwhile,
        and as it is owed already. Looks at every tenant that waits.

        Args:
            tenant: whose request it is.
            work_s: seconds of one worker for the request.
            running_s: as for `behind_all`.
            bulk: as for `behind_all`.
        """
        accounts = self._waiting.accounts
        mine, started = accounts.find(tenant), accounts.start_of(tenant)
        own_s = 0.0
        if mine:
            own_s = self._seconds([*mine.queries, *mine.bulk] if bulk else mine.queries)
        turn = (own_s + work_s) / tenant.weight
        query_s = self._token_s(self._waiting.queries)
        bulk_s = self._token_s(self._waiting.bulk) if bulk else 0.0
        others_s = 0.0
        for other in accounts.waiting():
            if other is not mine:
                pending_s = query_s * other.query_tokens + bulk_s * other.bulk_tokens
                due_s = other.tenant.weight * (turn + max(0.0, started - other.served))
                others_s += min(pending_s, due_s)
        before_s = running_s + own_s + others_s
        fair_s = before_s / self._config.workers if bulk else self._behind(before_s, bulk=False)
        return min(fair_s, self.behind_all(running_s, bulk=bulk))

    def _behind(self, before_s: float, *, bulk: bool) -> float:
        """Seconds until a request has its turn behind so many seconds of one worker, and bulk."""
        config, bulk_s = self._config, self._seconds(self._waiting.bulk)
        if not bulk:
            turns = 1 + before_s / config.workers / config.starve_s
            bulk_s = min(bulk_s, turns * config.batch_s)
        return (before_s + bulk_s) / config.workers

    def _seconds(self, loads: Sequence[Load | Group]) -> float:
        """Seconds of one worker for all that is pending."""
        return sum(self._rates.of(load.engine).seconds(load.work) for load in loads)

    def _token_s(self, loads: Sequence[Load]) -> float:
        """Seconds of one worker for a token of all that is pending, on average."""
        n_tokens = sum(sum(load.work.values()) for load in loads)
        return self._seconds(loads) / n_tokens if n_tokens else 0.0
