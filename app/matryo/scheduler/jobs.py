"""What waits: a job is one text, a ticket the jobs of one request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from matryo.engine import Engine, TokenIds
from matryo.engine.postprocess import FloatArray

Priority = Literal["online", "bulk"]
"""Who waits for a request. A `bulk` request never counts as a query, however small it is."""


@dataclass(eq=False, frozen=True, slots=True)
class Job:
    """One distinct text of a request.

    Attributes:
        ticket: the request.
        rows: indexes of the text in the request, and of its rows in the result.
        ids: token ids, within the model's limit.
    """

    ticket: Ticket
    rows: tuple[int, ...]
    ids: TokenIds

    @property
    def n_tokens(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.ids)


class Ticket:
    """One request: its jobs, and the result as it fills. Equal texts are one job.

    Args:
        engine: the model that runs them.
        texts: ids of each text, at least one text.
        dimensions: output size of every text.
        now: the clock at admission, in seconds.
        priority: see `Priority`.

    Attributes:
        longest: tokens of the longest job.
        n_tokens: tokens of all jobs.
        pending: jobs that no run has taken yet, shortest first.
        pending_tokens: tokens of these jobs.
        arrived: the clock at admission.
        waiting_since: the clock when a run last took a job; at admission before that.
        future: the `(n, dimensions)` float32 result, rows in input order.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[TokenIds],
        dimensions: int,
        now: float,
        priority: Priority = "online",
    ) -> None:
        self.engine = engine
        self.dimensions = dimensions
        self.priority: Priority = priority
        self.arrived = now
        self.waiting_since = now
        rows: dict[bytes, list[int]] = {}
        for row, ids in enumerate(texts):
            rows.setdefault(ids.tobytes(), []).append(row)
        jobs = (Job(self, tuple(equal), texts[equal[0]]) for equal in rows.values())
        self.pending = sorted(jobs, key=lambda job: job.n_tokens)
        self.longest = self.pending[-1].n_tokens
        self.n_tokens = self.pending_tokens = sum(job.n_tokens for job in self.pending)
        self.future: asyncio.Future[FloatArray] = asyncio.get_running_loop().create_future()
        self._vectors = np.empty((len(texts), dimensions), np.float32)
        self._n_left = len(self.pending)

    @property
    def n_bytes(self) -> int:
        """Bytes of the result."""
        return self._vectors.nbytes

    @property
    def live(self) -> bool:
        """Whether somebody still waits for the result."""
        return not self.future.done()

    def take(self, jobs: Sequence[Job], now: float) -> None:
        """Move jobs out of `pending`, because a run computes them now."""
        taken = {id(job) for job in jobs}
        self.pending = [job for job in self.pending if id(job) not in taken]
        self.pending_tokens -= sum(job.n_tokens for job in jobs)
        self.waiting_since = now

    def drop(self) -> int:
        """Empty `pending`; the number of jobs that were in it."""
        dropped = len(self.pending)
        self.pending, self.pending_tokens = [], 0
        return dropped

    def deliver(self, job: Job, vector: FloatArray) -> None:
        """Write one vector into the result; the last vector completes the request."""
        if not self.live:
            return
        self._vectors[list(job.rows)] = vector
        self._n_left -= 1
        if not self._n_left:
            self.future.set_result(self._vectors)

    def fail(self, error: BaseException) -> None:
        """End the request with an error, unless it has ended."""
        if self.live:
            self.future.set_exception(error)
