"""The requests with jobs to run, by tenant, model and kind.

A request that comes or goes costs a binary search in a few sorted lists: `insort` and `del` move
pointers behind the index, which takes a microsecond for thousands of requests. No call looks at
every request, or at every tenant.
"""

from __future__ import annotations

from matryo.engine import Engine
from matryo.scheduler.accounts import Account, Accounts
from matryo.scheduler.groups import Entry, Group, Load
from matryo.scheduler.jobs import Ticket
from matryo.scheduler.rates import Work


class Waiting:
    """Classified tickets with pending jobs. A ticket that changes leaves first and comes again.

    Args:
        workers: concurrent runs.
        recent_s: see `Accounts`.

    Attributes:
        accounts: of the tenants.
        queries: the work of queries, by model.
        bulk: the work of bulk, by model.
        n_tokens: of all pending jobs.
        n_probe_tokens: of those among them that no caller waits for.
    """

    def __init__(self, workers: int = 1, recent_s: float = 10.0) -> None:
        self.accounts = Accounts(workers, recent_s)
        self.queries: list[Load] = []
        self.bulk: list[Load] = []
        self.n_tokens = self.n_probe_tokens = 0
        # Account, group, load, entries, work and texts of each ticket as they were when it came.
        self._places: dict[Ticket, tuple[Account, Group, Load, Entry, Entry, Work, int]] = {}

    def __len__(self) -> int:
        """Number of tickets that wait."""
        return len(self._places)

    def add(self, ticket: Ticket) -> None:
        """Let a ticket with pending jobs wait."""
        n_tokens = ticket.pending_tokens
        is_new = n_tokens == ticket.n_tokens
        account = self.accounts.open(ticket.tenant, ticket.waiting_since, is_new=is_new)
        group = _group(account, ticket)
        load = _load(self.bulk if ticket.bulk else self.queries, ticket.engine)
        size = ticket.pending_tokens, ticket.number, ticket
        age = ticket.waiting_since, ticket.number, ticket
        n_texts = 0 if ticket.is_probe else len(ticket.pending)
        self._places[ticket] = account, group, load, size, age, ticket.work, n_texts
        group.add(size, age, ticket.work, n_texts)
        load.count(ticket.work, n_texts, 1)
        self.n_tokens += n_tokens
        if ticket.is_probe:
            self.n_probe_tokens += n_tokens
        self.accounts.count(account, 1, n_tokens, bulk=ticket.bulk, is_new=is_new)

    def remove(self, ticket: Ticket) -> None:
        """Let a ticket wait no more; nothing happens if it does not wait."""
        place = self._places.pop(ticket, None)
        if place is None:
            return
        account, group, load, size, age, work, n_texts = place
        group.remove(size, age, work, n_texts)
        load.count(work, n_texts, -1)
        n_tokens = sum(work.values())
        self.n_tokens -= n_tokens
        if ticket.is_probe:
            self.n_probe_tokens -= n_tokens
        if not group.by_size:
            (account.bulk if ticket.bulk else account.queries).remove(group)
        self.accounts.count(account, -1, n_tokens, bulk=ticket.bulk)

    def clear(self) -> None:
        """Forget every ticket."""
        self.accounts.clear()
        self.queries.clear()
        self.bulk.clear()
        self._places.clear()
        self.n_tokens = self.n_probe_tokens = 0


def _group(account: Account, ticket: Ticket) -> Group:
    """The group of a tenant that a ticket belongs to."""
    groups = account.bulk if ticket.bulk else account.queries
    all_long = ticket.pending[0].n_tokens > ticket.long_tokens
    for group in groups:
        if group.engine is ticket.engine and group.all_long is all_long:
            return group
    groups.append(Group(ticket.engine, all_long=all_long))
    return groups[-1]


def _load(loads: list[Load], engine: Engine) -> Load:
    """The work that waits for a model."""
    for load in loads:
        if load.engine is engine:
            return load
    loads.append(Load(engine))
    return loads[-1]
