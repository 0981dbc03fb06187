"""Whose turn it is: what each tenant had of the workers' time, in proportion to its weight.

The order is start-time fair queueing. Each tenant has a clock, `Account.served`: the seconds of
work that runs took of the tenant, divided by its weight. Of the tenants that wait, the one with the
lowest clock goes first. A tenant that had nothing waiting starts at the clock of the tenant that
went first last: time without a request earns nothing.

A *guest* is a tenant that had nearly its share of the workers' time of late, or more, and at least
half of what the tenant had that had most. Guests make way for the other tenants; see `policy`.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, count

from matryo.scheduler.groups import Group
from matryo.scheduler.jobs import Tenant

Rank = tuple[float, int, "Account"]
"""What accounts are sorted by: the clock of the account, its number. Numbers are unique."""

Lane = tuple[bool, bool, bool]
"""Whether requests are bulk, have long texts alone pending, and are those of a guest."""

# A tenant is a guest from this part of its share on: tenants of which each has exactly its share
# are all guests all the time, and not some of them now and then.
_NEARLY = 0.75


@dataclass(eq=False, slots=True)
class Account:
    """What one tenant had, and what of it waits.

    Attributes:
        tenant: whose account this is.
        number: a larger one than that of every account before.
        served: seconds of work that runs took, divided by the weight.
        seen_at: the clock when something of the tenant last came, ran or left.
        used_s: seconds of work that runs took, each of them fading over `Accounts.recent_s`.
        used_at: the clock when `used_s` was right.
        is_guest: whether the tenant makes way for tenants that had less of late.
        n_waiting: requests with pending jobs.
        query_tokens: of pending jobs of queries.
        bulk_tokens: of pending jobs of bulk.
        queries: the groups of queries with pending jobs, at most two for each model.
        bulk: the groups of bulk, likewise.
        ranks: the lanes in which the account is sorted, and by what.
    """

    tenant: Tenant
    number: int
    served: float
    seen_at: float
    used_s: float = 0.0
    used_at: float = 0.0
    is_guest: bool = False
    n_waiting: int = 0
    query_tokens: int = 0
    bulk_tokens: int = 0
    queries: list[Group] = field(default_factory=list[Group])
    bulk: list[Group] = field(default_factory=list[Group])
    ranks: dict[Lane, Rank] = field(default_factory=dict[Lane, Rank])

    def ahead_s(self, other: Account) -> float:
        """Seconds of work that the tenant had beyond its due, as the other tenant sees it."""
        return (self.served - other.served) * self.tenant.weight


class Accounts:
    """The accounts of tenants that have something waiting, or did something of late.

    Args:
        workers: concurrent runs.
        recent_s: seconds for which a tenant counts as active after it was last seen.
    """

    def __init__(self, workers: int, recent_s: float) -> None:
        self._capacity_s = workers * recent_s
        self._recent_s = recent_s
        self._numbers = count()
        self.clear()

    def clear(self) -> None:
        """Forget every account."""
        self._by_name: dict[str | None, Account] = {}
        # Those with nothing pending, by `seen_at`.
        self._idle: OrderedDict[Account, None] = OrderedDict()
        self._lanes: dict[Lane, list[Rank]] = {}
        self._weight = 0.0
        self._now = -math.inf
        self._clock = 0.0
        self._most_used: Account | None = None

    def waiting(self) -> Iterator[Account]:
        """The accounts of tenants that have something pending."""
        return (account for account in self._by_name.values() if account.n_waiting)

    def find(self, tenant: Tenant) -> Account | None:
        """The account of a tenant; None if the tenant did nothing of late."""
        return self._by_name.get(tenant.name)

    def part(self, tenant: Tenant) -> float:
        """The part of everything that a tenant may have beside those that are active; 0 to 1."""
        account = self.find(tenant)
        others = self._weight - (account.tenant.weight if account else 0.0)
        return tenant.weight / (tenant.weight + max(0.0, others))

    def start_of(self, tenant: Tenant) -> float:
        """The clock of a tenant if a new request of the tenant waits from now on."""
        account = self.find(tenant)
        if account is None:
            return self._clock
        return account.served if account.n_waiting else max(account.served, self._clock)

    # --- what happens

    def open(self, tenant: Tenant, now: float, *, is_new: bool = False) -> Account:
        """The account of a tenant that does something; a new one if there is none.

        Args:
            tenant: who does something.
            now: the clock.
            is_new: whether a request comes, which has the weight that counts from now on.
        """
        self._now = max(self._now, now)
        account = self._by_name.get(tenant.name)
        if account is None:
            account = Account(tenant, next(self._numbers), self._clock, self._now)
            self._by_name[tenant.name] = account
            self._idle[account] = None
            self._weight += tenant.weight
        elif is_new and account.tenant != tenant:  # the operator has changed the weight
            self._weight += tenant.weight - account.tenant.weight
            account.tenant = tenant
        self._see(account)
        while (oldest := next(iter(self._idle), None)) and self._is_past(oldest, self._now):
            del self._idle[oldest], self._by_name[oldest.tenant.name]
            self._weight -= oldest.tenant.weight
            if oldest is self._most_used:
                self._most_used = None
        return account

    def count(
        self, account: Account, change: int, n_tokens: int, *, bulk: bool, is_new: bool = False
    ) -> None:
        """Count a request that waits from now on, or one that waits no more.

        Args:
            account: of the tenant; the request has joined its group or left the group already.
            change: 1 or -1.
            n_tokens: that are pending.
            bulk: whether the request is bulk.
            is_new: whether no run has taken a job of the request.
        """
        if is_new:
            account.served = self.start_of(account.tenant)
        account.n_waiting += change
        if bulk:
            account.bulk_tokens += change * n_tokens
        else:
            account.query_tokens += change * n_tokens
        if account.n_waiting:
            self._idle.pop(account, None)
        else:
            self._idle[account] = None
        self._see(account)
        self._sort(account)

    def lead(self, account: Account) -> None:
        """Note that a tenant goes first with a batch, whose work is charged afterwards."""
        self._clock = max(self._clock, account.served)

    def charge(self, account: Account, seconds: float, now: float, most_s: float) -> None:
        """Count work that a run takes.

        Args:
            account: of the tenant whose work it is.
            seconds: of one worker.
            now: the clock.
            most_s: seconds of work that a tenant can be owed at most. A tenant is owed more if
                its work could not run for long, such as long texts beside others.
        """
        self._now = max(self._now, now)
        weight = account.tenant.weight
        account.served = max(account.served, self._clock - most_s / weight) + seconds / weight
        account.used_s = self._used_s(account) + seconds
        account.used_at = self._now
        self._see(account)
        self._sort(account)

    # --- what follows from it

    def ranked(self, *, bulk: bool, guests: bool, long_allowed: bool = True) -> Iterator[Account]:
        """Tenants with pending jobs, the one whose turn it is first; some may come twice.

        Args:
            bulk: whether the jobs are those of bulk.
            guests: whether the tenants are guests.
            long_allowed: whether tenants count that have long texts alone.
        """
        lanes = [
            lane
            for all_long in (False, True)[: 1 + long_allowed]
            if (lane := self._lanes.get((bulk, all_long, guests)))
        ]
        return (account for _, _, account in (merge(*lanes) if len(lanes) > 1 else chain(*lanes)))

    def _see(self, account: Account) -> None:
        account.seen_at = self._now
        if account in self._idle:
            self._idle.move_to_end(account)

    def _sort(self, account: Account) -> None:
        """Sort an account anew."""
        account.is_guest = len(self._by_name) > 1 and self._used_much(account)
        wanted = {(False, group.all_long, account.is_guest) for group in account.queries}
        wanted |= {(True, group.all_long, account.is_guest) for group in account.bulk}
        rank = account.served, account.number, account
        for lane, old in list(account.ranks.items()):
            if lane not in wanted or old != rank:
                ranks = self._lanes[lane]
                del ranks[bisect_left(ranks, old)]
                del account.ranks[lane]
        for lane in wanted - account.ranks.keys():
            insort(self._lanes.setdefault(lane, []), rank)
            account.ranks[lane] = rank

    def _used_much(self, account: Account) -> bool:
        """Whether a tenant had nearly its share of late, and half of the most that any had."""
        weight, used_s = account.tenant.weight, self._used_s(account)
        most = self._most_used
        if most is None or used_s / weight >= self._used_s(most) / most.tenant.weight:
            self._most_used = most = account
        most_s = self._used_s(most) / most.tenant.weight * weight
        share_s = self.part(account.tenant) * self._capacity_s
        return used_s > max(_NEARLY * share_s, most_s / 2)

    def _used_s(self, account: Account) -> float:
        """Seconds that a tenant used of late."""
        return account.used_s * math.exp((account.used_at - self._now) / self._recent_s)

    def _is_past(self, account: Account, now: float) -> bool:
        return now - account.seen_at > self._recent_s
