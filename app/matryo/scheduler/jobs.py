"""What waits: a job is one text, a ticket the jobs of one request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matryo.engine import Engine, TokenIds
from matryo.engine.postprocess import FloatArray


@dataclass(eq=False, frozen=True, slots=True)
class Job:
    """One distinct text of a request.

    Attributes:
        rows: its places in the request, and its rows in the result.
        ids: its tokens, within the model's limit.
    """

    ticket: Ticket
    rows: tuple[int, ...]
    ids: TokenIds

    @property
    def n_tokens(self) -> int:
        """Tokens, special ones included."""
        return len(self.ids)


class Ticket:
    """One request: its jobs, and the result as it fills. Equal texts are one job.

    Args:
        engine: the model that runs them.
        texts: ids of each text, at least one.
        dimensions: output size of all of them.
        now: the clock at admission, in seconds.

    Attributes:
        longest: tokens of the longest job.
        n_tokens: of all jobs.
        pending: jobs that do not run yet, shortest first.
        waiting_since: when it was admitted or last had a job taken, whichever is later.
        future: the `(n, dimensions)` float32 result, rows in input order.
    """

    def __init__(
        self, engine: Engine, texts: Sequence[TokenIds], dimensions: int, now: float
    ) -> None:
        self.engine = engine
        self.dimensions = dimensions
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
        """Whether anybody still waits for the result."""
        return not self.future.done()

    def take(self, jobs: Sequence[Job], now: float) -> None:
        """Move jobs out of `pending`: they run now."""
        taken = {id(job) for job in jobs}
        self.pending = [job for job in self.pending if id(job) not in taken]
        self.pending_tokens -= sum(job.n_tokens for job in jobs)
        self.waiting_since = now

    def deliver(self, job: Job, vector: FloatArray) -> None:
        """Put one result in its rows; the last one completes the request."""
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
