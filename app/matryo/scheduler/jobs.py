"""What waits: a job is one text, a ticket the jobs of one request."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from matryo.core.tracing import NO_PASSAGE, Passage
from matryo.engine import Engine, TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler.rates import Work, length_class

Priority = Literal["online", "bulk", "batch"]
"""Who waits for a request. A `bulk` request never counts as a query, however small it is. A `batch`
request runs where nothing else would run."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Tenant:
    """For whom work is done. Tenants share the workers in proportion to their weights.

    Attributes:
        name: of the tenant; None for the one tenant of a server without keys.
        weight: over 0.
    """

    name: str | None = None
    weight: float = 1.0


ANYONE = Tenant()
"""The tenant of a server without keys, and of a service in one's own process."""


@dataclass(eq=False, frozen=True, slots=True)
class Job:
    """One distinct text of a request.

    Attributes:
        ticket: the request.
        rows: indexes of the text in the request, and of its rows in the result.
        ids: token ids, within the model's limit.
        n_tokens: number of tokens, special ones included.
    """

    ticket: Ticket
    rows: tuple[int, ...]
    ids: TokenIds
    n_tokens: int


class Ticket:
    """One request: its jobs, and the result as it fills. Equal texts are one job.

    Args:
        engine: the model that runs them.
        texts: ids of each text, at least one text.
        dimensions: output size of every text.
        now: the clock at admission, in seconds.
        priority: see `Priority`.
        request_id: names the request in the log; None for a request without a name.
        normalize: whether every vector has unit length; see `Engine.embed`.
        is_probe: whether the server itself asks, to know whether the model is well.
        tenant: for whom the request is.

    Attributes:
        number: a larger one than that of every ticket before.
        longest: tokens of the longest job.
        n_tokens: tokens of all jobs.
        pending: jobs that no run has taken yet, shortest first.
        pending_tokens: tokens of these jobs.
        work: the `Work` of these jobs; replaced whenever it changes, so that others may keep it.
        bulk: whether the request is no query. `policy.classify` sets this value and the next.
        long_tokens: a job with more tokens than this runs alone.
        arrived: the clock at admission.
        waiting_since: the clock when a run last took a job; at admission before that.
        passage: traces the stages of the request.
        future: the `(n, dimensions)` float32 result, rows in input order.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[TokenIds],
        dimensions: int,
        now: float,
        priority: Priority = "online",
        request_id: str | None = None,
        *,
        normalize: bool = True,
        is_probe: bool = False,
        tenant: Tenant = ANYONE,
    ) -> None:
        self.number = next(_numbers)
        self.engine = engine
        self.dimensions = dimensions
        self.normalize = normalize
        self.is_probe = is_probe
        self.priority: Priority = priority
        self.request_id = request_id
        self.tenant = tenant
        self.arrived = now
        self.waiting_since = now
        rows: dict[bytes, list[int]] = {}
        for row, ids in enumerate(texts):
            rows.setdefault(ids.tobytes(), []).append(row)
        distinct = ((tuple(equal), texts[equal[0]]) for equal in rows.values())
        jobs = (Job(self, equal, ids, len(ids)) for equal, ids in distinct)
        self.pending = sorted(jobs, key=lambda job: job.n_tokens)
        self.longest = self.pending[-1].n_tokens
        self.work = work_of(self.pending)
        self.n_tokens = self.pending_tokens = sum(self.work.values())
        self.bulk = False
        self.long_tokens = 0
        self.passage: Passage = NO_PASSAGE
        self.future: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self._n_rows = len(texts)
        self._n_left = len(self.pending)
        self._vectors: FloatArray | None = None

    @property
    def is_background(self) -> bool:
        """Whether every other request goes first."""
        return self.priority == "batch"

    @property
    def live(self) -> bool:
        """Whether somebody still waits for the result."""
        return not self.future.done()

    def allocate(self) -> None:
        """Make the matrix of the result, which a request that is refused never needs."""
        self._vectors = np.empty((self._n_rows, self.dimensions), np.float32)

    def take(self, jobs: Sequence[Job], now: float) -> None:
        """Move jobs out of `pending`, because a run computes them now."""
        taken = {id(job) for job in jobs}
        self.pending = [job for job in self.pending if id(job) not in taken]
        gone = work_of(jobs)
        self.work = {kind: n - gone.get(kind, 0) for kind, n in self.work.items()}
        self.pending_tokens = sum(self.work.values())
        self.waiting_since = now

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Move jobs back into `pending`, because their run was interrupted."""
        self.pending = sorted([*self.pending, *jobs], key=lambda job: job.n_tokens)
        self.work = work_of(self.pending)
        self.pending_tokens = sum(self.work.values())

    def drop(self) -> int:
        """Empty `pending`; the number of jobs that were in it."""
        dropped = len(self.pending)
        self.pending, self.pending_tokens, self.work = [], 0, {}
        return dropped

    def deliver(self, job: Job, vector: FloatArray) -> None:
        """Write one vector into the result; the last vector completes the request."""
        if not self.live:
            return
        assert self._vectors is not None, "allocate comes before the first run"
        for row in job.rows:
            self._vectors[row] = vector
        self._n_left -= 1
        if not self._n_left:
            self.future.set_result(self._vectors)

    def fail(self, error: BaseException) -> None:
        """End the request with an error, unless it has ended."""
        if self.live:
            self.future.set_exception(error)


def work_of(jobs: Iterable[Job]) -> Work:
    """The work of some jobs."""
    work: Work = {}
    for job in jobs:
        kind = length_class(job.n_tokens)
        work[kind] = work.get(kind, 0) + job.n_tokens
    return work
